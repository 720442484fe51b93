"""What goes between tuner and trials of an ``nnictl`` experiment; what such a trial runs.

A trial is ``python -m nni_robust.nni_adapter.job STORE``. Its parameters name a job file of the
store, which holds the model as NNI serialises it for its own NAS trials.

Imports stay light: NNI gives a tuner's process ten seconds from start to connection.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nni

from nni_robust._allocator import keep_freed_memory
from nni_robust.errors import UserError
from nni_robust.store import open_store

__all__ = ["JOB", "JOBS", "Deferred", "refuse_pickle", "run_job"]

#: Of a trial's parameters: the name of its job file.
JOB = "job"
#: Where the job files are in the store.
JOBS = "jobs"


class Deferred(list[dict[str, Any]]):
    """Parameters of which some come later.

    NNI's dispatcher takes a shorter list as the end of the search and tells the manager so; it
    compares lengths only, and sends what the list holds.
    """

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.asked = asked

    def __len__(self) -> int:
        return self.asked


def refuse_pickle(text: str, what: str) -> None:
    """Refuse NNI's serial form of something where it holds a pickle.

    NNI pickles what it cannot name by an importable path, such as a class of the main script.

    Raises
    ------
    UserError
        If it does.
    """
    if '"bytes:' in text or "__nni_obj__" in text:
        raise UserError(
            f"{what} holds a pickle, which nni-robust neither writes nor reads; spaces and "
            "evaluators must be importable by name and their arguments plain values"
        )


def run_job(store: Path) -> None:
    """Evaluate the model of this trial's parameters and report to NNI.

    Parameters
    ----------
    store
        Folder of the store, where trials reach it as files.

    Raises
    ------
    UserError
        If there is no such job, or the file holds a pickle.
    """
    parameters = nni.get_next_parameter()
    path = open_store(store).file(JOBS, f"{parameters[JOB]}.json")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(
            f"no job file '{path}'; trials on other machines need the run folder at the same path, "
            "or nni.store: http"
        ) from None
    refuse_pickle(text, f"'{path}'")
    nni.load(text).execute()


if __name__ == "__main__":
    keep_freed_memory()
    try:
        run_job(Path(sys.argv[1]))
    except UserError as e:
        sys.exit(f"error: {e}")
