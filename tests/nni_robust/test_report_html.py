"""The HTML report: complete, right, self-contained and safe, also for unfinished and odd runs."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from nni_robust.errors import UserError
from nni_robust.report import build_report
from nni_robust.report._format import interval

HOSTILE = '<script>alert("x")</script>'

#: (index, MACs, robust, clean, fronts that it is on by hand); 5 fails. All have equal parameters.
CANDIDATES = [
    (1, 2_000_000, 0.50, 0.80, "M3"),
    (2, 3_000_000, 0.45, 0.90, "3"),
    (3, 4_123_456, 0.625, 0.85, "MPC3"),
    (4, 1_000_000, 0.30, 0.70, "M3"),
    (6, 4_123_456, 0.60, 0.95, "C3"),
]
CODES = {
    1: "33123210120232",
    2: "33333103222131",
    3: "33333131231113",
    4: HOSTILE,
    6: ["01230123012301", "32103210321032"],
}


def history(epochs):
    return [
        {"epoch": e, "loss": 2 / (e + 1), "lr": 0.1, "val_clean": 0.5, "val_robust": None}
        for e in range(epochs)
    ]


def write_run(folder, *, state="finished", final=True, name="my run", best=None):
    """A run folder as an experiment leaves it."""
    config = {
        "name": name,
        "seed": 7,
        "task": {"dataset": "cifar10", "threat": {"norm": "linf", "eps": 8 / 255}},
        "space": {"name": "robnet", "cells": 3},
        "strategy": {"name": "robust-one-shot"},
        "evaluator": {"name": "adversarial-training"},
    }
    run = {
        "name": name,
        "status": state,
        "created": "2026-08-03T10:00:00+00:00",
        "seconds": 231.4,
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "machine": {"cores": 2, "gpus": [], "argv": ["nni-robust", "run", "x.yml"]},
        "nni": [{"id": "ab12cd34", "url": "http://localhost:8080"}],
    }
    supernet = {"phase": "supernet", "index": 0, "key": "s", "history": history(4), "status": "ok"}
    records = [{**supernet, "sample": {}, "code": None, "metrics": {"default": 0.4}}]
    for index, macs, robust, clean, _ in CANDIDATES:
        metrics = {"default": robust, "clean": clean, "pgd20@8/255": robust, "params": 4359574}
        records.append(
            {
                "phase": "candidate",
                "index": index,
                "key": f"key{index}",
                "sample": {"edge": index},
                "code": CODES[index],
                "metrics": {**metrics, "macs": macs, "seconds": 6.5},
                "status": "ok",
                "error": None,
            }
        )
    failed = {"phase": "candidate", "index": 5, "key": "key5", "code": "00000000000000"}
    failed |= {"sample": {}, "metrics": {}, "status": "failed", "error": "loss is not finite"}
    # Candidate 3 failed at first and was tried again.
    records[1:1] = [failed, {**failed, "index": 3, "key": "key3"}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "candidates.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records), encoding="utf-8"
    )
    if best is not None:
        (folder / "best.yaml").write_text(yaml.safe_dump(best), encoding="utf-8")
    if final:
        (folder / "final.json").write_text(json.dumps(final_networks()), encoding="utf-8")
    return folder


def final_networks():
    networks = []
    for label, clean, fgsm, pgd in (
        ("best", 0.85, 0.60, 0.523),
        ("random", 0.84, 0.58, 0.471),
        ("undefended", 0.95, 0.10, 0.0),
    ):
        metrics = {"clean": clean, "fgsm@8/255": fgsm, "pgd20@8/255": pgd, "macs": 664387200}
        networks.append(
            {
                "label": label,
                "metrics": {**metrics, "params": 4359574},
                "pictures": 10000,
                "eps_curve": [[0, clean], [8 / 255, pgd], [16 / 255, pgd / 2]],
                "history": history(3),
                "note": f"note on {label} & <co>",
            }
        )
    return {"threat": {"norm": "linf", "eps": 8 / 255}, "networks": networks}


class Page(HTMLParser):
    """Just enough of a document: tags with attributes, ids, tables as rows of cells, all text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.tables, self.text, self.scripts = [], [], {}, [], []
        self._table = self._row = None
        self._open, self._titles = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"unclosed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "table":
            self._table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append({"text": "", "titles": [], **attributes})
            self._row = self._table[-1][-1]
        elif self._row is not None and "title" in attributes:
            self._row["titles"].append(attributes["title"])
        if tag not in ("meta", "br", "link", "img", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._row = None

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.text.append(data)
            if self._row is not None:
                self._row["text"] += data

    def rows(self, table):
        """Text of the cells of each body row."""
        return [[" ".join(cell["text"].split()) for cell in row] for row in self.tables[table][1:]]

    def says(self, text):
        return text in " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    best = {
        "format": "nni-robust/architecture/1",
        "name": "my-best",
        "space": "robnet",
        "space_args": {"init_channels": 8, "cells": 3},
        "code": CODES[1],
        "input_shape": [3, 32, 32],
    }
    folder = write_run(tmp_path_factory.mktemp("runs") / "finished", best=best)
    path = build_report(folder)
    assert path == folder / "report.html"
    return path


