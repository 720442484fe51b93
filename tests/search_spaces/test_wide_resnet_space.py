"""WideResNetSpace inside NNI: labels, codes, trials, samplers; teachers below teachers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import SampleValidationError
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.space import SimplifiedModelSpace, model_context
from nni.nas.strategy import Random, RegularizedEvolution

from nni_robust.architecture import Architecture, load_architecture
from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.registry import search_spaces
from nni_robust.search_spaces import WideResNet, WideResNetSpace
from nni_robust.store import content_key
from nni_robust.supernet import build_supernet

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "depths": [2, 3, 2],
    "widths": [2, 1, 2],
    "search_blocks": True,
}


def make(**changes: Any) -> WideResNetSpace:
    torch.manual_seed(0)
    return WideResNetSpace(**{**SMALL, **changes})


def draw(space: WideResNetSpace, seed: int) -> dict[str, Any]:
    rng = np.random.RandomState(seed)
    return {label: choice.random({}, rng) for label, choice in space.simplify().items()}


def test_labels_and_values() -> None:
    choices = make(search_blocks=[False, False, True]).simplify()
    assert {label: choice.values for label, choice in choices.items()} == {
        "stage1/depth": [1, 2],
        "stage1/width": [1, 2],
        "stage2/depth": [1, 2, 3],
        "stage2/width": [1],
        "stage3/depth": [1, 2],
        "stage3/width": [1, 2],
        "stage3/block": ["basic", "robust"],
    }


def test_given_values_up_to_the_teachers() -> None:
    space = make(
        depths=[7, 11, 4], depth_values=[9, 4, 5, 7], width_values=[1], search_blocks=False
    )
    choices = space.simplify()
    assert choices["stage1/depth"].values == [4, 5, 7]
    assert choices["stage2/depth"].values == [4, 5, 7, 9]
    assert choices["stage3/depth"].values == [4]
    assert choices["stage1/width"].values == [1]


def test_teachers_of_the_paper_are_the_largest_networks() -> None:
    with torch.device("meta"):
        space = WideResNetSpace(depths=7, widths=14, search_blocks=True)
    sizes: list[int] = [len(choice.values) for choice in space.simplify().values()]
    assert math.prod(sizes) == (7 * 14 * 2) ** 3
    teacher = space.decode("7x14b 7x14b 7x14b", search_blocks=True)
    assert space.cost(teacher).params == 128_389_210
    assert sum(p.numel() for p in space.parameters()) == 128_389_210


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 16))
def test_networks_are_the_same_by_every_door(seed: int, side: int) -> None:
    space = make()
    sample = draw(space, seed)
    frozen = space.freeze(sample)
    with model_context(sample):
        in_trial: Any = WideResNetSpace(**SMALL)
    assert type(frozen) is type(in_trial) is WideResNet
    assert frozen.config == in_trial.config == space.network_config(sample)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (frozen, in_trial)]
    assert shapes[0] == shapes[1]
    assert measure_cost(frozen, (3, side, side)) == space.cost(sample, (3, side, side))


def test_undecided_space_computes_as_the_teacher() -> None:
    space = make(search_blocks=False).eval()
    teacher = space.freeze(space.decode("2x2 3x1 2x2"))
    teacher.load_state_dict(space.state_dict())
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(teacher.eval()(x), space(x))


def test_freeze_keeps_the_flag_and_refuses_other_samples() -> None:
    space = make(search_blocks=False).eval()
    sample = space.decode("1x1 1x1 1x1")
    assert not space.freeze(sample).training
    with pytest.raises(SampleValidationError):
        space.freeze({**sample, "stage2/depth": 4})
    with pytest.raises(SampleValidationError):
        space.freeze({k: v for k, v in sample.items() if k != "stage3/width"})


def test_spaces_without_weights() -> None:
    with torch.device("meta"):
        space = make()
    sample = draw(space, 0)
    assert all(p.is_meta for p in space.parameters())
    assert not any(p.is_meta for p in space.freeze(sample).parameters())
    assert space.cost(sample) == make().cost(sample)


def test_fixed_blocks_are_the_teachers() -> None:
    space = make(search_blocks=False, blocks=["basic", "basic", "robust"])
    config = space.network_config(space.decode("2x1 2x1 2x1"))
    assert config.blocks == ("basic", "basic", "robust")


def test_the_space_below_a_network() -> None:
    space = make(activation="SiLU")
    sample = space.decode("2x1b 2x1r 1x2b", search_blocks=True)
    arguments = space.network_config(sample).arguments()
    assert arguments == {
        "depths": [2, 2, 1],
        "widths": [1, 1, 2],
        "blocks": ["basic", "robust", "basic"],
        "activation": "SiLU",
    }
    below = WideResNetSpace(num_classes=3, **arguments)
    assert below.cost(below.decode("2x1 2x1 1x2")) == space.cost(sample)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=3),
    st.lists(st.sampled_from(["", "b", "r"]), min_size=3, max_size=3),
)
def test_codes_round_trip(stages: list[tuple[int, int]], blocks: list[str]) -> None:
    code = " ".join(f"{d}x{w}{b}" for (d, w), b in zip(stages, blocks, strict=True))
    sample = WideResNetSpace.decode(code, search_blocks=[b != "" for b in blocks])
    assert WideResNetSpace.encode(sample) == code
    assert WideResNetSpace.encode({"evaluator/lr": 0.1, **dict(reversed(sample.items()))}) == code


@pytest.mark.parametrize(
    ("code", "search_blocks"),
    [
        ("4x10 4x10", False),
        ("4x10 4x10 4x10 4x10", False),
        ("4x10r 4x10 4x10", False),
        ("4x10 4x10 4x10", True),
        ("4x10b 4x10q 4x10b", True),
        ("4x-1 4x10 4x10", False),
        ("", False),
        (41_010, False),
    ],
)
def test_malformed_codes(code: Any, search_blocks: bool) -> None:
    with pytest.raises(UserError, match=r"wide-resnet code: .* is not allowed; depth x width"):
        WideResNetSpace.decode(code, search_blocks=search_blocks)


def test_incomplete_sample() -> None:
    sample = WideResNetSpace.decode("1x2 3x4 5x6")
    del sample["stage2/width"]
    with pytest.raises(UserError, match="no value for 'stage2/width'"):
        WideResNetSpace.encode(sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_blocks": 1}, "search_blocks: 1 is not allowed; true or false is"),
        ({"search_blocks": [True, True]}, "search_blocks: .* a list of three"),
        ({"depth_values": [3, 4]}, "depth_values: .* up to the teacher's 2 is needed"),
        ({"width_values": []}, "width_values: .* up to the teacher's"),
        ({"width_values": 1}, "width_values: 1 is not allowed; a list"),
        ({"depth_values": [0]}, "depth_values: 0 is not allowed"),
        ({"base_channels": [8, 16, 32]}, "stage 1: robust blocks of 8 channels"),
        ({"depths": 0}, "depths: 0 is not allowed"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_an_unknown_argument_of_an_architecture_is_named() -> None:
    architecture = Architecture(
        name="a", space="wide-resnet", space_args={"depth": [1, 1, 1]}, sample={}
    )
    with pytest.raises(UserError, match="no argument 'depth'; did you mean 'depths'"):
        architecture.cost()


def test_architecture_file(tmp_path: Path) -> None:
    assert search_spaces.get("wide-resnet") is WideResNetSpace
    space = make()
    space_args = {k: v for k, v in SMALL.items() if k != "num_classes"}
    architecture = Architecture(
        name="small", space="wide-resnet", space_args=space_args, sample=draw(space, 3)
    )
    architecture.save(tmp_path / "small.yaml")
    again = load_architecture(tmp_path / "small.yaml")
    assert again == architecture
    assert again.cost((3, 8, 8)) == measure_cost(again.build(), (3, 8, 8))
    assert again.code() == space.encode(architecture.sample)


def test_drawings() -> None:
    graphs = load_architecture("rcnas-20g-aa").graphs()
    assert [graph.title for graph in graphs] == [
        "stage 1: 15 basic blocks, 208 channels, stride 1",
        "stage 2: 15 basic blocks, 416 channels, stride 2",
        "stage 3: 5 robust blocks, 256 channels, stride 2",
    ]
    assert graphs[2].nodes == ("in", "block 1", "blocks 2-5")
    body = "conv 1x1, 7 conv 3x3, conv 1x1, SE"
    assert graphs[2].edges == (
        ("in", "block 1", body),
        ("in", "block 1", "conv 1x1"),
        ("block 1", "blocks 2-5", body),
        ("block 1", "blocks 2-5", "identity"),
    )
    single = make(depths=1, stem_channels=16, widths=1, search_blocks=False)
    first = single.cell_graphs(single.decode("1x1 1x1 1x1"))[0]
    assert first.nodes == ("in", "block 1")
    assert first.title == "stage 1: 1 basic block, 16 channels, stride 1"
    assert first.edges[1] == ("in", "block 1", "identity")


def evaluate(network: Any) -> None:
    """A trial: the plain network learns nothing, its parameters are the score."""
    assert type(network) is WideResNet
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    nni.report_final_result(float(sum(p.numel() for p in network.parameters())))


@pytest.mark.parametrize(
    "strategy",
    [
        Random(seed=1),
        RegularizedEvolution(population_size=3, sample_size=2, mutation_prob=0.4, seed=1),
    ],
    ids=["random", "evolution"],
)
def test_strategies_of_nni(strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI keeps its list of experiments there
    space = make()
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.max_trial_number = 6
    config.experiment_working_directory = tmp_path
    experiment = NasExperiment(space, FunctionalEvaluator(evaluate), strategy, config)
    experiment.run()
    models = list(strategy.list_models(limit=6))
    experiment.stop()
    assert len(models) == 6
    assert len({content_key(dict(model.sample)) for model in models}) == 6
    for model in models:
        assert model.metric == space.cost(model.sample).params


def test_one_shot_strategies_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot become a supernet: .* do not share weights"):
        build_supernet(make())


def test_a_trial_gets_the_plain_network() -> None:
    model = SimplifiedModelSpace.from_model(make()).freeze(draw(make(), 5))
    network = model.executable_model()
    assert type(network) is WideResNet
    assert network.config == make().network_config(model.sample)
