"""The baselines: published sizes, torchvision's names, and life inside NNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import Random, RandomOneShot
from torch import nn

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.cost import Cost, measure_cost
from nni_robust.data import import_torchvision
from nni_robust.errors import UserError
from nni_robust.evaluators import AdversarialTraining
from nni_robust.search_spaces import BaselineSpace
from nni_robust.search_spaces._denoising import Denoise

NETWORKS = ("resnet-18", "resnet-50", "densenet-121")


def by_hand(network: str) -> Cost:
    """Counts from the papers' tables of layers, at 32x32 and for 10 classes."""
    params = macs = 0

    def conv(inputs: int, outputs: int, kernel: int, side: int) -> None:
        nonlocal params, macs
        params += kernel**2 * inputs * outputs
        macs += kernel**2 * inputs * outputs * side**2

    def norm(channels: int) -> None:
        nonlocal params
        params += 2 * channels

    conv(3, 64, 3, 32)
    width = 64
    if network == "densenet-121":
        side = 32
        for stage, layers in enumerate((6, 12, 24, 16)):
            for _ in range(layers):
                norm(width)
                conv(width, 128, 1, side)
                norm(128)
                conv(128, 32, 3, side)
                width += 32
            norm(width)
            if stage < 3:
                conv(width, width // 2, 1, side)
                width, side = width // 2, side // 2
    else:
        norm(64)
        deep = network == "resnet-50"
        for stage, blocks in enumerate((3, 4, 6, 3) if deep else (2, 2, 2, 2)):
            inner, side = 64 * 2**stage, 32 // 2**stage
            outputs = inner * (4 if deep else 1)
            for block in range(blocks):
                if deep:
                    conv(width, inner, 1, side if block or not stage else 2 * side)
                    conv(inner, inner, 3, side)
                    conv(inner, outputs, 1, side)
                    norm(inner)
                else:
                    conv(width, inner, 3, side)
                    conv(inner, inner, 3, side)
                norm(inner)
                norm(outputs)
                if width != outputs:
                    conv(width, outputs, 1, side)
                    norm(outputs)
                width = outputs
    return Cost(params + 10 * width + 10, macs + 10 * width)


@pytest.mark.parametrize(
    ("network", "published"),
    [("resnet-18", 11_173_962), ("resnet-50", 23_520_842), ("densenet-121", 6_956_298)],
)
def test_sizes_are_the_published_ones(network: str, published: int) -> None:
    cost = load_architecture(network).cost()
    assert cost == by_hand(network)
    assert cost.params == published


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_networks_are_torchvisions(network: Any, stem: Any) -> None:
    import_torchvision()
    from torchvision import models

    with torch.device("meta"):
        net = BaselineSpace(7, network, stem).freeze({})
        original = getattr(models, network.replace("-", ""))(num_classes=7)
    names = {name: tensor.shape for name, tensor in original.state_dict().items()}
    if stem == "cifar":
        dense = network == "densenet-121"
        names["features.conv0.weight" if dense else "conv1.weight"] = torch.Size((64, 3, 3, 3))
        names = {name: shape for name, shape in names.items() if ".norm0." not in name}
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == names
    assert type(net) is type(original)


def test_the_small_stem_keeps_the_resolution() -> None:
    resnet: Any = BaselineSpace(network="resnet-18").freeze({}).eval()
    x = torch.rand(1, 3, 16, 16)
    shapes: list[Any] = []
    for stage in (resnet.layer1, resnet.layer4):
        stage.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape[2:]))
    assert resnet(x).shape == (1, 10)
    assert shapes == [(16, 16), (2, 2)]


