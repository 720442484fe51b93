"""FGSM, PGD and MI-FGSM against closed forms, torchattacks and their own definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks._losses import dlr
from nni_robust.attacks._noise import Noise, _mix
from nni_robust.errors import UserError

EPS = 8 / 255


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv_net(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, classes),
    ).eval()


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, 8, 8), torch.randint(0, 10, (n,))


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y.unsqueeze(1), -math.inf).amax(1)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


# --- against torchattacks 3.5.1 ------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [EPS, 0.1])
def test_equals_torchattacks(eps: float, targeted: bool) -> None:
    model, (x, y) = conv_net(), batch()
    x[0] = 0.0
    x[1] = 1.0  # the box is active
    step = eps / 3
    pairs: list[tuple[Any, Any]] = [
        (attack("fgsm", eps=eps, targeted=targeted), torchattacks.FGSM(model, eps)),
        (
            attack("pgd10", eps=eps, step_size=step, random_start=False, targeted=targeted),
            torchattacks.PGD(model, eps, step, 10, random_start=False),
        ),
        (
            attack("mi-fgsm10", eps=eps, step_size=step, targeted=targeted),
            torchattacks.MIFGSM(model, eps, step, 10),
        ),
        (
            attack("mi-fgsm5", eps=eps, step_size=step, momentum=0.5, targeted=targeted),
            torchattacks.MIFGSM(model, eps, step, 5, decay=0.5),
        ),
        (
            attack(
                "pgd10",
                eps=10 * eps,
                norm="l2",
                step_size=2 * eps,
                random_start=False,
                targeted=targeted,
            ),
            torchattacks.PGDL2(model, 10 * eps, 2 * eps, 10, random_start=False),
        ),
    ]
    for ours, theirs in pairs:
        if targeted:
            theirs.set_mode_targeted_by_label(quiet=True)
        torch.testing.assert_close(ours(model, x, y), theirs(x, y), rtol=0, atol=1e-6)


def test_default_step_is_a_quarter_of_eps() -> None:
    model, (x, y) = conv_net(), batch()
    theirs = torchattacks.PGD(model, EPS, EPS / 4, 10, random_start=False)(x, y)
    ours = attack("pgd", eps=EPS, random_start=False)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_robnet_repository_semantics_without_random_start() -> None:
    """Its loop by hand: step, clip to the ball, clip to the box; summed cross entropy."""
    model, (x, y) = conv_net(), batch()
    adv = x.clone()
    for _ in range(7):
        adv.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
        adv = adv.detach() + 2 / 255 * g.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    ours = attack("pgd7", eps=EPS, step_size="2/255", random_start=False)(model, x, y)
    torch.testing.assert_close(ours, adv, rtol=0, atol=1e-6)


# --- against closed forms: the strongest attack on a linear network is known ---------------------


def linear_net(classes: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, classes)).double()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fgsm", {}),
        # In L2 a step of eps halves the distance of a random start to the optimum.
        ("pgd40", {}),
        ("pgd40", {"restarts": 2}),
        ("pgd8", {"random_start": False}),
        ("mi-fgsm8", {}),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_linear_network(name: str, settings: Any, norm: Any) -> None:
    model = linear_net()
    x = 0.3 + 0.4 * torch.rand(6, 3, 4, 4, dtype=torch.float64)  # the box does not matter
    y = torch.randint(0, 2, (6,))
    eps = 0.05 if norm == "linf" else 0.2
    w = model[1].weight.detach()
    against = torch.stack([w[1 - k] - w[k] for k in y]).view_as(x)
    if norm == "linf":
        best, gain = x + eps * against.sign(), eps * against.abs().sum((1, 2, 3))
    else:
        length = against.flatten(1).norm(dim=1)
        best, gain = x + eps * against / length.view(-1, 1, 1, 1), eps * length
    adv = attack(name, eps=eps, norm=norm, step_size=eps, **settings)(model, x, y)
    torch.testing.assert_close(adv, best, rtol=0, atol=1e-8)
    torch.testing.assert_close(margin(model, x, y) - margin(model, adv, y), gain, rtol=1e-8, atol=0)


def test_reaches_the_optimum_in_the_box() -> None:
    model, x, y = linear_net(), torch.rand(6, 3, 4, 4).double(), torch.randint(0, 2, (6,))
    w = model[1].weight.detach()
    against = torch.stack([w[1 - k] - w[k] for k in y]).view_as(x)
    best = (x + 0.3 * against.sign()).clamp(0, 1)
    adv = attack("pgd10", eps=0.3)(model, x, y)
    torch.testing.assert_close(adv, best, rtol=0, atol=1e-12)


def test_targeted_reaches_the_optimum_of_a_linear_network() -> None:
    model, x = linear_net(), 0.3 + 0.4 * torch.rand(6, 3, 4, 4).double()
    target = torch.randint(0, 2, (6,))
    w = model[1].weight.detach()
    towards = torch.stack([w[k] - w[1 - k] for k in target]).view_as(x)
    adv = attack("pgd5", eps=0.1, step_size=0.1, targeted=True)(model, x, target)
    torch.testing.assert_close(adv, x + 0.1 * towards.sign(), rtol=0, atol=1e-12)


def test_zero_gradient_moves_nothing() -> None:
    model = linear_net()
    model[1].weight.data.zero_()
    x, y = torch.rand(3, 3, 4, 4).double(), torch.tensor([0, 1, 0])
    for name in ("fgsm", "mi-fgsm3"):
        for norm in ("linf", "l2"):
            assert torch.equal(attack(name, eps=0.1, norm=norm)(model, x, y), x)


def test_tiny_gradients_still_point() -> None:
    """A saturated float32 network: squares of such gradients are 0, their direction is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    model[1].weight.data.mul_(1e-25)
    x, y = 0.3 + 0.4 * torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    adv = attack("fgsm", eps=0.5, norm="l2")(model, x, y)
    length = (adv - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full_like(length, 0.5))


