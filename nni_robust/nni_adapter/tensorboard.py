"""Where NNI's web UI looks for a trial's TensorBoard files.

Its documentation says ``$NNI_OUTPUT_DIR/tensorboard``, but NNI 3.0's local trials have that
variable on ``environments/ENVIRONMENT/trials/TRIAL`` of the experiment, and the web UI's button
opens ``trials/TRIAL/output/tensorboard`` (https://github.com/microsoft/nni/issues/5609).
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["trial_tensorboard"]


def trial_tensorboard() -> Path | None:
    """The folder for event files of the trial that this process is; None outside of trials."""
    output, trial = os.environ.get("NNI_OUTPUT_DIR"), os.environ.get("NNI_TRIAL_JOB_ID")
    if not output or not trial:
        return None
    folder = Path(output)
    if folder.parts[-4:-2] == ("environments", "local-env") and folder.name == trial:
        return folder.parents[3] / "trials" / trial / "output" / "tensorboard"
    return folder / "tensorboard"
