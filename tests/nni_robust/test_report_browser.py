"""The report and the comparison, opened in a real browser that has no network.

What the page shows is compared with the run folder's own files. Without Chromium these tests are
skipped; where the variable CI is set they fail instead.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright
from safetensors.numpy import save_file

from nni_robust.report import build_comparison, build_report

HOSTILE = (
    '<img src="http://example.invalid/x.png" onerror="document.title=1"><script>alert(1)</script>'
)
CANDIDATES = 40


def write_run(folder: Path, seed: int, epochs: int) -> Path:
    """A run with failed, unreliable and half-known candidates, and with all of its final phase."""
    dice = random.Random(seed)
    folder.mkdir()
    config = {
        "name": f"search {seed}",
        "seed": seed,
        "task": {"dataset": "digits", "threat": {"norm": "linf", "eps": 0.1}},
        "space": {"name": "robnet"},
        "strategy": {"name": "random"},
        "final": {"train": {"epochs": epochs, "loss": "madry"}, "attacks": ["pgd20"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    status = {"name": f"search {seed}", "status": "finished", "versions": {"torch": f"2.{seed}"}}
    (folder / "run.json").write_text(json.dumps(status))
    records: list[dict[str, Any]] = []
    for index in range(1, CANDIDATES + 1):
        macs, robust = dice.randrange(10**5, 10**9), dice.random()
        metrics = {"default": robust, "clean": dice.random(), "pgd20@0.1": robust, "macs": macs}
        sample = {f"edge {i}": dice.choice(["conv", "skip", "none"]) for i in range(3)}
        record = {"phase": "candidate", "index": index, "key": f"k{index}", "sample": sample}
        record |= {"code": "-".join(sample.values()), "status": "ok", "metrics": metrics}
        if index % 9 == 0:
            record |= {"status": "failed", "metrics": {}, "error": HOSTILE, "code": HOSTILE}
        elif index % 7 == 0:
            del metrics["clean"]
            record["reliability"] = {"reliable": False, "unreliable": ["zero-gradient: flat"]}
        records.append(record)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "candidates.jsonl").write_text(lines)
    history = [{"epoch": e, "loss": 1 / e, "val_clean": 0.8, "val_robust": 0.4} for e in (1, 2, 3)]
    networks = [
        {
            "label": label,
            "metrics": {"clean": 0.9, "pgd20@0.1": robust, "macs": 5e6, "params": 57234},
            "pictures": 360,
            "eps_curve": [[0, 0.9], [0.1, robust], [0.2, robust / 2]],
            "steps_curve": [[1, 0.8], [10, robust + 0.05], [50, robust]],
            "history": history,
            "note": "",
        }
        for label, robust in (("best", 0.6), ("undefended", 0.1))
    ]
    final = {"threat": {"norm": "linf", "eps": 0.1}, "networks": networks}
    (folder / "final.json").write_text(json.dumps(final))
    for network in networks:
        write_examples(folder / "examples" / str(network["label"]) / "pgd20_0.1.safetensors")
    # Named with its path, which is a long word without a place to break.
    (folder / "examples" / "best" / "damaged.safetensors").write_text("no tensors")
    return folder


def write_examples(path: Path) -> None:
    path.parent.mkdir(parents=True)
    clean = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    labels = np.arange(5)
    tensors = {
        "clean": clean,
        "adversarial": np.clip(clean + 0.1, 0, 1),
        "labels": labels,
        "predicted_clean": labels,
        "predicted_adversarial": labels[::-1].copy(),
        "index": 7 * labels,
    }
    texts = {"attack": "pgd20@0.1", "classes": json.dumps([*"abcd", HOSTILE])}
    save_file(tensors, path, {**texts, "norm": "linf", "eps": "0.1"})


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs & <more>")
    runs = [write_run(folder / f"run {seed}", seed, 10 + seed) for seed in (1, 2)]
    report = build_report(runs[0])
    return {"report": report, "comparison": build_comparison(runs)}


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


class Opened:
    """A page in a window of its own, with everything that it asked for and complained about."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, script: bool = True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, java_script_enabled=script
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.goto(path.as_uri())
        self.url = path.as_uri()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.context.close()
        if kind is None:
            outside = [url for url in self.requests if not url.startswith("data:")]
            assert outside == [self.url], "the page asked for something besides itself"
            assert self.complaints == []

    def column(self, number: int, table: str = "candidates-table") -> list[str]:
        cells = f"#{table} tbody tr:not([hidden]) > :nth-child({number + 1})"
        return [" ".join(text.split()) for text in self.page.locator(cells).all_inner_texts()]

    def headings(self, table: str = "candidates-table") -> list[str]:
        found = self.page.locator(f"#{table} thead th").all_inner_texts()
        return [text.split()[0] for text in found]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path.parent / "candidates.jsonl").open()]


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_every_picture_decodes_and_nothing_is_fetched(
    which: str, browser: Browser, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages[which]) as opened:
        sizes = opened.page.evaluate(
            """async () => {
                const sources = [...document.querySelectorAll("svg image")].map(
                    i => i.getAttribute("href") || i.getAttribute("xlink:href"));
                sources.push(...[...document.images].map(i => i.src));
                return await Promise.all(sources.map(async source => {
                    const image = new Image();
                    image.src = source;
                    await image.decode();
                    return [image.naturalWidth, image.naturalHeight];
                }));
            }"""
        )
        # Five pictures, and for each of two networks the change and the attacked ones; the topology
        # map has the table's own size.
        assert sizes.count([8, 8]) == 5 * (1 + 2 * 2)
        assert all(width > 0 and height > 0 for width, height in sizes)
        drawings = opened.page.locator("svg.plot").evaluate_all(
            "all => all.map(s => [s.querySelector('title').textContent, s.getBBox().width])"
        )
        assert len(drawings) == (7 if which == "report" else 6)
        assert all(title and width > 0 for title, width in drawings)
        assert opened.page.title() != "1"


