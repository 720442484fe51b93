"""Folding batch norms: which, how exactly, that all is put back, and that results do not change."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust import evaluate
from nni_robust.architecture import load_architecture
from nni_robust.attacks import Attack, _fold, attack, undisturbed
from nni_robust.attacks._fold import TOLERANCE, folded
from nni_robust.attacks.gradient import PGD
from nni_robust.bench._networks import ResNet18
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.testing import AttackConformance
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train


def used(model: nn.Module) -> nn.Module:
    """A network as if it had been trained: no statistic or weight at its first value."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def pictures(n: int = 4, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def chain(**settings: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU, and a classifier."""
    layers = [nn.Conv2d(3, 6, 3, padding=1, **settings), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


class Net(nn.Module):
    """Two convolutions and two batch norms that a function connects."""

    def __init__(self, flow: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.flow, self.way = flow, "left"
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x).mean((2, 3))


def folds(model: nn.Module, x: Tensor | None = None) -> int:
    """How many batch norms are folded, checked against the network itself."""
    x = pictures() if x is None else x
    with torch.no_grad():
        expected = model(x)
        with folded(model, x) as number:
            found = model(x)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return number


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least"), [("robnet-small", 300), ("wsrnet-basic", 150), ("wrn-28-10", 12)]
)
def test_published_networks(name: str, least: int) -> None:
    model = used(load_architecture(name).build(num_classes=10))
    assert folds(model, pictures(2, 32)) >= least


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False},
        {"groups": 3},
        {"groups": 3, "bias": False, "stride": 2},
        {"padding_mode": "reflect", "dilation": 2},
    ],
)
def test_convolutions(settings: dict[str, Any], dtype: torch.dtype) -> None:
    model, x = used(chain(**settings)).to(dtype), pictures().to(dtype)
    assert folds(model, x) == 1
    with folded(model, x):
        fast = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x)
    exact = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x)
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-6)


def test_folds_only_what_saves_memory_where_that_is_asked() -> None:
    """At few pictures the weights of late layers outweigh their maps."""
    model = used(ResNet18(8))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    own = {conv: conv.weight.data_ptr() for conv in convs}
    counts = []
    for n in (1, 160):
        with undisturbed(model, channels_last=True, fold=pictures(n, 16)):
            moved = [conv for conv in convs if conv.weight.data_ptr() != own[conv]]
            for conv in moved:
                assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        counts.append(len(moved))
    # Numbers of a map of one picture and of a kernel: 2048 and 216 in the stem, 2048 and 576 four
    # times in the first stage, 1024 and 128 in the second's shortcut, 512 and 512 in the third's.
    assert counts == [1 + 4 + 1 + 1, len(convs)]
    assert all(conv.weight.data_ptr() == own[conv] for conv in convs)


def test_the_network_really_skips_its_batch_norms() -> None:
    """Folded once, statistics changed inside have no effect: they are not read any more."""
    model, x = used(ResNet18(4)), pictures(2, 16)
    with folded(model, x) as number, torch.no_grad():
        expected = model(x)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.add_(1)
        assert torch.equal(model(x), expected)
    assert number == 20


# --- what is not safe is not folded --------------------------------------------------------------


def twice_read(net: Net, x: Tensor) -> Tensor:
    out = net.conv(x)
    return net.norm(out) + out


def changed_before(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(x).relu_())


def viewed_before(net: Net, x: Tensor) -> Tensor:
    out = net.conv(x)
    half = out[:, :1]
    return net.norm(out) * half


def called_twice(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(net.norm(net.conv(x))))


def two_norms(net: Net, x: Tensor) -> Tensor:
    out = net.conv(x)
    return net.norm(out) + net.norm2(out)


