"""What makes training steps fast changes nothing beyond rounding, and never from run to run."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_robust.attacks import _fold
from nni_robust.attacks._fold import folded, whatever_rounds
from nni_robust.attacks._pointwise import Pointwise
from nni_robust.bench._networks import ResNet18
from nni_robust.data import DataSplits, ImageSet, derive_seed
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, train
from nni_robust.training._setup import Forwards
from nni_robust.training._steps import Steps
from nni_robust.training.losses import Madry, Trades

THREAT = ThreatModel(eps=8 / 255)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(48) % 4, "abcd")
    return DataSplits("toy", images.take(torch.arange(32)), images.take(torch.arange(32, 48)))


def network(seed: int = 0) -> nn.Module:
    """A small ResNet that was trained on for a few batches."""
    torch.manual_seed(seed)
    model = ResNet18(4, blocks=1, num_classes=4).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(8, 3, 8, 8))
    return model


def recipe(fold: Any = "auto", **changes: Any) -> Recipe:
    values: dict[str, Any] = {"epochs": 2, "batch_size": 8, "validation_attack": "pgd3"}
    attack = TrainAttack(steps=4, fold=fold)
    return Recipe(**{**values, "accelerator": "cpu", "attack": attack, **changes})


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


# --- folding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [Madry, Trades])
def test_in_float64_folding_leaves_every_figure_of_a_step_alone(loss: Any) -> None:
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(4)
    left = {}
    for fold in (False, "auto"):
        model = network().double()
        settings = {"steps": 7, "bn_mode": "eval", "random_start": True, "fold": fold}
        extra = {"beta": 6.0} if loss is Trades else {}
        objective = loss(threat=THREAT, settings=settings, **extra)
        with whatever_rounds():
            adv = objective.perturb(model, x, y, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        value, logits = objective(Forwards(model), x, adv, y)
        value.backward()
        optimizer.step()
        left[fold] = [adv, value, logits, *model.state_dict().values()]
    for plain, fast in zip(left[False], left["auto"], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_in_float32_a_step_differs_by_rounding_only() -> None:
    data = splits()
    (x, y), *_ = data.train.batches(8)
    start, left = network(), {}
    for fold in (False, "auto"):
        training = Steps(copy.deepcopy(start), data, recipe(fold, lr=0.1), THREAT)
        training.step(x, y)
        left[fold] = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    update = (left[False] - before).norm()
    assert update > 0
    assert (left["auto"] - left[False]).norm() < 0.02 * update


def test_the_steps_of_benchmarks_are_those_of_a_training() -> None:
    data, one, two = splits(), network(), network()
    settings = recipe(epochs=1)
    training = Steps(one, data, settings, THREAT, seed=3)
    with torch.random.fork_rng():
        for x, y in data.train.batches(8, shuffle=True, seed=derive_seed(3, "data")):
            training.step(x, y)
    train(two, data, settings, THREAT, seed=3, validate=False)
    assert equal(one, two)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batch norms were folded, each time that a network was."""
    found: list[int] = []
    applied = _fold._applied

    def counted(pairs: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        found.append(len(pairs))
        return applied(pairs, *args, **kwargs)

    monkeypatch.setattr(_fold, "_applied", counted)
    return found


@pytest.mark.parametrize(
    ("attack", "folds"),
    [
        (TrainAttack(steps=3), True),
        (TrainAttack(steps=2), False),
        (TrainAttack(steps=2, fold=True), True),
        (TrainAttack(steps=3, fold=False), False),
        (TrainAttack(steps=3, bn_mode="train"), False),
    ],
)
def test_what_is_folded(attack: TrainAttack, folds: bool, counts: list[int]) -> None:
    settings = recipe(attack=attack, epochs=1)
    train(network(), splits(), settings, THREAT, validate=False)
    # Once more to compare the logits in float64, then for each of four batches.
    assert [number > 0 for number in counts] == ([True] * 5 if folds else [])


class Nothing:
    """A hook that leaves the network alone."""

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        pass


@pytest.mark.parametrize("fold", [True, "auto"])
def test_supernets_are_not_folded_unless_asked(fold: Any, counts: list[int]) -> None:
    settings = recipe(fold, epochs=1)
    train(network(), splits(), settings, THREAT, hook=Nothing(), validate=False)
    assert bool(counts) == (fold is True)


class Interrupt:
    def __init__(self, batch: int) -> None:
        self.left = batch

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("batch", [3, 6])
def test_an_interrupted_training_ends_the_same(tmp_path: Path, batch: int) -> None:
    settings = recipe(True, checkpoint_steps=1)
    whole, broken, resumed = network(), network(), network(seed=5)
    train(whole, splits(), settings, THREAT, seed=1)
    with contextlib.suppress(KeyboardInterrupt):
        train(broken, splits(), settings, THREAT, seed=1, folder=tmp_path, hook=Interrupt(batch))
    train(resumed, splits(), settings, THREAT, seed=1, folder=tmp_path)
    assert equal(whole, resumed)
    assert not equal(whole, broken)


def rounds_badly() -> nn.Sequential:
    """The batch norm takes away a mean so large that few digits are left, in float32."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    nn.init.constant_(model[0].bias, 30000)
    model[1].running_mean.fill_(30000)
    return model


def test_in_trainings_weights_do_not_decide_what_is_folded() -> None:
    model, x = rounds_badly(), torch.rand(4, 3, 8, 8)
    with folded(model, x) as number:
        assert number == 0
    with whatever_rounds():
        with folded(model, x) as number:
            assert number == 1
        with torch.autocast("cpu", torch.bfloat16), folded(model, x) as number:
            assert number == 0
    with folded(model, x) as number:
        assert number == 0


def test_a_mistake_shows_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _fold._merge

    def wrong(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
        weight, bias = right(conv, norm)
        return weight, bias + 1e-6

    monkeypatch.setattr(_fold, "_merge", wrong)
    with whatever_rounds(), folded(network().eval(), torch.rand(2, 3, 8, 8)) as number:
        assert number == 0


def test_looking_in_float64_leaves_no_trace() -> None:
    model, x = network().eval(), torch.rand(2, 3, 8, 8)
    fired = []
    weight = next(model.parameters())
    weight.register_post_accumulate_grad_hook(fired.append)  # as DDP's, lost by a change of type
    before = [(id(t), t.data_ptr(), t.dtype) for t in (*model.parameters(), *model.buffers())]
    state = torch.get_rng_state()
    with whatever_rounds(), folded(model, x) as number:
        assert number > 0
    after = [(id(t), t.data_ptr(), t.dtype) for t in (*model.parameters(), *model.buffers())]
    assert before == after
    assert torch.equal(state, torch.get_rng_state())
    model(x).sum().backward()
    assert len(fired) == 1


class SingleOnly(nn.Module):
    """A network that cannot compute in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shift = network().eval(), [torch.zeros(1, 3, 1, 1)]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner((x + self.shift[0]).float())
        return out


def test_a_network_that_cannot_be_asked_in_float64_is_not_folded() -> None:
    model, x = SingleOnly().eval(), torch.rand(2, 3, 8, 8)
    with whatever_rounds(), folded(model, x) as number:
        assert number == 0
    with folded(model, x) as number:
        assert number > 0


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"attack\.fold: true is not allowed with attack\.bn_mode"):
        TrainAttack(fold=True, bn_mode="train")
    TrainAttack(bn_mode="train")  # "auto" folds nothing then


