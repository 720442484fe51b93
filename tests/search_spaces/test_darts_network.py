"""The plain network of DARTS cells against NNI's frozen hub network, and its odd cases."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import DARTS, NDS
from nni.nas.space import model_context
from torch import nn
from torch.nn import functional as F

from nni_robust.architecture import load_architecture
from nni_robust.errors import UserError
from nni_robust.search_spaces import DartsNetwork, DartsSpace
from nni_robust.search_spaces._darts_genotype import KINDS

WSRNET_N = load_architecture("wsrnet-n").code()
AMOEBANET = load_architecture("amoebanet-a").code()
SMALL: dict[str, Any] = {"num_classes": 3, "width": 4, "cells": 4}


def make(genotype: Any = WSRNET_N, **kwargs: Any) -> DartsNetwork:
    torch.manual_seed(0)
    return DartsNetwork(genotype, **{**SMALL, **kwargs})


def pictures(number: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(1))


def same_as(hub: nn.Module, network: DartsNetwork, x: torch.Tensor) -> None:
    """Assert equal names, logits, input gradients and statistics."""
    assert list(hub.state_dict()) == list(network.state_dict())
    hub.load_state_dict(network.state_dict())
    for train in (True, False):  # training first, so that the statistics are not the initial ones
        results = []
        for model in (hub.train(train), network.train(train)):
            picture = x.clone().requires_grad_()
            logits = model(picture)
            outputs = logits if isinstance(logits, tuple) else (logits,)
            (gradient,) = torch.autograd.grad(sum(o[:, 0].sum() for o in outputs), picture)
            results.append((*outputs, gradient))
        assert len(results[0]) == len(results[1])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    states = hub.state_dict(), network.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("name", "stem", "side"),
    [
        ("wsrnet-basic", "cifar", 13),
        ("advrush", "cifar", 16),
        ("racl", "imagenet", 64),
        ("pc-darts", "imagenet", 50),
    ],
)
def test_computes_what_the_hub_computes_bit_for_bit(name: str, stem: Any, side: int) -> None:
    sample = load_architecture(name).sample
    hub = DARTS.frozen_factory(sample)(width=4, num_cells=4, dataset=stem)
    classes = 10 if stem == "cifar" else 1000
    network = make(DartsSpace.encode(sample), num_classes=classes, stem=stem)
    same_as(hub, network, pictures(side=side))


@pytest.mark.parametrize("name", ["nasnet-a", "amoebanet-a"])
def test_nasnet_cells_compute_what_the_hub_computes(name: str) -> None:
    sample = load_architecture(name).sample
    operations = list(KINDS["nasnet"].operations)
    with model_context(sample):
        hub = NDS(operations, "loose_end", 5, width=4, num_cells=4, dataset="cifar")
    network = make(DartsSpace.encode(sample), num_classes=10)
    same_as(hub, network, pictures())


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 224)])
def test_auxiliary_head_is_the_hubs(stem: Any, side: int) -> None:
    hub = DARTS.frozen_factory(DartsSpace.decode(WSRNET_N))(
        width=2, num_cells=4, dataset=stem, auxiliary_loss=True
    )
    classes = 10 if stem == "cifar" else 1000
    network = make(num_classes=classes, width=2, stem=stem, auxiliary=True)
    same_as(hub, network, pictures(side=side))


def test_auxiliary_head_leaves_the_logits_alone() -> None:
    # With three cells the head reads the last one, whose output the classifier needs unchanged.
    network = make(cells=3, auxiliary=True).train()
    logits, auxiliary = network(pictures(4, side=32))
    assert logits.shape == auxiliary.shape == (4, 3)
    plain = make(cells=3).train()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "auxiliary" not in k})
    torch.testing.assert_close(plain(pictures(4, side=32)), logits)
    assert network.eval()(pictures(4, side=32)).shape == (4, 3)


@pytest.mark.parametrize("genotype", [WSRNET_N, AMOEBANET], ids=["darts", "nasnet"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (5, 7), (32, 48)])
def test_pictures_of_any_size_give_logits_and_a_gradient(
    genotype: Any, stem: Any, shape: tuple[int, int]
) -> None:
    network = make(genotype, stem=stem, cells=3).eval()
    x = torch.rand(2, 3, *shape, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 3)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1])), x)
    assert gradient.isfinite().all()


def test_network_is_plain() -> None:
    network = make(stem="imagenet", auxiliary=True)
    assert not any(isinstance(module, Mutable) for module in network.modules())
    assert set(dict(network.named_parameters())) == set(
        dict(copy.deepcopy(network).named_parameters())
    )
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    make(stem="imagenet", auxiliary=True).load_state_dict(torch.load(file, weights_only=True))


def test_memory_format_does_not_change_the_result() -> None:
    network = make().double().eval()
    x = pictures().double()
    expected = network(x)
    last = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), expected)


def test_dropped_paths_keep_the_mean_and_the_names() -> None:
    network = make(drop_path=0.5)
    assert list(network.state_dict()) == list(make().state_dict())
    cell = network.cells()[0].double()
    op, identity = cell.ops[0][0], nn.Identity()  # type: ignore[index]
    x = torch.rand(1, 4, 4, 4, dtype=torch.float64).expand(800, -1, -1, -1)
    expected = op(x)  # the same for all
    torch.manual_seed(0)
    dropped = cell._edge(op, x)
    kept = dropped.flatten(1).any(dim=1)
    torch.testing.assert_close(dropped[kept], 2 * expected[kept])
    assert abs(float(kept.double().mean()) - 0.5) < 4 * 0.5 / 800**0.5
    assert cell._edge(identity, x) is x
    assert torch.equal(cell.eval()._edge(op, x), op(x))


def test_drop_path_is_set_later_and_absent_in_evaluation() -> None:
    network = make(drop_path=0.9)
    x = pictures(8)
    torch.testing.assert_close(network.eval()(x), make().eval()(x))
    torch.testing.assert_close(make(drop_path=0.0).train()(x), make().train()(x))
    network.set_drop_path(0.0)
    torch.testing.assert_close(network.train()(x), make().train()(x))
    network.set_drop_path(0.3)
    assert [cell.drop_path for cell in network.cells()] == [0.3] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 2}, "cells: 2 is not allowed; an integer of at least 3 is"),
        ({"cells": 4.0}, "cells: 4.0 is not allowed"),
        ({"width": 0}, "width: 0 is not allowed"),
        ({"width": 5, "stem": "imagenet"}, "width: 5 is not allowed with the ImageNet stem"),
        ({"num_classes": True}, "num_classes: True is not allowed"),
        ({"stem": "mnist"}, "stem: 'mnist' is not allowed; allowed: cifar, imagenet"),
        ({"auxiliary": 1}, "auxiliary: 1 is not allowed; true or false is"),
        ({"drop_path": 1.0}, "drop_path: 1.0 is not allowed"),
        ({"drop_path": "0.2"}, "drop_path: '0.2' is not allowed"),
        ({"drop_path": float("nan")}, "drop_path: nan is not allowed"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)
    with pytest.raises(UserError, match=message):
        DartsSpace(**{**SMALL, **arguments})


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"pictures of shape \(3, H, W\), not \(1, 8, 8\)"):
        make()(torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match="auxiliary: true is not allowed for pictures of 8x8"):
        make(auxiliary=True)(torch.rand(2, 3, 8, 8))
