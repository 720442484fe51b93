"""Learning from a teacher: formulas, a teacher that nothing touches, refusals, resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Distillation, Recipe, RobustLoss, TrainAttack, train
from nni_robust.training.distilled import Oracle
from nni_robust.training.losses import build_loss, clean_loss

THREAT = ThreatModel(eps=0.1)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (80, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(80) % 4, "abcd", ("flip",))
    return DataSplits("toy", images.take(torch.arange(64)), images.take(torch.arange(64, 80)))


def network(seed: int = 3, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, classes),
    )


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 0.02,
        "attack": TrainAttack(steps=2),
        "validation_attack": None,
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


def batch() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.rand(8, 3, 8, 8, generator=random)
    return x, (x + 0.05).clamp(0, 1), torch.arange(8) % 4


def kl(target: Tensor, logits: Tensor, t: float = 1.0) -> float:
    """Mean KL(target || logits) at temperature t, by its sum in float64."""
    p, q = ((v.detach().double() / t).softmax(1) for v in (target, logits))
    return float((p * (p / q).log()).sum(1).mean())


def pieces(made: Recipe) -> tuple[RobustLoss, nn.Module, nn.Module]:
    teacher = network(9).eval()
    return build_loss(made, THREAT, Oracle(teacher)), network().eval(), teacher


def test_rslad() -> None:
    objective, student, teacher = pieces(recipe(loss="rslad"))
    x, x_adv, y = batch()
    loss, logits = objective(lambda *b: tuple(map(student, b)), x, x_adv, y)
    expected = 5 / 6 * kl(teacher(x), student(x_adv)) + 1 / 6 * kl(teacher(x), student(x))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(logits, student(x_adv))
    # The attack climbs the divergence from the teacher's opinion of the clean pictures.
    found = objective.perturb(student, x, y, seed=0)
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert kl(teacher(x), student(found)) > kl(teacher(x), student(x))
    # It does not look at labels.
    assert torch.equal(found, objective.perturb(student, x, (y + 1) % 4, seed=0))


def test_rslad_attack_is_the_sign_of_the_divergence_s_gradient() -> None:
    start = TrainAttack(steps=1, step_size=0.1, random_start=False)
    objective, student, teacher = pieces(recipe(loss="rslad", attack=start))
    x, _, y = batch()
    leaf = x.clone().requires_grad_()
    p = teacher(x).softmax(1).detach()
    (p * (p.log() - student(leaf).log_softmax(1))).sum().backward()
    assert leaf.grad is not None
    expected = (x + 0.1 * leaf.grad.sign()).clamp(0, 1)
    assert torch.allclose(objective.perturb(student, x, y, seed=0), expected, atol=1e-6)


def test_ard() -> None:
    term = Distillation(weight=0.7, temperature=3)
    objective, student, teacher = pieces(recipe(loss="ard", distillation=term))
    x, x_adv, y = batch()
    loss, _ = objective(lambda *b: tuple(map(student, b)), x, x_adv, y)
    p = student(x).double().softmax(1)
    natural = -p[torch.arange(8), y].log().mean()
    expected = 0.7 * 9 * kl(teacher(x), student(x_adv), 3) + 0.3 * float(natural.detach())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["clean", "madry", "trades", "mart"])
def test_term_beside_any_loss(name: str) -> None:
    plain = build_loss(recipe(loss=name), THREAT)
    objective, student, teacher = pieces(
        recipe(loss=name, distillation=Distillation(weight=0.5, temperature=4))
    )
    x, x_adv, y = batch()

    def forward(*b: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(student, b))

    loss, _ = objective(forward, x, x_adv, y)
    before, _ = plain(forward, x, x_adv, y)
    term = 0.5 * 16 * kl(teacher(x_adv), student(x_adv), 4)
    assert loss.item() - before.item() == pytest.approx(term, rel=1e-4)
    assert torch.equal(objective.perturb(student, x, y, 1), plain.perturb(student, x, y, 1))


def test_gradient_of_the_term_keeps_its_size_over_temperatures() -> None:
    """The reason for the factor T^2: at high T the gradient tends to that of a squared error."""
    x, _, y = batch()
    sizes = []
    for t in (20.0, 200.0):
        made = recipe(loss="clean", distillation=Distillation(weight=1e4, temperature=t))
        objective, student, teacher = pieces(made)
        logits = student(x).detach().requires_grad_()
        loss, _ = objective(lambda *b, z=logits: (z,), x, x, y)
        (gradient,) = torch.autograd.grad(loss, logits)
        difference = logits - teacher(x)
        squared = (difference - difference.mean(1, keepdim=True)) / (4 * len(x))
        sizes.append(((gradient / 1e4 - squared).norm() / squared.norm()).item())
    assert sizes[1] < 0.02


def test_an_oracle_asks_once_for_a_batch() -> None:
    teacher, calls = network().eval(), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    oracle, (x, x_adv, _) = Oracle(teacher), batch()
    first = oracle(x)
    assert torch.equal(first, oracle(x))
    assert not first.requires_grad
    assert len(calls) == 1
    assert not torch.equal(oracle(x_adv), first)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["rslad", "ard", "madry"])
def test_the_teacher_is_left_alone(name: str) -> None:
    teacher = network(9)
    teacher[1].eval()  # its flags are its owner's
    teacher[0].weight.requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    flags = [m.training for m in teacher.modules()]
    needs = [p.requires_grad for p in teacher.parameters()]
    seen: list[bool] = []
    teacher[3].register_forward_hook(lambda m, *_: seen.append(m.training))
    student = network()
    made = recipe(loss=name, distillation=Distillation(), clean_epochs=1)
    result = train(student, splits(), made, THREAT, teacher=teacher)
    assert len(result.history) == 2
    assert seen
    assert not any(seen)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert [m.training for m in teacher.modules()] == flags
    assert [p.requires_grad for p in teacher.parameters()] == needs
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    teacher, student, (x, _, _) = network(9).eval(), network(), batch()
    with torch.no_grad():
        teacher[4].weight *= 15  # it has opinions
    before = kl(teacher(x), student.eval()(x))
    train(student, splits(), recipe(loss="rslad", epochs=8), THREAT, teacher=teacher)
    assert kl(teacher(x), student(x)) < 0.5 * before


def test_clean_epochs_have_the_term_too() -> None:
    made = recipe(clean_epochs=1, distillation=Distillation())
    loss = clean_loss(made, Oracle(network(9).eval()))
    assert type(loss).__name__ == "Distilled"


@pytest.mark.parametrize(
    ("changes", "teacher", "says"),
    [
        ({"loss": "rslad"}, None, "loss: 'rslad' is not allowed without a teacher"),
        ({"distillation": Distillation()}, None, "distillation is not allowed without a teacher"),
        ({"loss": "ard"}, network(1, 7), "the teacher knows 7 classes and the network 4"),
    ],
)
def test_refusals_before_any_work(changes: dict, teacher: nn.Module | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        train(network(), splits(), recipe(**changes), THREAT, teacher=teacher)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distillation": Distillation(), "replays": 2, "attack": TrainAttack(1)}, "with replays"),
        ({"loss": "ard", "distillation": Distillation(weight=2)}, "at most 1 is"),
        ({"loss": "rslad", "label_smoothing": 0.1}, "it uses no labels"),
        ({"label_smoothing": 1}, "a share < 1 is"),
        ({"loss": "fast"}, "attack.steps: 10 is not allowed with loss 'fast'; 1 is"),
    ],
)
def test_impossible_recipes(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Recipe(**settings)


def test_a_folder_belongs_to_one_teacher(tmp_path: Path) -> None:
    made = recipe(distillation=Distillation(), epochs=1)
    teacher = network(9)
    first = train(network(), splits(), made, THREAT, folder=tmp_path, teacher=teacher)
    again = train(network(), splits(), made, THREAT, folder=tmp_path, teacher=teacher)
    assert again.history == first.history
    with pytest.raises(UserError, match="holds another training: teacher was"):
        train(network(), splits(), made, THREAT, folder=tmp_path, teacher=network(10))


def test_label_smoothing_is_that_of_the_formula() -> None:
    student, (x, x_adv, y) = network().eval(), batch()
    for name in ("clean", "madry", "trades"):
        loss, _ = build_loss(recipe(loss=name, beta=0.0, label_smoothing=0.2), THREAT)(
            lambda *b: tuple(map(student, b)), x, x_adv, y
        )
        logs = student(x if name == "trades" else x_adv).log_softmax(1)
        expected = -(0.8 * logs[torch.arange(8), y] + 0.2 * logs.mean(1)).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
