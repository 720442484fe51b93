"""Black-box robustness: examples crafted on one network, shown to another.

RobNet's paper ("When NAS Meets Robustness", 1911.10695) reports it twice: against an independently
trained copy of the network itself (table 2), and across architectures (table 8).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nni_robust._pictures import Batch, Progress, as_threat, batches, is_correct, placement
from nni_robust.attacks import Attack, AttackSpec, attack_from_spec, undisturbed
from nni_robust.errors import UserError
from nni_robust.reliability import BLACK_BOX
from nni_robust.threat import ThreatModel

__all__ = ["TransferTable", "transfer_table"]


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
    """

    attack: str
    n: int
    clean: dict[str, float]
    accuracy: dict[str, dict[str, float]]

    @property
    def unreliable(self) -> list[str]:
        """``["black-box-wins: …"]``: targets that others' examples break more than their own.

        As between two attacks on one network: by more than 0.2 points, and than one picture.
        """
        found = []
        for target, row in self.accuracy.items():
            source = min(row, key=lambda name: row[name])
            gap = row.get(target, 0.0) - row[source]
            if gap > BLACK_BOX and round(gap * self.n) > 1:
                found.append(
                    f"black-box-wins: examples of '{source}' leave '{target}' {row[source]:.2%}, "
                    f"its own {row[target]:.2%}: its gradients mislead"
                )
        return found


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

    Raises
    ------
    UserError
        On no networks, unusable data, an unknown or targeted attack.
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
    correct = {target: dict.fromkeys(sources, 0) for target in targets}
    with ExitStack() as stack:
        for network in [*sources.values(), *targets.values()]:
            stack.enter_context(undisturbed(network))
        for batch in batches(next(iter(sources.values())), data, batch_size, None, limit):
            n += len(batch.y)
            good = {t: _correct(network, batch, batch.x) for t, network in targets.items()}
            for target, right in good.items():
                clean[target] += int(right.sum())
            batch.report(progress, "clean")
            # A picture that no target gets right tells nothing more.
            rows = torch.stack(list(good.values())).any(0).nonzero().flatten()
            for source, network in sources.items():
                adv = _examples(network, made, batch, rows, seed)
                for target, right in good.items():
                    still = right & _correct(targets[target], batch, adv)
                    correct[target][source] += int(still.sum())
                batch.report(progress, source)
    accuracy = {t: {s: count / n for s, count in row.items()} for t, row in correct.items()}
    return TransferTable(made.key, n, {t: count / n for t, count in clean.items()}, accuracy)


def _correct(network: nn.Module, batch: Batch, x: Tensor) -> Tensor:
    """(N,), bool, where the batch is: pictures `x` for which the network gives its labels."""
    place, dtype = placement(network, None)
    right = is_correct(network, x.to(place, dtype), batch.y.to(place), batch.largest_label)
    return right.to(batch.y.device)


def _examples(network: nn.Module, attack: Attack, batch: Batch, rows: Tensor, seed: int) -> Tensor:
    """The batch with attacked pictures in some rows."""
    if len(rows) == 0:
        return batch.x
    place, dtype = placement(network, None)
    x, y = batch.x[rows].to(place, dtype), batch.y[rows].to(place)
    adv = batch.x.clone()
    adv[rows] = attack(network, x, y, seed=seed, index=rows + batch.first).to(adv)
    return adv
