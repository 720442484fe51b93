"""DartsSpace inside NNI (trials, samplers, supernets), and its zoo."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
from nni.mutable import SampleValidationError
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.hub.pytorch.nasnet import DARTS as HubDARTS
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import SimplifiedModelSpace
from nni.nas.strategy import DARTS, GumbelDARTS, Random, RandomOneShot, RegularizedEvolution
from torch.nn import functional as F

from nni_robust.architecture import Architecture, list_architectures, load_architecture
from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces import DartsNetwork, DartsSpace, isomorphic
from nni_robust.supernet import build_supernet, inherit, set_path

SMALL: dict[str, Any] = {"num_classes": 3, "width": 2, "cells": 3}
BASIC = load_architecture("wsrnet-basic").sample
RACL = load_architecture("racl").sample
# An operation and a state twice in a node, which the supernet holds only once.
TWICE = {**BASIC, "normal/op_3_1": "dil_conv_5x5", "normal/input_3_1": [0]}


def make(**kwargs: Any) -> DartsSpace:
    torch.manual_seed(0)
    return DartsSpace(**{**SMALL, **kwargs})


def pictures(number: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, 8, 8, generator=generator)


def trained_supernet(**kwargs: Any) -> Any:
    """A supernet whose batch norm statistics are not the initial ones."""
    supernet = build_supernet(make(**kwargs))
    for sample in (BASIC, RACL, TWICE):
        set_path(supernet, sample)
        supernet.train()(pictures())
    return supernet


# ---------------------------------------------------------------------------- trials


def test_choices_are_those_of_the_hub() -> None:
    space = make()
    theirs = HubDARTS(width=2, num_cells=3, dataset="cifar").simplify()
    assert {k: str(v) for k, v in space.simplify().items()} == {
        k: str(v) for k, v in theirs.items()
    }
    assert set(theirs) == set(BASIC)
    assert space.contains(BASIC)


def test_raw_space_gives_logits_of_any_number_of_classes() -> None:
    assert make()(pictures()).shape == (6, 3)


@pytest.mark.parametrize("cell", ["darts", "nasnet"])
def test_a_trial_gets_the_plain_network(cell: Any) -> None:
    space = make(cell=cell, drop_path=0.25)
    sample = BASIC if cell == "darts" else load_architecture("amoebanet-a").sample
    sent = nni.dump(SimplifiedModelSpace.from_model(space).freeze(sample))
    assert "DartsSpace" in sent
    network = nni.load(sent).executable_model()
    assert type(network) is DartsNetwork
    assert network.cells()[0].drop_path == 0.25
    assert network.layout == space.layout
    frozen = space.freeze(sample)
    assert list(network.state_dict()) == list(frozen.state_dict())
    assert network.genotype == frozen.genotype
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_a_space_without_weights_freezes_to_fresh_ones() -> None:
    with torch.device("meta"):
        space = make()
    network = space.freeze(BASIC)
    assert network.eval()(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_a_sample_outside_the_space_is_refused() -> None:
    space = make()
    for bad in ({**BASIC, "normal/op_2_0": "none"}, {"normal/op_2_0": "skip_connect"}):
        with pytest.raises(SampleValidationError):
            space.freeze(bad)
    with pytest.raises(UserError, match="cell: 'amoeba' is not allowed; allowed: darts, nasnet"):
        make(cell="amoeba")
    with pytest.raises(UserError, match="8 edges are not allowed; 10 are"):
        DartsSpace.decode(DartsSpace.encode(BASIC), cell="nasnet")


def report_params(network: Any) -> None:
    """The evaluator of the experiments below: larger is better."""
    assert type(network) is DartsNetwork
    nni.report_final_result({"default": float(sum(p.numel() for p in network.parameters()))})


@pytest.mark.parametrize(
    "strategy",
    [Random(seed=0), RegularizedEvolution(population_size=3, sample_size=2, seed=0)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_nni_strategies_search_the_space(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # NNI keeps its list of experiments there
    space = make()
    config = NasExperimentConfig("sequential", "simplified", "local")
    config.max_trial_number = 5
    config.experiment_working_directory = tmp_path
    experiment = NasExperiment(space, FunctionalEvaluator(report_params), strategy, config)
    experiment.run()
    models = list(strategy.list_models(limit=5))
    experiment.stop()
    assert len(models) == 5
    for model in models:
        assert space.contains(model.sample)
        assert model.metric == space.cost(model.sample).params


# ---------------------------------------------------------------------------- supernet


@pytest.mark.parametrize(
    ("sample", "stem"), [(BASIC, "cifar"), (RACL, "cifar"), (TWICE, "cifar"), (BASIC, "imagenet")]
)
def test_a_path_of_the_supernet_is_the_inherited_network(sample: Any, stem: Any) -> None:
    supernet = trained_supernet(stem=stem).eval()
    network = inherit(supernet, sample)
    assert type(network) is DartsNetwork
    assert not network.training
    set_path(supernet, sample)
    torch.testing.assert_close(supernet(pictures()), network(pictures()))
    if sample is not TWICE:  # there the supernet's statistics move twice
        torch.testing.assert_close(supernet.train()(pictures()), network.train()(pictures()))
        after = inherit(supernet, sample).state_dict()
        assert all(torch.equal(after[k], v) for k, v in network.state_dict().items())


def test_only_the_sampled_path_is_computed() -> None:
    supernet = trained_supernet()
    set_path(supernet, RACL)
    assert measure_cost(supernet, (3, 8, 8)).macs == supernet.cost(RACL, (3, 8, 8)).macs
    torch.autograd.backward(F.cross_entropy(supernet(torch.rand(6, 3, 8, 8)), torch.arange(6) % 3))
    gradients = sum(p.numel() for p in supernet.parameters() if p.grad is not None)
    assert gradients == supernet.cost(RACL).params


def test_supernet_checkpoint_round_trip(tmp_path: Path) -> None:
    supernet = trained_supernet()
    torch.save(supernet.state_dict(), tmp_path / "supernet.pt")
    torch.manual_seed(1)
    again = RandomOneShot().mutate_model(DartsSpace(**SMALL))
    again.load_state_dict(torch.load(tmp_path / "supernet.pt", weights_only=True))
    expected = inherit(supernet, BASIC).eval()(pictures())
    torch.testing.assert_close(inherit(again, BASIC).eval()(pictures()), expected)


def test_auxiliary_heads_are_for_networks_with_weights_of_their_own() -> None:
    space = make(auxiliary=True)
    plain = space.cost(BASIC, (3, 32, 32))
    assert sum(p.numel() for p in space.freeze(BASIC).parameters()) == plain.params
    network = inherit(build_supernet(space), BASIC)
    assert sum(p.numel() for p in network.parameters()) == make().cost(BASIC).params < plain.params


@pytest.mark.parametrize("strategy", [DARTS, GumbelDARTS])
def test_differentiable_supernet_exports_a_network_of_the_space(strategy: Any) -> None:
    supernet = strategy().mutate_model(make())
    cells = [m for m in supernet.modules() if isinstance(m, BaseSuperNetModule)]
    alphas = {id(p): p for cell in cells for p in cell.arch_parameters()}
    assert len(alphas) == 28  # one per edge and kind of cell
    assert all(len(p) == 8 for p in alphas.values())  # seven operations, and none
    torch.autograd.backward(F.cross_entropy(supernet(pictures(3)), torch.arange(3)))
    assert all(p.grad is not None for p in alphas.values())
    exported: dict[str, Any] = {}
    for cell in cells:
        exported.update(cell.export(exported))
    assert supernet.contains(exported)
    network = supernet.freeze(exported)
    weights = dict(supernet.named_parameters())
    assert torch.equal(network.stem[0].weight, weights["stem.0.weight"])
    operation, (state,) = exported["normal/op_5_1"], exported["normal/input_5_1"]
    prefix = f"stages.0.blocks.0.ops.3.{state}.{operation}."
    for name, weight in network.cells()[0].ops[3][1].named_parameters():
        assert torch.equal(weight, weights[prefix + name])


def test_cells_with_loose_ends_cannot_become_a_supernet() -> None:
    with pytest.raises(UserError, match="cell: 'nasnet' is not allowed in a supernet"):
        build_supernet(make(cell="nasnet"))


# ---------------------------------------------------------------------------- zoo, drawings


def test_every_entry_of_the_zoo_is_an_architecture(tmp_path: Path) -> None:
    names = [n for n in ZOO if n not in ("wsrnet-basic-imagenet", "racl-imagenet")]
    for name in names:
        architecture = load_architecture(name)
        assert architecture.provenance["source"]
        assert DartsSpace.decode(architecture.code(), **architecture.space_args) == (
            architecture.sample
        )
    architecture.save(tmp_path / "again.yaml")
    again: Architecture = load_architecture(tmp_path / "again.yaml")
    assert again == architecture


WSRNETS = ["basic", "robust", "m", "m-1", "n", "plus", "robust-minus", "basic-imagenet"]
OTHERS = [
    *("racl", "racl-imagenet", "advrush", "advrush-imagenet", "darts-v1", "darts-v2"),
    *("darts-v2-imagenet", "pc-darts", "pc-darts-imagenet", "pvll-nas", "nasnet-a", "amoebanet-a"),
]
RUNS = [
    *("3-9", "3-5", "3-9best", "3-12best", "3-12-36", "3-11-best", "5-2-48", "5-2-80", "5-143"),
    *("5-52", "5-3-54", "5pgd5-29", "-b2c1e35", "-5pgd6-5"),
]
ZOO = [*(f"wsrnet-{n}" for n in WSRNETS), *OTHERS, *(f"wsrnas-result{n}" for n in RUNS)]


def test_zoo_has_all_recovered_genotypes() -> None:
    assert set(ZOO) <= set(list_architectures())


def test_networks_of_the_zoo_that_are_the_same() -> None:
    codes = {name: load_architecture(name).code() for name in ZOO if "imagenet" not in name}
    same = {
        frozenset(p) for p in itertools.combinations(codes, 2) if isomorphic(*map(codes.get, p))
    }
    assert same == {
        frozenset({"wsrnet-basic", "wsrnet-robust"}),
        frozenset({"wsrnet-m-1", "wsrnet-plus"}),
        frozenset({"wsrnas-result5pgd5-29", "wsrnas-result-5pgd6-5"}),
    }
    assert codes["wsrnet-m-1"] != codes["wsrnet-plus"]


def test_drawings() -> None:
    normal, reduction = make().cell_graphs(RACL)
    assert (normal.title, reduction.title) == ("normal cells", "reduction cells (1 and 2)")
    assert normal.nodes == ("c(k-2)", "c(k-1)", "f1", "f2", "f3", "f4")
    assert (normal.inputs, normal.outputs) == (normal.nodes[:2], normal.nodes[2:])
    assert normal.edges == (
        ("c(k-2)", "f1", "sep conv 3x3"),
        ("c(k-1)", "f1", "sep conv 3x3"),
        ("c(k-2)", "f2", "sep conv 5x5"),
        ("c(k-1)", "f2", "identity"),
        ("c(k-2)", "f3", "sep conv 3x3"),
        ("f2", "f3", "identity"),
        ("f2", "f4", "sep conv 3x3"),
        ("f3", "f4", "identity"),
    )
    _, amoeba = load_architecture("amoebanet-a").graphs()
    assert amoeba.outputs == ("f2", "f3", "f5")
    assert ("c(k-2)", "f5", "conv 7x1 1x7") in amoeba.edges
