"""Planted relations are found, planted absences are not, and no study breaks the findings."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from nni_robust.analysis import (
    StudyRow,
    budget_finding,
    density_finding,
    fsp_finding,
    linear_probe,
    robnet_topology,
    study_findings,
)
from nni_robust.errors import UserError

SEEDS = range(12)


def codes(rng, n, cells=1, convs=None):
    """Random codes; each has its own rate, so that densities spread. `convs`: exactly that many."""
    found = []
    for _ in range(n * cells):
        rate = rng.uniform(0.3, 0.95)
        conv = rng.random(14) < rate
        if convs is not None:
            conv = np.isin(np.arange(14), rng.permutation(14)[:convs])
        digits = 2 * (rng.random(14) < rate) + conv
        found.append("".join(map(str, digits)))
    return [" ".join(found[i * cells : (i + 1) * cells]) for i in range(n)]


def study(seed, n=80, *, density=0.0, noise=0.02, **settings):
    """Candidates whose robust accuracy is 0.4 + density * D + noise."""
    rng = np.random.default_rng(seed)
    topologies = [robnet_topology(code) for code in codes(rng, n, **settings)]
    return [
        StudyRow(i, str(i), t, 0.4 + density * t.density + rng.normal(0, noise), clean=0.9)
        for i, t in enumerate(topologies)
    ]


def verdicts(found):
    return [finding.verdict for finding in found]


class TestDensity:
    def test_a_planted_correlation_is_found(self):
        found = [density_finding(study(seed, density=0.2), seed=seed) for seed in SEEDS]
        assert verdicts(found) == ["holds"] * len(SEEDS)
        assert all(f.pearson.value > 0.6 and f.n == f.pearson.n == 80 for f in found)

    def test_the_opposite_is_found(self):
        found = density_finding(study(0, density=-0.2))
        assert found.verdict == "does not hold"
        assert found.sentence.startswith("Finding 1 (density) does not hold: denser architectures")

    def test_a_planted_absence_is_not_found(self):
        found = verdicts([density_finding(study(seed, 40), seed=seed) for seed in range(40)])
        assert found.count("undecided") >= 36  # 38 expected of 95 % intervals

    def test_it_is_the_correlation_asked_for(self):
        rows = study(3, density=0.1)
        found = density_finding(rows)
        density, robust = [r.topology.density for r in rows], [r.robust for r in rows]
        assert found.pearson.value == pytest.approx(np.corrcoef(density, robust)[0, 1])
        assert f"n = {len(rows)}" in found.sentence

    def test_buckets_are_means_of_ranges_of_accuracy(self):
        rows = study(1, density=0.3, n=100)
        found = density_finding(rows, buckets=5)
        low, high = min(r.robust for r in rows), max(r.robust for r in rows)
        expected: list[list[StudyRow]] = [[] for _ in range(5)]
        for row in rows:
            expected[min(4, int(5 * (row.robust - low) / (high - low)))].append(row)
        assert [b.n for b in found.buckets] == [len(b) for b in expected if b]
        assert [b.density for b in found.buckets] == pytest.approx(
            [float(np.mean([r.topology.density for r in b])) for b in expected if b]
        )
        assert [b.robust for b in found.buckets] == pytest.approx(
            [float(np.mean([r.robust for r in b])) for b in expected if b]
        )

    def test_averaging_over_buckets_exaggerates(self):
        found = density_finding(study(2, n=300, density=0.05, noise=0.03))
        assert found.bucket_pearson.value > found.pearson.value + 0.1

    def test_settings_are_checked(self):
        with pytest.raises(UserError, match="buckets: 0"):
            density_finding(study(0), buckets=0)


class TestProbe:
    def test_finds_the_bit_that_matters(self):
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2, (200, 28))
        robust = 0.4 + 0.1 * bits[:, 5] - 0.1 * bits[:, 8] + rng.normal(0, 0.01, 200)
        found = linear_probe(bits.tolist(), robust.tolist(), share=0.2)  # a quarter has both
        assert (found.n_top, found.n_bottom, found.folds) == (40, 40, 5)
        assert np.argmax(found.weights) == 5
        assert np.argmin(found.weights) == 8
        assert found.train_accuracy > 0.95
        assert found.validated_accuracy > 0.9
        assert found.low < found.validated_accuracy < found.high

    def test_random_scores_fit_but_do_not_generalise(self):
        # 28 weights separate 30 random points; only cross-validation tells.
        fitted, validated = [], []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            found = linear_probe(rng.integers(0, 2, (50, 28)).tolist(), rng.random(50).tolist())
            fitted.append(found.train_accuracy)
            validated.append(found.validated_accuracy)
        assert np.mean(fitted) > 0.9
        assert 0.35 < np.mean(validated) < 0.65

    def test_density_gives_positive_weights(self):
        rows = study(0, n=600, density=0.3)
        found = density_finding(rows).probe
        assert (found.n_top, found.n_bottom) == (180, 180)
        assert found.positive_share > 0.85

    def test_is_seeded(self):
        rows = study(0, density=0.1)
        bits, robust = [r.topology.bits for r in rows], [r.robust for r in rows]
        assert linear_probe(bits, robust, seed=1) == linear_probe(bits, robust, seed=1)
        assert linear_probe(bits, robust, seed=1) != linear_probe(bits, robust, seed=2)

    @pytest.mark.parametrize(
        ("bits", "robust", "why"),
        [
            ([], [], "at least 5"),
            ([[0, 1]] * 15, range(15), "at least 5"),
            ([[0, 1]] * 30, [0.5] * 30, "overlap"),
            ([[0, 1]] * 15 + [[0]] * 15, range(30), "different lengths"),
        ],
    )
    def test_what_cannot_be_fitted_says_why(self, bits, robust, why):
        found = linear_probe(bits, list(robust))
        assert why in found.reason
        assert (found.train_accuracy, found.positive_share, found.weights) == (None, None, ())

    @pytest.mark.parametrize("setting", [{"share": 0}, {"share": 0.6}, {"folds": 1}, {"folds": 9}])
    def test_settings_are_checked(self, setting):
        with pytest.raises(UserError, match="is not allowed"):
            linear_probe([[0, 1]] * 30, list(range(30)), **setting)

    def test_half_and_half_of_an_odd_number(self):
        rows = study(0, n=31, density=0.1)
        found = linear_probe([r.topology.bits for r in rows], [r.robust for r in rows], share=0.5)
        assert (found.n_top, found.n_bottom) == (15, 15)


def budgets(seed, effect, n=60):
    """Candidates of 6, 9 and 12 convolutions; `effect` of the direct share for each."""
    rows = []
    for k, (convs, slope) in enumerate(zip((6, 9, 12), effect, strict=True)):
        for row in study(seed + 100 * k, n, convs=convs, noise=0.01):
            robust = row.robust + slope * row.topology.direct_share("convs")
            rows.append(dataclasses.replace(row, robust=robust))
    return rows


class TestBudget:
    def test_a_planted_correlation_is_found_where_it_is(self):
        for seed in range(4):
            found = budget_finding(budgets(seed, (0.1, 0.1, 0.0)))
            assert found.verdict == "holds"
            assert [(g.budget, g.n) for g in found.groups] == [
                ("small", 60), ("medium", 60), ("large", 60),
            ]  # fmt: skip
            assert verdicts(found.groups)[:2] == ["holds", "holds"]

    def test_a_planted_absence_is_not_found(self):
        found = [budget_finding(budgets(seed, (0.0, 0.0, 0.0))) for seed in range(8)]
        assert "holds" not in verdicts(found)
        groups = [g.verdict for f in found for g in f.groups]
        assert groups.count("undecided") >= len(groups) - 3

    def test_one_group_is_not_enough(self):
        assert budget_finding(budgets(0, (0.2, 0.0, 0.2))).verdict == "undecided"
        assert budget_finding(budgets(0, (-0.2, 0.0, 0.2))).verdict == "does not hold"

    def test_both_definitions_are_computed(self):
        # At a fixed number of convolutions they differ by a factor only.
        (small, *_) = budget_finding(budgets(0, (0.1, 0.1, 0.1))).groups
        for kind in (small.pearson, small.spearman):
            assert set(kind) == {"convs", "direct_edges"}
            assert kind["convs"].value == pytest.approx(kind["direct_edges"].value)

    def test_the_definition_decides(self):
        # Accuracy follows direct edges / 5, and so the number of convolutions; divided by that
        # number the share says less.
        rows = [
            dataclasses.replace(row, robust=0.4 + 0.1 * row.topology.direct_share("direct_edges"))
            for row in study(0, 400)
        ]
        by_edges = budget_finding(rows, definition="direct_edges")
        assert by_edges.definition == "direct_edges"
        for group in by_edges.groups:
            assert group.pearson["direct_edges"].value == pytest.approx(1)
            assert group.pearson["convs"].value < 0.99
        with pytest.raises(UserError, match="definition"):
            budget_finding([], definition="edges")

    def test_small_groups_say_so(self):
        rows = [*study(0, 9, convs=5), *study(1, 30, convs=13)]
        small, medium, large = budget_finding(rows).groups
        assert (small.n, medium.n, large.n) == (9, 0, 30)
        assert small.pearson["convs"].value is None
        assert small.pearson["convs"].reason == "too few values: 9, at least 10 are needed"
        assert medium.spearman["direct_edges"].value is None
        assert large.pearson["convs"].value is not None
        assert small.verdict == medium.verdict == "undecided"


def with_fsp(seed, slope, n=50, cells=6):
    """Cells of the second half follow the gap; those of the first half are noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in study(seed, n, cells=cells):
        gap = rng.uniform(0.05, 0.4)
        late = np.arange(cells) >= cells // 2
        fsp = 10.0 ** -np.arange(cells) * (1 + late * slope * gap + rng.normal(0, 0.1, cells))
        rows.append(dataclasses.replace(row, fsp=tuple(fsp.tolist()), gap=gap))
    return rows


