"""The last step of the layered layout: how high the items of each layer stand.

Items move towards their neighbours in turn. Each move is exact: the nearest positions that keep the
order and the gaps of a layer are a weighted isotonic regression (pool adjacent violators).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

__all__ = ["Item", "apart", "spread"]

#: Item of a layer: ("node", name) or ("lane", source, target).
Item = tuple[str, ...]
RELAXATIONS = 120
#: Height differences below this (inches) count as straight, from the first to the last round.
STRAIGHT = (0.2, 0.002)


def spread(
    columns: list[list[Item]],
    links: list[list[tuple[Item, Item]]],
    heights: Mapping[tuple[int, Item], float],
    gap: float,
) -> dict[tuple[int, Item], float]:
    """Height of each item's centre.

    Parameters
    ----------
    columns
        Items per layer, from the top.
    links
        Pairs of items that edges join between layers i and i + 1.
    heights
        Height of each (layer, item), inches.
    gap
        Smallest distance between neighbours, inches.

    Returns
    -------
    dict
        (layer, item) to the y of its centre, inches, upwards.
    """
    neighbours: dict[tuple[int, Item], list[tuple[tuple[int, Item], float]]] = {
        (i, item): [] for i, column in enumerate(columns) for item in column
    }
    for i, pairs in enumerate(links):
        for a, b in pairs:
            # Long edges are kept straightest: the eye trips on a bend in the middle of a line.
            weight = {0: 1.0, 1: 2.0, 2: 8.0}[(a[0] == "lane") + (b[0] == "lane")]
            neighbours[i, a].append(((i + 1, b), weight))
            neighbours[i + 1, b].append(((i, a), weight))
    ys = dict.fromkeys(neighbours, 0.0)
    rounds = [range(len(columns)), range(len(columns) - 1, -1, -1)]
    for turn in range(RELAXATIONS):
        # The first half minimises squared slopes, the second absolute ones (by reweighting), which
        # turns many slight bends into few clear ones.
        share = max(0.0, 2 * turn / RELAXATIONS - 1)
        straight = STRAIGHT[0] * (STRAIGHT[1] / STRAIGHT[0]) ** share
        for i in rounds[turn % 2]:
            keys = [(i, item) for item in columns[i]]
            wish, force = [], []
            for key in keys:
                weights = [
                    w / max(abs(ys[key] - ys[other]), straight) if share else w
                    for other, w in neighbours[key]
                ]
                pull = sum(
                    w * ys[other] for w, (other, _) in zip(weights, neighbours[key], strict=True)
                )
                wish.append(pull / sum(weights) if weights else 0.0)
                force.append(sum(weights) or 1e-3)
            placed = apart(wish, force, [heights[key] for key in keys], gap)
            ys.update(zip(keys, placed, strict=True))
    return ys


def apart(wish: list[float], force: list[float], heights: list[float], gap: float) -> list[float]:
    """The positions nearest to `wish` (squares weighted by `force`), from the top, `gap` apart."""
    offsets = [0.0] if wish else []
    for upper, lower in itertools.pairwise(heights):
        offsets.append(offsets[-1] + (upper + lower) / 2 + gap)
    # With the gaps taken out, the order is "not increasing": pool adjacent violators.
    pools: list[tuple[float, float, int]] = []  # (mean, weight, number of items)
    for value, weight, offset in zip(wish, force, offsets, strict=True):
        pool = (value + offset, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            mean, before, count = pools.pop()
            both = before + pool[1]
            pool = ((mean * before + pool[0] * pool[1]) / both, both, count + pool[2])
        pools.append(pool)
    flat = [mean for mean, _, count in pools for _ in range(count)]
    return [value - offset for value, offset in zip(flat, offsets, strict=True)]
