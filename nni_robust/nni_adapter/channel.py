"""Every trial gets the parameters that NNI's manager recorded for it.

NNI 3.0 keeps submitted parameters in one queue and hands the next to whichever trial asks first.
With two trials starting together the pairs are often swapped
(https://github.com/microsoft/nni/issues/5693), so that the web UI, the export and the strategy
credit the wrong architecture. NNI lets a trial's channel be replaced through an environment
variable; this one takes an entry off the queue, as the manager expects, but uses the one recorded
for its own trial id.

Imports stay light: every trial process loads this module.
"""

from __future__ import annotations

import json
import os
import time
import urllib.parse
from pathlib import Path
from typing import Any

import nni
import requests
from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3

__all__ = ["TRIAL_ENVIRONMENT", "BoundChannel"]

#: Put in front of a trial command; bash expands the variable on the trial's machine.
TRIAL_ENVIRONMENT = (
    "NNI_ROBUST_CHANNEL=$NNI_TRIAL_COMMAND_CHANNEL "
    "NNI_TRIAL_COMMAND_CHANNEL=import://nni_robust.nni_adapter.channel.BoundChannel"
)

_PATIENCE = 60.0  # seconds; a record can appear a little after the trial's start


def _manager_url() -> str:
    """``http://host:port[/prefix]`` of the manager, as seen from this trial."""
    keeper = Path(os.environ["NNI_OUTPUT_DIR"]).parents[1] / "trial_keeper" / "launcher_config.json"
    if keeper.is_file():  # remote: the trial's own channel ends at the trial keeper
        channel = json.loads(keeper.read_text())["managerCommandChannel"]
    else:
        channel = os.environ["NNI_ROBUST_CHANNEL"]
    url = urllib.parse.urlsplit(channel)
    prefix = url.path.split("/platform/")[0].split("/env/")[0]
    return f"http://{url.netloc}{prefix}"


class BoundChannel(TrialCommandChannelV3):
    """NNI's trial channel, bound to the trial's own parameters."""

    def __init__(self) -> None:
        super().__init__(os.environ["NNI_ROBUST_CHANNEL"])

    def receive_parameter(self) -> Any:
        """The parameter record of this trial.

        Raises
        ------
        RuntimeError
            If the manager does not tell within a minute which parameters belong to this trial.
            Going on with whatever came off the queue would credit the result to another
            architecture.
        """
        super().receive_parameter()  # takes one off the manager's queue, whosever it is
        trial = os.environ["NNI_TRIAL_JOB_ID"]
        url = f"{_manager_url()}/api/v1/nni/trial-jobs/{trial}"
        problem = "no answer"
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                reply = requests.get(url, timeout=5)
                reply.raise_for_status()
                return nni.load(reply.json()["hyperParameters"][0])
            except (requests.RequestException, ValueError, KeyError, IndexError) as e:
                problem = f"{type(e).__name__}: {e}"
            time.sleep(0.1)
        raise RuntimeError(f"{url} did not tell the parameters of trial {trial}: {problem}")
