"""Exporting into the folder of an earlier export: what is still true stays, nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architecture import write_tiny

import nni_robust
from nni_robust import load_architecture
from nni_robust.cli import main
from nni_robust.exchange import export_folder, read_trained
from nni_robust.training import save_weights

LICENCE = "## Licence\n\nMine: CC-BY 4.0, as agreed with everybody.\n"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An architecture with weights, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    write_tiny(path)
    new_weights(path, 0)
    write_tiny(path, weights="tiny.safetensors")
    return path


def new_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = load_architecture(path).build(pretrained=False)
    save_weights(network, path.with_suffix(".safetensors"))


def export(*more: str) -> None:
    assert main(["export", "tiny.yaml", "--to", "out", *more]) == 0


def edit(name: str) -> str:
    """Somebody's own words in a file; its whole text."""
    text = Path("out", name).read_text() + LICENCE
    Path("out", name).write_text(text)
    return text


def figures(name: str, clean: float, **changes: Any) -> str:
    value = {
        "architecture": "tiny", "trained": True, "dataset": "cifar10", "split": "test",
        "pictures": 10_000, "threat": {"norm": "linf", "eps": 8 / 255}, "seed": 0,
        "metrics": {"clean": clean, "autoattack@8/255": 0.25}, "reliability": {"unreliable": []},
    }  # fmt: skip
    Path(name).write_text(json.dumps({**value, **changes}))
    return name


def evaluations() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("out/results.json").read_text())["evaluations"]
    return found


def test_forms_and_the_owner_s_words_stay(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("--standalone", "--onnx", "--torch-export")
    forms = {
        name: Path("out", name).read_bytes() for name in ("network.py", "model.onnx", "model.pt2")
    }
    listed = [line for line in Path("out/README.md").read_text().splitlines() if "- `" in line]
    assert len(listed) == 3
    mine = edit("README.md")
    capsys.readouterr()
    export("--results", figures("aa.json", 0.5))
    assert capsys.readouterr().out.splitlines()[1] == (
        "earlier export: kept model.onnx, model.pt2, network.py, of the same weights; "
        "README.md had been changed and is now README.md.before"
    )
    assert {name: Path("out", name).read_bytes() for name in forms} == forms
    assert Path("out/README.md.before").read_text() == mine
    card = Path("out/README.md").read_text()
    assert "autoattack@8/255" in card
    assert [line for line in card.splitlines() if "- `" in line] == listed
    nni_robust.load("out")

    # A card that nobody touched is simply written again.
    export()
    assert sorted(p.name for p in Path("out").iterdir() if "before" in p.name) == [
        "README.md.before"
    ]
    # A form made by hand from ours stays, and the card says so; made anew, the old one is kept.
    edit("network.py")
    export()
    assert "`network.py` builds" in Path("out/README.md").read_text()
    assert "changed by hand since" in Path("out/README.md").read_text()
    assert Path("out/network.py").read_text().endswith(LICENCE)
    export("--standalone")
    assert Path("out/network.py").read_bytes() == forms["network.py"]
    assert Path("out/network.py.before").read_text().endswith(LICENCE)
    assert "changed by hand" not in Path("out/README.md").read_text()


def test_figures_stay_and_a_new_measurement_replaces_its_old_one(tiny: Path) -> None:
    export("--results", figures("aa.json", 0.5))
    export("--results", figures("more.json", 0.75, split="validation"))
    assert [e["metrics"]["clean"] for e in evaluations()] == [0.5, 0.75]
    export("--results", figures("aa.json", 0.625))
    assert [e["metrics"]["clean"] for e in evaluations()] == [0.625, 0.75]
    export()
    assert [e["metrics"]["clean"] for e in evaluations()] == [0.625, 0.75]


def test_nothing_of_other_weights_stays(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export("--standalone", "--results", figures("aa.json", 0.5))
    texts = [edit("README.md")]
    for seed in (1, 2):
        new_weights(tiny, seed)
        capsys.readouterr()
        export()
        told = capsys.readouterr().out
        assert "earlier export: replaced 'tiny', which had other weights" in told
        assert ("and removed network.py; README.md" in told) == (seed == 1)
        assert evaluations() == []
        assert "network.py" not in Path("out/README.md").read_text()
        texts.append(edit("README.md"))
    assert not Path("out/network.py").exists()
    assert Path("out/README.md.before").read_text() == texts[0]
    assert Path("out/README.md.before2").read_text() == texts[1]
    # The same numbers in another network are other weights, too.
    write_tiny(Path("tiny.yaml"), input_shape=[3, 16, 16], weights="tiny.safetensors")
    export("--standalone")
    write_tiny(Path("tiny.yaml"), weights="tiny.safetensors")
    export()
    assert not Path("out/network.py").exists()


def test_a_leaderboard_entry_that_was_filled_in_stays(tiny: Path) -> None:
    export("--results", figures("aa.json", 0.5), "--robustbench")
    entry = Path("out/robustbench.json")
    assert json.loads(entry.read_text())["clean_acc"] == "50.00"
    filled = entry.read_text().replace("FILL IN", "A. Author")
    entry.write_text(filled)
    export()
    assert entry.read_text() == filled
    export("--robustbench")  # of the figures of the earlier export
    assert "FILL IN" in entry.read_text()
    assert Path("out/robustbench.json.before").read_text() == filled
    new_weights(tiny, 1)
    export()
    assert not entry.exists()


def test_a_folder_of_an_earlier_version_loses_nothing(tiny: Path) -> None:
    export("--standalone")
    results = json.loads(Path("out/results.json").read_text())
    del results["files"]
    Path("out/results.json").write_text(json.dumps(results))
    card = Path("out/README.md").read_text()
    export()
    assert Path("out/README.md.before").read_text() == card
    assert "`network.py` builds" in Path("out/README.md").read_text()
    assert "did not record how far" in Path("out/README.md").read_text()


@pytest.mark.parametrize("number", range(6))
def test_wherever_writing_ends_the_owner_s_words_are_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    export("--standalone", "--results", figures("aa.json", 0.5))
    mine = edit("README.md")
    trained, moved = read_trained(tiny), list[Path]()
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).parent == Path("out"):
            if len(moved) == number:
                raise OSError("the disk is full")
            moved.append(Path(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        if number < 5:  # four files and the old card
            with pytest.raises(OSError, match="the disk is full"):
                export_folder(trained, "out")
        else:
            export_folder(trained, "out")
    kept = [p.read_text() for p in Path("out").glob("README.md*")]
    assert mine in kept
    export()  # goes on where that one ended
    assert mine in [p.read_text() for p in Path("out").glob("README.md*")]
    assert [e["metrics"]["clean"] for e in evaluations()] == [0.5]
    assert Path("out/network.py").is_file()
    nni_robust.load("out")


def test_what_others_wrote_is_not_overwritten(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config.json alone makes no export: other programs write one beside their weights, too."""
    Path("theirs").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("theirs", name).write_text('{"model_type": "vit"}')
    assert main(["export", "tiny.yaml", "--to", "theirs"]) == 2
    assert "--to 'theirs' holds something else" in capsys.readouterr().err
    assert Path("theirs/model.safetensors").read_text() == '{"model_type": "vit"}'
    Path("theirs/config.json").unlink()
    assert main(["export", "tiny.yaml", "--to", "theirs"]) == 2


def test_a_first_export_that_was_killed_is_no_obstacle(tiny: Path) -> None:
    export()
    for name in ("config.json", "results.json"):  # still to come
        Path("out", name).unlink()
    Path("out/.nni-robust-export.tmp").mkdir()
    export()
    nni_robust.load("out")