def one_norm_for_two(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.norm(net.conv2(x))


def kept(net: Net, x: Tensor) -> Tensor:
    net.kept.append(out := net.conv(x))
    return net.norm(out)


def by_a_number(net: Net, x: Tensor) -> Tensor:
    out = net.norm(net.conv(x))
    return out if float(x.mean()) < 0.9 else net.conv2(out)


def by_a_list(net: Net, x: Tensor) -> Tensor:
    out = net.norm(net.conv(x))
    return out if x[0, 0, 0, 0].tolist() < 2 else net.conv2(out)


def weight_used_elsewhere(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) * net.conv.weight.sum()


@pytest.mark.parametrize(
    "flow",
    [
        twice_read,
        changed_before,
        viewed_before,
        called_twice,
        two_norms,
        one_norm_for_two,
        kept,
        by_a_number,
        by_a_list,
        weight_used_elsewhere,
    ],
)
def test_unsafe(flow: Callable[[Net, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching finds it; the comparison of logits, switched off here, need not."""
    monkeypatch.setattr(_fold, "TOLERANCE", float("inf"))
    with folded(used(Net(flow)), pictures()) as number:
        assert number == 0


def test_where_rounding_differs_nothing_is_folded() -> None:
    """The batch norm takes away a mean so large that few digits of the output are left."""
    model = used(chain())
    assert folds(model) == 1
    model = used(chain())
    nn.init.constant_(model[0].bias, 1000)
    model[1].running_mean.fill_(1000)
    assert folds(model) == 0


def shared(model: nn.Sequential) -> None:
    other = nn.Conv2d(3, 6, 3, padding=1)
    other.weight = model[0].weight  # type: ignore[assignment]
    model.append(nn.ModuleDict({"other": other}).requires_grad_(False)["other"])
    del model[-1]
    model.register_module("other", other)
    model.forward = model[:-1].forward  # type: ignore[method-assign]


def hooked(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)


def watched(model: nn.Sequential) -> None:
    model[1].register_forward_pre_hook(lambda module, inputs: None)


def parametrized(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


def without_statistics(model: nn.Sequential) -> None:
    model[1] = nn.BatchNorm2d(6, track_running_stats=False)


def training(model: nn.Sequential) -> None:
    model[1].train()


def own_forward(model: nn.Sequential) -> None:
    model[0].forward = lambda x: nn.Conv2d.forward(model[0], x)  # type: ignore


class Scaled(nn.Conv2d):
    """A convolution that is more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def subclass(model: nn.Sequential) -> None:
    model[0] = Scaled(3, 6, 3)


@pytest.mark.parametrize(
    "change",
    [shared, hooked, watched, parametrized, without_statistics, training, own_forward, subclass],
)
def test_unusual_modules(change: Callable[[nn.Sequential], None]) -> None:
    model = chain()
    change(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.fill_(0.1)
    if change is not training:
        model.eval()
    x = pictures()
    with folded(model, x) as number:
        pass
    assert number == 0


def test_autocast_folds_nothing() -> None:
    model = used(chain())
    with torch.autocast("cpu", torch.bfloat16), folded(model, pictures()) as number:
        assert number == 0


def test_another_path_is_watched_again() -> None:
    """What a supernet does: an attribute says which way pictures go."""

    def flow(net: Net, x: Tensor) -> Tensor:
        out = net.conv(x)
        return net.norm(out) if net.way == "left" else net.norm(out) + out

    model = used(Net(flow))
    assert folds(model) == 1
    model.way = "right"
    assert folds(model) == 0
    model.way = "left"
    assert folds(model) == 1
    model.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    assert folds(model) == 0


def test_another_weight_is_folded_anew() -> None:
    model = used(ResNet18(4))
    assert folds(model, pictures(2, 16)) == 20
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    assert folds(model, pictures(2, 16)) == 20
    model.double()
    assert folds(model, pictures(2, 16).double()) == 20


def test_plans_do_not_keep_networks_alive() -> None:
    model = used(chain())
    assert folds(model) == 1
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None


# --- nothing stays behind ------------------------------------------------------------------------


def traces(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        found += [sorted(module.__dict__), module.training, len(module._forward_hooks)]
        found += [len(module._forward_pre_hooks), [*module._parameters], [*module._buffers]]
        for p in module._parameters.values():
            if p is not None:
                found += [id(p), p.data_ptr(), p.stride(), p.requires_grad, id(p.grad)]
    return found


@pytest.mark.parametrize("channels_last", [False, True])
def test_everything_is_put_back(channels_last: bool) -> None:
    model, x = used(ResNet18(4)).train(), pictures(2, 16)
    before, weights = traces(model), copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    with undisturbed(model, channels_last=channels_last, fold=x):
        assert traces(model) != before
        model(x)
    assert traces(model) == before
    with (
        pytest.raises(ZeroDivisionError),
        undisturbed(model, channels_last=channels_last, fold=x),
    ):
        raise ZeroDivisionError
    assert traces(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert [*after] == [*weights]
    assert all(torch.equal(after[key], value) for key, value in weights.items())


def test_nested() -> None:
    model, x = used(chain()), pictures()
    before = traces(model)
    with undisturbed(model, fold=x), undisturbed(model, fold=x), torch.no_grad():
        inside = model(x)
    assert traces(model) == before
    torch.testing.assert_close(inside, model(x).detach())


def test_a_network_that_fails_says_so_itself() -> None:
    def flow(net: Net, x: Tensor) -> Tensor:
        raise ArithmeticError("mine")

    model = used(Net(flow))
    before = traces(model)
    with folded(model, pictures()) as number:
        assert number == 0
    assert traces(model) == before
    with pytest.raises(ArithmeticError, match="mine"):
        attack("pgd3", fold=True)(model, pictures(), torch.zeros(4, dtype=torch.int64))


def test_not_with_statistics_of_the_batch() -> None:
    with pytest.raises(UserError, match="fold"):
        attack("pgd", fold=True, bn_mode="train")
    with (
        pytest.raises(UserError, match="fold"),
        undisturbed(used(chain()), "train", fold=pictures()),
    ):
        pass
    with pytest.raises(UserError, match="fold"):
        attack("pgd", fold="sometimes")
    made = attack("pgd", fold="auto", bn_mode="train")
    assert not made.fold


# --- attacks and results -------------------------------------------------------------------------


class TestFolded(AttackConformance):
    def make_attack(self, threat: ThreatModel) -> Attack:
        return PGD(threat, steps=3, fold=True, channels_last=True, early_stop=True)


def test_defaults() -> None:
    """Exact by itself, fast for measuring, and as the user says where he says it."""
    made = attack("pgd20")
    assert (made.fold, made.channels_last) == (False, False)
    early = made.with_early_exit()
    assert (early.fold, early.channels_last) == (True, True)
    said = attack("pgd20", fold=False, channels_last=False).with_early_exit()
    assert (said.fold, said.channels_last) == (False, False)
    assert not attack("pgd2", fold="auto").fold
    assert attack("pgd2", fold=True).fold
    assert attack("pgd2", restarts=2, fold="auto").fold


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    data = load_dataset("digits", test=True)
    assert data.test is not None
    x, y = next(iter(data.test.batches(200)))
    torch.manual_seed(0)
    network = ResNet18(8, blocks=1, channels=data.input_shape[0])
    recipe = Recipe(epochs=3, batch_size=64, lr=0.05, validation_attack=None)
    model = train(network, data, recipe, ThreatModel("linf", 0.1), seed=0).model.eval()
    return model, x, y


def test_trained_network_has_the_same_accuracy(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Folded or not, channels-last or not, early exit or not: at most one picture in 200."""
    model, x, y = trained
    assert folds(model, x) > 8
    slow = {"name": "pgd", "steps": 20, "fold": False, "channels_last": False}
    for eps in (0.05, 0.1, 0.2):
        threat = ThreatModel("linf", eps)
        exact = evaluate(model, (x, y), [slow], threat=threat)
        fast = evaluate(model, (x, y), ["pgd20"], threat=threat)
        assert torch.equal(exact.clean_correct, fast.clean_correct)
        differ = exact.attacks[next(iter(exact.attacks))].correct.logical_xor(
            fast.attacks[next(iter(fast.attacks))].correct
        )
        assert int(differ.sum()) <= 1
    plain = evaluate_spectrum(model, (x, y), (0.05, 0.1, 0.2), slow)
    quick = evaluate_spectrum(model, (x, y), (0.05, 0.1, 0.2), "pgd20")
    for eps, accuracy in plain.accuracy.items():
        assert quick.accuracy[eps] == pytest.approx(accuracy, abs=1 / 200 + 1e-9)


def test_pictures_of_one_attack_differ_in_few_pixels(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = trained
    threat = {"eps": 0.1, "random_start": False}
    exact, fast = (attack("pgd10", fold=f, **threat)(model, x, y) for f in (False, True))
    assert (exact - fast).abs().gt(1e-6).double().mean() < 0.01
    with torch.no_grad():
        one, two = (nn.functional.cross_entropy(model(adv), y) for adv in (exact, fast))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=0)
