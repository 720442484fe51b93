"""The cross-layer term with every loss: right value, one teacher pass, no hooks in attacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.data import load_dataset
from nni_robust.distillation import (
    CrossLayerTerm,
    MapConfig,
    attention_map,
    distances,
    find_taps,
)
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, train
from nni_robust.training.losses import build_loss

THREAT = ThreatModel(norm="linf", eps=0.1)


def network(seed: int, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    convs: list[nn.Module] = []
    for k in range(layers):
        convs += [nn.Conv2d(3 if k == 0 else 4, 4, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def frozen(seed: int) -> nn.Module:
    return network(seed, 5).eval().requires_grad_(False)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(9)
    return torch.rand(6, 3, 8, 8), torch.arange(6)


def maps_of(model: nn.Sequential, x: torch.Tensor, size: int = 6) -> torch.Tensor:
    """Maps by hand, without hooks."""
    found = []
    for part in model:
        x = part(x)
        if isinstance(part, nn.Conv2d):
            found.append(attention_map(x.clone(), MapConfig(size=size)))
    return torch.stack(found)


@pytest.mark.parametrize("loss", ["clean", "madry", "trades", "mart", "rslad"])
def test_adds_gamma_times_the_distance(loss: str) -> None:
    student, teacher, (x, y) = network(0), frozen(1), batch()
    plain = build_loss(Recipe(loss=loss), THREAT, teacher)
    term = CrossLayerTerm(mapping="proportional", gamma=7.0, maps={"size": 6})
    wrapped = term(plain, student, teacher)
    x_adv = wrapped.perturb(student, x, y, 3)
    assert torch.equal(x_adv, plain.perturb(student, x, y, 3))
    forward = lambda *b: tuple(student(v) for v in b)  # noqa: E731
    value, logits = wrapped(forward, x, x_adv, y)
    base, base_logits = plain(forward, x, x_adv, y)
    # Madry looks at the attacked pictures only, so these are what the student shows.
    shown = x_adv if loss == "madry" else x
    matrix = distances(maps_of(student, shown), maps_of(teacher, x))
    expected = torch.stack([matrix[0, 0], matrix[1, 2], matrix[2, 4]]).mean()
    assert float((value - base).detach()) == pytest.approx(7 * float(expected), rel=1e-4)
    assert torch.equal(logits, base_logits)
    value.backward()
    assert student[0].weight.grad is not None
    hooks = [m._forward_hooks for net in (student, teacher) for m in net.modules()]
    assert not any(hooks)


def test_maps_of_attacked_pictures_on_request() -> None:
    student, teacher, (x, y) = network(0), frozen(1), batch()
    plain = build_loss(Recipe(loss="trades"), THREAT)
    term = CrossLayerTerm(mapping="last", gamma=1.0, maps={"size": 6}, pictures="attacked")
    x_adv = (x + 0.1).clamp(0, 1)
    forward = lambda *b: tuple(student(v) for v in b)  # noqa: E731
    value, _ = term(plain, student, teacher)(forward, x, x_adv, y)
    matrix = distances(maps_of(student, x_adv), maps_of(teacher, x))
    base, _ = plain(forward, x, x_adv, y)
    assert float(value - base) == pytest.approx(float(matrix[-1, -1]), rel=1e-3)


def test_average_is_the_mean_over_all_pairs() -> None:
    student, teacher, (x, y) = network(0), frozen(1), batch()
    term = CrossLayerTerm(mapping="average", gamma=1.0, maps={"size": 6})
    forward = lambda *b: tuple(student(v) for v in b)  # noqa: E731
    plain = build_loss(Recipe(loss="clean"), THREAT)
    value, _ = term(plain, student, teacher)(forward, x, x, y)
    base, _ = plain(forward, x, x, y)
    matrix = distances(maps_of(student, x), maps_of(teacher, x))
    assert float(value - base) == pytest.approx(float(matrix.mean()), rel=1e-3)


def test_the_teacher_sees_each_batch_once() -> None:
    """RSLAD's loss asks it too; its answer serves both."""
    student, teacher, (x, y) = network(0), frozen(1), batch()
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    plain = build_loss(Recipe(loss="rslad"), THREAT, teacher)
    wrapped = CrossLayerTerm(maps={"size": 6})(plain, student, teacher)
    forward = lambda *b: tuple(student(v) for v in b)  # noqa: E731
    wrapped(forward, x, x, y)
    calls.clear()
    wrapped(forward, x, x, y)
    alone: list[int] = []
    teacher.register_forward_hook(lambda *_: alone.append(1))
    plain(forward, x, x, y)
    assert len(calls) - len(alone) == max(1, len(alone))


def test_searched_pairs_and_names_that_are_gone() -> None:
    student, teacher = network(0), frozen(1)
    names = [p.name for p in find_taps(teacher)]
    pairs = [["0", names[3]], ["2", names[1]], ["4", names[1]]]
    found = CrossLayerTerm(mapping="searched", pairs=pairs).resolve(student, [teacher], (3, 8, 8))
    assert [p.name for p in found.students] == ["0", "2", "4"]
    assert [p.name for p in found.teachers[0]] == [names[1], names[3]]
    third = 1 / 3
    torch.testing.assert_close(found.weights, torch.tensor([[0, third], [third, 0], [third, 0]]))
    renamed = [[f"old{k}", pair[1]] for k, pair in enumerate(pairs)]
    again = CrossLayerTerm(mapping="searched", pairs=renamed)
    torch.testing.assert_close(again.resolve(student, [teacher], (3, 8, 8)).weights, found.weights)
    with pytest.raises(UserError, match="teacher 0 has no layer 'x'"):
        CrossLayerTerm(mapping="searched", pairs=[["0", "x"]]).resolve(
            student, [teacher], (3, 8, 8)
        )


def test_training_with_it_brings_the_maps_together() -> None:
    data = load_dataset("digits", train_limit=256)
    teacher = frozen(1)
    x = next(data.validation.batches(64))[0]
    recipe = Recipe(loss="clean", epochs=6, batch_size=32, lr=0.02, validation_attack=None)

    def distance(gamma: float) -> float:
        student = network(0)
        term = CrossLayerTerm(mapping="proportional", gamma=gamma, maps={"size": 6})
        train(student, data, recipe, THREAT, teacher=teacher, wrap=term, validate=False)
        with torch.no_grad():
            matrix = distances(maps_of(student, x), maps_of(teacher, x))
        return float(matrix[0, 0] + matrix[1, 2] + matrix[2, 4])

    assert distance(30.0) < 0.7 * distance(0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mapping": "proportionl"}, "did you mean 'proportional'"),
        ({"mapping": "searched"}, "needs pairs"),
        ({"gamma": -1.0}, "gamma"),
        ({"pictures": "adversarial"}, "allowed: clean, attacked"),
        ({"maps": {"siz": 3}}, "did you mean 'size'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CrossLayerTerm(**settings)


def test_no_teacher_is_a_sentence_and_none_is_no_term() -> None:
    plain = build_loss(Recipe(loss="clean"), THREAT)
    with pytest.raises(UserError, match=r"task\.teacher"):
        CrossLayerTerm()(plain, network(0))
    assert CrossLayerTerm(mapping="none")(plain, network(0)) is plain