class TestFsp:
    def test_a_planted_correlation_is_found_where_it_is(self):
        for seed in range(6):
            found = fsp_finding(with_fsp(seed, 2))
            assert found.verdict == "holds"
            assert (found.n, found.last, len(found.cells)) == (50, 3, 6)
            assert all(cell.pearson.direction == "positive" for cell in found.cells[3:])
            assert found.late.name == "cells 3 to 5"
            assert found.early.name == "cells 0 to 2"

    def test_a_planted_absence_is_not_found(self):
        found = verdicts([fsp_finding(with_fsp(seed, 0)) for seed in SEEDS])
        assert found.count("undecided") >= len(SEEDS) - 2

    def test_the_opposite_is_found(self):
        assert fsp_finding(with_fsp(0, -2)).verdict == "does not hold"

    def test_last(self):
        rows = with_fsp(0, 2)
        found = fsp_finding(rows, last=1)
        assert found.late == found.cells[-1]
        assert fsp_finding(rows, last=6).early is None
        for last in (0, 7):
            with pytest.raises(UserError, match=f"last: {last}"):
                fsp_finding(rows, last=last)

    def test_rows_without_fsp_are_left_out(self):
        rows = [*study(0, 5), *with_fsp(0, 2), dataclasses.replace(study(1, 1)[0], fsp=(1.0,))]
        assert fsp_finding(rows) == fsp_finding(with_fsp(0, 2))

    def test_without_any_it_is_undecided(self):
        found = fsp_finding(study(0))
        assert (found.n, found.verdict, found.cells, found.late) == (0, "undecided", (), None)
        assert "none of the 80 candidates has FSP distances" in found.sentence

    def test_cells_must_match(self):
        with pytest.raises(ValueError, match="different numbers of cells"):
            fsp_finding(with_fsp(0, 2) + with_fsp(0, 2, cells=4))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


