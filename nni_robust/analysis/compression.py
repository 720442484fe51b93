"""What a search kept of its teacher: depth and width of each stage, per network and per run.

Source of the quantities: the figure of topologies of RC-NAS (Wang et al., KDD 2024,
https://arxiv.org/abs/2406.06792; wdr123/robN2N at 4fd9e25, figs/topology.png) prints the share of
depth and of width that each stage keeps, for networks found with and without an attack, and their
Lipschitz values. What it shows: without an attack all stages shrink alike; under AutoAttack the
first two stay nearly whole and the third is cut to a third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni_robust.architecture import Architecture
from nni_robust.architecture.space import open_space
from nni_robust.config import read_yaml
from nni_robust.errors import UserError
from nni_robust.store import read_records

__all__ = [
    "RunTopology",
    "StageTopology",
    "compare_topologies",
    "keep_ratios",
    "mean_keep",
    "run_topology",
]

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StageTopology:
    """One stage of a network beside the same stage of its teacher.

    Parameters
    ----------
    stage
        Number of the stage, from 1.
    depth, width
        Blocks of the network, and factor of its channels.
    teacher_depth, teacher_width
        The teacher's.
    block, teacher_block
        Type of the blocks.
    """

    stage: int
    depth: int
    width: int
    teacher_depth: int
    teacher_width: int
    block: str
    teacher_block: str

    @property
    def keep_depth(self) -> float:
        """Share of the teacher's blocks, in (0, 1]."""
        return self.depth / self.teacher_depth

    @property
    def keep_width(self) -> float:
        """Share of the teacher's width, in (0, 1]."""
        return self.width / self.teacher_width


@dataclasses.dataclass(frozen=True)
class RunTopology:
    """What one run kept of its teacher.

    Parameters
    ----------
    label
        What to call the run.
    attack
        The attack of its task: ``"clean"``, ``"pgd20"``, …; None where the task names none.
    best
        The candidate with the highest score, stage by stage.
    top
        The best candidates, that one among them; several, because one is little evidence.
    score
        Score of the best, in [0, 1].
    lipschitz, teacher_lipschitz
        Local Lipschitz values of the best and of the teacher, where the run measured them.
    """

    label: str
    attack: str | None
    best: tuple[StageTopology, ...]
    top: tuple[tuple[StageTopology, ...], ...]
    score: float
    lipschitz: float | None = None
    teacher_lipschitz: float | None = None


def keep_ratios(
    network: Architecture | Mapping[str, Any], space: Any = None
) -> tuple[StageTopology, ...]:
    """A network's stages beside its teacher's.

    Parameters
    ----------
    network
        An architecture, or a sample of `space`.
    space
        The space below the teacher, such as a
        :class:`~nni_robust.search_spaces.WideResNetSpace`; None opens the architecture's own.

    Raises
    ------
    UserError
        If the space's networks have no stages with a depth and a width.
    """
    if isinstance(network, Architecture):
        space = open_space(network.space, network.space_args, network.num_classes)
        network = network.sample
    if not hasattr(space, "network_config"):
        raise UserError(
            f"space {type(space).__name__} has no teacher with stages of a depth and a width; "
            "keep ratios exist for wide-resnet"
        )
    ours, theirs = space.network_config(network), space.config
    rows = zip(
        *(getattr(config, field) for field in ("depths", "widths") for config in (ours, theirs)),
        *(config.blocks for config in (ours, theirs)),
        strict=True,
    )
    return tuple(
        StageTopology(stage, depth, width, teacher_depth, teacher_width, block, teacher_block)
        for stage, (depth, teacher_depth, width, teacher_width, block, teacher_block) in enumerate(
            rows, 1
        )
    )


def mean_keep(networks: Sequence[Sequence[StageTopology]]) -> list[tuple[float, float]]:
    """Mean share of depth and of width that each stage keeps, first stage first."""
    return [
        (
            sum(stage.keep_depth for stage in stages) / len(stages),
            sum(stage.keep_width for stage in stages) / len(stages),
        )
        for stages in zip(*networks, strict=True)
    ]


