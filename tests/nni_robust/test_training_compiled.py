"""Compiled attacks, recorded steps and autocast in trainings: the weights of now, every batch."""

from __future__ import annotations

import contextlib
import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks import gradient as gradient_module
from nni_robust.attacks._graph import Recorder
from nni_robust.attacks.gradient import PGD
from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, train
from nni_robust.training._steps import Steps

THREAT = ThreatModel(eps=8 / 255)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(48) % 4, "abcd")
    return DataSplits("toy", images.take(torch.arange(32)), images.take(torch.arange(32, 48)))


def network(seed: int = 0) -> nn.Module:
    """Convolutions of both kinds that are folded: 3x3, and 1x1, which has a form of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
    ).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(8, 3, 8, 8))
    return model


def recipe(loss: str = "madry", **changes: Any) -> Recipe:
    values: dict[str, Any] = {"epochs": 2, "batch_size": 8, "loss": loss, "accelerator": "cpu"}
    values |= {"validation_attack": None, "schedule": "constant"}
    return Recipe(**{**values, **changes})


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def graphs() -> int:
    """How often something was compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Nothing:
    """A hook that leaves the network alone."""

    def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
        pass


# --- compiled ------------------------------------------------------------------------------------


@pytest.fixture
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: not used")
        yield


@pytest.mark.parametrize("loss", ["madry", "trades", "mart"])
def test_compiled_attacks_take_the_weights_of_now(loss: str, strict: None) -> None:
    data, start = splits(), network()
    trainings = {
        compiled: Steps(
            copy.deepcopy(start),
            data,
            recipe(loss, lr=0.05, attack=TrainAttack(steps=4, compile=compiled)),
            THREAT,
        )
        for compiled in (False, True)
    }
    known = []
    for x, y in data.train.batches(8):
        for training in trainings.values():
            training.step(x, y)
        known.append(graphs())
    # Compiled for the first batch, and for no other.
    assert known[1:] == known[:-1]
    plain, fast = (trainings[compiled].model for compiled in (False, True))
    before, slow, quick = (
        torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start, plain, fast)
    )
    assert (quick - slow).norm() < 0.02 * (slow - before).norm()

    x = x.contiguous(memory_format=torch.channels_last)

    # What it attacks is the network as it is now, not as it was when it was compiled.
    def found(network: nn.Module, compiled: bool) -> Tensor:
        return trainings[compiled].objective.perturb(network, x, y, seed=1)

    now = found(fast, compiled=True)
    assert (now != found(fast, compiled=False)).double().mean() < 0.01
    assert (now != found(start, compiled=False)).double().mean() > 0.05
    assert graphs() == known[-1]


def test_compiled_with_the_statistics_of_the_batch(strict: None) -> None:
    data, left = splits(), []
    for compiled in (False, True):
        settings = TrainAttack(steps=3, bn_mode="train", compile=compiled)
        training = Steps(network(), data, recipe(lr=0.05, attack=settings), THREAT)
        for x, y in data.train.batches(8):
            training.step(x, y)
        left.append(training.model.state_dict())
    assert int(left[0]["1.num_batches_tracked"]) == int(left[1]["1.num_batches_tracked"])
    for name, tensor in left[0].items():
        torch.testing.assert_close(left[1][name], tensor, rtol=0.02, atol=0.002)


def test_each_network_has_torchs_limit_to_itself(strict: None) -> None:
    """Else those after the eighth in a process would not be compiled, and nobody would know."""
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    before = graphs()
    with torch._dynamo.config.patch(recompile_limit=1):
        models = [network().eval(), network().eval()]
        for model in models:
            attack("pgd3", compile=True)(model, x, y, seed=0)
    assert graphs() == before + len(models)


