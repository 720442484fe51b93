"""Denoising blocks: each filter against another implementation, cost, identity at the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from nni_robust.cost import measure_cost
from nni_robust.errors import UserError
from nni_robust.search_spaces._denoising import DENOISERS, Denoise, denoise_cost, one_per_stage

every_kind = pytest.mark.parametrize("kind", DENOISERS)


def picture(channels: int = 6, height: int = 4, width: int = 5) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, channels, height, width, dtype=torch.float64)


@torch.no_grad()
def non_local(block: Any, x: Tensor) -> Tensor:
    """Non-local means position by position, as the paper writes them."""
    out = torch.zeros_like(x)
    positions = [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]
    for n in range(len(x)):
        for i in positions:
            here = x[n][:, i[0], i[1]]
            if isinstance(block.filter, nn.Module):
                theta, phi = (getattr(block.filter, k).weight[:, :, 0, 0] for k in ("theta", "phi"))
                scores = [
                    (theta @ here) @ (phi @ x[n][:, a, b]) / theta.shape[0] ** 0.5
                    for a, b in positions
                ]
                weights = np.exp([float(s) for s in scores])
                weights = weights / weights.sum()
            else:
                weights = [float(here @ x[n][:, a, b]) / len(positions) for a, b in positions]
            for weight, (a, b) in zip(weights, positions, strict=True):
                out[n, :, i[0], i[1]] += weight * x[n][:, a, b]
    return out


@pytest.mark.parametrize("shape", [(6, 2, 3), (12, 2, 3), (2, 3, 3)])
@pytest.mark.parametrize("kind", ["gaussian", "dot"])
def test_non_local_means_are_those_of_the_paper(kind: str, shape: tuple[int, int, int]) -> None:
    x = picture(*shape)
    block: Any = Denoise(kind, shape[0]).double()
    if kind == "gaussian":
        nn.init.normal_(block.filter.theta.weight)  # weights that differ from position to position
        nn.init.normal_(block.filter.phi.weight)
    torch.testing.assert_close(block.filter(x), non_local(block, x))


def test_fresh_gaussian_weights_are_small() -> None:
    block: Any = Denoise("gaussian", 64)
    for layer in (block.filter.theta, block.filter.phi):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    x = torch.rand(1, 64, 3, 3)  # and so the weights nearly equal, the result nearly the mean
    torch.testing.assert_close(
        block.filter(x), x.mean((2, 3), keepdim=True).expand_as(x), atol=0.02, rtol=0
    )


def test_median_is_scipys() -> None:
    x = picture()
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
    block: Any = Denoise("median", 6)
    np.testing.assert_array_equal(block.filter(x).numpy(), expected)


def test_mean_is_scipys_divided_by_the_positions_that_exist() -> None:
    x = picture()
    window = np.ones((1, 1, 3, 3))
    total = ndimage.convolve(x.numpy(), window, mode="constant")
    count = ndimage.convolve(np.ones(x.shape), window, mode="constant")
    block: Any = Denoise("mean", 6)
    np.testing.assert_allclose(block.filter(x).numpy(), total / count, rtol=1e-12)


@every_kind
@pytest.mark.parametrize("train", [False, True])
def test_a_fresh_block_is_the_identity_and_can_learn(kind: str, train: bool) -> None:
    block: Any = Denoise(kind, 6).double().train(train)
    x = picture().requires_grad_()
    out = block(x)
    assert torch.equal(out, x)
    torch.autograd.backward((out * torch.randn_like(out)).sum())
    assert x.grad is not None
    assert block.norm.weight.grad.abs().min() > 0
    nn.init.ones_(block.norm.weight)
    assert not torch.allclose(block(x), x)


@every_kind
def test_a_trained_block_mixes_the_filtered_channels(kind: str) -> None:
    block: Any = Denoise(kind, 6).double().eval()
    nn.init.ones_(block.norm.weight)
    x = picture()
    mixed = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], block.filter(x))
    torch.testing.assert_close(block(x), x + mixed / (1 + block.norm.eps) ** 0.5)


@every_kind
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2)])
def test_small_maps(kind: str, size: tuple[int, int]) -> None:
    block = Denoise(kind, 4)
    assert block(torch.rand(2, 4, *size)).isfinite().all()


@every_kind
def test_memory_format_does_not_change_the_result(kind: str) -> None:
    block: Any = Denoise(kind, 6).double().eval()
    nn.init.ones_(block.norm.weight)
    x = picture()
    torch.testing.assert_close(block(x.contiguous(memory_format=torch.channels_last)), block(x))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(DENOISERS),
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_cost_equals_the_count_of_the_built_block(
    kind: str, channels: int, height: int, width: int
) -> None:
    with torch.device("meta"):
        block = Denoise(kind, channels)
    assert denoise_cost(kind, channels, height, width) == measure_cost(
        block, (channels, height, width)
    )


def test_settings_are_one_per_stage() -> None:
    assert one_per_stage(None, 3) == (None, None, None)
    assert one_per_stage("dot", 2) == ("dot", "dot")
    assert one_per_stage(["dot", None, "mean"], 3) == ("dot", None, "mean")


@pytest.mark.parametrize(
    "value", ["none", "Mean", [], ["dot"], ["dot", "dot", 1], {"a": 1}, 3, [[]]]
)
def test_other_settings_are_refused(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"denoise: .* is not allowed; allowed: gaussian, dot, mean"
    ):
        one_per_stage(value, 3)
