"""Comparisons of searches, on curves whose answers can be said beforehand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nni_robust.analysis.comparison import (
    SearchCurve,
    compare_curves,
    compare_runs,
    read_curve,
)
from nni_robust.errors import UserError
from nni_robust.store import append_record, write_json, write_yaml


def curve(seed: int, *scores: float | None, **rest: Any) -> SearchCurve:
    return SearchCurve(seed=seed, scores=scores, **rest)


def test_best_so_far_by_hand() -> None:
    found = curve(0, 0.25, None, 0.125, 0.5, 0.375)
    assert list(found.best_so_far(5)) == [0.25, 0.25, 0.25, 0.5, 0.5]
    assert found.reaches(0.25, 5) == 1
    assert found.reaches(0.3, 5) == 4
    assert found.reaches(0.3, 3) is None
    failed_first = curve(0, None, 0.5)
    assert np.isnan(failed_first.best_so_far(2)[0])
    assert failed_first.reaches(0.5, 2) == 2  # the failed one has cost an evaluation


def test_a_comparison_by_hand() -> None:
    """Differences of equal seeds are 0.1, 0.2 and 0.3; the level is random's mean of 0.3."""
    comparison = compare_curves(
        {
            "random": [curve(0, 0.1, 0.2), curve(1, 0.3, 0.2), curve(2, 0.4, 0.1, 0.9)],
            "clever": [curve(2, 0.2, 0.7), curve(0, 0.3, 0.1), curve(1, 0.5, 0.1)],
        },
        against="random",
    )
    assert comparison.evaluations == 2  # the third evaluation of one run is left out
    random, clever = comparison["random"], comparison["clever"]
    assert random.mean == pytest.approx(0.3)
    assert random.sd == pytest.approx(0.1)
    assert random.difference is None
    assert random.missed == 1
    assert random.reached == 1  # after 1, after 1, never
    assert clever.mean == pytest.approx(0.5)
    assert clever.reached == 1
    assert clever.missed == 0
    assert list(clever.curve_mean) == pytest.approx([1 / 3, 0.5])
    assert clever.difference is not None
    assert clever.difference.paired
    assert clever.difference.n == 3
    assert clever.difference.mean == pytest.approx(0.2)
    assert (clever.difference.low, clever.difference.high) == pytest.approx((0.1, 0.3))
    assert clever.difference.verdict == "better"
    assert "clever is better than random: +20.00 points" in comparison.sentences[1]
    assert any("Runs of random evaluated more than 2" in s for s in comparison.sentences)


def test_a_search_that_ends_early_keeps_what_it_has() -> None:
    """The reference sets the number of evaluations: others are cut or held there."""
    comparison = compare_curves(
        {
            "early": [curve(0, 0.5), curve(1, 0.1, 0.3)],
            "random": [curve(0, 0.1, 0.2, 0.3), curve(1, 0.3, 0.1, 0.1)],
            "long": [curve(0, 0.1, 0.1, 0.1, 0.9), curve(1, 0.2, 0.1, 0.1, 0.9)],
        },
        "random",
    )
    assert comparison.evaluations == 3
    assert comparison["early"].used == 1.5
    assert list(comparison["early"].curve_mean) == pytest.approx([0.3, 0.4, 0.4])
    assert comparison["long"].mean == pytest.approx(0.15)
    assert any("early ended after 1.5 architectures" in s for s in comparison.sentences)
    assert any("Runs of long evaluated more than 3" in s for s in comparison.sentences)


def test_runs_that_never_arrive_are_in_the_median() -> None:
    runs = [curve(0, 0.5, 0.5), curve(1, 0.1, 0.1), curve(2, 0.1, 0.2)]
    comparison = compare_curves({"random": [curve(0, 0.4, 0.4)], "lucky": runs}, "random")
    assert comparison["lucky"].reached is None  # though one run was there after one evaluation
    assert comparison["lucky"].missed == 2
    assert any("in 1 of 3 runs, so there is no median" in s for s in comparison.sentences)


def test_equal_strategies_are_undecided_about_as_often_as_promised() -> None:
    """Of 200 comparisons of the same distribution, a 95 % interval errs in a few."""
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(200):
        ends = rng.normal(0.4, 0.01, (2, 25))
        a, b = ([curve(i, float(v)) for i, v in enumerate(row)] for row in ends)
        difference = compare_curves({"a": a, "b": b}, "a")["b"].difference
        assert difference is not None
        decided += difference.verdict != "undecided"
    assert decided <= 26  # 13 %; the bootstrap of 25 pairs is a little narrow


