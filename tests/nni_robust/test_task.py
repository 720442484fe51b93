"""Tasks: budgets, quantities with units, and their way to a trial and back."""

from __future__ import annotations

import pytest

from nni_robust.config import as_mapping, parse, parse_quantity
from nni_robust.cost import Cost
from nni_robust.errors import UserError
from nni_robust.task import Budget, Task


@pytest.mark.parametrize(
    ("text", "value"), [("5G", 5e9), ("19.2 M", 19.2e6), ("300k", 3e5), ("1e6", 1e6), (7, 7)]
)
def test_quantities_may_have_a_unit(text, value):
    assert parse_quantity(text) == pytest.approx(value)


def test_a_budget_keeps_its_tolerance_and_no_more():
    budget = parse(Budget, {"macs": "5G", "params": "20M", "tolerance": 0.1}, "budget")
    assert budget.allows(Cost(params=22_000_000, macs=5_499_999_999))
    assert not budget.allows(Cost(params=1, macs=5_500_000_001))
    assert not budget.allows(Cost(params=22_000_001, macs=1))
    assert budget.excess(Cost(params=10_000_000, macs=5_000_000_000)) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "at least one of macs and params"),
        ({"macs": -1}, "budget.macs: -1"),
        ({"macs": "many"}, "budget.macs: 'many' is not allowed"),
        ({"macs": "5G", "tolerance": -0.1}, "budget.tolerance: -0.1"),
        ({"mac": "5G"}, "did you mean 'macs'"),
    ],
)
def test_a_wrong_budget_is_told_in_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(Budget, settings, "budget")


def test_a_task_travels_as_plain_values():
    task = parse(
        Task,
        {
            "attack": {"name": "pgd", "steps": 20},
            "teacher": {"architecture": "wrn-28-10", "train": {"epochs": 2}},
            "budget": {"macs": "5G"},
            "threat": {"eps": "8/255"},
        },
        "task",
    )
    assert parse(Task, as_mapping(task), "task") == task
    assert task.budget == Budget(macs=5e9)
