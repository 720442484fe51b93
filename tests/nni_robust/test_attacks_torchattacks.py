"""Attacks of torchattacks under our contract, on a tiny network."""

from __future__ import annotations

import inspect
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from nni_robust.attacks import NonFiniteOutput, attack
from nni_robust.attacks.torchattacks import _SEARCHES, _WRAPPERS, TorchAttack
from nni_robust.errors import UserError

# Slow classes, made quick.
FEW = {
    "SPSA": {"nb_sample": 4},
    "EADL1": {"binary_search_steps": 1, "max_iterations": 10},
    "EADEN": {"binary_search_steps": 1, "max_iterations": 10},
    "Square": {"n_queries": 20},
    "OnePixel": {"steps": 1, "popsize": 4},
    "Pixle": {"restarts": 2, "max_iterations": 2},
    "DeepFool": {"steps": 3},
    "SparseFool": {"steps": 2},
    "JSMA": {"gamma": 0.02},
    "CW": {"steps": 10},
    "APGDT": {"steps": 5},
    "FAB": {"steps": 3},
}
# AutoAttack is slow; ours has its own tests.
CLASSES = [
    name
    for name, value in vars(torchattacks).items()
    if inspect.isclass(value) and name not in (*_WRAPPERS, "AutoAttack")
]
# In no norm that there is here.
REFUSED = ("EADL1", "JSMA", "OnePixel", "Pixle", "SparseFool")
L2 = ("CW", "DeepFool", "EADEN", "PGDL2", "PGDRSL2")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv_net(classes: int = 5) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, classes),
    ).eval()
    with torch.no_grad():  # centred and spread logits: all classes occur
        model[-1].bias -= model(torch.rand(64, 3, 8, 8)).mean(0)
        model[-1].weight *= 20
        model[-1].bias *= 20
    return model


