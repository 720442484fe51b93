"""Precision, recorded steps and compiled networks: the same attack, other machinery."""

from __future__ import annotations

import gc
import shutil
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust import evaluate
from nni_robust.attacks import attack
from nni_robust.attacks import gradient as gradient_module
from nni_robust.attacks._ascent import Ascent
from nni_robust.attacks._base import Victim
from nni_robust.attacks._graph import GraphWarning, Recorder, replay_steps
from nni_robust.attacks._losses import LOSSES
from nni_robust.attacks._norms import ball_around
from nni_robust.attacks.gradient import PGD
from nni_robust.bench._networks import ResNet18
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

EPS = 8 / 255


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, classes),
    ).eval()


def pictures(model: nn.Module, n: int = 48) -> tuple[Tensor, Tensor]:
    """Pictures that the network classifies correctly, but for a few."""
    x = torch.rand(n, 3, 8, 8)
    y = model(x).argmax(1).detach()
    y[:3] = (y[:3] + 1) % 10
    return x, y


# --- recorded steps ------------------------------------------------------------------------------


class Replays(Recorder):
    """Runs steps eagerly on the buffers of a record, and counts."""

    def __init__(self) -> None:
        self.records: list[int] = []
        self.replays = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.records.append(0)

        def replay() -> None:
            self.replays += 1
            step()

        return replay


def through(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    """Attacks go the way of graphs, on this device."""
    monkeypatch.setattr(gradient_module, "CudaRecorder", lambda _: recorder)
    monkeypatch.setattr(PGD, "_replays", lambda self, _: True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"targeted": True}, {"loss": "dlr"}])
