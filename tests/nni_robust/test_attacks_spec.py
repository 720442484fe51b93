"""Names and mappings that stand for attacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nni_robust
from nni_robust import registry
from nni_robust.attacks import Attack, attack, attack_from_spec, list_attacks
from nni_robust.attacks.gradient import FGSM, MIFGSM, PGD
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel

THREAT = ThreatModel("linf", 4 / 255)


@pytest.mark.parametrize(
    ("spec", "kind", "label", "settings"),
    [
        ("fgsm", FGSM, "fgsm", {"steps": 1, "random_start": False, "momentum": 0}),
        ("pgd", PGD, "pgd10", {"steps": 10, "random_start": True, "momentum": 0}),
        ("pgd20", PGD, "pgd20", {"steps": 20}),
        ("pgd-20", PGD, "pgd20", {"steps": 20}),
        ("mi-fgsm", MIFGSM, "mi-fgsm10", {"steps": 10, "momentum": 1, "random_start": False}),
        ("mi-fgsm7", MIFGSM, "mi-fgsm7", {"steps": 7}),
        ("mi-fgsm-7", MIFGSM, "mi-fgsm7", {"steps": 7}),
        (
            {"name": "pgd", "steps": 20, "step_size": "2/255", "restarts": 5},
            PGD,
            "pgd20x5",
            {"step_size": 2 / 255, "restarts": 5},
        ),
        ({"name": "pgd20", "loss": "dlr"}, PGD, "pgd20-dlr", {"steps": 20, "loss": "dlr"}),
        ({"name": "pgd", "targeted": True}, PGD, "pgd10-targeted", {"targeted": True}),
        ({"name": "pgd", "label": "strong"}, PGD, "strong", {}),
        ({"name": "fgsm", "random_start": True}, FGSM, "fgsm", {"random_start": True}),
    ],
)
def test_specs(spec: Any, kind: type, label: str, settings: dict[str, Any]) -> None:
    made = attack_from_spec(spec, THREAT)
    assert type(made) is kind
    assert made.label == label
    assert made.threat == THREAT
    for key, value in settings.items():
        assert getattr(made.settings, key) == pytest.approx(value), key


def test_step_sizes() -> None:
    assert attack_from_spec("fgsm", THREAT).step_size == THREAT.eps
    for name in ("pgd20", "mi-fgsm"):
        assert attack_from_spec(name, THREAT).step_size == THREAT.eps / 4


def test_mapping_may_replace_the_threat() -> None:
    made = attack_from_spec({"name": "pgd20", "eps": "16/255", "norm": "linf"}, THREAT)
    assert made.key == "pgd20@16/255"
    assert attack_from_spec({"name": "pgd20", "eps": 0.5, "norm": "l2"}, THREAT).key == (
        "pgd20-l2@0.5"
    )


def test_attacks_pass_through() -> None:
    made = attack("pgd20", eps=0.1)
    assert attack_from_spec(made, THREAT) is made


def test_early_exit_keeps_everything_else() -> None:
    made = attack("pgd20", restarts=3, label="mine", step_size=0.01)
    early = made.with_early_exit()
    assert isinstance(early, PGD)
    assert early.settings.early_stop
    assert (early.label, early.threat, early.settings.restarts) == ("mine", made.threat, 3)
    for unchanged in (attack("fgsm"), attack("pgd", bn_mode="train"), attack("autoattack")):
        assert unchanged.with_early_exit() is unchanged


def test_public_names() -> None:
    assert nni_robust.attack is attack
    assert {"fgsm", "pgd", "mi-fgsm", "torchattacks", "autoattack"} <= set(list_attacks())
    made = nni_robust.attack(
        "pgd", eps=8 / 255, step_size=2 / 255, steps=3, random_start=True, restarts=1
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(2, 3, 2, 2)
    assert made(model, x, torch.tensor([0, 1])).shape == x.shape
    assert repr(made) == "PGD(pgd3@8/255)"


class Entry:
    """What importlib.metadata gives for a third party's entry point."""

    def __init__(self, name: str, target: object) -> None:
        self.name, self.value, self._target = name, "somewhere:thing", target

    def load(self) -> object:
        return self._target


class Clean(Attack):
    """A third party's attack."""

    def __init__(self, threat: ThreatModel, strength: int = 1) -> None:
        super().__init__(threat, f"clean{strength}")

    def _run(self, victim: Any, y: Any, ball: Any, noise: Any) -> Any:
        return ball.x


def test_third_party_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("clean", Clean), Entry("no-attack", str), Entry("pgd99", Clean)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    assert attack("clean", strength=3).label == "clean3"
    assert isinstance(attack("pgd99"), Clean)  # an exact name comes before the short form
    with pytest.raises(UserError, match="gives a str"):
        attack("no-attack")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pdg20", "unknown attack 'pdg20'.*did you mean"),
        ("pgd 20", "unknown attack"),
        ("fgsm5", "unknown key 'steps' in attack 'fgsm'"),
        ("pgd0", "steps: 0"),
        ("foolbox:PGD", "unknown attack 'foolbox:PGD'"),
        ("", "unknown attack"),
        ({"steps": 20}, "needs a name"),
        ({"name": 20}, "needs a name"),
        ({"name": "pgd20", "steps": 10}, "sets steps both"),
        ({"name": "pgd", "eps": 2}, "threat.eps: 2"),
        ({"name": "pgd", "norm": "l1"}, "threat.norm"),
        (20, "a name or a mapping"),
        (None, "a name or a mapping"),
    ],
)
def test_bad_specs(spec: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack_from_spec(spec, THREAT)


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan"), float("inf"), "a lot", None])
def test_bad_eps(eps: Any) -> None:
    with pytest.raises(UserError, match=r"threat\.eps"):
        attack("pgd", eps=eps)
