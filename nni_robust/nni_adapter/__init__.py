"""The one place that touches NNI's private names: repairs of NNI 3.0 and our experiment class.

==========================  ========================================================================
`channel`                   trials get the parameters recorded for them (NNI issue 5693)
`spaces`                    readable parameters in the web UI instead of ``[object Object]``
`experiment`                :class:`RobustNasExperiment`: both of the above; a patient start of the
                            node manager; resume commands that do not kill the listener; results of
                            finished trials replayed from the store
==========================  ========================================================================

Found with NNI 3.0; :func:`check_version` refuses others, because every repair below was only tried
there.
"""

from __future__ import annotations

from importlib.metadata import version

from nni_robust.errors import UserError

__all__ = ["TRIAL_SCRIPT", "check_version"]

#: Holds a trial's command, in the folder of the trial code. The web UI's overview is as wide as the
#: command is long, and ours fills three lines.
TRIAL_SCRIPT = ".nni-robust-trial.sh"


def check_version() -> None:
    """Refuse an NNI whose internals these repairs were not tried on.

    Raises
    ------
    UserError
        If the installed NNI is not 3.0.x.
    """
    found = version("nni")
    if not found.startswith("3.0"):
        raise UserError(f"nni {found} is installed; nni-robust works with nni 3.0")
