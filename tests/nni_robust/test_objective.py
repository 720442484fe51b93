"""The multi-strength objective against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nni_robust.config import as_mapping, parse
from nni_robust.errors import UserError
from nni_robust.objective import SpectrumObjective


def test_weights_of_the_paper() -> None:
    """Robust weights of the repository: 0.2 * (1, 2, 3, 5, 7, 10) / 28."""
    clean, *robust = SpectrumObjective().coefficients
    assert clean == 0.8
    assert [round(c, 5) for c in robust] == [0.00714, 0.01429, 0.02143, 0.03571, 0.05, 0.07143]
    assert SpectrumObjective().names == ("clean", "0.03", "0.045", "0.06", "0.075", "0.09", "0.105")


@pytest.mark.parametrize(("power", "value"), [("squared", 0.8 * 4 + 0.2 * 9), ("linear", 2.2)])
def test_value(power: Any, value: float) -> None:
    """Equal robust losses count like one of weight 0.2, whatever the weights among them."""
    losses = torch.tensor([[2.0, 3, 3, 3, 3, 3, 3], [0.0, 0, 0, 0, 0, 0, 0]])
    found = SpectrumObjective(power=power).value(losses)
    torch.testing.assert_close(found, torch.tensor([value, 0.0]))


def test_any_strengths_and_weights() -> None:
    settings = {"strengths": ["8/255", 0.1], "weights": [3, 1], "clean": 0.5, "robust": 2}
    objective = parse(SpectrumObjective, settings, "objective")
    assert objective.names == ("clean", "8/255", "0.1")
    assert objective.coefficients == pytest.approx((0.5, 1.5, 0.5))
    assert parse(SpectrumObjective, as_mapping(objective), "objective") == objective
    alike = SpectrumObjective(strengths=(0.1, 0.2), weights=None)
    assert alike.coefficients == pytest.approx((0.8, 0.1, 0.1))


def test_gradient_of_the_heaviest_strength() -> None:
    losses = torch.full((7,), 1.5, requires_grad=True)
    SpectrumObjective().value(losses).backward()
    assert losses.grad is not None
    assert losses.grad[-1] / losses.grad[0] == pytest.approx(0.2 * 10 / 28 / 0.8)


def test_losses_are_means_over_pictures() -> None:
    """Batches of 3 and 1 pictures; the repository divides sums of batch means by pictures."""
    means = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    sizes = torch.tensor([3, 1])
    pictures = SpectrumObjective(strengths=(0.1, 0.2), weights=None)
    legacy = SpectrumObjective(strengths=(0.1, 0.2), weights=None, averaging="legacy")
    torch.testing.assert_close(pictures.average(means, sizes), torch.tensor([2.0, 3.0, 4.0]))
    torch.testing.assert_close(legacy.average(means, sizes), torch.tensor([2.0, 2.0, 2.5]))


def test_legacy_robust_losses_are_smaller_by_the_batch_size() -> None:
    means, sizes = torch.rand(10, 7) + 1, torch.full((10,), 64)
    fixed = SpectrumObjective().average(means, sizes)
    legacy = SpectrumObjective(averaging="legacy").average(means, sizes)
    torch.testing.assert_close(legacy[1:] * 64, fixed[1:])
    torch.testing.assert_close(legacy[0], fixed[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strengths": []}, "strengths"),
        ({"strengths": [0.2, 0.1], "weights": None}, "rising"),
        ({"strengths": [0.0, 0.1], "weights": None}, "rising numbers > 0"),
        ({"strengths": [0.1]}, "6 weights for 1 strengths"),
        ({"weights": [0, 0, 0, 0, 0, 0]}, "one of them above 0"),
        ({"clean": -1}, "clean: -1"),
        ({"clean": 0, "robust": 0}, "one must be above 0"),
        ({"strenghts": [0.1]}, "did you mean 'strengths'"),
        ({"power": "cubed"}, "cubed"),
    ],
)
def test_refusals(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(SpectrumObjective, settings, "objective")
