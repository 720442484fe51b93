"""The search: disjoint pictures, one draw for all, exact resume, cost that counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.config import as_mapping, parse
from nni_robust.data import load_dataset
from nni_robust.distillation import SearchSettings, Unrelaxed, search_tutors, split_pictures
from nni_robust.errors import UserError
from nni_robust.relaxation import relax
from nni_robust.search_spaces import InvertedResidualSpace, WideResNetSpace
from nni_robust.threat import ThreatModel

THREAT = ThreatModel(norm="linf", eps=0.1)
WIDTHS = [8, 6, 4]


def settings(**changes: Any) -> SearchSettings:
    weights = {"epochs": 2, "batch_size": 32, "lr": 0.05, **changes.pop("weights", {})}
    return parse(
        SearchSettings, {"weights": weights, "maps": {"size": 8}, **changes}, "strategy.search"
    )


def data() -> Any:
    return load_dataset("digits", train_limit=160)


def space() -> Any:
    torch.manual_seed(0)
    stages = [{"blocks": 1, "widths": WIDTHS}, {"blocks": 1, "widths": WIDTHS, "stride": 2}]
    return InvertedResidualSpace(
        preset=None, stages=stages, stem_channels=4, stem_stride=1, bn_momentum=0.1
    )


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return WideResNetSpace(depths=1, widths=1).eval()


def run(given: SearchSettings, **changes: Any) -> Any:
    return search_tutors(relax(space()), [teacher()], data(), given, THREAT, **changes)


def test_no_picture_is_in_both_parts() -> None:
    pictures = load_dataset("digits").train
    first, second = split_pictures(pictures, 0.2, seed=3)
    assert len(first) + len(second) == len(pictures)
    assert len(second) == round(0.2 * len(pictures))
    rows = [
        {x.numpy().tobytes() for x in next(part.batches(len(part)))[0]} for part in (first, second)
    ]
    assert not rows[0] & rows[1]
    again = split_pictures(pictures, 0.2, seed=3)[1]
    assert torch.equal(next(again.batches(9))[0], next(second.batches(9))[0])
    with pytest.raises(UserError, match="leaves a part empty"):
        split_pictures(pictures.head(3), 0.01, seed=0)


def test_only_training_pictures_are_shown() -> None:
    """The test split is not even read, and validation pictures are not shown."""
    splits = data()
    seen: set[bytes] = set()
    relaxed = relax(space())
    relaxed.network.register_forward_pre_hook(
        lambda _, inputs: seen.update(x.numpy().tobytes() for x in inputs[0].detach())
    )
    search_tutors(relaxed, [teacher()], splits, settings(weights={"augment": []}), THREAT)
    train = {x.numpy().tobytes() for x in next(splits.train.batches(len(splits.train)))[0]}
    empty = torch.zeros(splits.input_shape).numpy().tobytes()  # what sizes are asked with
    assert seen - {empty} <= train
    with pytest.raises(UserError, match="test"):
        splits.test  # noqa: B018


def test_search_gives_everything_and_repeats_itself() -> None:
    found = run(settings(), seed=5)
    assert set(found.sample) == {"stage1/block1/width", "stage2/block1/width"}
    assert all(value in WIDTHS for value in found.sample.values())
    assert [t["student"] for t in found.tutors] == [layer["name"] for layer in found.students]
    assert len(found.students) == 7
    assert len(found.layers) == 7
    assert [layer["side"] for layer in found.layers] == [8, 8, 8, 4, 4, 2, 2]
    assert len(found.history) == 2
    assert {"ce", "kl", "attn", "cost", "tau", "entropy_tutors", "entropy_choices"} <= set(
        found.history[0]
    )
    again = run(settings(), seed=5)
    assert _timeless(again) == _timeless(found)
    assert _timeless(run(settings(), seed=6)) != _timeless(found)


def _timeless(outcome: Any) -> dict[str, Any]:
    value = dataclasses.asdict(outcome)
    for record in value["history"]:
        del record["seconds"]
    return value


def test_resume_is_exact(tmp_path: Path) -> None:
    given = settings(weights={"epochs": 3, "loss": "madry", "attack": {"steps": 1}})
    whole = run(given, folder=tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(record: dict[str, float]) -> None:
        if record["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run(given, folder=tmp_path / "killed", on_epoch=kill)
    done: list[float] = []
    resumed = run(given, folder=tmp_path / "killed", on_epoch=lambda r: done.append(r["epoch"]))
    assert done == [3]
    assert _timeless(resumed) == _timeless(whole)
    with pytest.raises(UserError, match="holds another"):
        run(settings(gamma=1.0), folder=tmp_path / "killed")


def test_logits_do_not_touch_weights_nor_weights_logits() -> None:
    """With a rate of 0 for one group only the other moves; statistics follow the weights' part."""
    relaxed = relax(space())
    before = {name: t.clone() for name, t in relaxed.network.state_dict().items()}
    found = search_tutors(
        relaxed, [teacher()], data(), settings(weights={"lr": 1e-30, "weight_decay": 0}), THREAT
    )
    after = relaxed.network.state_dict()
    for name, tensor in before.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after[name], tensor)
    assert found.history[-1]["entropy_tutors"] < found.history[0]["entropy_tutors"] + 1e-6
    assert max(t["margin"] for t in found.tutors) > 0


