"""Learning-rate schedules against closed forms, torch's schedulers and the RobNet repository."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_robust.training import Recipe
from nni_robust.training.schedules import SCHEDULES, Schedule


def torch_rates(make, epochs: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_robnet_repository():
    # Printed by running its code: lr 1.2, 170 epochs.
    recipe = Recipe(
        epochs=170,
        lr=1.2,
        schedule="cosine",
        warmup_epochs=20,
        warmup_lr=0.02,
        min_lr=0.001,
        schedule_unit="epoch",
    )
    for epoch, rate in {0: 0.02, 10: 0.61, 20: 1.2, 95: 0.6005, 169: 0.00113}.items():
        for step in (0, 6):
            assert recipe.learning_rate(epoch * 7 + step, 7) == pytest.approx(rate, abs=5e-6)


def test_cosine_equals_torch():
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.01), 30, 0.4
    )
    schedule = Schedule("cosine", lr=0.4, epochs=30, min_lr=0.01)
    assert [schedule(e) for e in range(30)] == pytest.approx(theirs, rel=1e-9)


def test_step_equals_torch():
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [100, 150], gamma=0.1), 200, 0.1
    )
    schedule = Schedule("step", lr=0.1, epochs=200, milestones=(100, 150))
    assert [schedule(e) for e in range(200)] == pytest.approx(theirs, rel=1e-9)


def test_linear_equals_torch():
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=50), 50, 0.3
    )
    schedule = Schedule("linear", lr=0.3, epochs=50)
    assert [schedule(e) for e in range(50)] == pytest.approx(theirs, rel=1e-6)


def test_cyclic_is_the_triangle_of_fast_adversarial_training():
    schedule = Schedule("cyclic", lr=0.2, epochs=30)
    epochs = np.linspace(0, 30, 121)
    theirs = np.interp(epochs, [0, 30 * 2 / 5, 30], [0, 0.2, 0])
    assert [schedule(e) for e in epochs] == pytest.approx(theirs.tolist(), abs=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_warmup_rises_linearly_into_every_schedule(name):
    schedule = Schedule(
        name, lr=1.0, epochs=10, warmup_epochs=4, warmup_lr=0.2, milestones=(6, 8), gamma=0.5
    )
    assert [schedule(e) for e in (0, 1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    after = {
        "constant": [1, 1, 1, 1],
        "cosine": [1, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2, 0],
        "linear": [1, 2 / 3, 1 / 3, 0],
        "cyclic": [0, 5 / 6, 5 / 9, 0],
        "step": [1, 0.5, 0.25, 0.25],
    }
    assert [schedule(e) for e in (4, 6, 8, 10)] == pytest.approx(after[name], abs=1e-12)


def test_rate_changes_with_every_step_or_every_epoch():
    steps = Recipe(epochs=2, lr=1.0, schedule="linear")
    assert [steps.learning_rate(s, 4) for s in range(8)] == pytest.approx(
        [1 - s / 8 for s in range(8)]
    )
    epochs = Recipe(epochs=2, lr=1.0, schedule="linear", schedule_unit="epoch")
    assert [epochs.learning_rate(s, 4) for s in range(8)] == [1.0] * 4 + [0.5] * 4


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 1),
    st.floats(1e-3, 10),
    st.floats(0, 1),
    st.integers(0, 9),
)
def test_rates_stay_between_lowest_and_highest(name, share, lr, low, warmup):
    schedule = Schedule(
        name,
        lr=lr,
        epochs=10,
        min_lr=low * lr,
        warmup_lr=low * lr,
        warmup_epochs=warmup,
        milestones=(3, 7),
    )
    assert low * lr * (1 - 1e-9) <= schedule(10 * share) <= lr * (1 + 1e-9)
