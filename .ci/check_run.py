"""Look at the run folder that ``nni-robust run quickstart`` left: ``python check_run.py RUNS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml


def main(runs: Path) -> None:
    run = runs / "quickstart"
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "finished", state["status"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    records = [json.loads(line) for line in (run / "candidates.jsonl").read_text().splitlines()]
    candidates = [r for r in records if r["phase"] == "candidate"]
    assert len(candidates) == config["strategy"]["candidates"], len(candidates)
    assert all(r["status"] == "ok" for r in records), [r["error"] for r in records]
    assert len({r["key"] for r in records}) == len(records), "a trial was done twice"
    final = json.loads((run / "final.json").read_text())
    assert [n["label"] for n in final["networks"]] == ["best", "random", "undefended"]
    for network in final["networks"]:
        print(network["label"], {k: round(v, 4) for k, v in network["metrics"].items()})
    for name in ("best.yaml", "best.safetensors"):
        assert (run / name).stat().st_size > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "<svg" in page or "data:image" in page
    print(f"{len(candidates)} candidates, finished after {state['seconds']:.0f} s: {run}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
