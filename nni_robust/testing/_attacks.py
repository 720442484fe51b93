"""What every attack promises, as a test class to inherit (see :class:`nni_robust.attacks.Attack`).

Everything is checked on networks and pictures of the suite: in all float types and memory formats,
with pixels at the ends of [0, 1], on a network in a state that nobody would set by hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import Attack, NonFiniteOutput
from nni_robust.errors import UserError
from nni_robust.testing._checks import assert_refused
from nni_robust.testing._parts import AttackedNet, easy_network
from nni_robust.threat import ThreatModel

__all__ = ["AttackConformance"]

_LAYOUTS = ("contiguous", "channels last", "transposed")


class AttackConformance:
    """Tests of one attack; implement :meth:`make_attack`.

    Attributes
    ----------
    radii
        Norm to radii (pixel units, above 0) that the attack is tried with; leave out a norm that it
        does not know.
    shape, classes
        (C, H, W) of the suite's pictures, and classes of its networks.
    dtypes
        Float types of the pictures that it is tried with.
    batch_independent
        It claims that with a seed and `index` a picture's result does not depend on the others of
        the batch.
    strong
        It claims to break a linear network with small margins at the largest radius.
    """

    radii: Mapping[str, Sequence[float]] = {
        "linf": (1e-3, 1 / 255, 8 / 255, 0.3, 1.0),
        "l2": (3e-3, 8 / 255, 0.5, 3.0),
    }
    shape: tuple[int, int, int] = (3, 8, 8)
    classes: int = 5
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    batch_independent: bool = True
    strong: bool = True

    def make_attack(self, threat: ThreatModel) -> Attack:
        """The attack under test, with this threat model."""
        raise NotImplementedError("override make_attack(self, threat)")

    def threats(self) -> Iterator[ThreatModel]:
        """All threat models that it is tried with."""
        for norm, radii in self.radii.items():
            yield from (_threat(norm, eps) for eps in radii)

    def middle(self) -> Attack:
        """The attack with a radius from the middle, for checks that need only one."""
        norm = next(iter(self.radii))
        return self.make_attack(_threat(norm, self.radii[norm][len(self.radii[norm]) // 2]))

    def network(self, dtype: torch.dtype = torch.float32) -> AttackedNet:
        """A small network in a mixed state, always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            net = AttackedNet(self.shape[0], self.classes)
            for module in net.modules():
                module.training = bool(torch.rand(()) < 0.5)
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            net.to(dtype)
            for place, parameter in enumerate(net.parameters()):
                parameter.requires_grad_(place % 3 != 2)
                if place % 2 == 0:
                    parameter.grad = torch.randn_like(parameter)
        return net

    def pictures(
        self, number: int = 4, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
    ) -> tuple[Tensor, Tensor]:
        """Pictures with exact ends, multiples of 1/255 and tiny numbers in them, and labels."""
        generator = torch.Generator().manual_seed(3)
        x = torch.rand((number, *self.shape), generator=generator, dtype=torch.float64)
        kind = torch.randint(0, 8, x.shape, generator=generator)
        for code, value in ((0, 0.0), (1, 1.0), (2, -0.0), (3, 1e-7), (4, 0.5)):
            x[kind == code] = value
        x[kind == 5] = (x[kind == 5] * 255).round() / 255
        x = x.to(dtype).clamp(0, 1)
        if layout == "channels last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "transposed":
            x = x.transpose(2, 3).contiguous().transpose(2, 3)
        return x, torch.arange(number) % self.classes

    def test_says_what_it_is(self) -> None:
        keys = set()
        for threat in self.threats():
            made = self.make_attack(threat)
            assert isinstance(made, Attack)
            assert made.threat == threat
            assert isinstance(made.label, str)
            assert made.label
            keys.add(made.key)
        assert len(keys) == len(list(self.threats())), "results of two strengths share a name"

    def test_gives_pictures_like_those_it_got(self) -> None:
        made = self.middle()
        for dtype in self.dtypes:
            for layout in _LAYOUTS:
                x, y = self.pictures(dtype=dtype, layout=layout)
                before, strides = x.clone(), x.stride()
                adv = made(self.network(dtype), x, y, seed=1)
                where = f"{dtype}, {layout}"
                assert (adv.shape, adv.dtype, adv.device) == (x.shape, x.dtype, x.device), where
                assert adv.stride() == torch.empty_like(x).stride(), where
                assert not adv.requires_grad, where
                assert adv.data_ptr() != x.data_ptr(), f"{where}: the input itself came back"
                assert torch.equal(x, before), f"{where}: the input was changed"
                assert x.stride() == strides, where

    def test_stays_inside_ball_and_box(self) -> None:
        for threat in self.threats():
            made = self.make_attack(threat)
            for dtype, layout in zip(self.dtypes, (*_LAYOUTS, *_LAYOUTS), strict=False):
                x, y = self.pictures(dtype=dtype, layout=layout)
                adv = made(self.network(dtype), x, y, seed=1)
                change = (adv.double() - x.double()).flatten(1)
                if threat.norm == "linf":
                    size = float(change.abs().max())
                else:  # fsum rounds once, so no slack is needed
                    size = max(math.sqrt(math.fsum((row**2).tolist())) for row in change)
                assert size <= threat.eps, f"{threat}, {dtype}: a change of {size}"
                assert float(adv.min()) >= 0, f"{threat}, {dtype}"
                assert float(adv.max()) <= 1, f"{threat}, {dtype}"

    def test_leaves_the_gradients(self) -> None:
        assert self.changed("gradients") == []

    def test_leaves_the_statistics_of_batch_norm(self) -> None:
        assert self.changed("buffers") == []

    def test_leaves_the_weights(self) -> None:
        assert self.changed("weights") == []

    def test_leaves_the_training_flags(self) -> None:
        assert self.changed("flags") == []

    def changed(self, what: str) -> list[str]:
        """Names of what an attack changed in the network."""
        found = set()
        for norm, radii in self.radii.items():
            net, (x, y) = self.network(), self.pictures()
            before = _state(net)[what]
            self.make_attack(_threat(norm, radii[-1]))(net, x, y, seed=1)
            found |= _difference(before, _state(net)[what])
        return sorted(found)

    def test_leaves_the_network_after_an_interruption(self) -> None:
        x, y = self.pictures()
        for calls in (0, 1, 2):
            net = _Interrupted(self.network(), calls)
            before, generators = _state(net), _generators()
            try:
                self.middle()(net, x, y, seed=1)
            except KeyboardInterrupt:
                after = _state(net)
                changed = {k: _difference(before[k], after[k]) for k in before}
                assert not any(changed.values()), f"changed: {changed}"
                assert _generators() == generators
            else:
                assert calls, "the interruption did not get out of the attack"

    def test_radius_zero_is_the_identity(self) -> None:
        for norm in self.radii:
            for dtype in self.dtypes:
                x, y = self.pictures(dtype=dtype)
                adv = self.make_attack(_threat(norm, 0.0))(self.network(dtype), x, y, seed=1)
                assert torch.equal(adv, x), f"{norm}, {dtype}"

    def test_takes_an_empty_batch(self) -> None:
        x, y = self.pictures(dtype=self.dtypes[0])
        adv = self.middle()(self.network(self.dtypes[0]), x[:0], y[:0], seed=1)
        assert (adv.shape, adv.dtype) == (x[:0].shape, x.dtype)

    def test_refuses_what_is_no_picture(self) -> None:
        x, y = self.pictures()
        nan = x.clone()
        nan[0, 0, 0, 0] = math.nan
        for bad, says in (
            (x + 1, "above 1"),
            (x - 1e-6 - x.min(), "below 0"),
            (nan, "NaN"),
            ((x * 255).to(torch.uint8), "bytes"),
            (x[0], "a picture alone"),
        ):
            self.refuses(bad, y, says)

    def test_refuses_what_is_no_label(self) -> None:
        x, y = self.pictures()
        for bad, says in (
            (y[:1], "too few"),
            (y.float(), "floats"),
            (y - 1, "negative"),
            (y + self.classes, "no class of the network"),
        ):
            self.refuses(x, bad, says)

    def refuses(self, x: Tensor, y: Tensor, says: str) -> None:
        """Fail where an attack takes this input."""
        made, net = self.middle(), self.network()
        assert_refused(lambda: made(net, x, y, seed=1), UserError, f"{says}: not refused")

    def test_a_seed_repeats(self) -> None:
        x, y = self.pictures()
        first = self.middle()(self.network(), x, y, seed=7)
        torch.rand(5)
        assert torch.equal(self.middle()(self.network(), x, y, seed=7), first)

    def test_a_seeded_call_leaves_the_global_generators(self) -> None:
        x, y = self.pictures()
        before = _generators()
        self.middle()(self.network(), x, y, seed=7)
        assert _generators() == before

    def test_without_a_seed_torchs_generator_decides(self) -> None:
        x, y = self.pictures()
        with torch.random.fork_rng():
            results = []
            for _ in range(2):
                torch.manual_seed(5)
                results.append(self.middle()(self.network(), x, y))
        assert torch.equal(*results)

    def test_does_not_depend_on_the_batch(self) -> None:
        if not self.batch_independent:
            pytest.skip("batch_independent = False: not claimed")
        x, y = self.pictures(6, torch.float64)
        net, index = self.network(torch.float64), torch.arange(6)
        for norm, radii in self.radii.items():
            made = self.make_attack(_threat(norm, radii[len(radii) // 2]))
            whole = made(net, x, y, seed=9, index=index)
            order = torch.tensor([3, 0, 5, 1, 4, 2])
            shuffled = made(net, x[order], y[order], seed=9, index=index[order])
            torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-9)
            parts = [made(net, x[i], y[i], seed=9, index=index[i]) for i in (index[:1], index[1:])]
            torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)

    def test_callers_gradient_mode_does_not_matter(self) -> None:
        net, made, (x, y) = self.network(), self.middle(), self.pictures()
        plain = made(net, x, y, seed=1)
        with torch.no_grad():
            assert torch.equal(made(net, x, y, seed=1), plain)
            assert not torch.is_grad_enabled()
        with torch.inference_mode():
            assert torch.equal(made(net, x, y, seed=1), plain)
            assert torch.equal(made(net, x.clone(), y.clone(), seed=1), plain)
        assert torch.equal(made(net, x.clone().requires_grad_(), y, seed=1), plain)

    def test_never_does_worse_than_nothing(self) -> None:
        """Pictures that are misclassified already (or reach the target) stay so, on balance."""
        net, x, predicted = self.easy()
        for shift in (0, 1):
            y = (predicted + shift * (torch.arange(len(x)) % 2)) % self.classes
            for threat in self.threats():
                made = self.make_attack(threat)
                clean = self.successes(made, net, x, y)
                attacked = self.successes(made, net, made(net, x, y, seed=1), y)
                assert attacked >= clean, f"{threat}: {clean} successes before, {attacked} after"

    def test_breaks_an_easy_network(self) -> None:
        if not self.strong:
            pytest.skip("strong = False: not claimed")
        net, x, y = self.easy()
        for norm, radii in self.radii.items():
            made = self.make_attack(_threat(norm, max(radii)))
            aim = (y + 1) % self.classes if made.targeted else y
            broken = self.successes(made, net, made(net, x, aim, seed=1), aim)
            assert broken >= len(x) / 2, f"{made.key}: {broken} of {len(x)} pictures"

    def easy(self) -> tuple[nn.Module, Tensor, Tensor]:
        """A network that is easy to attack, pictures, and the classes that it sees in them."""
        with torch.random.fork_rng():
            torch.manual_seed(4)
            net, x = easy_network(self.shape, self.classes), torch.rand(8, *self.shape)
        with torch.no_grad():
            return net, x, net(x).argmax(1)

    def successes(self, made: Attack, net: nn.Module, x: Tensor, y: Tensor) -> int:
        """Pictures for which the attacker has what it wants."""
        with torch.no_grad():
            hit = net(x).argmax(1) == y
        return int((hit if made.targeted else ~hit).sum())

    def test_tells_a_network_that_computes_nan(self) -> None:
        net, (x, y) = self.network(), self.pictures()
        with torch.no_grad():
            net.head.weight.fill_(math.nan)
        for norm, radii in self.radii.items():
            with pytest.raises(NonFiniteOutput):
                self.make_attack(_threat(norm, radii[0]))(net, x, y, seed=1)


def _threat(norm: str, eps: float) -> ThreatModel:
    known: dict[str, Literal["linf", "l2"]] = {"linf": "linf", "l2": "l2"}
    return ThreatModel(known[norm], eps)


class _Interrupted(nn.Module):
    """A network during whose forward pass Ctrl-C comes."""

    def __init__(self, net: AttackedNet, calls: int) -> None:
        super().__init__()
        self.net, self.calls = net, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        logits: Tensor = self.net(x)
        return logits


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything that must not change: tensors as bytes, with identity and memory format."""
    parameters = dict(model.named_parameters())
    return {
        "flags": {name: module.training for name, module in model.named_modules()},
        "gradients": {
            name: (p.requires_grad, id(p.grad), None if p.grad is None else _bytes(p.grad))
            for name, p in parameters.items()
        },
        "weights": {
            name: (id(p), p.data_ptr(), p.stride(), _bytes(p)) for name, p in parameters.items()
        },
        "buffers": {name: (id(b), _bytes(b)) for name, b in model.named_buffers()},
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def _generators() -> list[object]:
    numbers = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), [str(part) for part in numbers], random.getstate()]