def run_topology(folder: str | Path, *, label: str | None = None, top: int = 5) -> RunTopology:
    """What a run's best candidates keep of its teacher.

    Parameters
    ----------
    folder
        Run folder with ``config.yaml`` and ``candidates.jsonl``. Lipschitz values are read from the
        record of a phase ``teacher`` and from the best candidate's, under ``lipschitz``.
    label
        What to call the run; None is its name.
    top
        How many candidates count as the best.

    Raises
    ------
    UserError
        If the folder has no such files, its space has no stages, or no candidate finished.
    """
    folder = Path(folder)
    config = read_yaml(folder / "config.yaml")
    records = read_records(folder / "candidates.jsonl")
    return topology_of_records(config, records, label=label or str(config.get("name")), top=top)


def topology_of_records(
    config: Mapping[str, Any], records: Sequence[Record], *, label: str, top: int = 5
) -> RunTopology:
    """:func:`run_topology` of a run's settings and records.

    Raises
    ------
    UserError
        As there.
    """
    section = config.get("space")
    section = dict(section) if isinstance(section, Mapping) else {"name": section}
    name = str(section.pop("name", None))
    space = open_space(name, section, 10)  # topologies do not depend on the number of classes
    ended = [record for record in records if record.get("status", "ok") == "ok"]
    by_sample: dict[str, tuple[float, Record]] = {}
    for record in ended:
        score = (record.get("metrics") or {}).get("default")
        if record.get("phase", "candidate") == "candidate" and isinstance(score, (int, float)):
            by_sample[str(sorted(dict(record.get("sample") or {}).items()))] = (score, record)
    ranked = sorted(by_sample.values(), key=lambda pair: -pair[0])[:top]
    if not ranked:
        raise UserError(f"run '{label}': no candidate has finished, so there is no topology")
    networks = tuple(keep_ratios(record["sample"], space) for _, record in ranked)
    task = config.get("task")
    attack = task.get("attack") if isinstance(task, Mapping) else None
    teachers = [_value(record) for record in ended if record.get("phase") == "teacher"]
    return RunTopology(
        label=label,
        attack=str(attack.get("name")) if isinstance(attack, Mapping) else attack,
        best=networks[0],
        top=networks,
        score=float(ranked[0][0]),
        lipschitz=_value(ranked[0][1]),
        teacher_lipschitz=teachers[-1] if teachers else None,
    )


def _value(record: Record) -> float | None:
    """The Lipschitz value of a record, wherever it stands."""
    for place in (record, record.get("metrics") or {}):
        value = place.get("lipschitz")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def compare_topologies(first: RunTopology, second: RunTopology) -> list[str]:
    """How two runs differ in what they keep, such as one without and one with an attack.

    Parameters
    ----------
    first, second
        The runs; differences are second minus first.

    Returns
    -------
    list of str
        One sentence per stage, from the means over the best candidates, and one on the Lipschitz
        values where both runs have them. Descriptions, not tests: how sure a difference is takes
        several seeds.
    """
    sentences = []
    pairs = zip(mean_keep(first.top), mean_keep(second.top), strict=True)
    for stage, (before, after) in enumerate(pairs, 1):
        depth, width = (100 * (b - a) for a, b in zip(before, after, strict=True))
        sentences.append(
            f"Stage {stage}: '{second.label}' keeps {100 * after[0]:.0f} % of the depth and "
            f"{100 * after[1]:.0f} % of the width, {_points(depth)} and {_points(width)} than "
            f"'{first.label}'."
        )
    if first.lipschitz is not None and second.lipschitz is not None:
        sentences.append(
            f"Local Lipschitz value of the best network: {second.lipschitz:.3g} for "
            f"'{second.label}', {first.lipschitz:.3g} for '{first.label}'."
        )
    return sentences


def _points(difference: float) -> str:
    return f"{abs(difference):.0f} points {'more' if difference >= 0 else 'less'}"
