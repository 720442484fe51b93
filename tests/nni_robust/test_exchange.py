"""Exported folders load to the same network, tell what is known, and refuse what was changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_architecture import FIELDS, write_tiny

import nni_robust
from nni_robust import load_architecture
from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.exchange import export_folder, read_trained
from nni_robust.teacher import Teacher, absolute_teacher, load_teacher, source_key
from nni_robust.training import save_weights

FILES = {"model.safetensors", "config.json", "README.md", "results.json"}


def write(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """An architecture file with weights; its path."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiny(path, name=name)
    torch.manual_seed(seed)
    save_weights(load_architecture(path).build(), folder / f"{name}.safetensors")
    write_tiny(path, name=name, weights=f"{name}.safetensors")
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.fixture
def exported(tiny: Path, tmp_path: Path) -> Path:
    assert main(["export", str(tiny), "--to", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def logits(network: torch.nn.Module) -> torch.Tensor:
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        answer: torch.Tensor = network.eval()(pictures)
    return answer


def answer_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_folder_moved_elsewhere_is_the_same_network(
    tiny: Path, exported: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(exported, moved)
    wanted = logits(load_architecture(tiny).build())
    shutil.rmtree(exported)
    tiny.with_suffix(".safetensors").unlink()
    network = nni_robust.load(moved)
    assert not network.training
    assert torch.equal(logits(network), wanted)
    assert {path.name for path in moved.iterdir()} == FILES
    config = json.loads((moved / "config.json").read_text())
    written = (moved / "model.safetensors").read_bytes()
    assert config["weights"]["sha256"] == hashlib.sha256(written).hexdigest()
    assert config["input_shape"] == [3, 8, 8]
    assert str(tmp_path) not in "".join(path.read_text("latin-1") for path in moved.iterdir())


def test_the_verbs_take_the_folder(
    tiny: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--limit", "30", "--eps", "0.05"]
    capsys.readouterr()
    one, two = (
        answer_of(capsys, "evaluate", str(path), "--attacks", "fgsm", *common)
        for path in (tiny, exported)
    )
    assert two["trained"] is True
    assert one["metrics"] == two["metrics"]
    other = write(tmp_path, "other", seed=1)
    table = answer_of(capsys, "transfer", str(exported), str(other), "--attack", "fgsm", *common)
    assert table["untrained"] == []
    assert table["accuracy"][str(exported)][str(exported)] == two["metrics"]["fgsm@0.05"]
    assert answer_of(capsys, "show", str(exported))["name"] == "tiny"


def test_the_folder_is_a_teacher(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = absolute_teacher(Teacher("out"))
    assert teacher.architecture == str(exported)
    network = load_teacher(teacher, 10, (3, 8, 8))
    assert torch.equal(logits(network), logits(nni_robust.load(exported)))
    key = source_key(teacher)
    write(tmp_path, "tiny", seed=2)
    assert main(["export", "tiny.yaml", "--to", "out"]) == 0
    assert source_key(teacher) != key


def test_a_folder_with_the_name_of_the_zoo_hides_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "robnet-small")
    assert absolute_teacher(Teacher("robnet-small")).architecture == "robnet-small"
    assert load_architecture("robnet-small").name == "robnet-small"
    assert load_architecture("./robnet-small").name == "tiny"


def test_a_task_file_names_the_folder_beside_it(exported: Path, tmp_path: Path) -> None:
    from nni_robust.tasks import load_task_file

    task = tmp_path / "task.yaml"
    task.write_text("dataset: digits\nteacher: {architecture: out}\n")
    teacher = load_task_file(task).teacher
    assert teacher is not None
    assert teacher.architecture == str(exported)


def test_changed_weights_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = exported / "model.safetensors"
    whole = weights.read_bytes()
    swapped = write(tmp_path, "other", seed=1).with_suffix(".safetensors").read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    assert len(swapped) == len(whole)
    for content in (swapped, flipped, whole[:-100], b"<html>not found</html>"):
        weights.write_bytes(content)
        with pytest.raises(UserError, match="damaged or was swapped: its sha256"):
            nni_robust.load(exported)
    assert "sha256" in refusal(capsys, "evaluate", str(exported))
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        nni_robust.load(exported)
    weights.write_bytes(whole)
    nni_robust.load(exported)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "nni-robust/model/9"}, "format: 'nni-robust/model/9' is not allowed"),
        ({"weights": {}}, "weights.sha256: None is not allowed"),
        ({"weights": {"sha256": 3}}, "weights.sha256: 3 is not allowed"),
        ({"architecture": []}, "architecture: .* is not allowed"),
        ({"architecture": {**FIELDS, "space": "robnett"}}, "did you mean 'robnet'"),
    ],
)
def test_a_changed_config_is_refused(exported: Path, change: dict[str, Any], told: str) -> None:
    path = exported / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=told):
        nni_robust.load(exported)