CONSTANT = [dataclasses.replace(row, robust=0.5, gap=0.1, fsp=(1.0, 1.0)) for row in study(0, 40)]
SAME_CODE = [dataclasses.replace(row, topology=study(0, 1)[0].topology) for row in study(0, 40)]


@pytest.mark.parametrize(
    "rows",
    [[], study(0, 1), study(0, 2), study(0, 9), study(0, 10), CONSTANT, SAME_CODE, with_fsp(0, 2)],
    ids=["none", "one", "two", "nine", "ten", "constant", "same code", "cell-free"],
)
def test_any_study_gives_three_sentences_and_no_nan(rows):
    found = study_findings(rows)
    assert found.n == len(rows)
    assert all(math.isfinite(number) for number in numbers(found.to_dict()))
    json.dumps(found.to_dict(), allow_nan=False)
    for number, sentence in enumerate(found.sentences, 1):
        assert sentence.startswith(f"Finding {number} (")
        assert sentence.count("\n") == 0
        assert sentence.endswith(".")
        assert "None" not in sentence
        assert "nan" not in sentence


def test_constant_studies_are_undecided():
    for rows in (CONSTANT, SAME_CODE):
        found = study_findings(rows)
        assert found.density.verdict == found.budget.verdict == found.fsp.verdict == "undecided"
        assert "equal" in found.density.sentence


def test_the_same_seed_gives_the_same_study():
    rows = with_fsp(0, 2)
    assert study_findings(rows, seed=3) == study_findings(rows, seed=3)


def test_findings_need_no_pytorch():
    code = (
        "import sys, nni_robust.analysis.findings, nni_robust.analysis.rejection;"
        "print([m for m in ('torch', 'nni', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_every_public_name_exists():
    import nni_robust.analysis as analysis

    assert sorted(analysis._HOMES) == sorted(analysis.__all__)
    for name in analysis.__all__:
        assert callable(getattr(analysis, name))
    with pytest.raises(AttributeError, match="no attribute 'pearsons'"):
        _ = analysis.pearsons
