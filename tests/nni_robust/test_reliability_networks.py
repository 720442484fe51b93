"""Sound networks raise no flag; networks that are broken on purpose raise theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad

from nni_robust.attacks import attack
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import evaluate_spectrum

EPS = 0.08
N = 160
Flags = Callable[..., set[str]]


Build = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("name", ["standard", "robust"])
def test_sound_networks_raise_none(name: str, digits: Any, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    attacks: list[Any] = ["fgsm", "pgd10", "pgd20", "cw20", {"name": "square", "steps": 200}]
    attacks.append({"name": "pgd20", "eps": 0.04})
    found = evaluate(model, digits, attacks, threat={"eps": EPS}, thorough=True)
    assert found.reliability.reasons == []
    not_run = {c.name for c in found.reliability.checks if c.status == "not run"}
    assert not_run == {"training-collapse", "reaches-eps"}
    assert found.reliability.pictures == N // 16


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sound_spectra_raise_none(norm: Any, robust: nn.Module, digits: Any) -> None:
    strengths = (0.02, 0.08, 0.5) if norm == "linf" else (0.2, 0.8)
    found = evaluate_spectrum(robust, digits, strengths, "pgd10", norm=norm)
    assert found.reliability.reasons == []
    assert found.reliability["outside-ball"].figures["pictures"] > 0
    large = found.reliability["large-eps"]
    assert large.status == ("passed" if norm == "linf" else "not run")
    thorough = evaluate_spectrum(robust, digits, strengths[:2], "pgd10", norm=norm, thorough=True)
    assert thorough.reliability["large-eps"].status == "passed"


def test_network_that_always_answers_the_same(robust: nn.Module, digits: Any) -> None:
    class Sure(nn.Module):
        """Gradients as of any network, and class 3 whatever comes."""

        def __init__(self) -> None:
            super().__init__()
            self.net = robust

        def forward(self, x: Tensor) -> Tensor:
            bias = torch.zeros(10)
            bias[3] = 100
            result: Tensor = torch.tanh(self.net(x)) + bias
            return result

    x, y = digits
    found = evaluate(Sure(), digits, ["pgd10"], threat={"eps": EPS})
    assert found.worst == found.clean == int((y == 3).sum()) / N  # it seems to resist
    assert "one-answer" in {check.name for check in found.reliability.failed}
    assert "class 3" in found.reliability["one-answer"].reason
    threes = (x[y == 3], y[y == 3])
    alone = evaluate(Sure(), threes, ["pgd10"], threat={"eps": EPS}).reliability["one-answer"]
    assert alone.status == "not run"
    assert "two classes" in alone.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_raise_none(
    dtype: torch.dtype, robust: nn.Module, digits: Any, flags: Flags
) -> None:
    model = copy.deepcopy(robust).to(dtype)
    assert flags(model, digits, ["fgsm", "pgd5"]) == set()


def test_checks_do_not_change_figures(robust: nn.Module, digits: Any) -> None:
    spec: Any = {"name": "pgd5", "early_stop": False}
    found = evaluate(robust, digits, spec, threat={"eps": EPS}, seed=3, thorough=True)
    adversary = attack("pgd5", eps=EPS)
    x, y = digits
    with torch.no_grad():
        right = robust(x).argmax(1) == y
        adv = adversary(robust, x, y, seed=3, index=torch.arange(N))
        still = (robust(adv).argmax(1) == y) & right
    assert torch.equal(next(iter(found.attacks.values())).correct, still)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Noisy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class Drops(Wrapped):
    """Random logits of the size of AutoAttack's threshold, with the answers as they are."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z + 1e-3 * z.norm(dim=1, keepdim=True) * torch.randn_like(z)


class Probabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


class Steps(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 8).round() / 8)


class Detached(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach())


