"""After a search on RobNet's cells: the study of its candidates, as data and as three sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nni_robust.analysis import load_study, robnet_topology, study_findings, to_csv
from nni_robust.errors import UserError
from nni_robust.store import read_records, write_json

__all__ = ["FEWEST", "write_findings"]

#: Candidates below which nothing is said (a correlation of fewer is not computed at all).
FEWEST = 10


def write_findings(run: Path, seed: int, report: Callable[[str], None]) -> None:
    """Write ``study.csv`` and ``findings.json`` where the candidates have a RobNet code.

    A search does not fail because nothing can be said about its candidates: then `report` gets the
    reason, and nothing is written.

    Parameters
    ----------
    run
        Run folder with ``candidates.jsonl``.
    seed
        Of everything drawn, such as the bootstrap.
    report
        Takes one line.
    """
    try:
        records = [r for r in read_records(run / "candidates.jsonl") if _counts(r)]
        if len(records) < FEWEST:
            return
        rows = load_study(records)
        found = study_findings(rows, seed=seed)
        to_csv(rows, run / "study.csv")
        content = {"seed": seed, "sentences": found.sentences, **found.to_dict()}
        write_json(run / "findings.json", content)
    except (UserError, ValueError, OSError) as e:
        report(f"no findings about the candidates: {e}")


def _counts(record: dict[str, object]) -> bool:
    """Whether a record is a scored candidate with a code that the findings understand."""
    if record["phase"] != "candidate" or record["status"] != "ok":
        return False
    code = record["code"]
    if not isinstance(code, str):
        return False
    try:
        robnet_topology(code)
    except UserError:  # another space's code
        return False
    return True
