"""``compress``: a network below a teacher within a budget, and its cut weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.cli import main
from nni_robust.data import load_dataset
from nni_robust.policy import Policy, save_policy
from nni_robust.search_spaces import WideResNet, WideResNetSpace
from nni_robust.training import save_weights

SMALL = {"depths": [3, 3, 2], "widths": [4, 4, 4], "base_channels": [4, 4, 8], "stem_channels": 4}


def compress(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["compress", *map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def small_teacher(folder: Path, weights: bool = False) -> Path:
    """A file of a small teacher, with weights of its own if asked for."""
    sample = {f"stage{i}/{k}": v for i, d in ((1, 3), (2, 3), (3, 2))
              for k, v in (("depth", d), ("width", 4))}  # fmt: skip
    architecture = Architecture("small", "wide-resnet", SMALL, sample, input_shape=(3, 8, 8))
    file = folder / "small.yaml"
    if weights:
        torch.manual_seed(0)
        save_weights(architecture.build(), folder / "teacher.safetensors")
        values = {**architecture.to_dict(), "weights": "teacher.safetensors"}
        file.write_text(yaml.safe_dump(values))
    else:
        architecture.save(file)
    return file


def test_by_a_rule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.yaml"
    about = compress(capsys, "wrn-70-16", "--budget", "5G", "-o", out)
    assert about["how"] == {"rule": "scaling"}
    found = load_architecture(out)
    assert found.name == about["name"] == "wrn-70-16-5g"
    assert found.provenance["kind"] == "found"
    assert "Compressed from wrn-70-16, code 11x16 11x16 11x16." in found.provenance["note"]
    assert found.sample == about["sample"]
    assert found.cost().macs == about["macs"] <= 5e9
    assert about["teacher"]["macs"] == 38_764_210_176
    assert about["stages"][2]["keep_depth"] == found.sample["stage3/depth"] / 11
    assert (about["weights"], about["untuned"]) == (None, False)
    other = compress(capsys, "wrn-70-16", "--budget", "5G", "--rule", "last-stage")
    assert other["how"] == {"rule": "last-stage"}
    assert other["code"] != about["code"]
    few = compress(capsys, "wrn-28-10", "--max-params", "2M", "--tolerance", "0.05")
    assert few["params"] <= 2.1e6
    assert few["name"] == "wrn-28-10-2m"


def test_for_a_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    about = compress(capsys, "--task", "cifar100/wrn-28-10/pgd20")
    assert about["budget"] == {"macs": 5e9, "params": None, "tolerance": 0.0}
    assert about["num_classes"] == 100
    assert about["macs"] <= 5e9
    tiny = compress(capsys, "--task", "tiny-imagenet/wrn-a1/clean", "--budget", "2G")
    assert tiny["input_shape"] == [3, 64, 64]
    other = compress(capsys, "wrn-46-14", "--task", "cifar10/wrn-28-10/fgsm")
    assert other["teacher"]["name"] == "wrn-46-14"
    path = tmp_path / "WRN-A1.yaml"  # as the authors of RC-NAS name their task
    model = {"channel_configs": [16, 80, 224, 192], "depth_configs": [14, 14, 7]}
    path.write_text(yaml.safe_dump({"model": {**model, "num_classes": 10}}))
    assert compress(capsys, "--task", path)["teacher"]["name"] == "wrn-a1"


def test_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "wrn-28-10", "--budget", "2G"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("wrn-28-10-2g: 4x6 4x8 4x3 (rule scaling)\n")
    assert "stage 3  4 of 4  3 of 10  basic" in text
    assert "36,479,194" in text
    assert "1,910,687,616" in text


@pytest.mark.parametrize("given", ["own", "option"])
def test_with_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path, given: str) -> None:
    """The written file is the network that the space's `inherit` gives."""
    teacher = small_teacher(tmp_path, weights=True)
    extra: list[object] = []
    if given == "option":
        state = load_architecture(teacher).build().state_dict()
        torch.save({"model_state_dict": state}, tmp_path / "theirs.pt")
        small_teacher(tmp_path)
        extra = ["--weights", tmp_path / "theirs.pt", "--inherit", "first"]
    out = tmp_path / "part.yaml"
    about = compress(capsys, teacher, "--budget", "200k", "-o", out, *extra)
    assert about["untuned"]
    assert about["weights"] == str(tmp_path / "part.safetensors")
    found = load_architecture(out)
    assert "Weights cut from the teacher's, untuned." in found.provenance["note"]
    network = found.build()
    whole = WideResNet(WideResNetSpace(**SMALL).config)
    if given == "option":
        whole.load_state_dict(state)
    else:
        whole.load_state_dict(load_architecture(teacher).build().state_dict())
    expected = WideResNetSpace(**SMALL).inherit(
        found.sample, whole, channels="first" if given == "option" else "magnitude"
    )
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert sum(p.numel() for p in network.parameters()) == about["params"]
    assert (
        main(["compress", str(teacher), "--budget", "200k", "-o", str(out), *map(str, extra)]) == 0
    )
    assert "untuned: train before you trust any accuracy" in capsys.readouterr().err