# --- losses --------------------------------------------------------------------------------------


def test_dlr_is_the_formula_of_the_paper() -> None:
    logits = torch.randn(50, 5, dtype=torch.float64)
    y = torch.randint(0, 5, (50,))
    for row, label, value in zip(logits, y, dlr(logits, y), strict=True):
        z = sorted(row.tolist(), reverse=True)
        other = max(v for i, v in enumerate(row.tolist()) if i != label)
        expected = -(row[label].item() - other) / (z[0] - z[2])
        assert value.item() == pytest.approx(expected, abs=1e-9)


def test_dlr_survives_a_scaling_that_stops_cross_entropy() -> None:
    model, (x, _) = conv_net(), batch()
    model[-1].weight.data.mul_(1e6)  # softmax is exactly one-hot
    y = model(x).argmax(1)
    assert torch.equal(attack("fgsm", eps=0.1)(model, x, y), x)
    adv = attack("pgd10", eps=0.1, loss="dlr")(model, x, y)
    assert (model(adv).argmax(1) != y).float().mean() > 0.5


def test_own_loss() -> None:
    model, (x, y) = conv_net(), batch()

    def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.gather(1, labels.unsqueeze(1)).squeeze(1)

    made = attack("pgd10", eps=EPS, loss=margin_loss)
    assert made.label == "pgd10-margin_loss"
    adv = made(model, x, y)
    with torch.no_grad():
        assert bool((margin_loss(model(adv), y) > margin_loss(model(x), y)).all())


# --- settings ------------------------------------------------------------------------------------


def test_restarts_never_do_worse() -> None:
    model, (x, _) = conv_net(), batch(64)
    y = model(x).argmax(1)
    eps = 0.02
    previous_loss, previous_broken = torch.full((64,), -1.0), torch.zeros(64, dtype=torch.bool)
    for restarts in (1, 2, 5):
        adv = attack("pgd3", eps=eps, restarts=restarts)(model, x, y, seed=3)
        with torch.no_grad():
            logits = model(adv)
        loss, broken = F.cross_entropy(logits, y, reduction="none"), logits.argmax(1) != y
        assert bool((broken >= previous_broken).all())
        resisting = ~broken
        assert bool((loss[resisting] >= previous_loss[resisting]).all())
        previous_loss, previous_broken = loss, broken
    assert 0 < int(previous_broken.sum()) < 64  # the strength tests something


def test_early_stop_breaks_what_the_full_run_breaks_at_any_step() -> None:
    model = conv_net().double()
    x, y = torch.rand(64, 3, 8, 8).double(), torch.randint(0, 10, (64,))
    y[::2] = model(x).argmax(1)[::2]
    eps, steps = 0.02, 6
    broken = model(x).argmax(1) != y
    for k in range(1, steps + 1):
        adv = attack("pgd", steps=k, eps=eps, step_size=eps / 4, random_start=False)(model, x, y)
        broken |= model(adv).argmax(1) != y
    early = attack("pgd", steps=steps, eps=eps, random_start=False, early_stop=True)(model, x, y)
    assert torch.equal(model(early).argmax(1) != y, broken)
    assert 0 < int(broken[::2].sum()) < 32
    # Pictures that were wrong at once are returned as they came, the survivors get the full run.
    wrong = model(x).argmax(1) != y
    assert torch.equal(early[wrong], x[wrong])
    full = attack("pgd", steps=steps, eps=eps, random_start=False)(model, x, y)
    torch.testing.assert_close(early[~broken], full[~broken], rtol=0, atol=1e-12)


