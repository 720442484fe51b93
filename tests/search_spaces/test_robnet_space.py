"""RobNetSpace inside NNI: trials, samplers, supernets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy import (
    DARTS,
    TPE,
    GumbelDARTS,
    Proxyless,
    Random,
    RandomOneShot,
    RegularizedEvolution,
)
from torch import nn
from torch.nn import functional as F

from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNet, RobNetSpace

SMALL: dict[str, Any] = {"num_classes": 3, "init_channels": 4, "cells": 4}
CODE = "33123210120232"
FREE_CODE = ["01230123012301", "33123210120232", "12312312312312", "00000000000003"]


@pytest.fixture(params=[False, True], ids=["shared", "cell-free"])
def cell_free(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def make(cell_free: bool = False, **kwargs: Any) -> tuple[RobNetSpace, dict[str, str]]:
    """A small space and a sample of it."""
    torch.manual_seed(0)
    space = RobNetSpace(**{**SMALL, "cell_free": cell_free, **kwargs})
    code = FREE_CODE if cell_free else CODE
    return space, space.decode(code, cells=4, cell_free=cell_free)


def set_path(supernet: nn.Module, sample: dict[str, str]) -> None:
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(dict(sample))


# ---------------------------------------------------------------------------- choices


def test_choices_are_labelled_and_readable(cell_free: bool) -> None:
    space, sample = make(cell_free)
    choices = space.simplify()
    assert list(choices) == list(sample)
    assert len(choices) == (56 if cell_free else 14)
    assert all(tuple(c.values) == ("none", "conv", "skip", "conv+skip") for c in choices.values())
    assert space.encode(sample) == (FREE_CODE if cell_free else CODE)
    assert not is_supernet(space)  # NNI would keep it from multi-trial experiments


def test_prior_keeps_each_bit_with_the_given_probability() -> None:
    space, _ = make(keep_probability=0.8)
    weights = [0.04, 0.16, 0.16, 0.64]
    assert space.simplify()["cell/0-2"].weights == pytest.approx(weights)
    rng = np.random.RandomState(0)
    choices = SimplifiedModelSpace.from_model(space).simplify()
    drawn = Counter(c.random({}, rng) for _ in range(100) for c in choices.values())
    frequency = [drawn[v] / 1400 for v in ("none", "conv", "skip", "conv+skip")]
    np.testing.assert_allclose(frequency, weights, atol=4 * (0.25 / 1400) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_probability": 0.0}, "keep_probability: 0.0 is not allowed"),
        ({"keep_probability": "0.7"}, "keep_probability: '0.7' is not allowed"),
        ({"cell_free": "no"}, "cell_free: 'no' is not allowed; true or false is"),
        ({"cells": 2}, "cells: 2 is not allowed"),
        ({"stem": "mnist"}, "stem: 'mnist'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RobNetSpace(**{**SMALL, **arguments})


# ---------------------------------------------------------------------------- trials


def test_a_trial_gets_the_plain_network(cell_free: bool) -> None:
    space, sample = make(cell_free)
    frozen = SimplifiedModelSpace.from_model(space).freeze(sample)
    sent = nni.dump(frozen)  # what goes to the trial's process
    assert "RobNetSpace" in sent
    network = nni.load(sent).executable_model()
    assert type(network) is RobNet
    assert network.code == (FREE_CODE if cell_free else CODE)
    assert list(network.state_dict()) == list(space.freeze(sample).state_dict())
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_raw_format_freezes_a_copy_of_the_weights(cell_free: bool) -> None:
    space, sample = make(cell_free)
    network = RawFormatModelSpace.from_model(space).freeze(sample).executable_model()
    assert type(network) is RobNet
    assert torch.equal(network.stem[0].weight, space.stem[0].weight)
    with torch.no_grad():
        network.stem[0].weight.zero_()
    assert space.stem[0].weight.abs().sum() > 0


def test_a_space_without_weights_freezes_to_fresh_ones() -> None:
    with torch.device("meta"):
        space = RobNetSpace(**SMALL)
    network = space.freeze(space.decode(CODE, cells=4))
    assert network(torch.rand(2, 3, 8, 8)).isfinite().all()


def report_density(network: Any) -> None:
    """The evaluator of the experiments below: denser is better."""
    assert type(network) is RobNet
    nni.report_final_result({"default": network.code.count("3") / 14, "clean": 0.0})


@pytest.mark.parametrize(
    "strategy",
    [
        Random(seed=0),
        RegularizedEvolution(population_size=3, sample_size=2, seed=0),
        TPE(),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_nni_strategies_search_the_space(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI keeps its list of experiments there
    space, _ = make()
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.max_trial_number = 6
    config.experiment_working_directory = tmp_path
    experiment = NasExperiment(space, FunctionalEvaluator(report_density), strategy, config)
    experiment.run()
    models = list(strategy.list_models(limit=6))
    experiment.stop()
    assert len(models) == 6
    for model in models:
        assert space.contains(model.sample)
        assert model.metric == space.encode(model.sample).count("3") / 14


# ---------------------------------------------------------------------------- supernet


@pytest.fixture
def supernet(cell_free: bool) -> RobNetSpace:
    """A supernet with batch norm statistics that differ from those of a fresh one."""
    space, _ = make(cell_free)
    net = RandomOneShot().mutate_model(space).double()
    assert is_supernet(net)
    code = ["3" * 14] * 4 if cell_free else "3" * 14
    set_path(net, net.decode(code, cells=4, cell_free=cell_free))
    for _ in range(3):
        net(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    return net


def test_supernet_has_the_names_of_the_full_network(supernet: RobNetSpace) -> None:
    full = RobNet("3" * 14, **SMALL)
    assert list(supernet.state_dict()) == list(full.state_dict())


@settings(max_examples=6, deadline=None)
@given(codes=st.lists(st.text("0123", min_size=14, max_size=14), min_size=4, max_size=4))
@pytest.mark.parametrize("train", [False, True])
def test_masked_supernet_is_the_standalone_network(codes: list[str], train: bool) -> None:
    space, _ = make(cell_free=True)
    supernet = RandomOneShot().mutate_model(space).double()
    sample = supernet.decode(codes, cells=4, cell_free=True)
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    set_path(supernet, supernet.decode(["3" * 14] * 4, cells=4, cell_free=True))
    supernet(x)  # statistics that are not the initial ones
    alone = supernet.freeze(sample).train(train)
    set_path(supernet.train(train), sample)

    torch.testing.assert_close(supernet(x), alone(x))
    after = supernet.freeze(sample).state_dict()  # and so are the statistics after it
    assert all(torch.equal(after[key], value) for key, value in alone.state_dict().items())
    expected = RobNet(codes, **SMALL).double()
    expected.load_state_dict(after)
    torch.testing.assert_close(expected.train(train)(x), alone(x))


def test_only_the_sampled_path_is_computed(supernet: RobNetSpace, cell_free: bool) -> None:
    sample = supernet.decode(FREE_CODE if cell_free else CODE, cells=4, cell_free=cell_free)
    set_path(supernet, sample)
    assert measure_cost(supernet, (3, 8, 8)).macs == supernet.cost(sample, (3, 8, 8)).macs

    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    loss = F.cross_entropy(supernet(torch.rand(6, 3, 8, 8).double()), torch.arange(6) % 3)
    torch.autograd.backward(loss)
    after = supernet.state_dict()
    for index, cell in enumerate(supernet.cells):
        code = FREE_CODE[index] if cell_free else CODE
        for number, (edge, digit) in enumerate(zip(cell._ops, code, strict=True)):
            for part, active in ((edge.op.conv, digit in "13"), (edge.op.res, digit in "23")):
                assert all((p.grad is not None) == active for p in part.parameters())
            prefix = f"cells.{index}._ops.{number}.op."
            for key in before:
                if key.startswith(prefix) and "running" in key:
                    active = digit in ("13" if key.startswith(prefix + "conv") else "23")
                    assert torch.equal(before[key], after[key]) == (not active)


def test_states_share_their_operations() -> None:
    space, _ = make()
    supernet = RandomOneShot().mutate_model(space)

    def weights(code: str, inner: str) -> torch.Tensor:
        network = supernet.freeze(supernet.decode(code, cells=4))
        weight: torch.Tensor = network.get_submodule(f"cells.1._ops.0.op.{inner}").weight
        return weight

    assert torch.equal(weights("1" * 14, "op.1"), weights("3" * 14, "conv.op.1"))
    assert torch.equal(weights("2" * 14, "conv_1"), weights("3" * 14, "res.conv_1"))


def test_supernet_checkpoint_round_trip(tmp_path: Path) -> None:
    space, sample = make()
    supernet = RandomOneShot().mutate_model(space)
    torch.save(supernet.state_dict(), tmp_path / "supernet.pt")
    torch.manual_seed(1)
    again = RandomOneShot().mutate_model(RobNetSpace(**SMALL))
    again.load_state_dict(torch.load(tmp_path / "supernet.pt", weights_only=True))
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(again.freeze(sample)(x), supernet.freeze(sample)(x))


def test_inherited_networks_have_the_flag_of_the_supernet() -> None:
    space, sample = make()
    supernet = RandomOneShot().mutate_model(space).eval()
    assert not supernet.freeze(sample).training
    assert supernet.train().freeze(sample).training


def test_supernet_resamples_what_is_not_given() -> None:
    space, sample = make()
    supernet = RandomOneShot().mutate_model(space)
    with pytest.raises(RuntimeError, match=r"resample\(\)"):
        supernet(torch.rand(2, 3, 8, 8))
    memo: dict[str, Any] = {"cell/0-2": "skip"}
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule):
            memo.update(module.resample(memo))
    assert memo["cell/0-2"] == "skip"
    assert set(memo) == set(sample)
    # The same label means the same state in every cell.
    torch.testing.assert_close(
        supernet.eval()(x := torch.rand(2, 3, 8, 8)), supernet.freeze(memo)(x)
    )


@pytest.mark.parametrize("strategy", [DARTS, GumbelDARTS])
def test_differentiable_supernet_mixes_the_operations(strategy: Any) -> None:
    space, _ = make()
    supernet = strategy().mutate_model(space).double().eval()
    edges = [m for m in supernet.modules() if isinstance(m, BaseSuperNetModule)]
    assert len({id(p) for edge in edges for p in edge.arch_parameters()}) == 14
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.autograd.backward(F.cross_entropy(supernet(x), torch.tensor([0, 1])))
    assert all(p.grad is not None for edge in edges for p in edge.arch_parameters())

    # Certain of a state, the mixture is the network of that state.
    sample = supernet.decode(CODE, cells=4)
    with torch.no_grad():
        for edge in edges:
            wanted = int(CODE[list(sample).index(edge.choice.label)])
            edge.arch_parameters()[0].copy_(1e4 * F.one_hot(torch.tensor(wanted), 4))
    exported: dict[str, Any] = {}
    for edge in edges:
        exported.update(edge.export(exported))
    assert exported == sample
    torch.testing.assert_close(supernet(x), supernet.freeze(sample)(x))
    probabilities = edges[0].export_probs({})
    assert probabilities["cell/0-2"]["conv+skip"] == pytest.approx(1)


def test_proxyless_is_refused() -> None:
    with pytest.raises(TypeError, match="not supported"):
        Proxyless().mutate_model(make()[0])


# ---------------------------------------------------------------------------- drawings


def test_drawing_of_a_shared_cell() -> None:
    space, _ = make()
    (graph,) = space.cell_graphs(space.decode("0123" + "0" * 10, cells=4))
    assert graph.title == "cells 0-3 (reductions: 1 and 2)"
    assert graph.edges == (
        ("c(k-1)", "f1", "sep conv 3x3"),
        ("c(k-2)", "f2", "identity"),
        ("c(k-1)", "f2", "sep conv 3x3"),
        ("c(k-1)", "f2", "identity"),
    )
    assert graph.inputs == ("c(k-2)", "c(k-1)")
    assert graph.outputs == ("f1", "f2", "f3", "f4")


def test_drawings_of_cell_free_networks() -> None:
    space, sample = make(cell_free=True)
    graphs = space.cell_graphs(sample)
    assert [g.title for g in graphs] == [
        "cell 0",
        "cell 1 (reduction)",
        "cell 2 (reduction)",
        "cell 3",
    ]
    bits = [sum((0, 1, 1, 2)[int(d)] for d in code) for code in FREE_CODE]
    assert [len(g.edges) for g in graphs] == bits