class Saturated(Wrapped):
    """Cross entropy is 0 in float32, though the network is differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 1e3


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum()


class Purifies(Wrapped):
    """Moves the picture to where the network is surer before it answers."""

    def __init__(self, net: nn.Module, way: str) -> None:
        super().__init__(net)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            if self.way == "grad":
                (g,) = torch.autograd.grad(entropy(self.net(leaf)), leaf)
            elif self.way == "imported":
                (g,) = grad(entropy(self.net(leaf)), leaf)
            elif self.way == "backward":
                entropy(self.net(leaf)).backward()
                g = leaf.grad  # type: ignore[assignment]
            else:
                g = torch.func.grad(lambda p: entropy(self.net(p)))(leaf)
        return self.net((x - 0.01 * g.sign()).clamp(0, 1))


class BatchStatistics(Wrapped):
    """Batch normalisation by the batch's own statistics, whatever the mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(copy.deepcopy(net))
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = None
                module.track_running_stats = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Remembers(Wrapped):
    """Answers well a few times."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z: Tensor = self.net(x)
        return z if self.calls < 10 else z.roll(1, 1)


@pytest.mark.parametrize(
    ("build", "raised"),
    [
        (Noisy, {"randomised"}),
        (Drops, {"randomised"}),
        (Probabilities, {"softmax-output"}),
        (Steps, {"zero-gradient"}),
        (Saturated, {"zero-gradient"}),
        (BatchStatistics, {"batch-dependent"}),
        (Remembers, {"eps-zero"}),
        *((lambda net, w=w: Purifies(net, w), {"dynamic"}) for w in ("grad", "imported")),
        *((lambda net, w=w: Purifies(net, w), {"dynamic"}) for w in ("backward", "func")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_networks(
    build: Build, raised: set[str], robust: nn.Module, digits: Any, flags: Flags
) -> None:
    assert flags(build(robust), digits) == raised
    found = evaluate_spectrum(build(robust), digits, [0.04, EPS], "pgd10")
    assert {check.name for check in found.reliability.failed} == raised


def test_zero_gradient_says_how_many_and_what_to_do(robust: nn.Module, digits: Any) -> None:
    found = evaluate(Steps(robust), digits, "pgd5").reliability["zero-gradient"]
    assert found.figures == {"share": 1.0, "margin": 1.0}
    assert "Square" in found.reason
    found = evaluate(Saturated(robust), digits, "pgd5").reliability["zero-gradient"]
    assert found.figures["share"] > found.figures["margin"] == 0
    assert "margin or dlr" in found.reason


def test_network_that_ignores_its_pictures(digits: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    nn.init.zeros_(model[1].weight)
    x, _ = digits
    pair = (x, model[1].bias.argmax().expand(len(x)))
    found = evaluate(model, pair, ["pgd5"], thorough=True).reliability
    assert [check.name for check in found.failed] == ["zero-gradient", "large-eps"]
    assert "every picture the same answer" in found["zero-gradient"].reason


def test_network_without_a_gradient(robust: nn.Module, digits: Any, flags: Flags) -> None:
    """Gradient attacks refuse it; one without gradients gives a figure, with its flag."""
    assert flags(Detached(robust), digits, [{"name": "square", "steps": 20}]) == {"zero-gradient"}
    with pytest.raises(UserError, match="differentiable"):
        evaluate(Detached(robust), digits, "pgd5")


def test_too_few_classes(digits: Any, flags: Flags) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    x, _ = digits
    with torch.no_grad():
        pair = (x, model(x).argmax(1))
    assert flags(model, pair, ["pgd5", "apgd-ce5", {"name": "pgd5", "loss": "dlr"}]) == set()
    assert flags(model, pair, [{"name": "apgd-t", "steps": 5}]) == {"few-classes"}


class Coarse(Wrapped):
    """Logits far from 0: the differences are lost in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 512


def test_half_precision_that_makes_breaks(robust: nn.Module, digits: Any, flags: Flags) -> None:
    model = Coarse(copy.deepcopy(robust)).bfloat16()
    x, _ = digits
    with torch.no_grad():
        y = model(x.bfloat16()).argmax(1)
    assert flags(model, (x, y), ["pgd5"]) == {"precision"}
