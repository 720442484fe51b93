"""Batch norms that are not folded: equal to torch's, without keeping their input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nni_robust.architecture import load_architecture
from nni_robust.attacks import attack, undisturbed
from nni_robust.attacks._affine import Affine
from nni_robust.bench._networks import ResNet18

FORMATS = [torch.contiguous_format, torch.channels_last]


def norm_of(channels: int, **settings: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **settings)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 2)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
    return norm.requires_grad_(False).eval()


class Operations(TorchDispatchMode):  # type: ignore[misc]
    """Counts what torch computes, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def batch_norms(model: nn.Module, x: Tensor) -> int:
    with Operations() as seen, torch.no_grad():
        model(x)
    return sum("batch_norm" in name for name in seen.names)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"eps": 0.1}])
def test_equals_the_batch_norm(
    settings: dict[str, Any], memory_format: torch.memory_format
) -> None:
    norm = norm_of(5, **settings).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64).contiguous(memory_format=memory_format)
    x.requires_grad_()
    ours, theirs = Affine(norm)(x), norm(x)
    assert ours.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    (ours_in_x,) = torch.autograd.grad(ours, x, weights)
    (theirs_in_x,) = torch.autograd.grad(theirs, x, weights)
    torch.testing.assert_close(ours_in_x, theirs_in_x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_keeps_no_map_for_the_backward_pass(memory_format: torch.memory_format) -> None:
    norm = norm_of(5)
    x = torch.randn(3, 5, 8, 8).contiguous(memory_format=memory_format).requires_grad_()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
        assert max(kept) == x.numel()  # torch's does
        kept.clear()
        Affine(norm)(x)
    assert kept
    assert max(kept) == 5


def test_leaves_what_it_does_not_know_to_the_batch_norm() -> None:
    norm = norm_of(3)
    fast = Affine(norm)
    for shape in ((2, 4, 5, 5), (2, 1, 5, 5), (2, 3, 5)):
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            norm(torch.rand(shape))
        with pytest.raises(type(theirs.value)) as ours:
            fast(torch.rand(shape))
        assert str(ours.value) == str(theirs.value)
    x = torch.rand(2, 3, 5, 5, dtype=torch.bfloat16)
    assert torch.equal(fast(x), norm(x))


@pytest.mark.parametrize(("name", "all_norms"), [("wrn-28-10", 25), ("wrn-34-12", 31)])
def test_in_an_attack_no_batch_norm_is_left(name: str, all_norms: int) -> None:
    """Wide residual networks have batch norms that no convolution precedes."""
    model = load_architecture(name).build(num_classes=10).eval()
    x = torch.rand(1, 3, 32, 32)
    assert batch_norms(model, x) == all_norms
    with undisturbed(model, fold=x):
        assert batch_norms(model, x) == 0
    assert batch_norms(model, x) == all_norms
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_compiler_gets_batch_norms_as_they_are() -> None:
    """It would compile anew for each batch's own constants."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval()
    x = torch.rand(2, 3, 8, 8)
    with undisturbed(model, fold=x, thrifty=False):
        assert batch_norms(model, x) == 1
    with undisturbed(model, fold=x):
        assert batch_norms(model, x) == 0


def test_nothing_is_replaced_where_a_number_decides_the_way() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm_of(3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.norm(x)
            return (out if float(out.detach().mean()) > 0 else -out).mean((2, 3))

    model, x = Switch().eval(), torch.rand(2, 3, 8, 8)
    with undisturbed(model, fold=x):
        assert batch_norms(model, x) == 1


def test_pairs_that_are_not_folded_need_no_map() -> None:
    """Of few pictures late layers are not folded, for their weights outweigh their maps."""
    model, x = ResNet18(8).eval(), torch.rand(1, 3, 16, 16)
    maps: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and len(tensor) == 1:
            maps.add(tensor.untyped_storage().data_ptr())
        return tensor

    def kept() -> int:
        maps.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(x.clone().requires_grad_())
        assert logits.grad_fn is not None  # all that it keeps is still there, at places of its own
        return len(maps)

    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    picture, relus = 1, 17
    with undisturbed(model):
        assert kept() == picture + convolutions + relus  # batch norms keep what they read
    with undisturbed(model, fold=x):
        assert kept() == picture + relus


def test_an_attack_finds_the_same() -> None:
    """In float64 rounding is too small to move a pixel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), norm_of(6), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ).double().eval()  # fmt: skip
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    found = [attack("pgd5", fold=fold)(model, x, y, seed=0) for fold in (False, True)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    assert F.l1_loss(found[0], x) > 0.01
