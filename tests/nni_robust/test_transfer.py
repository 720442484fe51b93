"""Transfer tables against plain loops, against evaluate, and on linear networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.attacks import NonFiniteOutput, attack
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel
from nni_robust.transfer import transfer_table

THREAT = ThreatModel(eps=0.02)
PGD = {"name": "pgd", "steps": 5}


def net(seed: int, width: int = 6) -> Any:
    torch.manual_seed(seed)
    model: Any = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(width * 64, 4),
    ).double()
    with torch.no_grad():  # centred and spread logits: all classes occur
        last = model[-1]
        last.bias -= model.eval()(torch.rand(64, 3, 8, 8, dtype=torch.float64)).mean(0)
        last.weight *= 20
        last.bias *= 20
    return model.train()


def labelled(*models: nn.Module, n: int = 40) -> tuple[Tensor, Tensor]:
    """Pictures of which each network gets about as many right as any other."""
    torch.manual_seed(9)
    x = torch.rand(n, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        y = torch.stack([m.eval()(x).argmax(1) for m in models])
    for model in models:
        model.train()
    return x, y[torch.arange(n) % len(models), torch.arange(n)]


def state(model: nn.Module) -> list[Any]:
    return [
        *(m.training for m in model.modules()),
        *((p.requires_grad, p.grad) for p in model.parameters()),
        *(v.numpy().tobytes() for v in model.state_dict().values()),
    ]


def test_equals_a_plain_loop_and_leaves_the_networks_alone() -> None:
    models = {"a": net(0), "b": net(1), "c": net(2, width=4)}
    x, y = labelled(*models.values())
    before = [state(m) for m in models.values()]
    sources = {name: models[name] for name in "ab"}
    table = transfer_table(sources, models, (x, y), PGD, threat=THREAT, seed=3, batch_size=16)
    assert [state(m) for m in models.values()] == before
    assert (table.attack, table.n) == ("pgd5@0.02", 40)
    assert list(table.accuracy) == ["a", "b", "c"]
    for model in models.values():
        model.eval()
    for source, attacked in sources.items():
        adv = attack("pgd", eps=0.02, steps=5)(attacked, x, y, seed=3)
        for target, model in models.items():
            with torch.no_grad():
                right = model(x).argmax(1) == y
                still = right & (model(adv).argmax(1) == y)
            assert table.clean[target] == right.double().mean()
            assert table.accuracy[target][source] == pytest.approx(still.double().mean())
    own, other = table.accuracy["a"]["a"], table.accuracy["a"]["b"]
    assert own < other <= table.clean["a"]


def test_the_diagonal_is_the_white_box_attack() -> None:
    models = {"a": net(0), "b": net(1)}
    data = labelled(*models.values())
    table = transfer_table(models, models, data, PGD, threat=THREAT, seed=5)
    for name, model in models.items():
        found = evaluate(model, data, [{**PGD, "early_stop": False}], threat=THREAT, seed=5)
        assert table.accuracy[name][name] == found.attacks["pgd5@0.02"].accuracy
        assert table.clean[name] == found.clean


def test_identical_copies_have_identical_rows_and_columns() -> None:
    a, b = net(0), net(1)
    models = {"a": a, "copy": copy.deepcopy(a), "b": b}
    accuracy = transfer_table(models, models, labelled(a, b), PGD, threat=THREAT).accuracy
    assert accuracy["a"] == accuracy["copy"]
    for row in accuracy.values():
        assert row["a"] == row["copy"]
    assert accuracy["a"]["b"] != accuracy["a"]["a"]


def linear(scale: float) -> Any:
    """Class 0 or 1 by the mean of the first channel, against 0.5; its gradient does not turn."""
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, :4] = scale / 4
        model[1].bias.copy_(torch.tensor([0.5 * scale, 0.0]))
    return model.double()


def test_linear_networks_in_closed_form() -> None:
    """FGSM moves the mean by eps: same sign transfers wholly, another channel not at all."""
    means = torch.tensor([0.30, 0.42, 0.48, 0.52, 0.58, 0.70], dtype=torch.float64)
    x = torch.full((6, 3, 2, 2), 0.5, dtype=torch.float64)
    x[:, 0] = means.view(-1, 1, 1)
    y = (means > 0.5).long()
    other = copy.deepcopy(linear(1.0))
    with torch.no_grad():  # looks at channels 1 and 2 as well, which are all 0.5: always class 1
        other[1].weight.copy_(torch.cat([torch.zeros(2, 4), torch.ones(2, 8)], 1))
        other[1].bias.copy_(torch.tensor([-0.1, 0.0]))
        other[1].weight[0] *= 0.9
    sources = {"weak": linear(0.1), "strong": linear(3.0), "other": other}
    targets = {"strong": sources["strong"], "other": other}
    table = transfer_table(sources, targets, (x, y), "fgsm", threat={"eps": 0.1})
    assert table.clean == {"strong": 1.0, "other": 0.5}
    # Of distances 0.2, 0.08, 0.02 from the threshold, on both sides, only the first survives 0.1.
    assert table.accuracy["strong"] == {"weak": 1 / 3, "strong": 1 / 3, "other": 1.0}
    assert table.accuracy["other"]["strong"] == 0.5


def test_other_types_of_numbers_and_loaders_and_limits() -> None:
    a, b = net(0), net(1)
    x, y = labelled(a, b)
    halves = [(x[:25], y[:25]), (x[25:], y[25:])]
    calls: list[tuple[int, int | None, str]] = []
    table = transfer_table(
        {"a": a.float()},
        {"b": b},
        halves,
        PGD,
        threat=THREAT,
        limit=30,
        progress=lambda *call: calls.append(call),
    )
    assert table.n == 30
    assert table.accuracy["b"]["a"] <= table.clean["b"]
    assert calls == [(25, 30, "clean"), (25, 30, "a"), (30, 30, "clean"), (30, 30, "a")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": {}}, "sources: a mapping from at least one name"),
        ({"targets": [net(0)]}, "targets: a mapping from at least one name"),
        ({"attack": "pdg20"}, "did you mean 'pgd'"),
        ({"attack": {"name": "pgd", "targeted": True}}, "is targeted"),
        ({"data": []}, "there are no pictures"),
        ({"data": (torch.rand(2, 3, 8, 8), torch.tensor([0, 4]))}, "network has 4 classes"),
        ({"targets": {"a": "net"}}, "model must be a torch.nn.Module"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    model = net(0)
    arguments = {"sources": {"a": model}, "targets": {"a": model}, "data": labelled(model)}
    with pytest.raises(UserError, match=says):
        transfer_table(**{**arguments, **changes})


def test_a_broken_target_is_not_counted() -> None:
    broken = net(1)
    with torch.no_grad():
        broken[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput):
        transfer_table({"a": net(0)}, {"b": broken}, labelled(net(0)), PGD)
