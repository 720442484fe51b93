"""``bench``: each benchmark in its smallest size, and what its figures must fulfil."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_robust import __version__
from nni_robust.bench import default_networks, spread, write_rows
from nni_robust.bench.attack import CASES, summary
from nni_robust.cli import main
from nni_robust.cli._bench import BENCHES
from nni_robust.report._spectrum import plot_estimates

WANTED = ["0.045", "0.075", "0.105"]
SMALL = """
format: nni-robust/architecture/1
name: %s
space: wide-resnet
space_args: {depths: 1, widths: 1, stem_channels: 4, base_channels: [4, 4, 8]}
code: "1x1 1x1 1x1"
num_classes: 10
input_shape: [3, 8, 8]
provenance: {kind: found, source: written by hand}
"""


def test_estimator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "estimator", "--quick", "--out", str(tmp_path / "out"), "--pictures", "48"]
    argv += ["--epochs", "1", "--rounds", "1", "--estimators", "scale,basic", "--seeds", "2"]
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(SMALL % name)
    argv += ["--networks", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"), "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    with open(tmp_path / "out" / "estimator.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert (tmp_path / "out" / "estimator.svg").is_file()
    assert len(rows) == len(found["rows"]) == 2 * 3 * 2 * 3  # seeds, methods, networks, strengths
    assert {(r["network"], r["seen"]) for r in rows} == {("one", "1"), ("two", "0")}
    for row in rows:
        assert row["eps"] in WANTED
        assert row["nni_robust"] == __version__
        assert row["torch"] == torch.__version__
        assert row["processor"]
        assert row["pictures"] == "48"
        assert float(row["error"]) > 0
        assert -1 <= float(row["cosine"]) <= 1
        # PGD-7 at three of six strengths, or at the first and three steps at the others.
        assert float(row["passes_all_real"]) == 42
        assert float(row["passes"]) == (22 if row["method"] == "warm attack" else 21)
        # One round of two batches at four strengths for what learns.
        learnt = 2 * 64 * 28 if row["method"] == "basic" else 0
        assert int(row["training_passes"]) == learnt
    (first, *_) = found["summary"]
    same = [
        r
        for r in found["rows"]
        if (r["method"], r["seen"], r["eps"]) == (first["method"], first["seen"], first["eps"])
    ]
    one, two = (r["error"] for r in same)
    assert first["error"] == pytest.approx((one + two) / 2)
    assert first["error_std"] == pytest.approx(abs(one - two) / 2**0.5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--estimators", "scale,basik"], "estimators: 'basik'"),
        (["--estimators", "scale,scale"], "names one twice"),
        (["--estimators", ","], "at least one estimator"),
        (["--networks", "robnet-small"], "needs two networks"),
        (["--networks", "robnet-small", "absent.yaml"], "absent.yaml"),
        (["--dataset", "digit"], "did you mean 'digits'?"),
    ],
)
def test_refusals(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "estimator", "--quick", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def run(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[Any, list[Any]]:
    """What a benchmark prints as JSON in its smallest size, and its rows, which its CSV has too."""
    threads = torch.get_num_threads()
    assert main(["bench", verb, "--quick", "--out", str(folder), "--json", *more]) == 0
    assert torch.get_num_threads() == threads
    found = json.loads(capsys.readouterr().out)
    with open(folder / f"{verb}.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(found["rows"])
    assert {row["threads"] for row in rows} == {"1"}
    assert all(row["torch"] == torch.__version__ and row["load"] and row["nice"] for row in rows)
    return found, found["rows"]


def test_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, rows = run("attack", tmp_path, capsys)
    by_case = {case: [r for r in rows if r["case"] == case] for case in CASES}
    # Contenders, times turns.
    assert {case: len(some) for case, some in by_case.items() if some} == {"pgd": 10, "memory": 5}
    # The order is reversed in every turn.
    first, second = ([r["contender"] for r in by_case["pgd"] if r["turn"] == t] for t in (0, 1))
    assert first == second[::-1]
    # A ratio is the rival's time divided by ours, in the same turn; the median over the turns.
    (entry,) = (
        e
        for e in found["summary"]
        if (e["case"], e["ours"], e["rival"]) == ("pgd", "ours, fast", "torchattacks")
    )
    ratios = []
    for turn in (0, 1):
        cpu = {r["contender"]: r["cpu"] for r in by_case["pgd"] if r["turn"] == turn}
        ratios.append(cpu["torchattacks"] / cpu["ours, fast"])
    assert entry["cpu"] == pytest.approx(sum(ratios) / 2, abs=0.006)
    memory = {r["contender"]: r["bytes"] for r in by_case["memory"]}
    # What a pass keeps without batch norms is less than with them, by more than one map.
    assert memory["ours"] - memory["ours, fast"] > 4 * 4 * 32 * 32 * 4


@pytest.mark.parametrize(("verb", "networks"), [("evaluate", 2), ("spectrum", 1)])
def test_accuracies(
    verb: str, networks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, rows = run(verb, tmp_path, capsys, "--turns", "1", "--limit", "16")
    assert {row["case"] for row in rows} == {verb}
    assert len(rows) == 4 * networks  # contenders, networks
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert {"cpu", "accuracy", "rival's accuracy"} <= found["summary"][0].keys()


def test_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, rows = run("search", tmp_path, capsys, "--turns", "1", "--candidates", "1")
    by_case = {case: [r for r in rows if r["case"] == case] for case in ("supernet", "candidates")}
    assert [len(some) for some in by_case.values()] == [3, 3]
    assert all(0 <= row["accuracy"] <= 1 for row in by_case["candidates"])
    assert {e["rival"] for e in found["summary"]} == {
        "plain loop",
        "plain loop, batch statistics",
        "torchattacks",
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cases", "pgd,speed"], "cases: 'speed' is not allowed; allowed: pgd, memory"),
        (["--cases", "evaluate"], "cases: 'evaluate' is 'nni-robust bench evaluate'"),
        (["--networks", "resnet18-w"], "networks: 'resnet18-w'"),
        (["--networks", "resnet50"], "networks: 'resnet50'"),
    ],
)
def test_attack_refusals(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attack", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_attack_summary_says_which_goals_are_met() -> None:
    def row(name: str, cpu: float, turn: int) -> dict[str, Any]:
        case = {"case": "pgd", "network": "resnet18-w16", "contender": name, "turn": turn}
        return {**case, "cpu": cpu, "wall": 2 * cpu}

    for times, met in (((2.0, 1.8, 1.7), True), ((1.6, 1.7, 1.6), False)):
        rows = [row("ours, fast", 1.0, turn) for turn in range(3)]
        rows += [row("torchattacks", cpu, turn) for turn, cpu in enumerate(times)]
        (entry,) = summary(rows)
        assert (entry["cpu"], entry["met"]) == (sorted(times)[1], met)
        assert entry["cpu range"] == f"{min(times):.2f} to {max(times):.2f}"


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["bench", "--help"])
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BENCHES)
    with pytest.raises(SystemExit) as e:
        main(["bench"])
    assert e.value.code == 2


def test_default_networks() -> None:
    names = {architecture.name: architecture.cost().params for architecture in default_networks()}
    assert list(names) == ["wrn-a", "wrn-b", "wrn-held-out"]
    assert len(set(names.values())) == 3
    assert max(names.values()) < 200_000


def test_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": "x,y"}, {"a": 2, "c": 0.5}]
    write_rows(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as f:
        assert list(csv.DictReader(f)) == [
            {"a": "1", "b": "x,y", "c": ""},
            {"a": "2", "b": "", "c": "0.5"},
        ]
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread([4.0]) == (4.0, 0.0)


def test_figure_has_a_line_for_each_method() -> None:
    values = {"scale": {0.045: [0.2, 0.3], 0.105: [0.4, 0.5]}, "plus$": {0.045: [0.1]}}
    left, right = plot_estimates(values, values).axes
    (line,) = (one for one in left.lines if one.get_label() == "scale")
    assert line.get_ydata().tolist() == pytest.approx([0.25, 0.45])  # type: ignore[union-attr]
    (line,) = (one for one in right.lines if one.get_label() == r"plus\$")
    assert list(line.get_ydata()) == pytest.approx([10.0])
