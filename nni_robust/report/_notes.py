"""How to read the numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping

from nni_robust.report import _format as fmt
from nni_robust.report._run import Run, unreliable

__all__ = ["notes"]


def notes(run: Run) -> list[str]:
    """How to read the numbers."""
    tested = [n for network in run.networks if (n := fmt.number(network.get("pictures")))]
    of_test = f", n = {tested[0]:,.0f}" if tested else ""
    limit = fmt.number(run.task.get("validation_limit"))
    of_validation = f", n = {limit:,.0f}" if limit else ""
    meaning = "the largest change of any pixel that the attacker may make"
    if run.threat is not None and run.threat.norm == "l2":
        meaning = "the largest Euclidean length of the attacker's change of one picture"
    return [
        f"Accuracies of the final networks: on the test split{of_test}, which the search never "
        "sees.",
        "The 95 % interval is Wilson's, for that many pictures. Networks whose intervals overlap "
        "may well rank the other way on other pictures, and another seed of the training moves "
        "them too.",
        "Scores of candidates and training curves: on the search-validation split"
        f"{of_validation}, a part of the training pictures; candidates are trained briefly, so "
        "these numbers compare candidates with one another and with nothing else.",
        "Robust accuracy is the share of pictures that are classified correctly after the named "
        "attack. A stronger attack can only lower it: it is an upper bound.",
        _reliability_note(run),
        "MACs are multiply-accumulates of convolutions and linear layers for one picture; "
        "parameters are the trainable ones.",
        f"eps is {meaning}, in units of pixels that lie in [0, 1].",
    ]


def _reliability_note(run: Run) -> str:
    """What the marks say, or that nobody looked."""
    records = (*run.networks, *run.candidates)
    checked = [r for r in records if isinstance(r.get("reliability"), Mapping)]
    if not checked:
        return "The records of this run do not say whether their figures were checked."
    bad = sum(bool(unreliable(r)) for r in checked)
    marked = f"{bad} of {len(checked)} are marked" if bad else f"none of {len(checked)} is marked"
    return (
        "Every figure comes with checks of whether the attacks could work on that network (does it "
        "answer the same when asked again, has it gradients, do stronger attacks lower accuracy, "
        f"…). Where one failed the figure is marked unreliable: {marked}."
    )
