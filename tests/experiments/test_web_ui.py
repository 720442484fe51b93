"""NNI's web UI, read in a headless Chromium: can a user see what a search found?

The page's text is read as a user sees it, and compared with the run folder. Without Chromium these
tests are skipped; where the variable CI is set they fail instead.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from nni_robust.cli import main
from nni_robust.experiments import run_experiment
from nni_robust.store import read_json, read_records

_PATIENCE = 120_000  # milliseconds, for a page on a busy machine

#: What every trial offers in the metric chart's selector, whichever trial was the first.
_OFFERED = ["default", "robust", "clean", "macs", "params", "seconds"]


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    """An empty page of a headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(_PATIENCE)
        expect.set_options(timeout=_PATIENCE)
        yield page
        browser.close()


def rows(page: Page) -> dict[int, Locator]:
    """The rows of the table of trials, by their trial numbers."""
    found = page.locator("#tableList [data-automationid=DetailsRow]")
    numbers = found.locator("[data-automation-key=sequenceId]").all_inner_texts()
    return {int(number): found.nth(i) for i, number in enumerate(numbers)}


def parameters(page: Page, row: Locator) -> dict[str, str]:
    """What the Parameters tab of a trial says, label by label."""
    arrow = row.locator("[data-automation-key=_expand] i")
    arrow.click()
    text = page.locator(".openRow .bgHyper").inner_text()
    arrow.click()
    expect(page.locator(".openRow")).to_have_count(0)
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {label: value.strip().strip('"') for label, value in pairs}


def offered(page: Page, which: Locator) -> list[str]:
    """The entries of a drop-down list."""
    which.click()
    entries: list[str] = page.get_by_role("option").all_inner_texts()
    page.keyboard.press("Escape")
    return entries


def show_columns(page: Page, names: list[str]) -> dict[int, dict[str, str]]:
    """Add columns to the table; what they say, by trial."""
    page.get_by_text("Add/Remove columns").click()
    dialog = page.get_by_role("dialog")
    for name in names:
        dialog.get_by_text(name, exact=True).click()
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    keys = {n: ("space/" if "(space)" in n else "metric/") + n.split(" (")[0] for n in names}
    return {
        number: {
            name: row.locator(f'[data-automation-key="{key}"]').inner_text()
            for name, key in keys.items()
        }
        for number, row in rows(page).items()
    }


def chart_of(page: Page, row: Locator) -> None:
    """A trial's curve is drawn: one ECharts canvas in a dialog that names its intermediate keys."""
    row.locator("[title=Intermediate]").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("canvas")).to_be_visible()
    keys = offered(page, dialog.locator(".ms-Dropdown-container"))
    assert keys[0] == "default", "the curve's first key is robust accuracy"
    assert "loss" in keys
    page.get_by_role("dialog").get_by_role("button").first.click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def check_page(page: Page, url: str, run: Path) -> None:
    """Everything that a user of the web UI must be able to read, for the trials of a run."""
    records = {r["index"]: r for r in read_records(run / "candidates.jsonl")}
    page.goto(f"{url}/oview")
    expect(page.get_by_text(read_json(run / "run.json")["nni"][-1]["id"]).first).to_be_visible()
    expect(page.get_by_text("Top trials")).to_be_visible()
    box = page.get_by_text("Top trials").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] < 1400, "the overview is wider than the window"
    page.goto(f"{url}/detail")
    expect(page.locator("#tableList [data-automationid=DetailsRow]")).to_have_count(len(records))
    shown = {number: parameters(page, row) for number, row in rows(page).items()}

    # The supernet is a trial too; a candidate's parameters are its architecture.
    assert sorted(p["phase"] for p in shown.values()) == sorted(
        r["phase"] for r in records.values()
    )
    by_code = {r["code"]: r for r in records.values()}
    for said in shown.values():
        record = by_code[said.get("code")]
        assert said["phase"] == record["phase"]
        labels = {k.replace("/", "."): str(v) for k, v in record["sample"].items()}
        assert {k: v for k, v in said.items() if k in labels} == labels
        assert "[object Object]" not in str(said)

    # Clean accuracy, robust accuracy and MACs can be chosen by name, in the chart and the table.
    selector = page.locator(".default-metric .ms-Dropdown-container").last
    assert offered(page, selector)[: len(_OFFERED)] == _OFFERED
    selector.click()
    page.get_by_role("option", name="robust").click()
    expect(selector).to_contain_text("robust")
    columns = [f"{name} (metric)" for name in ("robust", "clean", "macs")]
    table = show_columns(page, ["code (space)", *columns])
    for number, cells in table.items():
        record = by_code[shown[number].get("code")]
        assert cells["code (space)"] == (record["code"] or "")
        for key, metric in zip(columns, ("default", "clean", "macs"), strict=True):
            assert float(cells[key]) == pytest.approx(record["metrics"].get(metric, 0.0))

    for number in (0, 1):  # the supernet's curve, and a candidate's
        chart_of(page, rows(page)[number])


def test_the_page_of_an_experiment_of_nnictl(
    page: Page,
    experiment_file: Callable[..., str],
    nnictl: Any,
    tmp_path: Path,
) -> None:
    sections: dict[str, Any] = {"final": None, "nni": {"concurrency": 2}}
    run = tmp_path / "run"
    file = experiment_file(**sections)
    assert main(["nni-config", file, "--out", str(run), "--set", "strategy.candidates=2"]) == 0
    experiment = nnictl.create(run)
    nnictl.wait(experiment)
    check_page(page, f"http://127.0.0.1:{nnictl.ports[experiment]}", run)


@pytest.mark.slow
def test_the_page_of_a_run_that_has_ended(
    page: Page,
    experiment_file: Callable[..., str],
    tmp_path: Path,
    free_port: Callable[[], int],
    wait_until: Callable[..., None],
) -> None:
    """`nni-robust run` ends NNI's server with the search; `nni-robust view` serves its page."""
    file = experiment_file(final=None, nni={"concurrency": 2})
    run = run_experiment(
        file, out=str(tmp_path / "run"), port=free_port(), report=lambda line: None
    )
    port = free_port()
    with open(tmp_path / "view.txt", "w") as log:
        view = subprocess.Popen(
            [sys.executable, "-m", "nni_robust", "view", str(run), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: view.poll() is not None or "http" in (tmp_path / "view.txt").read_text())
        assert view.poll() is None, (tmp_path / "view.txt").read_text()
        check_page(page, f"http://127.0.0.1:{port}", run)
    finally:
        view.send_signal(signal.SIGINT)
        assert view.wait(timeout=120) == 0