class Counts(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.pictures = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.pictures += len(x)
        return self.net(x)


def test_early_stop_does_less_work() -> None:
    model, (x, _) = Counts(conv_net()), batch(32)
    y = model.net(x).argmax(1)
    model.pictures = 0
    attack("pgd20", eps=0.1)(model, x, y)
    assert model.pictures == 20 * 32
    model.pictures = 0
    attack("pgd20", eps=0.1, early_stop=True)(model, x, y)
    assert model.pictures < 10 * 32


@pytest.mark.parametrize("name", ["fgsm", "pgd10", "mi-fgsm10"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_lowers_the_loss_of_the_target(name: str, norm: Any) -> None:
    model, (x, _) = conv_net(), batch(32)
    clean = model(x)
    target = clean.argmin(1)  # the hardest
    adv = attack(name, eps=0.05 if norm == "linf" else 0.5, norm=norm, targeted=True)(
        model, x, target
    )
    before, after = (F.cross_entropy(z, target, reduction="none") for z in (clean, model(adv)))
    assert bool((after < before).all())


def test_channels_last_changes_last_digits_only() -> None:
    model, (x, y) = conv_net().double(), batch()
    x = x.double()
    plain, fast = (attack("pgd5", channels_last=c)(model, x, y, seed=0) for c in (False, True))
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-9)
    assert fast.is_contiguous()


# --- random starts -------------------------------------------------------------------------------


def test_random_start_is_uniform_in_the_ball() -> None:
    model = linear_net()
    model[1].weight.data.zero_()  # no gradient: the attack returns its start
    x, y = torch.full((4000, 3, 4, 4), 0.5).double(), torch.zeros(4000, dtype=torch.int64)
    for seed in (None, 1):
        change = attack("pgd1", eps=0.1)(model, x, y, seed=seed) - x
        assert float(change.mean().abs()) < 5 * 0.1 / math.sqrt(3 * change.numel())
        assert float(change.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
        inner = attack("pgd1", eps=0.1, norm="l2")(model, x, y, seed=seed) - x
        # In a ball of D dimensions the radius to the power D is uniform.
        volume = (inner.flatten(1).norm(dim=1) / 0.1) ** inner[0].numel()
        assert float(volume.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(volume.var()) == pytest.approx(1 / 12, rel=0.1)
        assert float(inner.mean(0).norm()) < 0.01


def test_seed_repeats_and_another_seed_or_restart_differs() -> None:
    model, (x, y) = conv_net(), batch()
    made = attack("pgd1")
    assert torch.equal(made(model, x, y, seed=1), made(model, x, y, seed=1))
    assert not torch.equal(made(model, x, y, seed=1), made(model, x, y, seed=2))
    start = Noise(1, torch.arange(2)).uniform(x[:2], 0)
    assert not torch.equal(start, Noise(1, torch.arange(2)).uniform(x[:2], 4))
    assert not torch.equal(start[0], start[1])
    torch.manual_seed(5)
    first = made(model, x, y)
    assert not torch.equal(first, made(model, x, y))
    torch.manual_seed(5)
    assert torch.equal(first, made(model, x, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_do_not_depend_on_the_memory_format(norm: Any) -> None:
    model, (x, y) = conv_net().double(), batch(12)
    x = x.double()
    made = attack("pgd3", norm=norm, eps=0.05 if norm == "linf" else 0.5, restarts=2)
    last = x.contiguous(memory_format=torch.channels_last)
    again = made(model, last, y, seed=9)
    torch.testing.assert_close(again, made(model, x, y, seed=9), rtol=0, atol=1e-9)


def test_hash_is_splitmix64() -> None:
    """First outputs for seed 1234567, as in the reference implementation's published example."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    assert [_mix((1234567 + k * gamma) & mask) for k in (1, 2, 3)] == published
    # The tensor version gives the same numbers as the one on Python integers.
    like = torch.empty(1, 1, 1, 3, dtype=torch.float64)
    key = _mix((_mix(42) + 7 * gamma) & mask)
    picture = _mix((1 * gamma + key) & mask)
    expected = [(_mix((picture + k * gamma) & mask) >> 40) / 2**24 for k in (1, 2, 3)]
    assert Noise(42, torch.tensor([0])).uniform(like, 7).flatten().tolist() == expected


# --- bad settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("pgd", {"steps": 0}, "steps: 0"),
        ("pgd", {"steps": 2.5}, r"steps: 2\.5"),
        ("pgd", {"restarts": 0}, "restarts: 0"),
        ("pgd", {"restarts": 2, "random_start": False}, "random_start"),
        ("pgd", {"step_size": 0}, "step_size: 0"),
        ("pgd", {"step_size": "fast"}, "step_size"),
        ("pgd", {"step_size": math.inf}, "step_size"),
        ("pgd", {"momentum": -1}, "momentum: -1"),
        ("pgd", {"loss": "cw"}, "loss: 'cw' is not allowed; allowed: ce, dlr"),
        ("pgd", {"loss": ["ce"]}, "loss"),
        ("pgd", {"loss": "dlr", "targeted": True}, "true label"),
        ("pgd", {"bn_mode": "batch"}, "bn_mode"),
        ("pgd", {"bn_mode": "train", "early_stop": True}, "early_stop"),
        ("pgd", {"stepsize": 0.1}, "unknown key 'stepsize'.*did you mean 'step_size'"),
        ("fgsm", {"steps": 2}, "unknown key 'steps' in attack 'fgsm'"),
        ("mi-fgsm", {"decay": 1.0}, "unknown key 'decay' in attack 'mi-fgsm'"),
    ],
)
def test_bad_settings(name: str, settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack(name, **settings)
