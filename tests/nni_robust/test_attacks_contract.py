"""What every attack promises, searched for counter-examples; and what the base class does for it.

The same promises on fixed examples, for anybody's attack, are `nni_robust.testing`.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nni_robust.attacks import Attack, Ball, NonFiniteOutput, Victim, attack, undisturbed
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import ball_around
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OURS = (
    ("fgsm", {}),
    ("fgsm", {"random_start": True, "targeted": True}),
    ("pgd3", {}),
    ("pgd2", {"restarts": 2, "loss": "dlr"}),
    ("pgd3", {"early_stop": True, "channels_last": True}),
    ("pgd2", {"bn_mode": "train"}),
    ("mi-fgsm3", {}),
    ("mi-fgsm2", {"random_start": True, "early_stop": True, "restarts": 2}),
    ("apgd-ce4", {"restarts": 2}),
    ("apgd-dlr3", {}),
    ("apgd-t3", {"targets": 2}),
    ("fab-t3", {"targets": 2}),
    ("square10", {}),
    ("deepfool3", {}),
    ("autoattack3", {"queries": 10, "targets": 2}),
    ("torchattacks:PGD", {"steps": 2}),
    ("torchattacks:CW", {"steps": 2}),
    ("torchattacks:DeepFool", {"steps": 2, "project": False}),
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """Small, with everything that an attack could disturb."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.BatchNorm2d(4, affine=False),
        )
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean((2, 3)))