def test_one_draw_serves_the_network_and_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    relaxed = relax(space())
    drawn: list[dict[str, Tensor]] = []
    counted: list[dict[str, Tensor]] = []
    set_weights, cost = relaxed.set_weights, relaxed.cost

    def note(weights: Any) -> None:
        drawn.append({label: w.detach().clone() for label, w in weights.items()})
        set_weights(weights)

    def count(weights: Any, shape: Any) -> Any:
        counted.append({label: w.detach().clone() for label, w in weights.items()})
        return cost(weights, shape)

    monkeypatch.setattr(relaxed, "set_weights", note)
    monkeypatch.setattr(relaxed, "cost", count)
    search_tutors(relaxed, [teacher()], data(), settings(weights={"epochs": 1}), THREAT)
    keys = {str({k: v.tolist() for k, v in w.items()}) for w in drawn}
    draws = [w for w in counted if str({k: v.tolist() for k, v in w.items()}) in keys]
    # All but the one even weighting, of which the default target is the cost.
    assert len(draws) == len(counted) - 1


@pytest.mark.parametrize("kind", ["additive", "fbnet"])
def test_a_strong_cost_gives_the_cheapest_network(kind: str) -> None:
    cost = {"kind": kind, "weight": 1000.0, "alpha": 50.0}
    found = run(settings(weights={"epochs": 4}, cost=cost))
    assert set(found.sample.values()) == {min(WIDTHS)}
    assert found.history[-1]["cost"] < found.history[0]["cost"]


def test_a_hinge_below_its_target_does_nothing() -> None:
    loose = run(settings(cost={"kind": "hinge", "target": "1G", "weight": 1000.0}))
    without = run(settings(cost={"kind": "none"}))
    assert loose.probabilities == without.probabilities
    assert loose.tutors == without.tutors


def test_latency_is_timed_per_value() -> None:
    found = run(settings(weights={"epochs": 1}, cost={"kind": "additive", "metric": "latency"}))
    assert found.history[0]["cost"] > 0


def test_several_teachers_share_the_choice() -> None:
    """The second teacher's layers come behind the first's; each tutor says whose it is."""
    torch.manual_seed(3)
    second = WideResNetSpace(depths=2, widths=1).eval()
    found = search_tutors(relax(space()), [teacher(), second], data(), settings(), THREAT)
    assert [layer["teacher"] for layer in found.layers] == [0] * 7 + [1] * 13
    assert all(len(row) == 20 for row in found.matrix)
    names = [{la["name"] for la in found.layers if la["teacher"] == k} for k in (0, 1)]
    assert all(t["tutor"] in names[t["teacher"]] for t in found.tutors)


def test_a_plain_network_learns_its_tutors() -> None:
    torch.manual_seed(0)
    network = WideResNetSpace(depths=1, widths=1)
    found = search_tutors(Unrelaxed(network), [teacher()], data(), settings(), THREAT)
    assert found.sample == {}
    assert len(found.tutors) == 7


def test_a_student_equal_to_its_teacher_finds_itself() -> None:
    """End to end: weights that cannot move, maps that are the teacher's; each layer's tutor is it.

    Raw convolutions before the first norm with batch statistics are equal in both networks.
    """
    network = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 10),
    )
    torch.manual_seed(4)
    for part in network[:4]:
        nn.init.normal_(part.weight)
    import copy

    found = search_tutors(
        Unrelaxed(copy.deepcopy(network)),
        [network.eval()],
        load_dataset("digits", train_limit=640),
        settings(
            share=0.5,
            weights={"epochs": 20, "lr": 1e-30, "weight_decay": 0, "batch_size": 32},
        ),
        THREAT,
    )
    assert [t["tutor"] for t in found.tutors] == [t["student"] for t in found.tutors]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"share": 1.0}, "share: 1.0 is not allowed"),
        ({"weights": {"loss": "fast"}}, "fast"),
        ({"weights": {"epochs": 0}}, "at least 1"),
        ({"cost": {"kind": "hing"}}, "strategy.search.cost.kind"),
        ({"cost": {"target": -1}}, "cost.target"),
        ({"maps": {"size": 0}}, "maps.size"),
        ({"gama": 3}, "did you mean 'gamma'"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        settings(**changes)


def test_settings_go_through_json() -> None:
    given = settings(taps="convs", cost={"target": "12M"})
    assert parse(SearchSettings, as_mapping(given), "x") == given
    assert given.weights.loss == "clean"
    assert given.cost.target == 12e6
