"""Several runs on one page: what differs comes first, and unlike figures are not called better."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.report import build_comparison

CONFIG: dict[str, Any] = {
    "name": "mine",
    "seed": 0,
    "task": {"dataset": "digits", "threat": {"norm": "linf", "eps": 0.1}, "test_limit": None},
    "space": {"name": "robnet", "cells": 3},
    "strategy": {"name": "random"},
    "final": {"train": {"loss": "madry", "epochs": 5}, "attacks": ["fgsm", "pgd20"]},
    "nni": {"port": 8080},
}
HOSTILE = "<script>alert(1)</script>"


def write_run(
    folder: Path,
    robust: float = 0.5,
    changes: dict[str, Any] | None = None,
    pictures: int = 360,
    attack: str = "pgd20@0.1",
) -> Path:
    """A finished run; `changes` are dotted keys of its config."""
    config = copy.deepcopy(CONFIG)
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(
        json.dumps({"name": config["name"], "status": "finished", "versions": {"torch": "2.13"}})
    )
    record = {"phase": "candidate", "index": 1, "key": "a", "sample": {"e": "conv"}, "code": "1"}
    metrics = {"default": robust, "clean": 0.9, "pgd20@0.1": robust, "macs": 1e6, "params": 1e4}
    (folder / "candidates.jsonl").write_text(json.dumps({**record, "metrics": metrics}) + "\n")
    network = {
        "label": "best",
        "metrics": {"clean": 0.9, attack: robust, "macs": 1e6, "params": 1e4},
        "pictures": pictures,
        "eps_curve": [[0, 0.9], [0.1, robust]],
    }
    (folder / "final.json").write_text(
        json.dumps({"threat": config["task"]["threat"], "networks": [network]})
    )
    return folder


def compare(*runs: Path) -> str:
    return build_comparison(runs).read_text(encoding="utf-8")


def rows(page: str, table: str) -> list[list[str]]:
    body = page.split(f'<table id="{table}"')[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in body.split("<tr")[1:]]
    return [[" ".join(re.sub(r"<[^>]*>", " ", c).split()) for c in row] for row in cells]


def test_seeds_and_strategies_are_compared_without_a_warning(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 0.5, {"name": "one"})
    b = write_run(tmp_path / "b", 0.6, {"name": "two", "seed": 1, "nni.port": 1})
    c = write_run(tmp_path / "c", 0.55, {"name": "three", "strategy.name": "tpe"})
    page = compare(a, b, c)
    assert 'id="incomparable"' not in page
    assert rows(page, "differences-table") == [
        ["settings", "one", "two", "three"],
        ["seed", "0", "1", "0"],
        ["strategy.name", "random", "random", "tpe"],
    ]
    assert "two 60.0\u00a0%, three 55.0\u00a0%, one 50.0\u00a0%." in page
    assert page.count('class="n top"') == 4  # 60 % under PGD-20; clean accuracy is 90 % three times
    assert {row[2] for row in rows(page, "candidates-table")[1:]} == {"1"}
    assert [row[0] for row in rows(page, "candidates-table")[1:]] == ["two", "three", "one"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task.dataset": "cifar10"}, "data"),
        ({"task.threat": {"norm": "linf", "eps": 0.2}}, "threat model"),
        ({"task.threat": {"norm": "l2", "eps": 0.1}}, "threat model"),
        ({"final.train": {"loss": "trades", "epochs": 5}}, "recipe of the final training"),
        ({"final.train.epochs": 50}, "recipe of the final training"),
        ({"final.attacks": ["fgsm"]}, "attacks of the test"),
        ({"task.test_limit": 100}, "test pictures"),
    ],
)
def test_what_moves_accuracy_besides_the_search_is_warned_of(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    a = write_run(tmp_path / "a", 0.5, {"name": "one"})
    page = compare(a, write_run(tmp_path / "b", 0.6, {"name": "two", "seed": 3, **changes}))
    warning = page.split('id="incomparable"')[1].split("</div>")[0]
    assert f"The runs also differ in: {what}." in warning
    table = rows(page, "differences-table")
    assert what in table[1][0]  # weighty differences come first
    assert table[-1][0] == "seed"
    assert 'class="n top"' not in page
    assert "60.0\u00a0%, one" not in page
    # Radii of two norms cannot stand on one axis.
    assert ("fig-eps" in page) is ("l2" not in str(changes))


def test_what_the_files_hide_is_warned_of_too(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", pictures=100),
        write_run(tmp_path / "c", attack="pgd50@0.1"),
    ]
    assert "differ in: test pictures; attacks of the test." in compare(*runs)


def test_runs_whose_settings_are_lost_are_never_called_comparable(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 0.6)]
    for number, run in enumerate(runs, start=1):
        (run / "config.yaml").unlink()
        page = compare(*runs)
        assert f"settings (those of {number} of 2 runs are not known)" in page
        assert 'class="n top"' not in page


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    page = compare(write_run(tmp_path / "x" / "a"), write_run(tmp_path / "y" / "b"))
    assert [row[0] for row in rows(page, "runs-table")[1:]] == ["mine (a)", "mine (b)"]
    page = compare(tmp_path / "x" / "a", write_run(tmp_path / "y" / "a"))
    names = [row[0] for row in rows(page, "runs-table")[1:]]
    assert names == [f"mine ({tmp_path}/x/a)", f"mine ({tmp_path}/y/a)"]


def test_unfinished_and_damaged_runs_are_shown_with_what_they_have(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", changes={"name": HOSTILE})
    bad = write_run(tmp_path / "bad", changes={"name": "bad"})
    (bad / "final.json").write_text("{")
    (bad / "run.json").write_text(json.dumps({"status": "running", "error": HOSTILE}))
    (bad / "candidates.jsonl").write_text("")
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.yaml").write_text("name: young\n")
    page = compare(good, bad, young)
    assert "bad: final.json cannot be read" in page
    assert "bad: this run is running." in page
    assert "young: There is no run.json" in page
    assert len(rows(page, "runs-table")) == 4
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "alert(1)" not in page.split("<script>")[1]


def test_the_page_lies_where_the_runs_are_or_where_it_is_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "deep" / "a"), write_run(tmp_path / "deep" / "er" / "b")]
    (runs[1] / "report.html").write_text("its own")
    assert build_comparison(runs) == tmp_path / "deep" / "comparison.html"
    assert 'href="er/b/report.html"' in (tmp_path / "deep" / "comparison.html").read_text()
    out = tmp_path / "else" / "x.html"
    assert build_comparison(runs, out) == out
    assert 'href="../deep/er/b/report.html"' in out.read_text()


def test_what_is_no_comparison_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(UserError, match="at least two"):
        build_comparison([run])
    with pytest.raises(UserError, match="given twice"):
        build_comparison([run, tmp_path / "a" / ".." / "a"])
    with pytest.raises(UserError, match="no run folder"):
        build_comparison([run, tmp_path / "absent"])


def test_a_wrong_run_is_told_before_any_report_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a")
    for wrong in (tmp_path / "absent", run):
        assert main(["report", str(run), str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err
        assert not (run / "report.html").exists()
