"""Networks and attacks that are broken on purpose raise their flag; sound ones raise none."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad

from nni_robust.attacks import Attack, attack
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import Evaluation, evaluate
from nni_robust.reliability import CHECKS, Check, Reliability, check_training
from nni_robust.spectrum import evaluate_spectrum
from nni_robust.threat import ThreatModel
from nni_robust.transfer import transfer_table

EPS = 0.08
N = 160


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


def fit(adversary: Attack | None, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(epochs):
        for x, y in load_dataset("digits").train.batches(64, shuffle=True, epoch=epoch):
            shown = x if adversary is None else adversary(net, x, y, seed=epoch)
            optimizer.zero_grad()
            F.cross_entropy(net(shown), y).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    return fit(None, 3)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return fit(attack("pgd", eps=EPS, steps=3), 5)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x, y = next(iter(load_dataset("digits").validation.batches(N)))
    return x, y


def flags(model: nn.Module, data: Any, attacks: Any = ("pgd10",), **settings: Any) -> set[str]:
    """Names of the checks that fail."""
    found = evaluate(model, data, attacks, threat=ThreatModel(eps=EPS), **settings)
    return {check.name for check in found.reliability.failed}


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


# --- sound networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "robust"])
def test_sound_networks_raise_none(name: str, data: Any, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    attacks: list[Any] = ["fgsm", "pgd10", "pgd20", "cw20", {"name": "square", "steps": 200}]
    attacks.append({"name": "pgd20", "eps": 0.04})
    found = evaluate(model, data, attacks, threat={"eps": EPS}, thorough=True)
    assert found.reliability.reasons == []
    not_run = {c.name for c in found.reliability.checks if c.status == "not run"}
    assert not_run == {"training-collapse"}
    assert found.reliability.pictures == N // 16


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_sound_spectra_raise_none(norm: Any, robust: nn.Module, data: Any) -> None:
    strengths = (0.02, 0.08, 0.5) if norm == "linf" else (0.2, 0.8)
    found = evaluate_spectrum(robust, data, strengths, "pgd10", norm=norm)
    assert found.reliability.reasons == []
    assert found.reliability["outside-ball"].figures["pictures"] > 0
    large = found.reliability["large-eps"]
    assert large.status == ("passed" if norm == "linf" else "not run")
    thorough = evaluate_spectrum(robust, data, strengths[:2], "pgd10", norm=norm, thorough=True)
    assert thorough.reliability["large-eps"].status == "passed"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_raise_none(dtype: torch.dtype, robust: nn.Module, data: Any) -> None:
    model = copy.deepcopy(robust).to(dtype)
    assert flags(model, data, ["fgsm", "pgd5"]) == set()


def test_checks_do_not_change_figures(robust: nn.Module, data: Any) -> None:
    spec: Any = {"name": "pgd5", "early_stop": False}
    found = evaluate(robust, data, spec, threat={"eps": EPS}, seed=3, thorough=True)
    adversary = attack("pgd5", eps=EPS)
    x, y = data
    with torch.no_grad():
        right = robust(x).argmax(1) == y
        adv = adversary(robust, x, y, seed=3, index=torch.arange(N))
        still = (robust(adv).argmax(1) == y) & right
    assert torch.equal(next(iter(found.attacks.values())).correct, still)


# --- networks that are broken --------------------------------------------------------------------


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


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sign: Tensor) -> Tensor:
        ctx.save_for_backward(sign)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class Misleading(Wrapped):
    """Gradients of the wrong sign: attacks that follow them make the network surer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Backwards.apply(x, torch.tensor(-1.0)))


class MisleadingFurtherOut(Wrapped):
    """Gradients are right on the clean pictures (of bytes) only: one step sees a right one."""

    def forward(self, x: Tensor) -> Tensor:
        clean = ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) < 1e-6
        return self.net(Backwards.apply(x, torch.where(clean, 1.0, -1.0).view(-1, 1, 1, 1)))


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


