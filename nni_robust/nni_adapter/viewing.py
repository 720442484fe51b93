"""NNI's web UI of an experiment that has ended, whichever door it was started through.

``nnictl view`` fails on NAS experiments (NNI 3.0: ``search_space`` "can not be customized", and the
trial code's directory must be the current one), and it knows only experiments of this user's home.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nni.experiment import Experiment, RunMode, launcher
from nni.experiment.config import ExperimentConfig

from nni_robust.errors import UserError
from nni_robust.nni_adapter import check_version
from nni_robust.nni_adapter.experiment import _START_PATIENCE, _swapped

__all__ = ["start_view"]

#: What makes a stored configuration one of a NAS experiment, which nobody can load again.
_NAS = ("experimentType", "executionEngine", "modelFormat", "trialCommandParams")


def start_view(experiment_id: str, folder: Path, port: int) -> Experiment:
    """Serve the web UI of a stored experiment; no trial is started.

    Parameters
    ----------
    experiment_id
        NNI's id.
    folder
        NNI's working directory, with a folder of that name.
    port
        Of the web server.

    Returns
    -------
    NNI's experiment; `stop` ends the server.

    Raises
    ------
    UserError
        If the folder holds no such experiment, or NNI refuses what it holds.
    """
    check_version()
    if not (folder / experiment_id / "db" / "nni.sqlite").is_file():
        raise UserError(f"'{folder}' holds no data of NNI experiment {experiment_id}")
    stored: dict[str, Any] = launcher.get_stopped_experiment_config_json(experiment_id, str(folder))
    stored = {key: value for key, value in stored.items() if key not in _NAS}
    stored["experimentWorkingDirectory"] = str(folder)
    stored["tuner"] = {"name": "Random"}  # NNI wants one; it is not started
    try:
        experiment = Experiment(ExperimentConfig(**stored), id=experiment_id)
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(
            f"NNI does not read its configuration of {experiment_id} in '{folder}': {e}"
        ) from e
    experiment._action = "view"
    check = launcher._check_rest_server

    def patient(port: int, retry: int = _START_PATIENCE, url_prefix: str | None = None) -> None:
        check(port, retry, url_prefix)

    with _swapped(launcher, "_check_rest_server", patient):
        # Detached, the manager writes to its own log and not to this terminal.
        experiment.start(port, run_mode=RunMode.Detach)
    return experiment