def make_net(seed: int, dtype: torch.dtype = torch.float32, channels: int = 3) -> Net:
    """A network in a mixed state: flags, gradients and statistics that nobody would set by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(channels=channels)
        for module in net.modules():
            module.training = bool(torch.rand(()) < 0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        net.to(dtype)
        for parameter in net.parameters():
            parameter.requires_grad_(bool(torch.rand(()) < 0.7))
            if torch.rand(()) < 0.5:
                parameter.grad = torch.randn_like(parameter)
    return net


def state(model: nn.Module) -> list[object]:
    """Everything that must not change; tensors as their bytes, with identity and memory format."""
    out: list[object] = [(name, m.training) for name, m in model.named_modules()]
    for name, p in model.named_parameters():
        out.append((name, id(p), p.data_ptr(), p.stride(), p.requires_grad, id(p.grad)))
        tensors = [p.detach()] if p.grad is None else [p.detach(), p.grad]
        out += [t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]
    for name, b in model.named_buffers():
        out.append((name, id(b), b.detach().double().numpy().tobytes()))
    return out


def assert_inside(adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    change = adv.double() - x.double()
    assert float(adv.min()) >= 0
    assert float(adv.max()) <= 1
    if threat.norm == "linf":
        assert float(change.abs().max()) <= threat.eps
    else:
        # fsum is exact up to one rounding, so no slack is needed.
        for one in change:
            assert math.sqrt(math.fsum((one.flatten() ** 2).tolist())) <= threat.eps


@st.composite
def pictures(draw: st.DrawFn, channels: int) -> Tensor:
    """Pictures with exact ends, multiples of 1/255, tiny numbers and negative zeros in them."""
    n, size = draw(st.integers(1, 4)), draw(st.integers(4, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.rand((n, channels, size, size), generator=generator, dtype=torch.float64)
    kind = torch.randint(0, 8, x.shape, generator=generator)
    for code, value in ((0, 0.0), (1, 1.0), (2, -0.0), (3, 1e-7), (4, 0.5)):
        x[kind == code] = value
    x[kind == 5] = (x[kind == 5] * 255).round() / 255
    x = x.to(draw(st.sampled_from(DTYPES))).clamp(0, 1)
    layout = draw(st.sampled_from(("contiguous", "channels_last", "transposed")))
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.transpose(2, 3) if layout == "transposed" else x


radii = st.one_of(
    st.sampled_from((0.0, 1.0, 8 / 255, 1 / 255, 0.1, 1e-3)), st.floats(0, 1), st.floats(1e-9, 0.05)
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_contract(data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from((1, 3)))
    x = data.draw(pictures(channels))
    name, extra = data.draw(st.sampled_from(OURS))
    norm = data.draw(st.sampled_from(("linf", "l2")))
    norm = {"PGD": "linf", "CW": "l2", "DeepFool": "l2"}.get(name.partition(":")[2], norm)
    eps = data.draw(radii) * (3 if norm == "l2" else 1)
    made = attack(name, eps=eps, norm=norm, **extra)
    net = make_net(data.draw(st.integers(0, 1000)), x.dtype, channels)
    y = torch.randint(0, 4, (len(x),), generator=torch.Generator().manual_seed(0))

    before, copy, strides = state(net), x.clone(), x.stride()
    rng = torch.get_rng_state()
    adv = made(net, x, y, seed=data.draw(st.integers(0, 2**40)))

    assert state(net) == before
    assert torch.equal(torch.get_rng_state(), rng)  # a seeded call draws from no global generator
    assert torch.equal(x, copy)
    assert x.stride() == strides
    assert (adv.shape, adv.dtype, adv.device) == (x.shape, x.dtype, x.device)
    assert adv.stride() == torch.empty_like(x).stride()
    assert not adv.requires_grad
    assert adv.data_ptr() != x.data_ptr()
    assert_inside(adv, x, made.threat)
    if eps == 0:
        assert torch.equal(adv, x)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_last_rounding_is_exact(data: st.DataObject) -> None:
    x = data.draw(pictures(3))
    norm = data.draw(st.sampled_from(("linf", "l2")))
    threat = ThreatModel(norm, data.draw(radii.filter(lambda eps: eps > 0)))
    ball = ball_around(x, threat)
    scale = data.draw(st.sampled_from((1e-6, 0.01, 1.0, 100.0)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    wild = ball.x + scale * torch.randn(x.shape, generator=generator, dtype=ball.x.dtype)
    exact = ball.exact(wild)
    assert exact.dtype == x.dtype
    assert_inside(exact, x, threat)
    # Projecting what is inside changes nothing (in L2: but for the rounding of a difference).
    again, unit = ball.exact(exact.to(ball.x.dtype)), torch.finfo(x.dtype).eps
    assert float((again.double() - exact.double()).abs().max()) <= (unit if norm == "l2" else 0)
    # It reaches the edge: nothing is lost beyond one unit in the last place (plus the L2 slack).
    if norm == "linf":
        ideal = torch.maximum(
            torch.minimum(wild.double(), x.double() + threat.eps), x.double() - threat.eps
        ).clamp(0, 1)
        assert float((exact.double() - ideal).abs().max()) <= unit


class Rogue(Attack):
    """A third party's attack that keeps no rule."""

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        for parameter in victim.model.parameters():
            parameter.requires_grad_()
            parameter.grad = torch.ones_like(parameter)
        victim.model.train()
        return ball.x + 10 * noise.normal(ball.x, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_base_class_keeps_the_contract_for_its_subclasses(norm: str) -> None:
    net, x, y = make_net(1), torch.rand(3, 3, 5, 5), torch.tensor([0, 1, 2])
    before = state(net)
    made = Rogue(ThreatModel(norm, 0.2), "rogue")
    assert_inside(made(net, x, y), x, made.threat)
    assert state(net) == before


def test_undisturbed_freezes_inside() -> None:
    net = make_net(4)
    before, place = state(net), net.body[0].weight.data_ptr()
    with undisturbed(net):
        assert not any(m.training for m in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
    with undisturbed(net, "train", channels_last=True):
        assert {type(m) for m in net.modules() if m.training} == {nn.BatchNorm2d}
        # A copy of the weights would take memory and, on a CPU, save no time.
        assert net.body[0].weight.data_ptr() == place
        net(torch.rand(4, 3, 5, 5))  # moves the running statistics
    assert state(net) == before


def test_bn_mode_train_uses_the_statistics_of_the_batch() -> None:
    net, x, y = make_net(5).eval(), torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    legacy = attack("fgsm", eps=0.05, bn_mode="train")(net, x, y)
    # The same by hand: batch normalisation in training mode, everything else in evaluation mode.
    copy = make_net(5).eval()
    for module in copy.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(copy(leaf), y).backward()
    assert leaf.grad is not None
    expected = (x + 0.05 * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(legacy, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(legacy, attack("fgsm", eps=0.05)(net, x, y))


class Records(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = (x.dtype, x.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_network_is_called_with_the_type_and_format_of_the_pictures(dtype: torch.dtype) -> None:
    net = Records().to(dtype)
    x = torch.rand(4, 3, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    for name, extra in (("pgd2", {"early_stop": True}), ("torchattacks:PGD", {"steps": 2})):
        attack(name, **extra)(net, x, net(x).argmax(1))
        assert net.seen[0] == dtype
    assert attack("pgd2")(net, x, net(x).argmax(1)).is_contiguous(memory_format=torch.channels_last)
    assert net.seen == (dtype, True)


def test_half_precision_does_not_lose_the_gradient_of_confident_pictures() -> None:
    # Cross entropy of a picture with probability 1 - 1e-9: its gradient is no float16 number.
    linear = nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1, 1, 24).view(2, 12) * 8)
    model = nn.Sequential(nn.Flatten(), linear).half()
    x = torch.full((1, 3, 2, 2), 0.25).half()
    x.view(-1)[:] = torch.where(linear.weight[1] > linear.weight[0], 0.3, 0.2)
    y = model(x).argmax(1)
    assert float(model(x).detach().float().softmax(1).min()) < 1e-8
    adv = attack("fgsm", eps=0.1)(model, x, y)
    assert int((adv == x).sum()) == 0


def base() -> tuple[Net, Tensor, Tensor]:
    return make_net(0), torch.rand(2, 3, 5, 5), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n, x, y: (n, x + 1, y), "must lie in"),
        (lambda n, x, y: (n, x - 1e-6 - x.min(), y), "must lie in"),
        (lambda n, x, y: (n, x / 0 * 0, y), "must lie in"),
        (lambda n, x, y: (n, (x * 255).to(torch.uint8), y), "divided by 255"),
        (lambda n, x, y: (n, x[0], y), "shape"),
        (lambda n, x, y: (n, x[:, :, :0], y), "shape"),
        (lambda n, x, y: (n, x.numpy(), y), "tensors"),
        (lambda n, x, y: (n, x, y[:1]), "labels of shape"),
        (lambda n, x, y: (n, x, y.float()), "whole numbers"),
        (lambda n, x, y: (n, x, y > 0), "whole numbers"),
        (lambda n, x, y: (n, x, y - 1), "label -1"),
        (lambda n, x, y: (n, x, y + 3), "label 4"),
        (lambda n, x, y: (lambda z: z, x, y), "torch.nn.Module"),
        (lambda n, x, y: (n.body, x, y), "logits"),
    ],
)
@pytest.mark.parametrize("name", ["pgd2", "autoattack2", "torchattacks:PGD"])
def test_bad_input(change: object, says: str, name: str) -> None:
    model, x, y = change(*base())
    with pytest.raises(UserError, match=says):
        attack(name)(model, x, y)


def test_bad_index_and_seed() -> None:
    net, x, y = base()
    with pytest.raises(UserError, match="index"):
        attack("pgd2")(net, x, y, seed=0, index=torch.arange(3))
    with pytest.raises(TypeError):
        attack("pgd2")(net, x, y, seed=0.5)


class Cut(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def test_networks_that_gradients_cannot_attack() -> None:
    _, x, y = base()
    with pytest.raises(UserError, match="differentiable"):
        attack("pgd2")(Cut(), x, y)
    with pytest.raises(UserError, match="at least 3 classes"):
        attack("pgd2", loss="dlr")(Net(classes=2), x, y)


class Flat(Net):
    """Finite logits, NaN gradients: the slope of the root is infinite at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x - x.detach()).abs().sqrt().mean((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize("name", ["pgd2", "fgsm", "mi-fgsm2", "apgd-ce2", "fab-t2"])
def test_nan_in_the_gradient_is_an_error_and_not_a_robust_picture(name: str) -> None:
    _, x, y = base()
    with pytest.raises(NonFiniteOutput):
        attack(name)(Flat(), x, y)
    assert bool(torch.isfinite(Flat()(x)).all())


def test_exact_l2_radius_of_large_pictures() -> None:
    """Thousands of pixels, where two orders of summation disagree about the length."""
    x = torch.rand(32, 3, 16, 16, dtype=torch.float64)
    for eps in (0.3, 1.0, 3.0):
        threat = ThreatModel("l2", eps)
        ball = ball_around(x, threat)
        exact = ball.exact(x + torch.randn_like(x))
        assert_inside(exact, x, threat)
        assert float((exact - x).flatten(1).norm(dim=1).min()) > eps * (1 - 1e-8)