def test_replayed_steps_equal_the_loop(
    monkeypatch: pytest.MonkeyPatch, norm: Any, settings: dict[str, Any]
) -> None:
    if settings == {"loss": "dlr"} and norm == "l2":
        settings = {"loss": "margin"}
    model = network()
    x, y = pictures(model)
    made = attack("pgd10", norm=norm, eps=EPS if norm == "linf" else 0.5, **settings)
    expected = made(model, x, y, seed=3)
    recorder = Replays()
    through(monkeypatch, recorder)
    found = made(model, x, y, seed=3)
    assert torch.equal(found, expected)
    # The first step runs by itself and once more to compare; the other nine are replayed.
    assert (len(recorder.records), recorder.replays) == (1, 10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pictures_that_are_broken_stand_still(monkeypatch: pytest.MonkeyPatch, norm: Any) -> None:
    model = network().double()
    x, y = (t.double() if t.is_floating_point() else t for t in pictures(network(), 64))
    y = model(x).argmax(1)
    eps = 0.08 if norm == "linf" else 0.8
    made = attack("pgd", norm=norm, eps=eps, steps=22, step_size=eps / 10, early_stop=True)
    expected = made(model, x, y, seed=1)
    broken = model(expected).argmax(1) != y
    assert 0.5 < float(broken.double().mean()) < 1  # more than half: recorded anew on the way
    recorder = Replays()
    through(monkeypatch, recorder)
    found = made(model, x, y, seed=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(recorder.records) > 1


def test_restarts_and_networks_that_all_pictures_fool(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    x, y = pictures(model)
    expected = [
        attack("pgd", steps=8, restarts=2, early_stop=True)(model, x, y, seed=0),
        attack("pgd20", eps=0.5, early_stop=True)(model, x, y, seed=0),
    ]
    through(monkeypatch, Replays())
    for made, one in zip(
        (
            attack("pgd", steps=8, restarts=2, early_stop=True),
            attack("pgd20", eps=0.5, early_stop=True),
        ),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(made(model, x, y, seed=0), one, rtol=0, atol=1e-6)


class Stale(Recorder):
    """A record that reads memory of another step: what a wrong capture would do."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Refuses(Recorder):
    """As CUDA does where a step waits for the device."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step_of_the_attack: Any = step
        step_of_the_attack.__self__.adv.requires_grad_()
        raise RuntimeError("operation not permitted when\nstream is capturing")


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Stale(), "ends elsewhere"), (Refuses(), "not permitted when stream is capturing")],
)
@pytest.mark.parametrize("early", [False, True])
def test_a_record_that_is_wrong_or_impossible_is_not_used(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, reason: str, early: bool
) -> None:
    model = network()
    x, y = pictures(model)
    made = attack("pgd", steps=10, early_stop=early)
    expected = made(model, x, y, seed=3)
    through(monkeypatch, recorder)
    with pytest.warns(GraphWarning, match=reason):
        found = made(model, x, y, seed=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_networks_with_hooks_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = network(), []
    x, y = pictures(model)
    through(monkeypatch, Stale())
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(GraphWarning, match="hooks"):
        attack("pgd7")(model, x, y)
    assert len(calls) == 7


def test_nan_in_a_replayed_step_is_remembered() -> None:
    """Health adds up over replays: a later finite step must not hide it."""
    model = network()
    x, y = pictures(model, 4)
    victim = Victim(model, x.dtype)
    threat = ThreatModel("linf", EPS)
    ball = ball_around(x, threat)
    ascent = Ascent(victim, y, ball, x.clone(), loss=LOSSES["ce"], size=0.01)
    replay_steps(ascent, 6, Recorder())
    assert isinstance(victim.health, Tensor)
    place = victim.health.data_ptr()
    assert torch.isfinite(victim.health)
    victim.watch(torch.tensor(torch.nan))
    ascent.step()
    assert victim.health.data_ptr() == place
    assert not torch.isfinite(victim.health)


def test_cuda_graph_needs_a_device() -> None:
    model = network()
    x, y = pictures(model)
    with pytest.raises(UserError, match="cuda_graph: True is not allowed for pictures on 'cpu'"):
        attack("pgd10", cuda_graph=True)(model, x, y)
    expected = attack("pgd10")(model, x, y, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(attack("pgd10", cuda_graph="auto")(model, x, y, seed=0), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("early", [False, True])
def test_cuda_graph(precision: str, early: bool) -> None:
    """Awaits a GPU: the recorded step against the step, on several batches and paths."""
    torch.backends.cudnn.deterministic = True
    model = network().cuda()
    for round_ in range(3):
        x, y = (t.cuda() for t in pictures(network()))
        y = model(x).argmax(1)
        settings: dict[str, Any] = {"steps": 20, "early_stop": early, "precision": precision}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = attack("pgd", cuda_graph=True, **settings)(model, x, y, seed=round_)
        expected = attack("pgd", **settings)(model, x, y, seed=round_)
        assert (found != expected).double().mean() < 0.02
        with torch.no_grad():  # as a supernet: the next batch takes other weights
            model[3].weight.add_(0.05 * torch.randn_like(model[3].weight))


@pytest.mark.gpu
def test_cuda_graph_of_a_network_that_waits_for_the_device() -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * (1.0 if float(x.sum()) > 0 else 2.0)

    model = Waits().cuda()
    x, y = (t.cuda() for t in pictures(network()))
    expected = attack("pgd10")(model, x, y, seed=0)
    with pytest.warns(GraphWarning, match="cannot be recorded"):
        found = attack("pgd10", cuda_graph=True)(model, x, y, seed=0)
    assert (found != expected).double().mean() < 0.02
    model(x)  # the device is in order


# --- precision -----------------------------------------------------------------------------------


class Types(nn.Module):
    """Remembers what its first layer computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = network(), []
        self.seen: list[tuple[torch.dtype, torch.dtype]]

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner[0](x)
        self.seen.append((x.dtype, out.dtype))
        return self.inner[1:](out)


def test_the_network_computes_in_bf16_and_the_pictures_do_not() -> None:
    model = Types().eval()
    x = 0.2 + 0.6 * torch.rand(32, 3, 8, 8)  # the box is far
    y = model.inner(x).argmax(1)
    settings: dict[str, Any] = {"random_start": False, "step_size": EPS / 3}
    adv = attack("pgd", steps=3, precision="bf16", **settings)(model, x, y)
    assert set(model.seen) == {(torch.float32, torch.bfloat16)}
    # Every pixel went by whole steps of float32; bf16 would round by up to 1/512, a third of it.
    steps = (adv - x) / (EPS / 3)
    assert float((steps - steps.round()).abs().max()) < 1e-4
    assert {-3, -1, 1, 3} <= {int(n) for n in steps.round().unique()}
    assert float((adv.double() - x.double()).abs().max()) <= EPS  # exactly, not up to rounding
    # The signs are those of the network's gradient in float32, but where rounding decides.
    exact = attack("pgd", steps=1, **settings)(model.inner, x, y)
    rounded = attack("pgd", steps=1, precision="bf16", **settings)(model.inner, x, y)
    assert 0.97 < float((exact == rounded).double().mean()) < 1


def test_an_attack_in_bf16_is_about_as_strong() -> None:
    model = network()
    x, y = pictures(model, 256)
    lost = []
    for precision in ("float32", "bf16"):
        found = evaluate(model, (x, y), "pgd20", threat={"eps": 0.04}, precision=precision)
        lost.append(found.worst)
    assert 0.05 < lost[0] < 0.95
    assert abs(lost[0] - lost[1]) < 0.03


class Rounds(nn.Module):
    """Whatever it is shown, the network is wrong in bfloat16 and right in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2)
        nn.init.constant_(self.layer.weight, 0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.layer(x.flatten(1))
        right = torch.tensor([0.0, -1.0] if logits.dtype == torch.float32 else [-1.0, 0.0])
        return logits + right


@pytest.mark.parametrize("static", [False, True])
def test_no_break_counts_that_float32_does_not_confirm(
    monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    model = Rounds()
    nn.init.zeros_(model.layer.bias)
    x, y = torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    if static:
        through(monkeypatch, Replays())
    found = evaluate(model, (x, y), ["fgsm", "pgd20"], precision="bf16")
    assert found.metrics() == {"clean": 1.0, "fgsm@8/255": 1.0, "pgd20@8/255": 1.0}


def test_a_picture_whose_break_is_rounding_goes_on() -> None:
    """It leaves the batch only when float32 misclassifies it: its steps do not stop before."""
    torch.manual_seed(0)
    inner = network()

    class Alarms(nn.Module):
        """Under bfloat16, every picture looks broken."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x)
            if logits.dtype == torch.float32:
                return logits
            self.calls += 1
            return logits - 1e3 * nn.functional.one_hot(logits.argmax(1), 10)

    x = torch.rand(16, 3, 8, 8)
    y = inner(x).argmax(1)
    model = Alarms()
    attack("pgd", steps=6, eps=1e-6, precision="bf16", early_stop=True)(model, x, y)
    assert model.calls == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bf16_is_for_float32(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    x = torch.rand(2, 3, 8, 8).to(dtype)
    with pytest.raises(UserError, match="precision: 'bf16' is not allowed for pictures of type"):
        attack("pgd5", precision="bf16")(model, x, torch.zeros(2, dtype=torch.int64))


def test_precision_of_evaluate() -> None:
    model = network()
    x, y = pictures(model)
    with pytest.raises(UserError, match="precision: 'half' is not allowed; float32 or bf16 is"):
        evaluate(model, (x, y), "pgd5", precision="half")  # type: ignore[arg-type]
    result = evaluate(model, (x, y), ["fgsm", "pgd5"], precision="bf16")
    assert {r.attack.precision for r in result.attacks.values()} == {"bf16"}


# --- compiled ------------------------------------------------------------------------------------


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    model = network()
    x, y = pictures(model)
    with pytest.raises(UserError, match=r"compile: True needs a C\+\+ compiler"):
        attack("pgd5", compile=True)(model, x, y)


def test_compile_and_graph_are_one_or_the_other() -> None:
    with pytest.raises(UserError, match="cuda_graph: True is not allowed with compile"):
        attack("pgd5", compile=True, cuda_graph=True)


def test_networks_with_hooks_are_not_compiled() -> None:
    model, calls = network(), []
    x, y = pictures(model)
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="compile: not used, the network has forward hooks"):
        attack("pgd5", compile=True)(model, x, y)
    assert len(calls) == 5


@pytest.mark.slow  # half a minute of compiling
def test_compiled_attack() -> None:
    model = ResNet18(4).eval()
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    settings: dict[str, Any] = {"steps": 5, "fold": True, "channels_last": True}
    weights = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: not used")
        found = attack("pgd", compile=True, **settings)(model, x, y, seed=0)
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[name][0])
            assert value.stride() == weights[name][1]
        expected = attack("pgd", **settings)(model, x, y, seed=0)
        assert (found != expected).double().mean() < 0.01
        # Trained on, the network is attacked as it is now, by the form that is there already.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found = attack("pgd", compile=True, **settings)(model, x, y, seed=0)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    expected = attack("pgd", **settings)(model, x, y, seed=0)
    assert (found != expected).double().mean() < 0.01
    # The compiled form does not keep the network alive.
    reference = weakref.ref(model)
    del model, parameter, value
    gc.collect()
    assert reference() is None
