"""Rejection keeps exactly the right candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_robust.analysis import reject_by_fsp
from nni_robust.analysis.rejection import last_cells
from nni_robust.errors import UserError


def test_the_papers_numbers():
    distances = np.random.default_rng(0).random((300, 20)).tolist()
    found = reject_by_fsp(distances)
    assert (len(found.kept), len(found.rejected)) == (68, 232)
    means = np.mean(np.array(distances)[:, 10:], axis=1)
    assert set(found.kept) == set(np.argsort(means)[:68])
    assert found.scores == pytest.approx(means)
    assert found.threshold == pytest.approx(np.sort(means)[67])


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.floats(0.001, 1),
)
def test_keeps_exactly_the_share_also_with_ties(scores, keep):
    found = reject_by_fsp([[float(s)] for s in scores], keep=keep)
    assert len(found.kept) == max(1, round(keep * len(scores)))
    assert sorted(found.kept + found.rejected) == list(range(len(scores)))
    assert list(found.kept) == sorted(found.kept)
    worst = max(scores[i] for i in found.kept)
    assert all(scores[i] >= worst for i in found.rejected)
    # Of equal scores the earlier ones stay.
    equal = [i for i in range(len(scores)) if scores[i] == worst]
    assert [i for i in equal if i in found.kept] == equal[: sum(i in found.kept for i in equal)]


def test_threshold():
    distances = [[9.0, 1.0], [9.0, 2.0], [0.0, 3.0], [0.0, 2.0]]
    found = reject_by_fsp(distances, threshold=2.0)
    assert found.kept == (0, 1, 3)
    assert found.threshold == 2.0
    nobody = reject_by_fsp(distances, threshold=0.5)
    assert (nobody.kept, nobody.rejected, nobody.threshold) == ((), (0, 1, 2, 3), None)


def test_last_and_pool():
    distances = [[5.0, 0.0, 2.0], [0.0, 3.0, 1.0]]
    assert reject_by_fsp(distances, keep=0.5).kept == (1,)  # one of three cells is late
    assert reject_by_fsp(distances, keep=0.5, last=2).kept == (0,)
    assert reject_by_fsp(distances, keep=0.5, last=3).kept == (1,)
    assert reject_by_fsp(distances, last=2, pool="sum").scores == (2.0, 4.0)
    assert reject_by_fsp(distances, last=2, pool="mean").scores == (1.0, 2.0)
    assert reject_by_fsp(distances, last=2, pool="sum", threshold=2.5).kept == (0,)
    assert reject_by_fsp(distances, last=2, pool="mean", threshold=2.5).kept == (0, 1)


@pytest.mark.parametrize(("cells", "late"), [(1, 1), (2, 1), (3, 1), (6, 3), (20, 10)])
def test_half_of_the_cells_are_late(cells, late):
    assert last_cells(cells, None) == late


def test_no_candidates():
    assert reject_by_fsp([]).kept == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0}, "keep: 0"),
        ({"keep": 1.1}, "keep: 1.1"),
        ({"keep": 0.5, "threshold": 1}, "exclude each other"),
        ({"last": 3}, "last: 3 is not allowed; 1 to 2"),
        ({"last": 0}, "last: 0"),
        ({"pool": "max"}, "pool: 'max'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        reject_by_fsp([[1.0, 2.0]], **settings)


@pytest.mark.parametrize("distances", [[[1.0], [1.0, 2.0]], [[]], [[float("nan")]]])
def test_broken_tables(distances):
    with pytest.raises(ValueError, match=r"distances|finite"):
        reject_by_fsp(distances)
