"""Coefficients are scipy's, intervals cover what they should, and nothing is NaN."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nni_robust.analysis import correlate, kendall_tau, pearson, spearman

REFERENCE = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}

# Points and Pearson's r of figure 6(b) of arXiv 1911.10695v3, read off its vector graphics.
FIGURE_6B = {
    "small": (
        [0.143, 0.167, 0.286, 0.333, 0.429, 0.5, 0.571, 0.667],
        [43.8, 46.6, 47.5, 46.6, 48.1, 48.2, 49.4, 49.6],
        0.90,
    ),
    "medium": (
        [0.1, 0.111, 0.2, 0.222, 0.3, 0.333, 0.375, 0.4, 0.444, 0.5, 0.556, 0.625],
        [49.1, 47.1, 49.2, 49.0, 49.7, 47.9, 49.0, 50.2, 50.0, 50.1, 50.1, 49.9],
        0.67,
    ),
    "large": (
        [0.25, 0.273, 0.308, 0.333, 0.357, 0.364, 0.385, 0.417, 0.455],
        [50.2, 50.1, 50.9, 50.7, 51.3, 50.5, 50.9, 51.0, 50.7],
        0.60,
    ),
}


def pairs(seed, n, rho):
    """Normal pairs of a given correlation."""
    x, noise = np.random.default_rng(seed).normal(size=(2, n))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_scipys_also_with_ties(kind, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, 40)
    y = x + rng.integers(0, 12, 40)
    assert correlate(x, y, kind).value == pytest.approx(REFERENCE[kind](x, y)[0], abs=1e-12)


@pytest.mark.parametrize("budget", FIGURE_6B)
def test_figure_6b_of_the_paper(budget):
    x, y, published = FIGURE_6B[budget]
    # The points were read to 0.1 %, a tenth of the range of the large budget.
    assert pearson(x, y).value == pytest.approx(published, abs=0.03)


def test_fisher_interval_of_pearson_is_scipys():
    x, y = pairs(0, 12, 0.5)
    found = pearson(x, y, interval="fisher", confidence=0.9)
    expected = stats.pearsonr(x, y).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (found.n, found.confidence, found.interval) == (12, 0.9, "fisher")


@pytest.mark.parametrize("kind", REFERENCE)
def test_fisher_intervals_cover_zero_in_95_of_100_null_samples(kind):
    found = [correlate(*pairs(seed, 15, 0), kind, interval="fisher") for seed in range(400)]
    covered = np.mean([c.direction == "undecided" for c in found])
    assert 0.92 <= covered <= 0.985  # three standard errors of 0.95 are 0.033


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_bootstrap_intervals_cover_the_true_value(kind):
    rho = 0.6
    true = rho if kind == "pearson" else 6 / math.pi * math.asin(rho / 2)
    found = [correlate(*pairs(seed, 40, rho), kind, resamples=400) for seed in range(100)]
    assert {c.interval for c in found} == {"bootstrap"}
    assert 0.88 <= np.mean([c.low <= true <= c.high for c in found]) <= 1.0


def test_bootstrap_of_kendall():
    x, y = pairs(3, 30, 0.7)
    found = kendall_tau(x, y, resamples=300)
    assert found.interval == "bootstrap"
    assert 0 < found.low < found.value < found.high < 1


def test_the_same_seed_gives_the_same_interval():
    x, y = pairs(1, 50, 0.3)
    assert spearman(x, y, seed=4) == spearman(x, y, seed=4)
    assert spearman(x, y, seed=4) != spearman(x, y, seed=5)


def test_the_direction_is_the_sign_of_the_whole_interval():
    x, y = pairs(0, 100, 0.8)
    assert pearson(x, y).direction == "positive"
    assert pearson(x, -y).direction == "negative"
    assert pearson(*pairs(0, 100, 0)).direction == "undecided"


def test_reordering_changes_no_rank_correlation():
    x, y = pairs(2, 30, 0.5)
    assert spearman(np.exp(x), y**3).value == pytest.approx(spearman(x, y).value)


def test_missing_values_are_left_out_in_pairs():
    x = [1, 2, None, 4, 5, 6, math.nan, 8]
    y = [1, 3, 9, 2, math.inf, 5, 0, 7]
    found = pearson(x, y)
    assert found.n == 5
    assert found.value == pytest.approx(stats.pearsonr([1, 2, 4, 6, 8], [1, 3, 2, 5, 7])[0])


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ([], [], "too few values: 0"),
        ([1, 2, 3, 4], [1, 2, 3, 4], "at least 5"),
        ([1] * 30, range(30), "equal"),
        (range(30), [0.5] * 30, "equal"),
    ],
)
def test_what_is_not_defined_is_none_with_a_reason(kind, x, y, why):
    found = correlate(list(x), list(y), kind)
    assert (found.value, found.low, found.high, found.interval) == (None, None, None, None)
    assert why in found.reason
    assert found.direction == "undecided"
    assert "not defined" in str(found)


def test_minimum():
    assert pearson(range(9), range(9), minimum=10).reason == (
        "too few values: 9, at least 10 are needed"
    )
    assert pearson(range(10), range(10), minimum=10).value == pytest.approx(1)


def test_a_degenerate_bootstrap_falls_back():
    x = [0.0] * 29 + [1.0]  # one resample in three is constant
    found = pearson(x, np.arange(30))
    assert found.interval == "fisher"
    assert found.low < found.value < found.high
    perfect = pearson(np.arange(30), np.arange(30))
    assert (perfect.low, perfect.value, perfect.high) == pytest.approx((1, 1, 1))


def test_lengths_must_match():
    with pytest.raises(ValueError, match="3 and 4"):
        pearson([1, 2, 3], [1, 2, 3, 4])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(0, 2)),
            st.one_of(st.none(), st.floats(0, 1)),
        ),
        max_size=30,
    ),
    st.sampled_from(list(REFERENCE)),
)
def test_never_nan(values, kind):
    found = correlate([x for x, _ in values], [y for _, y in values], kind, resamples=50)
    numbers = (found.value, found.low, found.high)
    if found.reason is None:
        assert all(math.isfinite(v) and -1 <= v <= 1 for v in numbers)
        assert found.low <= found.high
    else:
        assert numbers == (None, None, None)
    assert "nan" not in str(dataclasses.asdict(found)).lower()