def test_batch_norm_statistics_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With `--recalibrate` a batch of the task's pictures leaves the first norm's input normal."""
    teacher = small_teacher(tmp_path, weights=True)
    task = tmp_path / "task.yaml"
    task.write_text("{dataset: digits, validation: 0.1}")
    out = tmp_path / "part.yaml"
    arguments = [teacher, "--task", task, "--budget", "200k", "-o", out]
    compress(capsys, *arguments)
    before = load_architecture(out).build().state_dict()
    compress(capsys, *arguments, "--recalibrate")
    after = load_architecture(out)
    assert "untuned; batch-norm statistics recalibrated." in after.provenance["note"]
    network = after.build().eval()
    for name, tensor in network.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same != ("running" in name or "batches_tracked" in name), name
    x = load_dataset("digits").train.batches(512)
    seen = network.stem_conv(next(iter(x))[0])
    norm = network.blocks[0].layer[0].bn1
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=0.1, atol=0.02)
    assert main(["compress", str(teacher), "--budget", "200k", "--recalibrate"]) == 2
    assert "--recalibrate needs -o" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", [False, True])
def test_by_a_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path, blocks: bool) -> None:
    """A policy of a smaller teacher proposes for a larger one, within the budget."""
    space = WideResNetSpace(search_blocks=blocks)
    save_policy(Policy.of(space, seed=1), tmp_path / "policy")
    arguments = ["wrn-34-12", "--policy", tmp_path / "policy", "--draws", 8]
    about = compress(capsys, *arguments, "--budget", "2G", "-o", tmp_path / "found.yaml")
    assert about["how"] == {"policy": str(tmp_path / "policy"), "draws": 8, "seed": 0}
    found = load_architecture(tmp_path / "found.yaml")
    assert found.cost().macs == about["macs"] <= 2e9
    assert ("stage1/block" in found.sample) == blocks
    assert found.provenance["source"] == (
        f"nni-robust compress, policy {tmp_path / 'policy'}, seed 0, 8 draws"
    )
    assert compress(capsys, *arguments, "--budget", "2G")["code"] == about["code"]
    codes = {
        compress(capsys, *arguments, "--budget", "2G", "--seed", seed)["code"] for seed in range(3)
    }
    assert len(codes) > 1
    larger = compress(capsys, *arguments, "--task", "cifar100/wrn-28-10/cw40")
    assert larger["budget"]["macs"] == 5e9
    assert larger["macs"] <= 5e9
    assert (larger["num_classes"], larger["teacher"]["name"]) == (100, "wrn-34-12")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrn-28-10"], "no budget is given"),
        (["--budget", "5G"], "no teacher is given, and the task names none"),
        (["wrn-28-10", "--budget", "1M"], "the smallest has 0.0125 G MACs"),
        (["wrn-28-10", "--budget", "6G"], "the teacher itself keeps the budget"),
        (["wrn-28-10", "--budget", "5 apples"], "macs: '5 apples' is not allowed"),
        (["wrn-28-11", "--budget", "5G"], "did you mean 'wrn-28-10'"),
        (["robnet-small", "--budget", "1M"], "a network of the space wide-resnet can be"),
        (["wrn-28-10", "--budget", "1G", "-o", "x.txt"], "an architecture is saved as"),
        (["wrn-28-10", "--budget", "1G", "--weights", "w.pt"], "--weights needs -o"),
        (["wrn-28-10", "--budget", "1G", "--policy", "none"], "no policy in 'none'"),
        (["wrn-28-10", "--budget", "1G", "--policy", "p", "--rule", "scaling"], "exclude each"),
        (["--task", "cifar10/wrn-28-10/pgd"], "no attack 'pgd'; did you mean"),
    ],
)
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compress", *arguments]) == 2
    assert message in capsys.readouterr().err