class Interrupt:
    """Stops a training after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def __call__(self, record: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_compiled_training_goes_on_bit_for_bit(tmp_path: Path, strict: None) -> None:
    settings = recipe(attack=TrainAttack(steps=4, compile=True))
    whole, broken, resumed = network(), network(), network(seed=5)
    train(whole, splits(), settings, THREAT, seed=1)
    with contextlib.suppress(KeyboardInterrupt):
        train(broken, splits(), settings, THREAT, seed=1, folder=tmp_path, on_epoch=Interrupt(1))
    assert not equal(whole, broken)
    train(resumed, splits(), settings, THREAT, seed=1, folder=tmp_path)
    assert equal(whole, resumed)


def test_supernets_are_not_compiled() -> None:
    settings = recipe(attack=TrainAttack(compile=True))
    with pytest.raises(UserError, match=r"attack\.compile: true is not allowed with a hook"):
        train(network(), splits(), settings, THREAT, hook=Nothing(), validate=False)


def test_a_compiler_is_missed_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    model = network()
    with pytest.raises(UserError, match=r"compile: True needs a C\+\+ compiler"):
        train(model, splits(), recipe(attack=TrainAttack(compile=True)), THREAT, validate=False)
    assert equal(model, network())


# --- recorded ------------------------------------------------------------------------------------


def test_graphs_are_for_cuda() -> None:
    settings = recipe(attack=TrainAttack(cuda_graph=True))
    with pytest.raises(UserError, match=r"attack\.cuda_graph: true is not allowed on 'cpu'"):
        train(network(), splits(), settings, THREAT, validate=False)


class Eager(Recorder):
    """Runs steps on the buffers of a record, on any device; counts records."""

    def __init__(self) -> None:
        self.records = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.records += 1
        return step


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", ["madry", "trades"])
@pytest.mark.parametrize("hook", [None, Nothing()])
def test_recorded_steps_train_the_same(
    monkeypatch: pytest.MonkeyPatch, loss: str, precision: str, hook: Any
) -> None:
    """Also for supernets, whose path of this batch is recorded."""
    changes: dict[str, Any] = {"epochs": 1, "precision": precision}
    plain, auto, recorded = network(), network(), network()

    def run(model: nn.Module, **settings: Any) -> None:
        made = recipe(loss, attack=TrainAttack(steps=6, **settings), **changes)
        train(model, splits(), made, THREAT, hook=hook, validate=False)

    run(plain)
    run(auto, cuda_graph="auto")  # on a CPU, nothing
    recorder = Eager()
    monkeypatch.setattr(gradient_module, "CudaRecorder", lambda _: recorder)
    monkeypatch.setattr(PGD, "_replays", lambda self, _: self.settings.cuda_graph == "auto")
    run(recorded, cuda_graph="auto")
    assert recorder.records == 4  # a batch each
    assert equal(plain, auto)
    assert equal(plain, recorded)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", ["madry", "trades"])
def test_graphs_in_a_training(loss: str, precision: str) -> None:
    """Awaits a GPU: what a record finds is what the loop finds, after every step of SGD."""
    torch.backends.cudnn.deterministic = True
    data = splits()
    attacks = [TrainAttack(steps=10, cuda_graph=graph) for graph in (True, False)]
    made = [recipe(loss, attack=a, accelerator="cuda", precision=precision) for a in attacks]
    recorded, plain = (Steps(network(), data, r, THREAT) for r in made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in data.train.to(torch.device("cuda")).batches(8):
            recorded.step(x, y)
            with recorded.fabric.autocast():
                found, expected = (
                    training.objective.perturb(recorded.model, x, y, seed=1)
                    for training in (recorded, plain)
                )
            assert (found != expected).double().mean() < 0.02


# --- autocast ------------------------------------------------------------------------------------


def test_autocast_remembers_no_picture() -> None:
    """It keeps the cast of a leaf; pictures are one, and change in place with every step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    for name in ("pgd10", "mi-fgsm", "apgd-ce"):
        made = attack(name, eps=THREAT.eps)
        with torch.autocast("cpu", torch.bfloat16):
            found = made(model, x, y, seed=0)
            assert torch.is_autocast_cache_enabled()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            assert torch.equal(found, made(model, x, y, seed=0))
            assert not torch.is_autocast_cache_enabled()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"compile": True, "cuda_graph": True}, r"attack\.cuda_graph: true is not allowed with"),
        ({"compile": True, "steps": 1, "replays": 4}, r"attack\.compile: true is not allowed with"),
        ({"cuda_graph": True, "steps": 1, "replays": 4}, r"attack\.cuda_graph: true is not allow"),
        ({"cuda_graph": True, "steps": 1, "loss": "fast"}, r"cuda_graph: true is not allowed with"),
        ({"cuda_graph": True, "steps": 4}, r"not allowed with attack\.steps 4; 5 or more"),
    ],
)
def test_refusals(settings: dict[str, Any], sentence: str) -> None:
    of_attack = {k: v for k, v in settings.items() if k not in ("replays", "loss")}
    others = {k: v for k, v in settings.items() if k in ("replays", "loss")}
    with pytest.raises(UserError, match=sentence):
        recipe(attack=TrainAttack(**of_attack), **others)