@pytest.fixture(scope="module")
def page(finished):
    return Page(finished)


def test_every_candidate_has_its_row_best_first(page):
    rows = page.rows("candidates-table")
    assert [row[0] for row in rows] == ["3", "6", "1", "2", "4", "5"]
    assert rows[0][1:] == [
        CODES[3], "front MPC3", "62.5", "85.0", "62.5", "4.36 M", "4.12 M", "6.5 s",
    ]  # fmt: skip
    assert rows[1][1] == " ".join(CODES[6])
    assert rows[-1][2:5] == ["failed", "–", "–"]
    sorts = {cell["text"]: cell["aria-sort"] for cell in page.tables["candidates-table"][0]}
    assert {text for text, sort in sorts.items() if sort != "none"} == {"score %"}
    marked = {row[0]: row[2] for row in rows if "front" in row[2]}
    assert marked == {str(index): f"front {fronts}" for index, *_, fronts in CANDIDATES}
    assert page.says("Fronts: M of robust accuracy and MACs; P of")
    assert page.says("trial 5: loss is not finite")


def test_counts_are_there_in_full(page):
    row = page.tables["candidates-table"][1]
    assert row[6]["titles"] == ["4,359,574"]
    assert row[7]["titles"] == ["4,123,456"]
    assert row[7]["data-value"] == "4123456.0"


