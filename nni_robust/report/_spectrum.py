"""Figures over a spectrum of strengths: robustness of networks, and noise of estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nni_robust.report._style import GREY, SERIES, decorate, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nni_robust.spectrum import Spectrum

__all__ = ["plot_estimates", "plot_spectra"]


def plot_spectra(spectra: Mapping[str, Spectrum], *, norm: str = "linf") -> Figure:
    """Draw accuracy and mean loss over the strengths, one line per network.

    Parameters
    ----------
    spectra
        By the names of the legend, which also says each area under the curve.
    norm
        ``"linf"`` or ``"l2"``.
    """
    canvas = figure(10.4, 4.0)
    symbol = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
    left, right = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    axis = f"eps (pixel units, {symbol})"
    decorate(left, "Accuracy over strengths", axis, "accuracy (%)")
    decorate(right, "Loss over strengths", axis, "mean cross entropy (lower bound)")
    for k, (name, one) in enumerate(spectra.items()):
        accuracy = {0.0: one.clean, **one.accuracy}
        label = f"{plain(name)} (area {one.auc:.1%})"
        _line(left, k, list(accuracy), [100 * a for a in accuracy.values()], label)
        _line(right, k, list(one.losses), list(one.losses.values()), label)
    left.set_ylim(-2, 102)
    _legend(canvas, left)
    return canvas


def plot_estimates(
    error: Mapping[str, Mapping[float, Sequence[float]]],
    accuracy: Mapping[str, Mapping[float, Sequence[float]]],
) -> Figure:
    """Draw how far estimated noise is from real noise, one line per estimator.

    Parameters
    ----------
    error
        Relative L2 errors of each estimator at each eps, one number per repetition.
    accuracy
        Accuracy on estimated less accuracy on real noise, in [-1, 1], likewise.
    """
    canvas = figure(10.4, 4.0)
    left, right = canvas.add_subplot(1, 2, 1), canvas.add_subplot(1, 2, 2)
    decorate(left, "Distance from real noise", "eps (pixel units)", "relative L2 error")
    decorate(right, "Weaker than real noise by", "eps (pixel units)", "accuracy (points)")
    right.axhline(0, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    for axes, found, scale in ((left, error, 1.0), (right, accuracy, 100.0)):
        for k, (name, values) in enumerate(found.items()):
            means = [scale * sum(v) / len(v) for v in values.values()]
            _line(axes, k, list(values), means, plain(name))
            for eps, repeated in values.items():
                axes.plot(
                    [eps, eps], [scale * min(repeated), scale * max(repeated)],
                    color=SERIES[k % len(SERIES)][0], linewidth=1.0, alpha=0.6,
                )  # fmt: skip
    left.set_ylim(bottom=0)
    _legend(canvas, left)
    return canvas


def _line(axes: Axes, k: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    colour, marker, style = SERIES[k % len(SERIES)]
    axes.plot(
        x, y, color=colour, marker=marker, linestyle=style, markersize=5, linewidth=1.7, label=label
    )


def _legend(canvas: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
