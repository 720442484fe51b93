"""The suite for spaces: ours and NNI's pass it, broken ones fail the test meant for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import LayerChoice
from torch import Tensor, nn

from nni_robust import registry
from nni_robust.cost import Cost, measure_cost
from nni_robust.testing import SpaceConformance, TinySpace

STAGES = [
    {"blocks": 1, "widths": [4, 2]},
    {"blocks": 2, "widths": [6, 5, 3], "stride": 2, "expansion": 3},
]
#: Name, arguments, claims.
OURS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("baseline", {"network": "resnet-18"}, ("shares_weights",)),
    ("darts", {"width": 2, "cells": 3}, ("shares_weights", "relaxes")),
    (
        "inverted-residual",
        {"preset": None, "stages": STAGES, "stem_channels": 4, "stem_stride": 1},
        ("relaxes",),
    ),
    ("robnet", {"init_channels": 2, "cells": 3}, ("shares_weights", "relaxes")),
    (
        "robnet",
        {"init_channels": 2, "cells": 3, "cell_free": True},
        ("shares_weights", "relaxes"),
    ),
    ("wide-resnet", {"depths": [2, 2, 2], "widths": [2, 1, 2], "search_blocks": True}, ()),
    ("darts", {"width": 2, "cells": 3, "cell": "nasnet"}, ()),
)


def test_every_registered_space_is_among_them() -> None:
    assert set(registry.search_spaces.names()) == {name for name, *_ in OURS}


class TestOurs(SpaceConformance):
    draws = 2

    @pytest.fixture(
        autouse=True, params=OURS, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(OURS)]
    )
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.name, self.arguments, claims = request.param
        for claim in claims:
            setattr(self, claim, True)

    def make_space(self) -> Any:
        return registry.search_spaces.get(self.name)(10, **self.arguments)


class TestSuitesOwn(SpaceConformance):
    shares_weights = relaxes = True

    def make_space(self) -> Any:
        return TinySpace()


class TestNNIsHub(SpaceConformance):
    """A space that knows nothing of this library."""

    draws = 2
    shares_weights = relaxes = True

    def make_space(self) -> Any:
        return NasBench201(stem_out_channels=4, num_modules_per_stack=1)


# --- broken on purpose ---------------------------------------------------------------------------

_counter = itertools.count()


class UnstableLabel(TinySpace):
    """Counts its instances, as automatic names do."""

    def __init__(self) -> None:
        super().__init__()
        self.more = LayerChoice(
            {"a": nn.Identity(), "b": nn.ReLU()}, label=f"more-{next(_counter)}"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(x))


class UnstableValues(TinySpace):
    """The order of its values is that of a set, which changes from process to process."""

    def __init__(self) -> None:
        super().__init__()
        names = ["a", "b"] if next(_counter) % 2 else ["b", "a"]
        self.more = LayerChoice({name: nn.Identity() for name in names}, label="more")

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(x))


class NumberedLabel(TinySpace):
    def __init__(self) -> None:
        super().__init__()
        self.more = LayerChoice({"a": nn.Identity(), "b": nn.ReLU()}, label="3")

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(x))


class InfiniteOnBlack(TinySpace):
    def forward(self, x: Tensor) -> Tensor:
        black = x.flatten(1).amax(1, keepdim=True) == 0
        return torch.where(black, torch.inf, super().forward(x))


class CutsTheGradient(TinySpace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class SeesTheBatch(TinySpace):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5 * x.mean(0))


class WrongCost(TinySpace):
    """Counts a multiplication and an addition as two, as many papers do."""

    def cost(self, sample: Mapping[str, Any], input_shape: Sequence[int]) -> Cost:
        with torch.device("meta"):
            counted = measure_cost(TinySpace().freeze(dict(sample)), input_shape)
        return Cost(counted.params, 2 * counted.macs)


class Settings:
    """An argument that is no plain value."""


class NeedsAPickle(TinySpace):
    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings


class KeepsChoices(TinySpace):
    """Forgets to freeze."""

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        self.validate(sample)
        return self


class Suite(SpaceConformance):
    shares_weights = relaxes = True
    kind: Any = TinySpace
    arguments: tuple[Any, ...] = ()

    def make_space(self) -> Any:
        return self.kind(*self.arguments)


class SuiteOfUnstableLabel(Suite):
    kind = UnstableLabel


class SuiteOfUnstableValues(Suite):
    kind = UnstableValues


class SuiteOfNumberedLabel(Suite):
    kind = NumberedLabel


class SuiteOfInfiniteOnBlack(Suite):
    kind = InfiniteOnBlack


class SuiteOfCutsTheGradient(Suite):
    kind = CutsTheGradient


class SuiteOfSeesTheBatch(Suite):
    kind = SeesTheBatch


class SuiteOfWrongCost(Suite):
    kind = WrongCost
    relaxes = False  # of its cost, a relaxed space makes an expected one


class SuiteOfNeedsAPickle(Suite):
    kind = NeedsAPickle
    arguments = (Settings(),)


class SuiteOfKeepsChoices(Suite):
    kind = KeepsChoices


class SuiteOfNoClaim(Suite):
    shares_weights = False


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfUnstableValues, "test_labels_and_values_are_stable"),
        (SuiteOfNumberedLabel, "test_labels_are_readable"),
        (SuiteOfInfiniteOnBlack, "test_gives_finite_logits"),
        (SuiteOfCutsTheGradient, "test_gradient_reaches_the_pictures"),
        (SuiteOfSeesTheBatch, "test_pictures_of_a_batch_do_not_see_each_other"),
        (SuiteOfNeedsAPickle, "test_survives_nnis_serialisation"),
        (SuiteOfNoClaim, "test_supernet_computes_its_networks"),
    ],
)
def test_broken_spaces_fail_the_test_that_is_meant(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert failing(suite) == {meant}


@pytest.mark.parametrize(
    ("suite", "meant"),
    [
        (SuiteOfUnstableLabel, "test_labels_and_values_are_stable"),
        (SuiteOfWrongCost, "test_cost_is_that_of_the_network"),
        (SuiteOfKeepsChoices, "test_freezes_to_a_plain_network"),
    ],
)
def test_spaces_broken_in_several_ways_fail_that_test_too(
    suite: type, meant: str, failing: Callable[[type], set[str]]
) -> None:
    assert meant in failing(suite)


def test_the_choices_of_the_suites_space() -> None:
    """36 networks, so that a search of a few trials is far from exhausting it."""
    values = [len(choice.values) for choice in TinySpace().simplify().values()]
    assert sorted(values) == [3, 3, 4]
