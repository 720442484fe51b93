"""Black-box robustness: examples crafted on one network, shown to another.

RobNet's paper ("When NAS Meets Robustness", 1911.10695) reports it twice: against an independently
trained copy of the network itself (table 2), and across architectures (table 8).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_robust._pictures import Progress, as_threat, batches
from nni_robust._transferring import Source, correct, placed
from nni_robust.attacks import AttackSpec, attack_from_spec, undisturbed
from nni_robust.errors import UserError
from nni_robust.reliability import BLACK_BOX, AnswersMonitor, Check, Monitor, Reliability
from nni_robust.threat import ThreatModel

__all__ = ["TransferTable", "transfer_table"]

_ANSWERS = "it is a check of the source"


@dataclasses.dataclass(frozen=True)
class TransferTable:
    """Accuracy of targets on examples of sources.

    Parameters
    ----------
    attack
        The attack's key, such as ``"pgd100@8/255"``.
    n
        Number of pictures.
    clean
        Accuracy of each target without an attack, in [0, 1].
    accuracy
        ``accuracy[target][source]``, in [0, 1]; rows are targets, as in the paper's table 8.
    sources
        The checks of each source under its attack: a column.
    targets
        The checks of each target's answers: a row. ``black-box-wins`` fails where examples of
        others break a target more than its own, as between two attacks on one network: by more than
        0.2 points, and than one picture.
    """

    attack: str
    n: int
    clean: dict[str, float]
    accuracy: dict[str, dict[str, float]]
    sources: dict[str, Reliability]
    targets: dict[str, Reliability]

    def __post_init__(self) -> None:
        columns = {source for row in self.accuracy.values() for source in row}
        for found, wanted in ((self.sources, columns), (self.targets, set(self.accuracy))):
            if (
                not isinstance(found, Mapping)
                or set(found) != wanted
                or not all(isinstance(one, Reliability) for one in found.values())
            ):
                raise TypeError("a TransferTable needs the Reliability of each source and target")

    @property
    def reliability(self) -> Reliability:
        """Everything in one: a failure anywhere counts."""
        return functools.reduce(
            Reliability.merged, [*self.sources.values(), *self.targets.values()]
        )

    @property
    def unreliable(self) -> list[str]:
        """``["black-box-wins: …", …]``: every check that failed, with its network's name."""
        return [
            f"{check.name}: {part} '{name}': {check.reason}"
            for part, found in (("source", self.sources), ("target", self.targets))
            for name, one in found.items()
            for check in one.failed
        ]


def _black_box(row: Mapping[str, float], target: str, n: int) -> Check:
    """Whether a target's own gradients find at least what others' do."""
    others = {name: value for name, value in row.items() if name != target}
    if target not in row or not others:
        return Check("black-box-wins", "not run", "it takes examples of its own and of others")
    source = min(others, key=lambda name: others[name])
    gap = row[target] - row[source]
    if gap <= BLACK_BOX or round(gap * n) <= 1:
        return Check("black-box-wins", "passed", figures={"gap": gap})
    reason = (
        f"examples of '{source}' leave {row[source]:.2%}, its own {row[target]:.2%}: its gradients "
        "mislead"
    )
    return Check("black-box-wins", "failed", reason, {"gap": gap})


def transfer_table(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    data: Any,
    attack: AttackSpec = "pgd100",
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    batch_size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    folder: str | Path | None = None,
) -> TransferTable:
    """Attack each source and count what each target still classifies correctly.

    A picture that a target misclassifies without an attack counts as broken, as in
    :func:`nni_robust.evaluate`. Where source and target are the same network the attack is
    white-box, and the value is that of ``evaluate`` with ``early_stop: false``: here the attack
    always runs to its last step, for the first example that fools the source is a weak one for
    others.

    Parameters
    ----------
    sources, targets
        Networks by name; a network may be in both. Each stays where it is and as it is.
    data
        As in :func:`nni_robust.evaluate`; read once.
    attack
        What :func:`~nni_robust.attacks.attack_from_spec` understands. Every source is attacked with
        the same random starts, so identical networks give identical values.
    threat
        Ball for an attack that names none; None is L∞ 8/255.
    batch_size
        Pictures in memory at a time.
    limit
        Use the first so many pictures; None is all.
    seed
        Of random starts.
    progress
        Called after each batch of each stage (``"clean"`` and the sources' names).
    folder
        Where to keep which target was right about which example, as in
        :func:`nni_robust.evaluate`: the same call goes on after a kill and repeats at most one
        batch of one source. Pictures and sources may be added later, and other targets, for which
        the examples are crafted anew.

    Raises
    ------
    UserError
        On no networks, unusable data, an unknown or targeted attack; a folder as in
        :func:`nni_robust.evaluate`.
    NonFiniteOutput
        If a logit is NaN or infinite.
    """
    for key, networks in (("sources", sources), ("targets", targets)):
        if not isinstance(networks, Mapping) or not networks:
            raise UserError(f"{key}: a mapping from at least one name to its network is needed")
    made = attack_from_spec(attack, as_threat(threat))
    if made.targeted:
        raise UserError(
            f"attack '{made.key}' is targeted; accuracy is measured with untargeted attacks"
        )
    n, clean = 0, dict.fromkeys(targets, 0)
    still = {target: dict.fromkeys(sources, 0) for target in targets}
    crafting = {name: Monitor(network, [made], seed=seed) for name, network in sources.items()}
    answering = {name: AnswersMonitor(network, _ANSWERS) for name, network in targets.items()}
    with ExitStack() as stack:
        kept: dict[str, Any] = {"seed": seed, "folder": folder, "stack": stack}
        crafted = {
            name: Source(name, network, targets, made, monitor=crafting[name], **kept)
            for name, network in sources.items()
        }
        for network in [*sources.values(), *targets.values()]:
            stack.enter_context(undisturbed(network))
        for batch in batches(next(iter(sources.values())), data, batch_size, None, limit):
            n += len(batch.y)
            asked = batch.x, batch.y, batch.largest_label
            good = {t: correct(network, *asked) for t, network in targets.items()}
            for target, right in good.items():
                clean[target] += int(right.sum())
                answering[target].clean(*placed(targets[target], batch.x, batch.y))
            for source, network in sources.items():
                known = targets.get(source) is network
                right = good[source] if known else correct(network, *asked)
                x, y = placed(network, batch.x, batch.y)
                crafting[source].clean(x, y, right.to(y.device), batch.first, batch.total)
            batch.report(progress, "clean")
            # A picture that no target gets right tells nothing more.
            rows = torch.stack(list(good.values())).any(0).nonzero().flatten()
            for source, one in crafted.items():
                for target, right in one.still_right(batch, rows).items():
                    still[target][source] += int((good[target][rows] & right).sum())
                batch.report(progress, source)
        columns = {
            name: monitor.finish([], batch_size=batch_size) for name, monitor in crafting.items()
        }
        rows_checked = {name: monitor.finish() for name, monitor in answering.items()}
    accuracy = {t: {s: count / n for s, count in row.items()} for t, row in still.items()}
    checked = {
        target: found.replaced([_black_box(accuracy[target], target, n)])
        for target, found in rows_checked.items()
    }
    shares = {target: count / n for target, count in clean.items()}
    return TransferTable(made.key, n, shares, accuracy, columns, checked)
