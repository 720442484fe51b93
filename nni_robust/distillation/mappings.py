"""Which teacher layer a student layer learns from: fixed rules, to compare learned tutors with.

RNAS-CL's own papers compare with none of these; without them nobody can tell what the search of
tutors is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from nni_robust.data.seeding import generator
from nni_robust.errors import UserError, nearest

__all__ = ["MAPPINGS", "Mapping", "fixed_mapping", "relocate", "spread"]

#: ``searched`` is learned; the others are rules.
Mapping = Literal["searched", "random", "proportional", "same-stage", "average", "last", "none"]

MAPPINGS: tuple[str, ...] = get_args(Mapping)


def fixed_mapping(
    rule: str, students: Sequence[int], teachers: Sequence[int], seed: int = 0
) -> list[tuple[int, int]]:
    """Pairs of student layer and teacher layer, by position.

    Parameters
    ----------
    rule
        ``random``: any teacher layer, drawn once. ``proportional``: the one at the same share of
        the depth. ``same-stage``: so within the stage (layers of one map size) at the same share of
        the stages. ``average``: every pair; each student layer learns from the mean over teacher
        layers. ``last``: only the last student layer, from the last teacher layer. ``none``: no
        pair.
    students, teachers
        Heights of the layers' maps, in order of depth.
    seed
        Of ``random``.

    Raises
    ------
    UserError
        If the rule is unknown, or is ``searched``, which needs a search.
    """
    n_s, n_t = len(students), len(teachers)
    if rule == "none":
        return []
    if rule == "last":
        return [(n_s - 1, n_t - 1)]
    if rule == "average":
        return [(i, j) for i in range(n_s) for j in range(n_t)]
    if rule == "proportional":
        return list(enumerate(spread(n_s, n_t)))
    if rule == "random":
        drawn = torch.randint(n_t, (n_s,), generator=generator(seed, "random tutors"))
        return list(enumerate(drawn.tolist()))
    if rule == "same-stage":
        return _same_stage(students, teachers)
    known = [m for m in MAPPINGS if m != "searched"]
    raise UserError(
        f"mapping: {rule!r} is not allowed here{nearest(rule, known)} (allowed: {', '.join(known)})"
    )


def spread(sources: int, targets: int) -> list[int]:
    """For each of `sources` places in a row the one of `targets` at the same share of the way."""
    if sources == 1:
        return [targets - 1]
    # Halves upwards: round() would take even numbers.
    return [int(i * (targets - 1) / (sources - 1) + 0.5) for i in range(sources)]


def _same_stage(students: Sequence[int], teachers: Sequence[int]) -> list[tuple[int, int]]:
    own, theirs = _stages(students), _stages(teachers)
    stage_of = spread(len(own), len(theirs))
    pairs: list[tuple[int, int]] = []
    for stage, layers in enumerate(own):
        partners = theirs[stage_of[stage]]
        places = spread(len(layers), len(partners))
        pairs += [(i, partners[k]) for i, k in zip(layers, places, strict=True)]
    return sorted(pairs)


def _stages(sides: Sequence[int]) -> list[list[int]]:
    """Positions of the layers of each map size, the largest maps first."""
    return [
        [i for i, own in enumerate(sides) if own == side]
        for side in sorted(set(sides), reverse=True)
    ]


def relocate(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Position in `names` of each layer in `wanted`, by name; else by its share of the depth.

    Layers of a relaxed network and those of the network that it becomes mostly have the same names;
    where a space changes depth or names, depth is what is left to go by.

    Parameters
    ----------
    names
        Layers that there are.
    wanted
        Layers that are looked for.
    """
    if set(wanted) <= set(names):
        return [names.index(name) for name in wanted]
    places = spread(len(wanted), len(names))
    return [
        names.index(name) if name in names else place
        for name, place in zip(wanted, places, strict=True)
    ]