# --- 1x1 convolutions ----------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(n: int, channels: int = 24, *, last: bool = True) -> Tensor:
    x = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(n))
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_is_a_convolution(bias: bool, one_thread: None) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 1, bias=bias).requires_grad_(False)
    assert Pointwise.suits(conv)
    fast, exact = Pointwise(conv), copy.deepcopy(conv).double()
    x = pictures(5).requires_grad_()
    out = fast(x)
    assert "Product" in type(out.grad_fn).__name__
    torch.testing.assert_close(out.double(), exact(x.double()), rtol=1e-5, atol=1e-5)
    # A gradient of a gradient, too: the convolution is linear, the square is not.
    wide = x.detach().double().requires_grad_()
    for v, layer in ((x, fast), (wide, exact)):
        (first,) = torch.autograd.grad((layer(v) ** 2).sum(), v, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), v)
        v.grad = torch.cat([first.detach(), second])[: len(v)]
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["many", "contiguous", "threads"])
def test_pointwise_leaves_to_torch_what_torch_does_well(case: str, one_thread: None) -> None:
    conv = nn.Conv2d(24, 40, 1).requires_grad_(False)
    x = pictures(16 if case == "many" else 5, last=case != "contiguous").requires_grad_()
    torch.set_num_threads(2 if case == "threads" else 1)
    out = Pointwise(conv)(x)
    assert "Product" not in type(out.grad_fn).__name__
    assert torch.equal(out, F.conv2d(x, conv.weight, conv.bias))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 1, "groups": 4},
    ],
)
def test_pointwise_is_for_plain_ones(settings: dict[str, Any]) -> None:
    assert not Pointwise.suits(nn.Conv2d(24, 40, **settings))
    assert not Pointwise.suits(nn.Conv2d(24, 40, 1).double())


def test_a_folded_network_uses_it(one_thread: None) -> None:
    model, x = network().eval(), torch.rand(2, 3, 8, 8)
    with folded(model, x, memory_format=torch.channels_last):
        found = [m for m in model.modules() if isinstance(m.__dict__.get("forward"), Pointwise)]
    assert found == []  # its shortcuts have a stride
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()
    with folded(model, x):
        assert isinstance(model[0].__dict__["forward"], Pointwise)
    assert "forward" not in model[0].__dict__