def test_weights_are_taken_from_the_folder_only(exported: Path, tmp_path: Path) -> None:
    """Whatever path a config names: what is loaded is what the hash was checked of."""
    elsewhere = write(tmp_path, "other", seed=1).with_suffix(".safetensors")
    path = exported / "config.json"
    config = json.loads(path.read_text())
    config["architecture"]["weights"] = config["weights"]["file"] = str(elsewhere)
    path.write_text(json.dumps(config))
    assert load_architecture(exported).weights == exported / "model.safetensors"


def test_a_folder_without_records_says_unknown(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (exported / "README.md").read_text()
    cost = load_architecture(exported).cost()
    assert f"{cost.params:,} parameters, {cost.macs:,} MACs" in text
    assert "Unknown: the weights came without a record of their training." in text
    assert "Unknown: no figures came with the weights." in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "unknown"
    assert head["pipeline_tag"] == "image-classification"


def test_a_training_s_record_goes_into_the_card(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    argv = ["--eps", "0.1", "--set", "epochs=1", "--set", "attack.steps=1", "--seed", "4"]
    assert main(["train", str(tiny), "--out", str(run), "--dataset", "digits", *argv]) == 0
    capsys.readouterr()
    figures = tmp_path / "figures.json"
    limited = ["--attacks", "fgsm", "--eps", "0.1", "--limit", "40"]
    found = answer_of(capsys, "evaluate", str(run / "architecture.yaml"), *limited)
    figures.write_text(json.dumps(found))
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", str(out), "--results", str(figures)]) == 0
    text = (out / "README.md").read_text()
    assert "- Data: digits, " in text
    assert "- Threat: linf, eps 0.1 in pixel units" in text
    assert "epochs 1" in text
    assert "- Seed: 4" in text
    assert "40 test pictures of digits" in text
    assert f"| fgsm@0.1 | {found['metrics']['fgsm@0.1']:.2%} |" in text
    results = json.loads((out / "results.json").read_text())
    curve = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(curve) == 1
    assert results["training"]["history"] == curve
    # What is exported again keeps its records.
    assert main(["export", str(out), "--to", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/results.json").read_text()) == results


def run_folder(folder: Path, **network: Any) -> Path:
    """What a run leaves of its final phase."""
    write(folder, "best")
    write(folder, "random", seed=1)
    entries = [
        {"label": "best", "architecture": "best.yaml", "metrics": {}, **network},
        {
            "label": "random",
            "architecture": "random.yaml",
            "metrics": {"default": 0.2, "clean": 0.5, "pgd20@0.1": 0.2, "macs": 9, "seconds": 1.0},
            "pictures": 77,
            "history": [{"epoch": 1, "seconds": 2.0}, {"epoch": 2, "seconds": 3.5}],
            "note": "a rival",
        },
    ]
    final = {"threat": {"norm": "linf", "eps": 0.1}, "split": "test", "networks": entries}
    (folder / "final.json").write_text(json.dumps(final))
    task = {"dataset": "digits", "root": "/secret/place", "validation": 0.2, "teacher": None}
    settings = {"name": "mine", "seed": 3, "task": task, "final": {"train": {"epochs": 2}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_run_gives_its_winner_with_flags(tmp_path: Path) -> None:
    reasons = ["zero-gradient: 3 | pictures have none", "more-steps: <b>falls</b>"]
    run = run_folder(
        tmp_path / "run",
        metrics={"default": 0.4, "clean": 0.75, "pgd20@0.1": 0.4, "params": 1},
        pictures=360,
        reliability={"reliable": False, "unreliable": reasons},
    )
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "| clean | 75.00% |\n| pgd20@0.1 | 40.00% |" in text
    assert "| params" not in text
    assert "360 test pictures of digits" in text
    assert "**UNRELIABLE**: zero-gradient: 3 pictures have none" in text
    assert "<b>" not in text
    assert "/secret/place" not in text + (tmp_path / "out/results.json").read_text()
    wanted = logits(load_architecture(run / "best.yaml").build())
    assert torch.equal(logits(nni_robust.load(tmp_path / "out")), wanted)


def test_the_folder_of_a_run_is_its_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run")
    assert answer_of(capsys, "show", "run")["name"] == "best"
    short = ("--limit", "4", "--attacks", "fgsm")
    by_file, by_folder = (
        answer_of(capsys, "evaluate", source, *short) for source in ("run/best.yaml", "run")
    )
    assert by_folder["metrics"] == by_file["metrics"]
    assert by_folder["trained"]
    (tmp_path / "empty").mkdir()
    assert "'empty' holds no network: best.yaml" in refusal(capsys, "show", "empty")
    run_folder(tmp_path / "robnet-small")  # hides nothing of the zoo
    assert answer_of(capsys, "show", "robnet-small")["name"] == "robnet-small"


def test_a_rival_of_a_run_has_its_own_record(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert main(["export", str(run / "random.yaml"), "--to", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "77 test pictures" in text
    assert "Time: 5.5 seconds" in text
    assert "Reliability checks: unknown" in text


def test_refusals(
    tiny: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--to", str(tmp_path / "new")]
    untrained = tmp_path / "bare.yaml"
    write_tiny(untrained)
    assert "no trained weights" in refusal(capsys, "export", str(untrained), *to)
    assert "no trained weights" in refusal(capsys, "export", "robnet-small", *to)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no network" in refusal(capsys, "export", str(empty), *to)
    (empty / "thesis.txt").write_text("mine")
    assert "holds something else" in refusal(capsys, "export", str(tiny), "--to", str(empty))
    same = refusal(capsys, "export", str(exported), "--to", str(exported))
    assert "is what is exported" in same
    nni_robust.load(exported)
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
    with pytest.raises(UserError, match="no trained weights"):
        nni_robust.load(untrained)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], "is not what `nni-robust evaluate --json` prints"),
        ({"metrics": {}, "architecture": "other", "trained": True}, "another network, 'other'"),
        ({"metrics": {}, "architecture": "tiny", "trained": False}, "an untrained network"),
    ],
)
def test_figures_of_another_network_are_refused(
    value: Any, told: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(value))
    to = str(tmp_path / "new")
    assert told in refusal(capsys, "export", str(tiny), "--to", to, "--results", str(path))
    assert not Path(to).exists()


def test_an_export_that_fails_leaves_nothing_new(
    tiny: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    other = write(tmp_path, "other", seed=1)
    empty, new = tmp_path / "empty", tmp_path / "new"
    empty.mkdir()
    for to in (new, empty, exported):
        argv = ["export", str(other), "--to", str(to), "--standalone", "--onnx"]
        assert "--onnx needs" in refusal(capsys, *argv, "--dataset", "digits")
    with pytest.raises(UserError, match="--onnx needs"):
        export_folder(read_trained(other), new / "below" / "it", extras=["onnx"])
    assert not new.exists()
    assert list(empty.iterdir()) == []
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    # What a killed one left is no obstacle.
    (empty / ".nni-robust-export.tmp").mkdir()
    (empty / ".nni-robust-export.tmp" / "model.safetensors").write_bytes(b"half")
    assert main(["export", str(other), "--to", str(empty)]) == 0
    assert {path.name for path in empty.iterdir()} == FILES
    assert torch.equal(logits(nni_robust.load(empty)), logits(load_architecture(other).build()))


def test_a_place_that_cannot_be_written_is_told_by_its_option(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(capsys, "export", str(tiny), "--to", str(tiny))
    assert f"--to '{tiny}' cannot be written" in told