def labelled(model: nn.Module, n: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures that the network classifies correctly."""
    x = torch.rand(n, 3, 8, 8)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in REFUSED])
def test_every_class_keeps_the_contract(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = conv_net()
    x, y = labelled(model)
    model.train()
    model[1].eval()  # a sub-module that its owner froze
    model[0].weight.requires_grad_(False)
    flags = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    norm: Any = "l2" if name in L2 else "linf"
    made = attack(f"torchattacks:{name}", eps=0.1, norm=norm, **FEW.get(name, {}))
    adv = made(model, x, y, seed=1)
    change = (adv.double() - x.double()).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= 0.1
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 6
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert capsys.readouterr().out == ""
    assert torch.equal(made(model, x, y, seed=1), adv)
    assert made.label == f"torchattacks:{name}"


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, norm) for name in ("FAB", "APGD", "APGDT") for norm in ("linf", "l2")),
        ("CW", "l2"),
        ("DeepFool", "l2"),
    ],
)
def test_breaks_a_weak_network(name: str, norm: Any) -> None:
    model = conv_net()
    x, y = labelled(model)
    eps = 0.3 if norm == "linf" else 2.0
    adv = attack(f"torchattacks:{name}", eps=eps, norm=norm)(model, x, y, seed=0)
    assert (model(adv).argmax(1) != y).float().mean() >= 0.5


def test_same_pictures_as_torchattacks_itself() -> None:
    model = conv_net()
    x, y = labelled(model)
    for name, cls, settings in (
        ("MIFGSM", torchattacks.MIFGSM, {"steps": 4, "alpha": 0.01}),
        ("DeepFool", torchattacks.DeepFool, {}),
    ):
        norm: Any = "l2" if name in L2 else "linf"
        ours = attack(f"torchattacks:{name}", eps=1, norm=norm, **settings)(model, x, y)
        own = cls(model, **({"eps": 1} if name == "MIFGSM" else {}), **settings)(x, y)
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-6)


def test_project_false_gives_back_the_clean_picture_outside_the_ball() -> None:
    model = conv_net()
    x, y = labelled(model, 12)
    free = torchattacks.DeepFool(model)(x, y)
    size = (free - x).flatten(1).norm(dim=1)
    eps = float(size.median())
    strict = attack("torchattacks:DeepFool", eps=eps, norm="l2", project=False)(model, x, y)
    moved = attack("torchattacks:DeepFool", eps=eps, norm="l2")(model, x, y)
    far = size > eps + 1e-5
    assert 0 < int(far.sum()) < 12
    assert torch.equal(strict[far], x[far])
    assert not torch.equal(moved[far], x[far])
    torch.testing.assert_close(strict[~far], free[~far], rtol=0, atol=1e-6)


def test_norms_are_those_of_the_packages_documentation() -> None:
    for name in CLASSES:
        cls = getattr(torchattacks, name)
        stated = re.search(r"Distance Measure\s*:\s*(.*)", cls.__doc__ or "")
        norms = {part.lower() for part in re.findall(r"L(?:inf|\d)", stated[1] if stated else "")}
        if "norm" in inspect.signature(cls.__init__).parameters:
            assert {"linf", "l2"} <= norms, name
        else:
            ours = _SEARCHES.get(name, "linf")
            assert ours in norms if norms else ours == "any", name


def test_steps_follow_the_radius_as_the_class_has_them() -> None:
    """At the class's own radius it runs as it comes, at others with the same share of it."""
    model = conv_net()
    x, y = labelled(model)
    for name, norm, own in (("BIM", "linf", 8 / 255), ("MIFGSM", "linf", 8 / 255)):
        cls = getattr(torchattacks, name)
        ours = attack(f"torchattacks:{name}", eps=own, norm=norm)(model, x, y)
        torch.testing.assert_close(ours, cls(model)(x, y), rtol=0, atol=1e-6)
        ours = attack(f"torchattacks:{name}", eps=0.2, norm=norm)(model, x, y)
        wide = cls(model, eps=0.2, alpha=0.05)(x, y)
        torch.testing.assert_close(ours, wide, rtol=0, atol=1e-6)
        assert float((ours - x).abs().max()) == pytest.approx(0.2, abs=1e-6)
    given = attack("torchattacks:BIM", eps=0.2, alpha=0.01, steps=3)(model, x, y)
    assert float((given - x).abs().max()) == pytest.approx(0.03, abs=1e-6)


def test_targeted() -> None:
    model = conv_net()
    x, y = labelled(model)
    target = (y + 1) % 5
    adv = attack("torchattacks:PGD", eps=0.3, steps=20, targeted=True)(model, x, target)
    assert (model(adv).argmax(1) == target).float().mean() > 0.5
    with pytest.raises(UserError, match="cannot be targeted"):
        attack("torchattacks:APGD", targeted=True)(model, x, target)


def test_generators_are_put_back_and_drive_the_attack() -> None:
    model = conv_net()
    x, y = labelled(model)
    made = attack("torchattacks:PGD", steps=1)
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    seeded = made(model, x, y, seed=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert not torch.equal(made(model, x, y, seed=2), seeded)
    first = made(model, x, y)
    assert not torch.equal(made(model, x, y), first)  # the global generator moved on
    torch.set_rng_state(states[0])
    assert torch.equal(made(model, x, y), first)


def test_number_of_classes_comes_from_the_network() -> None:
    """With torchattacks' default of 10 classes, APGDT and FAB aim at classes that do not exist."""
    model = conv_net(classes=4)
    x, y = labelled(model)
    for name in ("APGDT", "FAB"):
        attack(f"torchattacks:{name}", eps=1e-4, steps=2)(model, x, y)


def test_where_torchattacks_computes_nan_the_picture_comes_back() -> None:
    """DeepFool divides by the size of a gradient; where a network is flat, that is 0/0."""
    model = conv_net()
    x, y = labelled(model)
    bias = model[-1].bias.detach().clone()
    model[-1].weight.data.zero_()
    model[-1].bias.data.copy_(bias)
    y = model(x).argmax(1)
    assert torchattacks.DeepFool(model)(x, y).isnan().any()
    for project in (True, False):
        assert torch.equal(
            attack("torchattacks:DeepFool", norm="l2", project=project)(model, x, y), x
        )
    model[-1].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteOutput):
        attack("torchattacks:DeepFool", norm="l2")(model, x, y)


def test_network_without_parameters_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    x = torch.rand(3, 3, 8, 8)
    attack("torchattacks:PGD", steps=2)(model, x, torch.tensor([0, 1, 2]))
    assert capsys.readouterr().out == ""


# --- bad settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("torchattacks:CWW", {}, "no attack 'CWW'; did you mean 'CW'"),
        ("torchattacks", {}, "needs the name of a class"),
        ("torchattacks:LGV", {}, "no attack 'LGV'"),
        ("torchattacks:MultiAttack", {}, "no attack 'MultiAttack'"),
        ("torchattacks:CW", {}, r"works in l2, not in linf.*; give norm: l2 \(--norm l2\)$"),
        ("torchattacks:DeepFool", {}, "works in l2, not in linf.*take 'deepfool'"),
        ("torchattacks:JSMA", {}, "works in l0, not in linf.*; there is no norm l0 here"),
        ("torchattacks:EADL1", {"norm": "l2"}, "works in l1, not in l2.*; there is no norm l1"),
        ("torchattacks:CW", {"step": 3}, "unknown key 'step'.*did you mean 'steps'"),
        ("torchattacks:PGD", {"model": None}, "set by the threat model"),
        ("torchattacks:PGD", {"seed": 1}, "set by the threat model"),
        ("torchattacks:PGD", {"norm": "l2"}, "works in linf, not in l2"),
        ("torchattacks:PGDL2", {}, "works in l2, not in linf"),
        ("torchattacks:CW", {"project": "yes"}, "project"),
        ("torchattacks:CW", {"targeted": 1}, "targeted"),
    ],
)
def test_bad_settings(name: str, settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack(name, **settings)


def test_too_few_classes() -> None:
    model = conv_net(classes=3)
    x, y = labelled(model)
    for name in ("AutoAttack", "APGDT"):
        with pytest.raises(UserError, match="needs 4 classes; the network has 3"):
            attack(f"torchattacks:{name}")(model, x, y)


def test_names_ignore_case() -> None:
    made = attack("torchattacks:deepfool", norm="l2")
    assert isinstance(made, TorchAttack)
    assert made.label == "torchattacks:DeepFool"
