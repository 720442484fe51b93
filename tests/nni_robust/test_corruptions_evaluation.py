"""Accuracy on corrupted pictures: the plain loop, its flags, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust import load_architecture
from nni_robust.attacks import NonFiniteOutput
from nni_robust.cli import main
from nni_robust.corruptions import (
    STANDARD,
    CorruptionResult,
    corrupt,
    evaluate_corruptions,
)
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.reliability import CHECKS, Reliability

N = 50


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6 * 64, 4),
    )
    with torch.no_grad():
        net(torch.rand(64, 3, 8, 8))
        net[-1].bias -= net.eval()(torch.rand(64, 3, 8, 8)).mean(0)
    return net.train()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    y[:10] = (y[:10] + 1) % 4
    return x, y


def test_is_the_plain_loop(model: nn.Module, data: Any) -> None:
    names, seen = ["gaussian_noise", "fog", "elastic_transform"], []
    found = evaluate_corruptions(
        model, data, names, [5, 2], seed=3, batch_size=16, progress=lambda *a: seen.append(a)
    )
    x, y = data
    assert model.training
    model.eval()
    for name in names:
        for severity in (2, 5):
            with torch.no_grad():
                right = model(corrupt(x, name, severity, seed=3)).argmax(1) == y
            assert found.accuracy[name][severity] == pytest.approx(right.double().mean().item())
    model.train()
    assert found.clean == 0.8
    assert (found.n, found.scale, found.seed) == (N, "cifar", 3)
    every = [found.accuracy[name][severity] for name in names for severity in (2, 5)]
    assert found.mean == pytest.approx(sum(every) / 6)
    assert found.mean_error == pytest.approx(1 - found.mean)
    assert found.mean_of("fog") == pytest.approx(sum(every[2:4]) / 2)
    assert not found.is_standard
    assert seen[0] == (16, N, "clean")
    assert seen[-1] == (N, N, "elastic_transform")
    assert found.as_dict()["accuracy"]["fog"]["5"] == every[3]
    json.dumps(found.as_dict())


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_does_not_matter(batch_size: int, model: nn.Module, data: Any) -> None:
    one = evaluate_corruptions(model, data, "all", [3], batch_size=16)
    other = evaluate_corruptions(model, data, "all", [3], batch_size=batch_size)
    assert other.accuracy == one.accuracy
    assert other.reliability.reasons == one.reliability.reasons == []


def test_the_standard_is_the_default(model: nn.Module, data: Any) -> None:
    found = evaluate_corruptions(model, data, limit=4)
    assert found.is_standard
    assert tuple(found.accuracy) == STANDARD
    assert found.n == 4
    x, y = data
    large = torch.rand(2, 3, 80, 80)
    wide = nn.Sequential(nn.AdaptiveAvgPool2d(8), model)
    assert evaluate_corruptions(wide, (large, y[:2]), ["fog"], [1]).scale == "imagenet"
    half = evaluate_corruptions(model.double(), (x, y), ["fog"], [1])
    model.float()
    assert half.n == N


# --- flags ---------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0


class Noisy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class Batchwise(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class Remembers(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x).roll(int(self.calls > 8), 1)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [(Noisy, "randomised"), (Batchwise, "batch-dependent"), (Remembers, "eps-zero")],
)
def test_broken_networks(kind: Any, flag: str, model: nn.Module, data: Any) -> None:
    found = evaluate_corruptions(kind(model), data, ["contrast"], batch_size=16).reliability
    assert [check.name for check in found.failed] == [flag]
    sound = evaluate_corruptions(model, data, ["contrast"]).reliability
    ran = {check.name for check in sound.checks if check.status == "passed"}
    assert ran == {"randomised", "batch-dependent", "one-answer", "eps-zero"}
    assert sound.pictures == N
    assert [check.name for check in sound.checks] == list(CHECKS)


def test_no_result_without_flags() -> None:
    with pytest.raises(TypeError, match="needs its Reliability"):
        CorruptionResult(1.0, {}, 1, "cifar", 0, 0.0, None)  # type: ignore[arg-type]
    assert CorruptionResult(1.0, {}, 1, "cifar", 0, 0.0, Reliability.unknown("why")).n == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corruptions": "fogg"}, "unknown 'fogg'"),
        ({"severities": []}, "severities: "),
        ({"severities": [0]}, "severities: "),
        ({"severities": 3}, "severities: 3"),
        ({"scale": "mnist"}, "scale: 'mnist'"),
        ({"data": []}, "no pictures"),
        ({"limit": 0}, "limit: 0"),
    ],
)
def test_refusals(change: dict[str, Any], says: str, model: nn.Module, data: Any) -> None:
    settings: dict[str, Any] = {"data": data, "corruptions": ["fog"], **change}
    with pytest.raises(UserError, match=says):
        evaluate_corruptions(model, **settings)


def test_non_finite_output_is_an_error(data: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    net[1].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteOutput):
        evaluate_corruptions(net, data, ["fog"])


# --- the command line ----------------------------------------------------------------------------


def test_a_folder_of_the_command(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", tiny, "--limit", "40", "--corruptions", "fog", "--json"]
    folder = ["--folder", str(tmp_path / "kept")]
    told = []
    for more in ([], folder, folder):
        assert main([*argv, *more]) == 0
        told.append(json.loads(capsys.readouterr().out)["accuracy"])
    assert told[0] == told[1] == told[2]
    (path,) = (tmp_path / "kept").rglob("attack-*.safetensors")
    assert main([*argv, *folder, "--seed", "1"]) == 2
    assert "another network and another seed" in capsys.readouterr().err  # its weights are random
    assert main(["evaluate", "missing.yaml", *argv[2:], "--folder", str(path)]) == 2
    assert f"--folder '{path}' cannot be written" in capsys.readouterr().err


def test_command(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", tiny, "--limit", "40", "--seed", "3"]
    some = [*argv, "--corruptions", "fog,frost", "--severities", "1,4"]
    assert main([*some, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    torch.manual_seed(3)
    network = load_architecture(tiny).build(10)
    images = load_dataset("digits", test=True).test
    wanted = evaluate_corruptions(network, images, ["fog", "frost"], [1, 4], limit=40, seed=3)
    assert {k: v for k, v in answer.items() if k in ("clean", "accuracy", "scale")} == {
        k: v for k, v in wanted.as_dict().items() if k in ("clean", "accuracy", "scale")
    }
    assert answer["trained"] is False
    assert "frost is drawn here" in answer["note"]
    assert answer["reliability"]["checks"]["randomised"]["status"] == "passed"
    assert main(some) == 0
    out = capsys.readouterr().out
    assert "tiny (untrained weights), 40 test pictures of digits" in out
    assert "frost is drawn here" in out
    assert f"4 of {len(CHECKS)} checks ran, none failed" in out
    assert main([*argv, "--corruptions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["standard"] is True
    assert main([*argv, "--corruptions", "fog", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"] is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--corruptions", "fogg"], "did you mean 'fog'?"),
        (["--corruptions", ","], "corruptions: "),
        (
            ["--corruptions", "fog", "--severities", "0"],
            "--severities '0' is not allowed; of 1 to 5",
        ),
        (["--corruptions", "fog", "--severities", "1,6"], "--severities '1,6'"),
        (["--corruptions", "fog", "--severities", ""], "--severities ''"),
        (["--corruptions", "fog", "--severities", "x"], "--severities 'x'"),
        (["--corruptions", "fog", "--strengths", "0.1"], "give one"),
        (["--corruptions", "fog", "--save-examples", "x"], "not allowed with --corruptions"),
    ],
)
def test_command_refuses(
    argv: list[str], message: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for network in (tiny, "missing.yaml"):  # it is told before the network is looked for
        assert main(["evaluate", network, *argv]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