def test_unreliable_results_are_told_and_marked() -> None:
    """What counts is the network that a run ends with among those compared, not any other."""
    bad = ("one-answer",)
    comparison = compare_curves(
        {
            "random": [
                curve(0, 0.4, 0.2, flags=((), bad)),
                curve(1, 0.3, 0.5, flags=((), ()), test_flags=()),
            ],
            "lucky": [
                curve(0, None, 0.9, 1.0, flags=(None, bad, ())),  # the third is not compared
                curve(1, 0.8, 0.8, flags=((), bad)),  # the first of equals
            ],
        },
        "random",
    )
    assert (comparison["random"].unreliable, comparison["lucky"].unreliable) == (0, 1)
    (told,) = (s for s in comparison.sentences if "UNRELIABLE" in s)
    assert "lucky (1 of 2 runs: one-answer)" in told
    assert "random" not in told
    assert "unreliable ones among them" in comparison.sentences[2]
    told_of_reference = compare_curves(
        {"a": [curve(0, 0.1, flags=(bad,))], "b": [curve(0, 0.2, flags=((),))]}, "a"
    )
    assert "unreliable ones among them" in told_of_reference.sentences[2]
    rows = {r["strategy"]: r for r in csv.DictReader(io.StringIO(comparison.to_csv()))}
    assert [rows[name]["unreliable runs"] for name in ("random", "lucky")] == ["0", "1"]
    labels = [t.get_text() for t in comparison.figure().axes[1].get_yticklabels()]
    assert labels == ["random", "lucky\n(UNRELIABLE: 1 of 2)"]
    clean = compare_curves({"a": [curve(0, 0.1)], "b": [curve(0, 0.2, flags=((),))]}, "a")
    assert not any("unreliable" in s.lower() for s in clean.sentences)


def test_runs_of_other_seeds_are_not_paired() -> None:
    a = [curve(seed, 0.5 + 0.01 * seed) for seed in range(6)]
    b = [curve(seed, 0.3 + 0.01 * seed) for seed in range(10, 14)]
    difference = compare_curves({"a": a, "b": b}, "a")["b"].difference
    assert difference is not None
    assert not difference.paired
    assert difference.verdict == "worse"
    assert difference.n == 4


def write_run(folder: Path, seed: int, scores: list[float], **evaluator: Any) -> Path:
    write_yaml(folder / "config.yaml", {"seed": seed, "evaluator": evaluator, "task": {}})
    for index, score in enumerate(scores):
        append_record(
            folder / "candidates.jsonl",
            {
                "phase": "candidate", "index": index, "status": "ok", "key": None,
                "sample": {"width": index % 3}, "metrics": {"default": score, "clean": 0.9},
            },
        )  # fmt: skip
    return folder


def test_an_architecture_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4, [0.1, 0.3, 0.2, 0.1, 0.3])
    for phase in ("supernet", "meta"):
        append_record(
            run / "candidates.jsonl",
            {"phase": phase, "index": 9, "status": "ok", "sample": {}, "metrics": {"default": 1}},
        )
    found = read_curve(run)
    assert found.scores == (0.1, 0.3, 0.2)
    assert (found.seed, found.repeated, found.elsewhere) == (4, 2, 1)
    assert found.best_sample == {"width": 1}
    assert read_curve(run, "clean").scores == (0.9, 0.9, 0.9)
    with pytest.raises(UserError, match="no candidate with the metric 'macs'"):
        read_curve(run, "macs")


def test_winners_are_looked_up_on_the_test_split_afterwards(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    for width, score in enumerate((0.1, 0.3, 0.2)):
        metrics = {"default": score, "clean": 0.9, "test clean": 0.8 + width / 100}
        append_record(table, {"sample": {"width": width}, "metrics": metrics})
    settings = {"name": "tabular", "table": str(table)}
    runs = {
        name: [write_run(tmp_path / f"{name}{seed}", seed, scores, **settings) for seed in (0, 1)]
        for name, scores in {"random": [0.1, 0.2], "clever": [0.1, 0.3]}.items()
    }
    comparison = compare_runs(runs, against="random")
    assert comparison.optimum == 0.3
    assert comparison["clever"].test == {"clean": (pytest.approx(0.81), 0.0)}
    tested = comparison["random"].test
    assert tested == {"clean": (pytest.approx(0.81), 0.0)}  # width 1 is its second architecture
    assert "of 30.00 % at best" in comparison.sentences[0]
    assert "On the test split, which no search saw" in comparison.sentences[-1]

    # A run that trains has tested its winner itself.
    write_json(
        tmp_path / "clever0" / "final.json",
        {"networks": [{"label": "best", "metrics": {"clean": 0.5, "macs": 7, "default": 1}}]},
    )
    assert read_curve(tmp_path / "clever0").test == {"clean": 0.5}


def test_tables_and_figure(tmp_path: Path) -> None:
    comparison = compare_curves(
        {
            "random": [curve(s, 0.1 * s, 0.2, 0.3, elsewhere=0) for s in range(3)],
            "meta $x$": [curve(s, 0.2, 0.3 + 0.01 * s, 0.4, elsewhere=60) for s in range(3)],
        },
        "random",
        optimum=0.45,
    )
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert [row["strategy"] for row in rows] == ["random", "meta $x$"]
    assert float(rows[1]["difference"]) == pytest.approx(0.1)
    assert rows[1]["verdict"] == "better"
    assert rows[1]["other evaluations"] == "60.0"
    found = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert found["results"][1]["difference"]["verdict"] == "better"
    assert any("60 evaluations a run for other tasks" in s for s in comparison.sentences)
    comparison.figure().savefig(tmp_path / "comparison.svg")
    assert (tmp_path / "comparison.svg").stat().st_size > 5000


def test_impossible_comparisons() -> None:
    with pytest.raises(UserError, match="no strategy 'radnom'; did you mean 'random'"):
        compare_curves({"random": [curve(0, 0.1)]}, "radnom")
    with pytest.raises(UserError, match="strategy 'tpe' has no finished run"):
        compare_curves({"random": [curve(0, 0.1)], "tpe": []}, "random")
