"""Pareto fronts against the definition, checked pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_robust.analysis import pareto_front


def by_definition(points, directions):
    """Every row that no other row dominates, by comparing all pairs."""

    def dominates(a, b):
        gains = [x - y if d == "max" else y - x for x, y, d in zip(a, b, directions, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


# Few different values, so that ties and copies are common.
@settings(deadline=None)
@given(data=st.data(), objectives=st.integers(1, 4))
def test_front_follows_the_definition(data, objectives):
    directions = data.draw(
        st.lists(st.sampled_from(["max", "min"]), min_size=objectives, max_size=objectives)
    )
    row = st.tuples(*[st.integers(0, 4)] * objectives)
    points = data.draw(st.lists(row, min_size=1, max_size=25))
    assert pareto_front(points, directions) == by_definition(points, directions)


def test_front_of_many_random_points_follows_the_definition():
    points = np.random.default_rng(0).random((300, 2)).tolist()
    assert pareto_front(points, ("min", "max")) == by_definition(points, ("min", "max"))


def test_known_front():
    macs_and_robust = [(10, 0.50), (20, 0.60), (30, 0.55), (30, 0.70), (20, 0.60), (5, 0.1)]
    assert pareto_front(macs_and_robust, ("min", "max")) == [0, 1, 3, 4, 5]


def test_rows_with_nan_neither_count_nor_dominate():
    points = [(1.0, math.nan), (2.0, 0.5), (math.nan, 0.9), (3.0, 0.5)]
    assert pareto_front(points, ("min", "max")) == [1]


def test_infinities_are_numbers():
    assert pareto_front([(math.inf, 1.0), (0.0, 1.0)], ("max", "max")) == [0]


def test_no_points_have_no_front():
    assert pareto_front([], ("min", "max")) == []
    assert pareto_front([(math.nan, 1.0)], ("min", "max")) == []


@pytest.mark.parametrize("directions", [("up", "max"), ()])
def test_unknown_direction_is_refused(directions):
    with pytest.raises(ValueError, match="directions"):
        pareto_front([(1, 2)], directions)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        pareto_front([(1, 2, 3)], ("max", "max"))