def test_final_networks(page):
    head = [cell["text"] for cell in page.tables["final-table"][0]]
    assert head[:4] == ["network", "clean %", "FGSM eps 8/255, %", "PGD-20 eps 8/255, %"]
    rows = page.rows("final-table")
    assert rows[0] == [
        "Best found", "85.0", "60.0", "52.3", "4.36 M", "664 M", "note on best & <co>",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["Best found", "Random, equal budget", "Undefended"]
    best_clean = [cell["class"] for cell in page.tables["final-table"][3][1:4]]
    assert best_clean == ["n top", "n", "n"]  # the undefended network is the most accurate


def test_unreliable_figures_are_marked(tmp_path, page):
    folder = write_run(tmp_path / "r")
    final = json.loads((folder / "final.json").read_text())
    flags = {"reliable": False, "unreliable": ["zero-gradient: flat & <b>steep</b>", "dynamic: x"]}
    final["networks"][1]["reliability"] = flags
    final["networks"][2]["reliability"] = {"reliable": True, "unreliable": []}
    checks = {"zero-gradient": {"status": "failed"}, "large-eps": {"status": "not run"}}
    checks["large-eps"]["reason"] = "it takes <more>"
    final["networks"][1]["reliability"]["checks"] = checks
    final["networks"][2]["reliability"]["checks"] = {"large-eps": {"status": "passed"}}
    (folder / "final.json").write_text(json.dumps(final))
    records = [json.loads(line) for line in (folder / "candidates.jsonl").open()]
    records[-1]["reliability"] = flags
    (folder / "candidates.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    text = build_report(folder).read_text(encoding="utf-8")
    assert Page(folder / "report.html").rows("checks-table") == [
        ["zero-gradient", "failed", "–"],
        ["large-eps", "not run: it takes <more>", "passed"],
    ]
    # Card, row of the table, candidate, check.
    assert text.count('class="tag unreliable"') == 4
    assert text.count("“Random, equal budget” is unreliable") == 1
    assert text.count("is unreliable.</strong>") == 1
    assert "<p>zero-gradient: flat &amp; &lt;b&gt;steep&lt;/b&gt;</p>" in text
    assert "2 of 3 are marked" in text
    assert "is unreliable, see below" not in text  # the headline's first figure is sound
    final["networks"][0]["reliability"] = flags
    (folder / "final.json").write_text(json.dumps(final))
    assert "is unreliable, see below" in build_report(folder).read_text(encoding="utf-8")
    sound = build_report(write_run(tmp_path / "s")).read_text(encoding="utf-8")
    assert 'class="tag unreliable"' not in sound
    assert "do not say whether their figures were checked" in sound


def test_headline_and_facts(page):
    assert page.says(
        "Under PGD-20, eps 8/255, the best network found classifies 52.3 % of the test"
    )
    assert page.says("L∞, eps 8/255 (0.03137) in pixel units")
    assert page.says("6, 1 failed")
    assert page.says("on the test split, n = 10,000")
    assert page.says("nni-robust run x.yml")
    assert not page.says("This run is")


def test_best_architecture_is_drawn_with_its_exact_cost(page):
    assert page.says("my-best")
    assert {"fig-cells-title", "fig-tradeoff-title", "fig-eps-title"} <= set(page.ids)
    assert {"fig-scores-title", "fig-training-title"} <= set(page.ids)


def test_config_is_reproduced_exactly(finished, page):
    start = finished.read_text(encoding="utf-8").split('<pre id="config" tabindex="0">')[1]
    assert yaml.safe_load(start.split("</pre>")[0].replace("&#39;", "'")) == yaml.safe_load(
        (finished.parent / "config.yaml").read_text(encoding="utf-8")
    )


def test_csv_download_holds_all_records(page):
    (link,) = [a["href"] for tag, a in page.tags if tag == "a" and "download" in a]
    text = base64.b64decode(link.removeprefix("data:text/csv;base64,")).decode()
    assert len(list(csv.DictReader(io.StringIO(text)))) == 1 + len(CANDIDATES) + 1


def test_the_page_needs_nothing_from_outside(finished, page):
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                assert value.startswith(("#", "data:text/csv", "data:,", "data:image/png")), name
        assert tag not in ("iframe", "object", "embed", "img", "base")
    assert "@import" not in finished.read_text(encoding="utf-8")


def test_ids_are_unique_and_references_lead_somewhere(finished, page):
    assert len(page.ids) == len(set(page.ids))
    text = finished.read_text(encoding="utf-8")
    used = {*re.findall(r'href="#([^"]*)"', text), *re.findall(r"url\(#([^)]*)\)", text)}
    used |= {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert used <= set(page.ids)


def test_accessible_structure(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all("aria-labelledby" in a for tag, a in page.tags if tag == "svg")
    assert ("html", {"lang": "en"}) in page.tags


def test_hostile_texts_stay_texts(tmp_path):
    folder = write_run(tmp_path / "run", name=HOSTILE)
    final = final_networks()
    final["networks"][0].update(label=f"$ {HOSTILE} $", note=HOSTILE)
    final["networks"][1]["metrics"][f"{HOSTILE}@$1"] = 0.1
    (folder / "final.json").write_text(json.dumps(final), encoding="utf-8")
    page = Page(build_report(folder))
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert page.rows("candidates-table")[4][1] == HOSTILE
    assert page.says(HOSTILE)
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_unfinished_run_is_reported_and_says_so(tmp_path, state):
    page = Page(build_report(write_run(tmp_path / "run", state=state, final=False)))
    assert page.says("This run is")
    assert page.says("There is no final.json")
    assert page.says("No architecture has been chosen yet")
    assert "final-table" not in page.tables
    assert len(page.rows("candidates-table")) == 6


def test_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("name: young\n", encoding="utf-8")
    page = Page(build_report(tmp_path))
    assert page.says("young")
    assert page.says("There is no run.json")
    assert not page.tables
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "final.json").write_text('{"networks": [', encoding="utf-8")
    (folder / "run.json").write_text("[1]", encoding="utf-8")
    (folder / "best.yaml").write_text("space: nowhere\n", encoding="utf-8")
    page = Page(build_report(folder))
    assert page.says("final.json cannot be read")
    assert page.says("run.json holds no mapping")
    assert page.says("best.yaml cannot be loaded here: UserError")
    assert len(page.rows("candidates-table")) == 6
    (folder / "candidates.jsonl").write_text("{\n{}\n", encoding="utf-8")
    page = Page(build_report(folder))
    assert page.says("candidates.jsonl cannot be read")
    assert "candidates-table" not in page.tables


def test_odd_values_in_final_networks(tmp_path):
    folder = write_run(tmp_path / "run")
    final = final_networks()
    final["networks"][1].update(
        metrics={}, eps_curve=[[None, 1], "x", [0.1]], history=[], note=None
    )
    final["networks"].append("no network")
    final["networks"][0]["history"] = [{"epoch": 1, "loss": "x"}, 3, {"loss": [1]}, {"loss": 0.5}]
    final["networks"][0]["steps_curve"] = [[0, 1], ["x", 1], [5, None], [10, 0.5]]
    final["networks"][2]["reliability"] = {"checks": {"a": 1, "b": {}}, "unreliable": 3}
    final["threat"] = {"norm": "l2", "eps": 0.5}
    (folder / "final.json").write_text(json.dumps(final), encoding="utf-8")
    page = Page(build_report(folder))
    assert page.rows("final-table")[1][1:4] == ["–", "–", "–"]
    assert page.says("L2, eps 0.5 in pixel units")


def test_report_can_be_written_elsewhere(tmp_path):
    folder = write_run(tmp_path / "run")
    out = tmp_path / "some" / "where.html"
    assert build_report(folder, out) == out
    assert out.is_file()
    assert not (folder / "report.html").exists()


def test_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        build_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"is no run folder: it holds none of config.yaml"):
        build_report(tmp_path)


def test_unwritable_target(tmp_path):
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write the report"):
        build_report(folder, tmp_path / "file" / "report.html")


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (239, 360), (10_000, 10_000)])
def test_interval_is_wilsons(right, n):
    z = 1.959964
    share = right / n
    middle, width = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = (100 * (middle + sign * width) / (1 + z**2 / n) for sign in (-1, 1))
    assert interval(share, n) == f"{abs(low):.1f} to {high:.1f}"


def test_no_interval_without_a_number_of_pictures():
    assert interval(0.5, None) == interval(None, 100) == interval(float("nan"), 100) == ""
