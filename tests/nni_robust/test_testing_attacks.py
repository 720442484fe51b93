"""The suite for attacks: ours pass it, and broken ones fail the test that is meant for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust import registry
from nni_robust.attacks import Attack, attack
from nni_robust.attacks.gradient import PGD
from nni_robust.testing import AttackConformance
from nni_robust.threat import ThreatModel

#: Name, settings, and what is not claimed: a batch does not matter, an easy network is broken.
OURS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("fgsm", {}, ""),
    ("fgsm", {"random_start": True, "targeted": True}, ""),
    ("pgd3", {}, ""),
    ("pgd2", {"restarts": 2, "loss": "dlr"}, ""),
    ("pgd3", {"early_stop": True, "channels_last": True}, ""),
    ("pgd2", {"bn_mode": "train"}, "batch"),
    ("pgd2", {"bn_mode": "train", "channels_last": True}, "batch"),
    ("mi-fgsm3", {}, ""),
    ("mi-fgsm2", {"random_start": True, "early_stop": True, "restarts": 2}, ""),
    ("cw3", {}, ""),
    ("deepfool3", {}, ""),
    ("deepfool", {}, ""),
    ("torchattacks:PGD", {"steps": 2}, "batch"),
    ("torchattacks:CW", {"steps": 2}, "batch, easy"),
    ("torchattacks:DeepFool", {"steps": 2, "project": False}, "batch"),
    ("torchattacks:FAB", {"steps": 2}, "batch"),
    ("apgd-ce5", {}, ""),
    ("apgd-ce3", {"restarts": 2, "eot": 2}, ""),
    ("apgd-dlr5", {}, ""),
    ("apgd-t3", {"targets": 2}, ""),
    ("fab-t3", {"targets": 2, "restarts": 2}, ""),
    ("square20", {}, ""),
    ("square20", {"restarts": 2, "rescale": True}, ""),
    ("autoattack3", {"targets": 2, "queries": 10}, ""),
    ("autoattack3", {"version": "rand"}, ""),
    ("autoattack-light3", {}, ""),
)


def _cases() -> list[Any]:
    return [pytest.param(case, id=str(n)) for n, case in enumerate(OURS)]


def test_every_registered_attack_is_among_them() -> None:
    names = {name.split(":")[0].rstrip("0123456789") for name, *_ in OURS}
    assert set(registry.attacks.names()) <= names


class TestOurs(AttackConformance):
    @pytest.fixture(autouse=True, params=_cases())
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.name, self.settings, unclaimed = request.param
        self.batch_independent, self.strong = "batch" not in unclaimed, "easy" not in unclaimed
        only = {"PGD": "linf", "CW": "l2", "DeepFool": "l2"}  # these classes know no other norm
        if norm := only.get(self.name.removeprefix("torchattacks:")):
            self.radii = {norm: AttackConformance.radii[norm]}

    def make_attack(self, threat: ThreatModel) -> Attack:
        return attack(self.name, eps=threat.eps, norm=threat.norm, **self.settings)


# --- broken on purpose ---------------------------------------------------------------------------


class Broken(PGD):
    """PGD, done and then spoilt."""

    def __init__(self, threat: ThreatModel, **settings: Any) -> None:
        super().__init__(threat, **{"steps": 2, **settings})

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        return self.spoil(model, x, super().__call__(model, self.taken(x), y, **options))

    def taken(self, x: Tensor) -> Tensor:
        return x

    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        return adv


class LeavesTheBall(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        return adv if self.threat.eps == 0 else x + (adv - x) * 1.01


class MovesStatistics(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        for name, buffer in model.named_buffers():
            if "num_batches_tracked" in name:
                buffer.add_(1)
        return adv


class LeavesGradients(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return adv


class SwitchesToEvaluation(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        model.eval()
        return adv


class TakesAnything(Broken):
    def taken(self, x: Tensor) -> Tensor:
        return x.nan_to_num(0.5).clamp(0, 1)


class DrawsGlobally(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        torch.rand(1)
        return adv


class HelpsTheNetwork(Broken):
    """Descends where it should ascend."""

    def __init__(self, threat: ThreatModel) -> None:
        super().__init__(threat, targeted=True)
        self.targeted = False


class DoesNothing(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        return x.detach().clone()


class WritesOnTheInput(Broken):
    def spoil(self, model: nn.Module, x: Tensor, adv: Tensor) -> Tensor:
        return adv if x.numel() == 0 or x.requires_grad else x.copy_(adv)


class Suite(AttackConformance):
    kind: type[Attack] = Broken
    # Few radii: every suite below is run in full.
    radii = {"linf": (8 / 255, 0.3), "l2": (0.5, 3.0)}  # noqa: RUF012

    def make_attack(self, threat: ThreatModel) -> Attack:
        return self.kind(threat)  # type: ignore[call-arg]


class SuiteOfLeavesTheBall(Suite):
    kind = LeavesTheBall


class SuiteOfMovesStatistics(Suite):
    kind = MovesStatistics


class SuiteOfLeavesGradients(Suite):
    kind = LeavesGradients


class SuiteOfSwitchesToEvaluation(Suite):
    kind = SwitchesToEvaluation


class SuiteOfTakesAnything(Suite):
    kind = TakesAnything


class SuiteOfDrawsGlobally(Suite):
    kind = DrawsGlobally


class SuiteOfHelpsTheNetwork(Suite):
    kind = HelpsTheNetwork
    strong = False


class SuiteOfDoesNothing(Suite):
    kind = DoesNothing


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (Suite, ""),
        (SuiteOfLeavesTheBall, "test_stays_inside_ball_and_box"),
        (SuiteOfMovesStatistics, "test_leaves_the_statistics_of_batch_norm"),
        (SuiteOfLeavesGradients, "test_leaves_the_gradients"),
        (SuiteOfSwitchesToEvaluation, "test_leaves_the_training_flags"),
        (SuiteOfTakesAnything, "test_refuses_what_is_no_picture"),
        (SuiteOfDrawsGlobally, "test_a_seeded_call_leaves_the_global_generators"),
        (SuiteOfHelpsTheNetwork, "test_never_does_worse_than_nothing"),
        (SuiteOfDoesNothing, "test_breaks_an_easy_network"),
    ],
)
def test_broken_attacks_fail_the_test_that_is_meant(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert failing(suite) == ({meant} if meant else set())


class SuiteOfWritesOnTheInput(Suite):
    kind = WritesOnTheInput


def test_an_attack_that_writes_on_its_input(failing: Callable[[type], set[str]]) -> None:
    assert "test_gives_pictures_like_those_it_got" in failing(SuiteOfWritesOnTheInput)
