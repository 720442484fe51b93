"""What a check says, and the full list of them that a result carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

__all__ = [
    "CANNOT_FAIL",
    "CHECKS",
    "Check",
    "Reliability",
    "Status",
    "failed",
    "need_reliability",
    "not_run",
    "passed",
]

#: ``"passed"``, ``"failed"`` (the result is unreliable) or ``"not run"`` (the reason says why).
Status = Literal["passed", "failed", "not run"]

#: How the reason of a check begins that did not run since its figures rule the failure out.
CANNOT_FAIL = "it cannot fail here: "

#: Every check, in the order in which they are told, with what it asks.
CHECKS: Mapping[str, str] = {
    "randomised": "does the network answer the same when asked again?",
    "batch-dependent": "does an answer depend on the other pictures of the batch?",
    "one-answer": "does the network tell classes apart at all?",
    "softmax-output": "does the network return logits, not probabilities?",
    "zero-gradient": "has every picture a gradient to follow?",
    "dynamic": "does a forward pass compute no gradients of its own?",
    "few-classes": "has the network enough classes for the attacks' losses?",
    "attack-mode": "did the attacks see the network as it is used, in evaluation mode?",
    "outside-ball": "are all adversarial pictures inside the ball and inside [0, 1]?",
    "precision": "do adversarial pictures still fool the network in float32?",
    "eps-zero": "does a radius of 0 give the clean answers, after the attacks as before?",
    "rises-with-eps": "does accuracy never rise with eps?",
    "rises-with-steps": "does accuracy never rise with the number of steps?",
    "reaches-eps": "can the steps of every attack cross the radius?",
    "weak-attack": "does no attack of many steps break clearly less than one step, or others?",
    "black-box-wins": "does no attack without gradients beat those with?",
    "large-eps": "does accuracy fall to about zero where everything is allowed?",
    "more-steps": "do twice the steps change next to nothing?",
    "training-collapse": "has the training not learned to resist its own step only?",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Parameters
    ----------
    name
        One of :data:`CHECKS`.
    status
        Whether it ran, and how it ended.
    reason
        Why it failed or did not run, in one sentence; empty where it passed.
    figures
        What was measured. Shares and accuracies lie in [0, 1].
    """

    name: str
    status: Status
    reason: str = ""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CHECKS:
            raise ValueError(f"there is no check '{self.name}'")
        if self.status not in ("passed", "failed", "not run"):
            raise ValueError(f"check '{self.name}' has the status {self.status!r}")
        if (self.status != "passed") != bool(self.reason):
            raise ValueError(f"check '{self.name}' needs a reason unless it passed")


def passed(name: str, **figures: float) -> Check:
    """A check that found nothing."""
    return Check(name, "passed", "", figures)


def failed(name: str, reason: str, **figures: float) -> Check:
    """A check that makes the result unreliable."""
    return Check(name, "failed", reason, figures)


def not_run(name: str, reason: str) -> Check:
    """A check that says nothing about this result."""
    return Check(name, "not run", reason)


@dataclasses.dataclass(frozen=True)
class Reliability:
    """The outcome of every check on one result; none can be left out.

    Parameters
    ----------
    checks
        One outcome for each of :data:`CHECKS`, in any order; kept in theirs.
    pictures
        Pictures that the checks of the network looked at.
    seconds
        Wall time of the checks.

    Raises
    ------
    ValueError
        If a check is missing or there twice.
    """

    checks: tuple[Check, ...]
    pictures: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        names = [check.name for check in self.checks]
        if sorted(names) != sorted(CHECKS):
            wrong = set(CHECKS) - set(names) or {n for n in names if names.count(n) > 1}
            raise ValueError(f"each check has one outcome; look at: {', '.join(sorted(wrong))}")
        order = list(CHECKS)
        ordered = tuple(sorted(self.checks, key=lambda check: order.index(check.name)))
        object.__setattr__(self, "checks", ordered)

    @classmethod
    def unknown(cls, reason: str) -> Reliability:
        """Nothing was checked, and why."""
        return cls(tuple(not_run(name, reason) for name in CHECKS))

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def reliable(self) -> bool:
        """Whether no check failed; those that did not run say nothing."""
        return not self.failed

    @property
    def reasons(self) -> list[str]:
        """``["zero-gradient: …", …]``: why the result is unreliable."""
        return [f"{check.name}: {check.reason}" for check in self.failed]

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def replaced(self, checks: Iterable[Check]) -> Reliability:
        """The same with other outcomes of some checks."""
        new = {check.name: check for check in checks}
        kept = tuple(new.get(check.name, check) for check in self.checks)
        return dataclasses.replace(self, checks=kept)

    def merged(self, other: Reliability) -> Reliability:
        """Of two results of one network: a failure in either counts, then what ran.

        Of two reasons why a check did not run, one that says why it cannot fail is kept: that
        nothing could be compared is not true of both results.
        """

        def rank(check: Check) -> int:
            if check.status == "not run":
                return 2 if check.reason.startswith(CANNOT_FAIL) else 3
            return 0 if check.status == "failed" else 1

        worst = tuple(min(pair, key=rank) for pair in zip(self.checks, other.checks, strict=True))
        return Reliability(worst, max(self.pictures, other.pictures), self.seconds + other.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what passed comes with its figures only."""
        return {
            "reliable": self.reliable,
            "unreliable": self.reasons,
            "pictures": self.pictures,
            "seconds": round(self.seconds, 4),
            "checks": {
                check.name: {
                    "status": check.status,
                    **({"reason": check.reason} if check.reason else {}),
                    **({"figures": _short(check.figures)} if check.figures else {}),
                }
                for check in self.checks
            },
        }


def need_reliability(result: Any) -> None:
    """Refuse a result without its flags: for the ``__post_init__`` of what holds accuracies.

    Raises
    ------
    TypeError
        If its `reliability` is none.
    """
    if not isinstance(result.reliability, Reliability):
        raise TypeError(f"{type(result).__name__} needs its Reliability")


def _short(figures: Mapping[str, float]) -> dict[str, float]:
    """Four digits: further ones depend on how a processor adds, and say nothing."""
    return {name: float(f"{value:.4g}") for name, value in figures.items()}
