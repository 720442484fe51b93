"""The plain RobNet against golden outputs of the authors' model code, and its odd cases."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nni_robust.errors import UserError
from nni_robust.search_spaces import RobNet

DATA = Path(__file__).parent / "data"
PARITY = yaml.safe_load((DATA / "robnet_parity.yaml").read_text())
CODES = {
    name: entry["code"]
    for name, entry in yaml.safe_load((DATA / "robnet_architectures.yaml").read_text())[
        "architectures"
    ].items()
}


def golden_weight(key: str, shape: tuple[int, ...]) -> Any:
    """The weight rule written in robnet_parity.yaml."""
    rs = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if key.endswith("running_mean"):
        return 0.1 * rs.standard_normal(shape)
    if key.endswith("running_var"):
        return 8 * (1 + 0.2 * rs.random_sample(shape))
    if len(shape) == 4:
        return rs.standard_normal(shape) * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    if len(shape) == 2:
        return 0.05 * rs.standard_normal(shape)
    noise = 0.1 * rs.standard_normal(shape)
    return 1 + noise if key.endswith("weight") else noise


@pytest.mark.parametrize("case", sorted(PARITY))
def test_computes_what_the_authors_code_computes(case: str) -> None:
    golden = PARITY[case]
    config = golden["config"]
    net = RobNet(
        CODES[config["code"]],
        config["num_classes"],
        config["init_channels"],
        config["cells"],
        "imagenet" if config["imagenet_stem"] else "cifar",
    ).double()
    state = net.state_dict()
    assert len(state) == golden["state_dict_tensors"]
    assert sum(p.numel() for p in net.parameters()) == golden["params"]
    net.load_state_dict(
        {k: torch.as_tensor(golden_weight(k, tuple(v.shape))) for k, v in state.items()}
    )

    n, c, h, w = (torch.arange(size, dtype=torch.float64) for size in config["input"])
    angle = (
        0.7 * n[:, None, None, None] + 1.3 * c[:, None, None] + 0.11 * h[:, None] + 0.23 * w[None]
    )
    x = (0.5 + 0.5 * angle.sin()).requires_grad_()
    logits = net.eval()(x)
    np.testing.assert_allclose(logits[:, :10].detach(), golden["eval_logits"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(logits.sum().item(), golden["eval_logit_sum"], rtol=1e-7)
    labels = torch.arange(len(x)) % config["num_classes"]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    np.testing.assert_allclose(loss.item(), golden["ce_sum"], rtol=1e-7)
    (gradient,) = torch.autograd.grad(loss, x)
    np.testing.assert_allclose(gradient.abs().sum().item(), golden["input_grad_l1"], rtol=1e-7)
    if "train_logits_row0" in golden:
        row = net.train()(x)[0].detach()
        np.testing.assert_allclose(row[:10], golden["train_logits_row0"], rtol=1e-7, atol=1e-7)


def test_state_dict_names_are_those_of_the_authors_checkpoints() -> None:
    code = "0123" + "0" * 10  # edges 0-2 nothing, 1-2 conv, 0-3 skip, 1-3 both
    names = set(RobNet(code, init_channels=4, cells=3).state_dict())
    norm = ("running_mean", "running_var", "num_batches_tracked")

    def sep(prefix: str) -> set[str]:
        return {f"{prefix}.op.{i}.weight" for i in (1, 2, 5, 6)} | {
            f"{prefix}.op.{i}.{n}" for i in (3, 7) for n in norm
        }

    def halve(prefix: str) -> set[str]:
        return {f"{prefix}.conv_{i}.weight" for i in (1, 2)} | {f"{prefix}.bn.{n}" for n in norm}

    def one_by_one(prefix: str) -> set[str]:
        return {f"{prefix}.op.1.weight"} | {f"{prefix}.op.2.{n}" for n in norm}

    expected = {"stem.0.weight", "classifier.weight", "classifier.bias"}
    expected |= {f"stem.1.{n}" for n in (*norm, "weight", "bias")}
    for cell in range(3):  # cells 1 and 2 are reductions
        older = halve if cell == 2 else one_by_one
        expected |= older(f"cells.{cell}.preprocess0") | one_by_one(f"cells.{cell}.preprocess1")
        expected |= sep(f"cells.{cell}._ops.1.op") | sep(f"cells.{cell}._ops.3.op.conv")
        if cell:
            expected |= halve(f"cells.{cell}._ops.2.op") | halve(f"cells.{cell}._ops.3.op.res")
    assert names == expected


@settings(max_examples=15, deadline=None)
@given(
    codes=st.lists(st.text("0123", min_size=14, max_size=14), min_size=4, max_size=4),
    channels=st.integers(1, 5),
    side=st.sampled_from([4, 8, 12]),
)
def test_any_code_gives_logits_and_an_input_gradient(
    codes: list[str], channels: int, side: int
) -> None:
    net = RobNet(codes, num_classes=3, init_channels=channels, cells=4)
    x = torch.rand(2, 3, side, side + 4, requires_grad=True)
    logits = net(x)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.isfinite().all()


def test_a_network_without_any_operation_ignores_the_picture() -> None:
    net = RobNet("0" * 14, init_channels=4, cells=3).eval()
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    logits = net(x)
    torch.testing.assert_close(logits, net.classifier.bias.expand(2, -1))
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() == 0


def test_memory_format_does_not_change_the_result() -> None:
    torch.manual_seed(0)
    net = RobNet("33123210120232", init_channels=4, cells=3).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = net(x)
    last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), expected)


def test_imagenet_stem_takes_multiples_of_32() -> None:
    net = RobNet("3" * 14, num_classes=5, init_channels=2, cells=3, stem="imagenet").eval()
    assert net(torch.rand(1, 3, 32, 64)).shape == (1, 5)
    with pytest.raises(UserError, match=r"48x32 pixels.*divisible by 32"):
        net(torch.rand(1, 3, 48, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code": "3" * 13}, "13 digits; 14 are needed"),
        ({"code": "3" * 13 + "4"}, "contains '4'"),
        ({"code": 33123210120232}, "33123210120232 is not allowed; a string of 14 digits is"),
        ({"code": ["3" * 14, "3" * 14]}, "2 strings are not allowed for 3 cells"),
        ({"code": []}, "0 strings"),
        ({"cells": 2}, "cells: 2 is not allowed"),
        ({"cells": 3.0}, "cells: 3.0 is not allowed"),
        ({"init_channels": 0}, "init_channels: 0 is not allowed"),
        ({"init_channels": 5, "stem": "imagenet"}, "init_channels: 5 is not allowed"),
        ({"num_classes": 0}, "num_classes: 0 is not allowed"),
        ({"stem": "mnist"}, "stem: 'mnist' is not allowed; allowed: cifar, imagenet"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RobNet(**{"code": "3" * 14, "init_channels": 4, "cells": 3, **arguments})


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 3, 7, 7), (1, 1, 8, 8), (3, 8, 8)])
def test_bad_pictures_are_refused(shape: tuple[int, ...]) -> None:
    net = RobNet("3" * 14, init_channels=4, cells=3)
    with pytest.raises(UserError, match="pictures of"):
        net(torch.rand(shape))
