"""Strict settings: what is wrong is told in one sentence, with the nearest allowed name."""

from __future__ import annotations

import pytest

from nni_robust import registry
from nni_robust.config import as_mapping, parse, parse_ratio, read_yaml
from nni_robust.errors import UserError
from nni_robust.task import Task
from nni_robust.threat import ThreatModel, eps_label


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"datset": "digits"}, r"unknown key 'datset' in task; did you mean 'dataset'"),
        ({"threat": {"epss": 1}}, r"unknown key 'epss' in task\.threat; did you mean 'eps'"),
        ({"threat": {"eps": 12}}, r"threat\.eps: 12.* not allowed.*8/255"),
        ({"threat": {"eps": -1}}, r"threat\.eps: -1"),
        ({"threat": {"eps": "nan"}}, r"threat\.eps: nan"),
        ({"threat": {"eps": "much"}}, r"task\.threat\.eps: 'much' is not allowed"),
        ({"threat": {"norm": "l1"}}, r"task\.threat\.norm: 'l1' is not allowed.*linf"),
        ({"validation": "some"}, r"task\.validation: 'some' is not allowed"),
        ("digits", r"task: expected a mapping"),
    ],
)
def test_mistakes(bad: object, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(Task, bad, "task")
    assert "\n" not in str(caught.value)


def test_round_trip_and_fractions() -> None:
    task = parse(Task, {"dataset": "cifar10", "threat": {"norm": "l2", "eps": "1/2"}}, "task")
    assert task.threat == ThreatModel("l2", 0.5)
    assert parse(Task, as_mapping(task), "task") == task
    assert parse_ratio("8/255") == 8 / 255
    assert parse_ratio("8/0") == "8/0"


def test_eps_labels() -> None:
    assert [eps_label(e) for e in (8 / 255, 0.1, 1.0, 0.0, 0.5)] == [
        "8/255", "0.1", "255/255", "0", "0.5",
    ]  # fmt: skip


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown search space 'robnett'; did you mean 'robnet'"):
        registry.search_spaces.get("robnett")


def test_a_name_is_taken_once() -> None:
    own = registry.Registry("thing", "nni_robust.no_such_group")
    own.register("a")(int)
    assert own.get("a") is int
    assert "a" in own
    assert "b" not in own
    with pytest.raises(ValueError, match="registered twice"):
        own.register("a")(float)


def test_only_nnis_own_strategies_are_known_to_ignore_other_arguments() -> None:
    """Which arguments have an effect is NNI's to say: it takes others without a word."""
    from nni.nas.strategy import GridSearch, Random, RegularizedEvolution

    class Mine(Random):  # type: ignore[misc]
        def __init__(self, **kwargs: object) -> None:
            super().__init__(**kwargs)

    for cls in (Random, RegularizedEvolution):
        allowed = registry.constructor_arguments(cls)
        assert allowed is not None
        plain = vars(cls(seed=1))
        assert vars(cls(seed=1, nonsense=3)).keys() == plain.keys()  # NNI drops it
        assert "nonsense" not in allowed
    assert registry.constructor_arguments(Random) == ["dedup", "seed"]
    assert registry.constructor_arguments(GridSearch) == ["shuffle", "seed", "dedup"]
    assert registry.constructor_arguments(Mine) is None  # its arguments may be for anything


@pytest.mark.parametrize(
    ("text", "says"), [("[1, 2]", "mapping"), ("a: [", "not valid YAML"), (None, "no file")]
)
def test_yaml_mistakes(tmp_path, text: str | None, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_yaml(path)