def test_every_space_of_this_kind_is_an_architecture() -> None:
    architecture = Architecture(
        "mine", "baseline", {"network": "resnet-18", "stem": "imagenet"}, {}, num_classes=5
    )
    assert architecture.build()(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert architecture.cost((3, 224, 224), 1000).params == 11_689_512  # torchvision's table
    assert architecture.graphs() == []
    with pytest.raises(UserError, match="has 'depth', which is no choice"):
        Architecture("mine", "baseline", {}, {"depth": 3}).check()


# ---------------------------------------------------------------------------- denoising


def test_denoising_follows_the_stages_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    kinds = ["dot", None, "mean", "gaussian"]
    net: Any = BaselineSpace(3, denoise=kinds).freeze({}).eval()
    plain: Any = BaselineSpace(3).freeze({}).eval()
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    assert [isinstance(stage[-1], Denoise) for stage in stages] == [bool(k) for k in kinds]
    assert set(plain.state_dict()) < set(net.state_dict())
    plain.load_state_dict(net.state_dict(), strict=False)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), plain(x))
    nn.init.ones_(net.layer4[-1].norm.weight)
    assert not torch.allclose(net(x), plain(x))


@pytest.mark.parametrize("network", ["resnet-18", "resnet-50"])
def test_denoised_networks_are_counted(network: Any) -> None:
    space = BaselineSpace(10, network, denoise="gaussian")
    more = [c * c + 2 * c + c * c for c in (64, 128, 256, 512)]
    if network == "resnet-50":
        more = [32 * c * c + 8 * c for c in (64, 128, 256, 512)]
    assert space.cost({}).params == by_hand(network).params + sum(more)
    assert space.cost({}, (3, 16, 16)) == measure_cost(space.freeze({}), (3, 16, 16))


# ---------------------------------------------------------------------------- NNI


def report_width(network: Any) -> None:
    """The evaluator of the experiment below."""
    nni.report_final_result({"default": network.fc.in_features})


def test_nni_runs_the_only_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI keeps its list of experiments there
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.max_trial_number = 1
    config.experiment_working_directory = tmp_path
    strategy = Random(seed=0)
    experiment = NasExperiment(BaselineSpace(), FunctionalEvaluator(report_width), strategy, config)
    experiment.run()
    models = list(strategy.list_models(limit=1))
    experiment.stop()
    assert [(model.sample, model.metric) for model in models] == [({}, 512)]


def test_a_trial_gets_the_plain_network() -> None:
    space = BaselineSpace(3, denoise="dot")
    assert space.simplify() == {}
    sent = nni.dump(SimplifiedModelSpace.from_model(space).freeze({}))
    network = nni.load(sent).executable_model()
    raw = RawFormatModelSpace.from_model(space).freeze({}).executable_model()
    supernet = RandomOneShot().mutate_model(BaselineSpace(3, denoise="dot"))
    names = list(network.state_dict())
    for other in (raw, supernet.freeze({})):
        assert type(other) is type(network)
        assert list(other.state_dict()) == names
    assert torch.equal(raw.fc.weight, space.network.fc.weight)
    with torch.no_grad():
        raw.fc.weight.zero_()
    assert space.network.fc.weight.abs().sum() > 0


def test_adversarial_training_takes_it() -> None:
    evaluator = AdversarialTraining(
        task={"dataset": "digits", "train_limit": 10, "validation_limit": 8},
        train={"epochs": 1, "batch_size": 10, "attack": {"steps": 1}, "validation_attack": None},
        attacks=["fgsm"],
    )
    record = evaluator.evaluate(BaselineSpace(10, denoise="mean").freeze({}))
    assert record["metrics"]["params"] == load_architecture("resnet-18").cost().params + sum(
        c * c + 2 * c for c in (64, 128, 256, 512)
    )
    assert 0 <= record["metrics"]["default"] <= record["metrics"]["clean"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet-19"}, "network: 'resnet-19' is not allowed; did you mean 'resnet-18'"),
        ({"network": 18}, "network: 18 is not allowed"),
        ({"stem": "mnist"}, "stem: 'mnist' is not allowed; allowed: cifar, imagenet"),
        ({"num_classes": 0}, "num_classes: 0 is not allowed"),
        ({"denoise": "blur"}, "denoise: 'blur' is not allowed; allowed: gaussian"),
        ({"denoise": ["dot"]}, "or a list of 4"),
        ({"network": "densenet-121", "denoise": "dot"}, "not allowed for densenet-121"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BaselineSpace(**arguments)
