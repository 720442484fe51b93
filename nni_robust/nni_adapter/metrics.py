"""A trial's final metrics in a form that NNI's web UI can offer for choice.

The UI of NNI 3.0 lists, for all trials, the numeric keys of the *first* trial with a result, and
draws what another trial lacks as zero. The first trial of a weight-sharing search is the
supernet's, which has neither clean accuracy nor MACs, so nobody could choose them. Here every trial
tells the same figures first; the run folder keeps only those that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["shown_metrics"]

_COMMON = ("clean", "macs", "params", "seconds")


def shown_metrics(metrics: Mapping[str, Any], *, attacked: bool) -> dict[str, Any]:
    """The figures that every trial has, then the trial's own.

    Parameters
    ----------
    metrics
        A trial's final metrics, with ``"default"``.
    attacked
        Whether ``default`` is accuracy under attack, which is then told as ``robust`` as well.

    Returns
    -------
    `metrics`, and ``robust``, ``clean``, ``macs``, ``params`` and ``seconds`` where they lack: 0,
    as the UI draws what is missing.
    """
    common = {name: metrics.get(name, 0.0) for name in _COMMON}
    robust = metrics["default"] if attacked else 0.0
    return {"default": metrics["default"], "robust": robust, **common, **metrics}