def test_sorting_by_mouse_and_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    found = records(pages["report"])
    with Opened(browser, pages["report"]) as opened:
        headings = opened.headings()
        trials = headings.index("trial")

        def order(key: str, falling: bool) -> list[list[int]]:
            """Trials in order; those without a value come last, in any order."""
            known = [r for r in found if r["metrics"].get(key) is not None]
            known.sort(key=lambda r: r["metrics"][key], reverse=falling)
            rest = sorted(r["index"] for r in found if r["metrics"].get(key) is None)
            return [[r["index"] for r in known], rest]

        def shown(count: int) -> list[list[int]]:
            numbers = [int(text) for text in opened.column(trials)]
            return [numbers[:count], sorted(numbers[count:])]

        assert shown(len(order("default", True)[0])) == order("default", True)
        for heading, key in (("MACs", "macs"), ("clean", "clean"), ("PGD-20", "pgd20@0.1")):
            head = opened.page.locator("#candidates-table thead th").nth(headings.index(heading))
            wanted = order(key, True)
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == "descending"
            assert shown(len(wanted[0])) == wanted
            head.get_by_role("button").press("Enter")
            assert head.get_attribute("aria-sort") == "ascending"
            assert shown(len(wanted[0])) == order(key, False)
            sorts = opened.page.locator("#candidates-table th[aria-sort]").evaluate_all(
                "all => all.map(h => h.getAttribute('aria-sort')).filter(s => s != 'none')"
            )
            assert sorts == ["ascending"], "one column at a time is sorted"


def test_filters_show_what_they_say(browser: Browser, pages: dict[str, Path]) -> None:
    found = records(pages["report"])
    failed = {str(r["index"]) for r in found if r["status"] == "failed"}
    with Opened(browser, pages["report"]) as opened:
        trials, codes = (opened.headings().index(name) for name in ("trial", "architecture"))
        show = opened.page.get_by_label("Show")
        count = opened.page.locator(".count")
        assert count.inner_text() == f"{CANDIDATES} of {CANDIDATES} shown"
        show.select_option("failed")
        assert {*opened.column(trials)} == failed
        show.select_option("ok")
        assert {*opened.column(trials)} == {str(r["index"]) for r in found} - failed
        show.select_option("unreliable")
        doubtful = {str(r["index"]) for r in found if "reliability" in r}
        assert {*opened.column(trials)} == doubtful
        show.select_option("front")
        assert 0 < len(opened.column(trials)) < CANDIDATES
        show.select_option("")
        opened.page.get_by_label("Find").fill("CONV-skip")
        wanted = sorted(r["code"] for r in found if "conv-skip" in r["code"])
        assert sorted(opened.column(codes)) == wanted
        assert count.inner_text() == f"{len(wanted)} of {CANDIDATES} shown"


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_paper_has_everything_and_no_controls(
    which: str, browser: Browser, pages: dict[str, Path]
) -> None:
    rows = CANDIDATES * (1 if which == "report" else 2)
    with Opened(browser, pages[which]) as opened:
        page = opened.page
        page.get_by_label("Find").fill("nothing is called so")
        assert opened.column(0) == []
        page.emulate_media(media="print")
        visible = "all => all.filter(e => e.checkVisibility()).length"
        for controls in (".tools", "nav", ".noprint"):
            assert page.locator(controls).evaluate_all(visible) == 0
        assert page.locator("#candidates-table tbody tr").evaluate_all(visible) == rows
        if which == "comparison":
            assert page.locator("details pre.config").evaluate_all(visible) == 2
        cut = "all => all.filter(e => e.scrollHeight > e.clientHeight + 1).length"
        assert page.locator(".long, pre").evaluate_all(cut) == 0
        page.emulate_media(media=None)
        paper = page.pdf(format="A4", tagged=True)
    assert paper.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", paper)) >= 3
    # The structure of a tagged PDF: every row of every table, headings included.
    assert paper.count(b"/S /TR\n") >= rows + 4
    assert paper.count(b"/S /Figure\n") >= 6


@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_narrow_screen_needs_no_scrolling_sideways(
    width: int, which: str, browser: Browser, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages[which], width) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        # What is wider scrolls inside its own box, by touch and by keyboard.
        assert opened.page.locator(".scroll:not([tabindex])").count() == 0


def test_without_scripts_the_page_is_whole(browser: Browser, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["report"], script=False) as opened:
        page = opened.page
        assert page.locator("#candidates-table tbody tr").count() == CANDIDATES
        assert page.locator("#candidates-table button").count() == 0
        assert not page.locator(".tools").is_visible()
        assert not page.get_by_text("A column's heading sorts by it").is_visible()
        assert page.get_by_role("link", name="Download all as CSV").is_visible()


def test_the_comparison_leads_to_the_reports_that_there_are(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with Opened(browser, pages["comparison"]) as opened:
        links = opened.page.locator("#runs-table a")
        assert links.count() == 1, "only one of the runs has a report"
        assert links.evaluate("a => a.href") == pages["report"].as_uri()