Build = Callable[[nn.Module], nn.Module]


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
def test_broken_networks(build: Build, raised: set[str], robust: nn.Module, data: Any) -> None:
    assert flags(build(robust), data) == raised
    found = evaluate_spectrum(build(robust), data, [0.04, EPS], "pgd10")
    assert {check.name for check in found.reliability.failed} == raised


def test_zero_gradient_says_how_many_and_what_to_do(robust: nn.Module, data: Any) -> None:
    found = evaluate(Steps(robust), data, "pgd5").reliability["zero-gradient"]
    assert found.figures == {"share": 1.0, "margin": 1.0}
    assert "Square" in found.reason
    found = evaluate(Saturated(robust), data, "pgd5").reliability["zero-gradient"]
    assert found.figures["share"] > found.figures["margin"] == 0
    assert "margin or dlr" in found.reason


def test_network_that_ignores_its_pictures(data: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    nn.init.zeros_(model[1].weight)
    x, _ = data
    pair = (x, model[1].bias.argmax().expand(len(x)))
    found = evaluate(model, pair, ["pgd5"], thorough=True).reliability
    assert [check.name for check in found.failed] == ["zero-gradient", "large-eps"]
    assert "every picture the same answer" in found["zero-gradient"].reason


def test_network_without_a_gradient(robust: nn.Module, data: Any) -> None:
    """Gradient attacks refuse it; one without gradients gives a figure, with its flag."""
    assert flags(Detached(robust), data, [{"name": "square", "steps": 20}]) == {"zero-gradient"}
    with pytest.raises(UserError, match="differentiable"):
        evaluate(Detached(robust), data, "pgd5")


def test_square_breaks_what_gradients_do_not(standard: nn.Module, data: Any) -> None:
    square: Any = {"name": "square", "steps": 300}
    assert flags(Misleading(standard), data, ["pgd10", square]) == {"black-box-wins"}
    found = evaluate(Misleading(standard), data, ["pgd10", square], threat={"eps": EPS})
    gap = found.attacks["pgd10@0.08"].accuracy - found.attacks["square300@0.08"].accuracy
    assert found.reliability["black-box-wins"].figures["gap"] == pytest.approx(gap)
    assert gap > 0.002


def test_transfer_breaks_what_gradients_do_not(
    standard: nn.Module, robust: nn.Module, data: Any
) -> None:
    networks = {"plain": standard, "misleading": Misleading(standard), "robust": robust}
    table = transfer_table(networks, networks, data, "pgd10", threat=ThreatModel(eps=EPS))
    (reason,) = table.unreliable
    assert reason.startswith("black-box-wins: examples of 'plain' leave 'misleading'")
    assert transfer_table({"p": standard}, networks, data, "pgd5").unreliable == []


def test_square_inside_autoattack(standard: nn.Module, robust: nn.Module, data: Any) -> None:
    """The pictures that only Square breaks, after the three attacks with gradients."""
    small: Any = {"name": "autoattack", "steps": 5, "targets": 2, "queries": 200}
    x, y = (part[:48] for part in data)
    found = evaluate(Misleading(standard), (x, y), small, threat={"eps": EPS}).reliability
    assert [check.name for check in found.failed] == ["black-box-wins"]
    only = found["black-box-wins"].figures["gap"] * 48
    assert only == pytest.approx(round(only))
    assert flags(robust, (x, y), small) <= {"black-box-wins"}
    made = attack("autoattack", eps=EPS, steps=5, targets=2, queries=200)
    again = evaluate(Misleading(standard), (x, y), made, threat={"eps": EPS}).reliability
    third = evaluate(Misleading(standard), (x, y), made, threat={"eps": EPS}).reliability
    for other in (again, third):  # an attack that is used twice does not count twice
        assert other["black-box-wins"].figures == found["black-box-wins"].figures


def test_accuracy_where_everything_is_allowed(standard: nn.Module, data: Any) -> None:
    assert flags(Misleading(standard), data, thorough=True) == {"large-eps"}
    assert flags(Misleading(standard), data, ["pgd10", {"name": "pgd10", "eps": 0.5}]) == {
        "large-eps"
    }
    assert flags(Misleading(standard), data) == set()  # nothing that is cheap can see it


def test_many_steps_weaker_than_one(standard: nn.Module, data: Any) -> None:
    model = MisleadingFurtherOut(standard)
    assert flags(model, data, ["fgsm", "pgd10"]) == {"rises-with-steps"}
    found = evaluate(model, data, ["fgsm", "pgd10"], threat={"eps": EPS})
    one, many = (result.accuracy for result in found.attacks.values())
    assert found.reliability["rises-with-steps"].figures["rise"] == pytest.approx(many - one)


def test_attack_that_is_too_short(robust: nn.Module, data: Any) -> None:
    short: Any = {"name": "pgd", "steps": 2, "step_size": 0.01, "random_start": False}
    assert flags(robust, data, short, thorough=True) == {"more-steps"}
    long = {**short, "steps": 40}  # beside it the short one does not matter
    assert flags(robust, data, [short, long], thorough=True) == set()
    found = evaluate(robust, data, short, threat={"eps": EPS}, thorough=True)
    before, after = (
        evaluate(robust, data, {**short, "steps": k}, threat={"eps": EPS}).worst for k in (2, 4)
    )
    assert found.reliability["more-steps"].figures["change"] == pytest.approx(before - after)


def test_too_few_classes(data: Any) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    x, _ = data
    with torch.no_grad():
        pair = (x, model(x).argmax(1))
    assert flags(model, pair, ["pgd5", "apgd-ce5", {"name": "pgd5", "loss": "dlr"}]) == set()
    assert flags(model, pair, [{"name": "apgd-t", "steps": 5}]) == {"few-classes"}


class Coarse(Wrapped):
    """Logits far from 0: the differences are lost in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 512


def test_half_precision_that_makes_breaks(robust: nn.Module, data: Any) -> None:
    model = Coarse(copy.deepcopy(robust)).bfloat16()
    x, _ = data
    with torch.no_grad():
        y = model(x.bfloat16()).argmax(1)
    assert flags(model, (x, y), ["pgd5"]) == {"precision"}


# --- attacks that are broken ---------------------------------------------------------------------


class Odd(Attack):
    """Calls back in place of the contract of :class:`Attack`."""

    def __init__(self, change: Callable[[nn.Module, Tensor, float], Tensor], eps: float) -> None:
        super().__init__(ThreatModel(eps=eps), "odd")
        self.change = change

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Tensor:
        return self.change(model, x, self.threat.eps)

    def _run(self, *_: Any) -> Tensor:
        raise NotImplementedError


def far(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    return (x + 1.1 * eps).clamp(0, 1)


def dark(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    return x - eps


def undefined(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    return torch.where(x > 0.5, torch.nan, x)


@pytest.mark.parametrize("change", [far, dark])
def test_attacks_that_leave_ball_or_box(change: Any, robust: nn.Module, data: Any) -> None:
    found = evaluate(robust, data, Odd(change, EPS)).reliability
    assert [check.name for check in found.failed] == ["outside-ball"]
    right = int(evaluate(robust, data, ()).clean_correct.sum())
    assert found["outside-ball"].figures == {"outside": right, "pictures": right}


def test_allowed_pictures_are_inside_in_both_norms(robust: nn.Module, data: Any) -> None:
    """The rim of the ball is allowed, a millionth more in the sums is rounding."""
    for norm, eps in (("linf", EPS), ("l2", 1.0)):
        found = evaluate(robust, data, "fgsm", threat={"norm": norm, "eps": eps}).reliability
        assert found["outside-ball"].status == "passed"
        assert found["outside-ball"].figures["outside"] == 0


def test_attack_that_disturbs_the_network(robust: nn.Module, data: Any) -> None:
    model = copy.deepcopy(robust)

    def shift(net: nn.Module, x: Tensor, eps: float) -> Tensor:
        with torch.no_grad():
            net[-1].bias += torch.arange(10) * 3  # type: ignore[index, operator]
        return x

    assert flags(model, data, Odd(shift, EPS)) == {"eps-zero"}


def test_attack_in_training_mode(robust: nn.Module, data: Any) -> None:
    assert flags(robust, data, {"name": "pgd5", "bn_mode": "train"}) == {"attack-mode"}


def test_attack_that_is_weaker_in_a_larger_ball(standard: nn.Module, data: Any) -> None:
    def only_small(net: nn.Module, x: Tensor, eps: float) -> Tensor:
        return (x + eps * (1 - 2 * x)).clamp(0, 1) if eps < 0.4 else x

    assert evaluate(standard, data, Odd(only_small, 0.3)).worst < 1 - 2 / N
    two = [Odd(only_small, 0.3), Odd(only_small, 0.45)]
    assert flags(standard, data, two) == {"rises-with-eps"}


# --- trainings -----------------------------------------------------------------------------------


def epochs(*pairs: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    return [{"train_robust": one, "val_robust": many} for one, many in pairs]


@pytest.mark.parametrize(
    ("history", "status"),
    [
        (epochs((0.3, 0.3), (0.4, 0.38), (0.8, 0.02)), "failed"),
        (epochs((0.3, 0.3), (0.8, 0.02), (0.4, 0.38)), "passed"),  # it recovered
        (epochs((0.9, 0.01)), "failed"),  # from the first epoch on
        (epochs((0.4, 0.45), (0.7, 0.5), (0.9, 0.42)), "passed"),  # slow robust overfitting
        (epochs((0.4, 0.4), (0.1, 0.1)), "passed"),  # nothing was learned: figures are right
        (epochs((0.4, None)), "not run"),
        ([], "not run"),
    ],
)
def test_collapse_of_a_training(history: Any, status: str) -> None:
    assert check_training(history, 10).status == status


# --- results and their flags ---------------------------------------------------------------------


def test_the_page_explains_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted([*rows, "training-collapse"]) == sorted(CHECKS)
    assert "`training-collapse` reads" in page


def test_the_example_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("UNRELIABLE: softmax-output: the network returns probabilities")


def test_no_result_without_flags(robust: nn.Module, data: Any) -> None:
    found = evaluate(robust, data, "pgd2")
    with pytest.raises(TypeError):
        Evaluation(found.clean_correct, found.attacks, 0.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs its Reliability"):
        Evaluation(found.clean_correct, found.attacks, 0.0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dynamic"):
        Reliability(tuple(c for c in found.reliability.checks if c.name != "dynamic"))
    with pytest.raises(ValueError, match="needs a reason"):
        Check("dynamic", "failed")
    assert [check.name for check in found.reliability.checks] == list(CHECKS)


def test_clean_accuracy_alone_is_not_checked(robust: nn.Module, data: Any) -> None:
    found = evaluate(robust, data, ()).reliability
    assert {check.status for check in found.checks} == {"not run"}
    assert found.reliable


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_do_not_matter(batch_size: int, robust: nn.Module, data: Any) -> None:
    found = evaluate(robust, data, "pgd3", batch_size=batch_size).reliability
    assert (found.reasons, found.pictures) == ([], N // 16)
    assert flags(Noisy(robust), data, "pgd3", batch_size=batch_size) == {"randomised"}


def test_merged_results(robust: nn.Module, data: Any) -> None:
    sound = evaluate(robust, data, "pgd3").reliability
    broken = evaluate(Noisy(robust), data, "pgd3").reliability
    for merged in (sound.merged(broken), broken.merged(sound)):
        assert [check.name for check in merged.failed] == ["randomised"]
        assert merged["zero-gradient"].status == "passed"
    plain = broken.as_dict()
    assert plain["reliable"] is False
    assert plain["unreliable"] == broken.reasons
    assert plain["checks"]["randomised"]["status"] == "failed"
