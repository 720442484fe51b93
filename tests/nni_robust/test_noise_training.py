"""Training of noise estimators: a fair memory, exact resumption, and the gate before use."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.errors import UserError
from nni_robust.noise import (
    NOISE_ATTACK,
    EstimatorRecipe,
    EstimatorTrainer,
    NoiseMemory,
    choose_estimator,
    make_estimator,
    measure_quality,
)
from nni_robust.spectrum import count_passes

SHAPE = (3, 8, 8)


def bent(n: int, seed: int) -> tuple[Tensor, dict[float, Tensor]]:
    """Pictures whose noise turns from one direction to another as it grows.

    A strong noise is the weak one moved by a pixel, which a convolution can find out.
    """
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=draw)
    sign = torch.sign(x - 0.5)
    adversarial = {}
    for eps in (0.03, 0.045, 0.06, 0.09, 0.12):
        share = eps / 0.12
        adversarial[eps] = x + eps * ((1 - share) * sign + share * sign.roll(1, -1))
    return x, adversarial


def stacked(x: Tensor, adversarial: dict[float, Tensor], keep: Any) -> Tensor:
    return torch.stack([adversarial[eps] - x for eps in keep], 1)


def test_memory_keeps_each_sample_with_one_probability() -> None:
    kept = torch.zeros(40)
    runs = 500
    for seed in range(runs):
        memory = NoiseMemory(8, seed=seed)
        for part in range(4):  # 4 batches of 5 pictures with 2 noises: 40 samples
            noises = torch.zeros(5, 2, 1, 1, 1)
            for i in range(5):
                # Each sample is known by what it shall find.
                noises[i, :, 0, 0, 0] = 1 + 2.0 * (5 * part + i) + torch.tensor([0.0, 1.0])
            assert memory.add(torch.zeros(5, 1, 1, 1), noises) == 10
        assert len(memory) == 8
        ((_, sources, noise),) = memory.batches(100, 0)
        found = noise.flatten().long() - 1
        assert len(set(found.tolist())) == 8
        # The source is the other noise of the same picture.
        assert torch.equal(sources.flatten().long() - 1, found + 1 - 2 * (found % 2))
        kept[found] += 1
    expected = runs * 8 / 40
    # 40 binomial counts: 5 standard deviations.
    assert (kept - expected).abs().max() < 5 * (expected * 0.8) ** 0.5


def test_memory_leaves_out_what_has_no_direction() -> None:
    memory = NoiseMemory(50)
    x, adversarial = bent(4, 0)
    noises = stacked(x, adversarial, (0.03, 0.06, 0.09))
    noises[1, 2] = 0
    noises[2, 0, 0, 0, 0] = torch.nan
    assert memory.add(x, noises) == 6
    assert len(memory) == 6
    with pytest.raises(UserError, match="another number"):
        memory.add(x, stacked(x, adversarial, (0.03, 0.06)))
    with pytest.raises(UserError, match="K >= 2"):
        memory.add(x, noises[:, :1])
    memory.clear()
    assert len(memory) == 0
    assert memory.add(x, stacked(x, adversarial, (0.03, 0.06))) == 8


def trainer(name: str = "basic", **changes: Any) -> EstimatorTrainer:
    settings = {"memory": 300, "steps": 300, "warmup": 5, "lr": 2e-3, **changes}
    small = {"basic": {"hidden": 8}, "plus": {"hidden": 8, "key_size": 6}}.get(name, {})
    return EstimatorTrainer(make_estimator(name, SHAPE, **small), settings, seed=3)


@pytest.mark.parametrize(("name", "share"), [("basic", 0.7), ("plus", 1.0)])
def test_learns_what_interpolation_cannot(name: str, share: float) -> None:
    """Beyond the strongest source this noise turns on; its neighbour does not know that."""
    made = trainer(name, lr=5e-3, steps=200)
    known = (0.03, 0.06, 0.09, 0.12)
    x, adversarial = bent(40, 1)
    made.memory.add(x, stacked(x, adversarial, known))
    losses = made.train(30)
    assert losses[-1] < 0.75 * losses[0]
    x, adversarial = bent(40, 2)
    held = {eps: adversarial[eps] for eps in (0.03, 0.06, 0.09, 0.12)}
    choice = choose_estimator(made.estimator, x, held, (0.12,))
    assert not choice.fell_back
    assert choice.estimator is made.estimator
    assert choice.quality.error[0.12] < share * choice.baseline_quality.error[0.12]
    assert choice.quality.cosine[0.12] > choice.baseline_quality.cosine[0.12]
    plain = measure_quality(make_estimator("interpolate", SHAPE), x, held, (0.12,))
    assert choice.quality.mean_error < plain.mean_error


def test_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    x, adversarial = bent(20, 4)
    ruined = make_estimator("basic", SHAPE)
    with torch.no_grad():
        ruined.values[2].bias.fill_(1.0)  # type: ignore[index, union-attr]
    with caplog.at_level(logging.WARNING):
        choice = choose_estimator(ruined, x, adversarial, (0.045, 0.12))
    assert choice.fell_back
    assert choice.estimator.name == "scale"
    assert "'scale' is used" in caplog.text
    record = choice.record()
    assert record["estimator"] == "scale"
    assert record["own_error"]["0.045"] > record["baseline_error"]["0.045"]
    for p in ruined.parameters():
        p.data.fill_(torch.nan)
    assert choose_estimator(ruined, x, adversarial, (0.045,)).fell_back
    same = choose_estimator(make_estimator("scale", SHAPE), x, adversarial, (0.045,))
    assert not same.fell_back


def test_quality_against_plain_loops() -> None:
    x, adversarial = bent(6, 5)
    adversarial[0.045][0] = x[0]  # no noise: nothing to compare
    estimator = make_estimator("interpolate", SHAPE)
    quality = measure_quality(estimator, x, adversarial, (0.045,), clamp=False)
    errors, cosines = [], []
    for i in range(1, 6):
        real = (adversarial[0.045] - x)[i].flatten()
        others = {e: (a - x)[i] for e, a in adversarial.items() if e != 0.045}
        a, b = others[0.03].flatten(), others[0.06].flatten()
        target = (a.norm() + b.norm()) / 2
        w = float((b.norm() - target) / (b.norm() - a.norm()))
        found = w * a / a.norm() + (1 - w) * b / b.norm()
        found = found / found.norm() * target
        errors.append(float((found - real).norm() / real.norm()))
        cosines.append(float(torch.cosine_similarity(found, real, 0)))
    assert quality.error[0.045] == pytest.approx(sum(errors) / 5, rel=1e-4)
    assert quality.cosine[0.045] == pytest.approx(sum(cosines) / 5, rel=1e-4)
    with pytest.raises(UserError, match="wanted"):
        measure_quality(estimator, x, adversarial, (0.5,))


@pytest.mark.parametrize("name", ["basic", "plus"])
def test_resumes_exactly_from_plain_tensors(name: str) -> None:
    x, adversarial = bent(40, 6)
    noises = stacked(x, adversarial, (0.03, 0.06, 0.09))
    straight = trainer(name, memory=90)
    straight.memory.add(x[:20], noises[:20])
    straight.train(2)
    kept = load(save(straight.state_dict()))  # what a safetensors file gives back
    again = trainer(name, memory=90)
    again.load_state_dict(kept)
    for one in (straight, again):
        one.memory.add(x[20:], noises[20:])
        one.train(2)
    first, second = straight.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert int(first["counts"][1]) == 4


def test_refill_attacks_the_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(4 * 36, 5))
    x, y = torch.rand(12, *SHAPE), torch.arange(12) % 5
    made = trainer()
    before = [v.clone() for v in model.state_dict().values()]
    with count_passes(model) as passes:
        counted = made.refill(model, [(x[:8], y[:8]), (x[8:], y[8:])], (0.03, 0.06, 0.09))
    # Seven steps for each of four strengths.
    assert counted == passes.backward == 12 * 28
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    ((_, sources, noise),) = made.memory.batches(100, 0)
    assert len(noise) == 12 * 4
    assert sources.shape == (48, 3, *SHAPE)
    # The noises are those of the attack.
    real = attack("pgd7", eps=0.06, step_size=0.06 * 2.5 / 7, random_start=False)(model, x, y) - x
    reach = noise.flatten(1).abs().amax(1)
    at = reach.sub(0.06).abs() < 1e-6
    assert at.sum() == 12
    near = torch.cdist(noise[at].flatten(1), real.flatten(1)).min(1).values
    assert (near < 1e-5).float().mean() > 0.9
    first = noise.clone()
    made.refill(model, [(x, y)], (0.03, 0.06, 0.09))
    ((_, _, noise),) = made.memory.batches(100, 0)
    assert len(noise) == 48
    assert not torch.equal(noise, first)
    assert NOISE_ATTACK["steps"] == 7

    idle = trainer("scale")
    assert idle.refill(model, [(x, y)], (0.03, 0.06)) == 0
    assert idle.epoch() is None
    assert idle.train(3) == []


def test_learning_rate() -> None:
    recipe = EstimatorRecipe(lr=1.0, warmup=4, steps=104)
    assert [recipe.rate(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert recipe.rate(54) == pytest.approx(0.5)
    assert recipe.rate(104) == recipe.rate(9999) == 0.01


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"warmup": 9000}, "warmup: 9000"),
        ({"lr": -1}, "lr: -1"),
        ({"random_eps": 0}, "random_eps: 0"),
        ({"memry": 3}, "unknown key 'memry'"),
    ],
)
def test_bad_recipe(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EstimatorTrainer(make_estimator("basic", SHAPE), settings)
