"""The noise estimators: norms, independence, a second implementation of the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_robust.errors import UserError
from nni_robust.noise import (
    WSR_CONSTANTS,
    NoiseEstimator,
    estimate_adversarial,
    list_estimators,
    make_estimator,
    target_norms,
)

NAMES = ["basic", "interpolate", "plus", "scale"]
SHAPES = [(3, 32, 32), (3, 8, 8), (1, 5, 6), (2, 40, 24)]


def shaken(name: str, shape: tuple[int, int, int] = (3, 8, 8)) -> NoiseEstimator:
    """An estimator none of whose parts is at its neutral start."""
    made = make_estimator(name, shape, seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for key, value in made.state_dict().items():
            if key.endswith("running_mean"):
                value.add_(0.1 * torch.randn_like(value))
    return made.eval()


def noises(shape: tuple[int, int, int], b: int = 4, m: int = 3) -> tuple[Tensor, Tensor]:
    """Sources in no order, and pictures."""
    torch.manual_seed(2)
    common = torch.randn(b, 1, *shape)
    size = torch.rand(b, m, 1, 1, 1) * 0.1
    return (common + torch.randn(b, m, *shape)) * size, torch.rand(b, *shape)


def size(noise: Tensor) -> Tensor:
    return noise.flatten(-3).norm(dim=-1)


def test_names() -> None:
    assert list_estimators() == NAMES


def test_parameter_counts_are_those_of_the_repository() -> None:
    """Acceptance test 4 of the specification: 76,763 and 138,504 for 3 x 32 x 32."""
    counts = {n: sum(p.numel() for p in make_estimator(n).parameters()) for n in NAMES}
    assert counts == {"basic": 76_763, "plus": 138_504, "scale": 0, "interpolate": 0}
    for name in NAMES:
        assert make_estimator(name).learns == (counts[name] > 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_norms_and_independence(name: str, shape: tuple[int, int, int]) -> None:
    """Acceptance test 4: norms equal targets; n targets in one call are n calls."""
    made = shaken(name, shape)
    sources, x = noises(shape)
    targets = torch.rand(4, 5) * 1.5 * size(sources).amax()
    targets[0, 0], targets[1, 1] = 0, size(sources)[1, 2]
    with torch.no_grad():
        out = made(sources, x, targets)
        assert out.shape == (4, 5, *shape)
        assert (size(out) - targets).abs().max() < 1e-4 * targets.max()
        single = torch.cat([made(sources, x, t.unsqueeze(1)) for t in targets.unbind(1)], 1)
        torch.testing.assert_close(out, single)
        # Pictures do not change each other, and the order of the sources does not matter.
        alone = torch.cat([made(sources[[i]], x[[i]], targets[[i]]) for i in range(4)])
        torch.testing.assert_close(out, alone)
        torch.testing.assert_close(made(sources[:, [2, 0, 1]], x, targets), out)


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_sources(name: str, m: int) -> None:
    sources, x = noises((3, 8, 8), m=m)
    targets = torch.tensor([[0.5, 1.0]]).repeat(4, 1)
    with torch.no_grad():
        out = shaken(name)(sources, x, targets)
    torch.testing.assert_close(size(out), targets)


@pytest.mark.parametrize("name", NAMES)
def test_zero_noise_gives_no_nan(name: str) -> None:
    made = shaken(name).train()
    sources, x = noises((3, 8, 8))
    sources[0] = 0
    sources[1, 1] = 0
    targets = torch.tensor([[0.0, 0.3, 5.0]]).repeat(4, 1)
    out = made(sources, x, targets)
    assert torch.isfinite(out).all()
    assert (size(out)[1:] - targets[1:]).abs().max() < 1e-4
    if name in ("scale", "interpolate"):
        assert (out[0] == 0).all()
        return
    made.zero_grad()
    out[1:].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_interpolation_is_linear_and_extrapolation_nearest() -> None:
    shape = (1, 1, 2)
    # Unit vectors at right angles with lengths 1, 2 and 4, given in another order.
    e1, e2 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    sources = torch.stack([4 * e1, e1, 2 * e2]).view(1, 3, *shape)
    x = torch.zeros(1, *shape)
    targets = torch.tensor([[0.5, 1.0, 1.25, 2.0, 3.0, 3.5, 4.0, 9.0]])
    ways = torch.stack(
        [
            e1,
            e1,
            0.75 * e1 + 0.25 * e2,  # closer to length 1
            e2,
            0.5 * e2 + 0.5 * e1,
            0.25 * e2 + 0.75 * e1,  # closer to length 4
            e1,
            e1,
        ]
    )
    expected = ways / ways.norm(dim=1, keepdim=True) * targets.view(-1, 1)
    out = make_estimator("interpolate", shape)(sources, x, targets)
    torch.testing.assert_close(out.view(-1, 2), expected)
    nearest = torch.stack([e1, e1, e1, e2, e2, e1, e1, e1]) * targets.view(-1, 1)
    out = make_estimator("scale", shape)(sources, x, targets)
    torch.testing.assert_close(
        out.view(-1, 2)[[0, 1, 2, 3, 5, 6, 7]], nearest[[0, 1, 2, 3, 5, 6, 7]]
    )


def test_an_untrained_network_invents_nothing() -> None:
    """plus starts as the interpolation; basic starts inside the span of the sources."""
    sources, x = noises((3, 8, 8))
    targets = torch.rand(4, 3) * 2
    with torch.no_grad():
        plain = make_estimator("interpolate", (3, 8, 8))(sources, x, targets)
        plus = make_estimator("plus", (3, 8, 8)).eval()(sources, x, targets)
        torch.testing.assert_close(plus, plain)
        basic = make_estimator("basic", (3, 8, 8))(sources, x, targets)
    for b in range(4):
        span = sources[b].flatten(1).T.double()
        found = basic[b].flatten(1).T.double()
        left = found - span @ torch.linalg.lstsq(span, found).solution
        assert left.norm() < 1e-5 * found.norm()


def basic_by_hand(e: Any, sources: Tensor, x: Tensor, target: float) -> Tensor:
    """One picture, one target, equation by equation, without any batching."""
    s = sorted((float(n.norm()), n) for n in sources)
    lengths, units = [a for a, _ in s], [n / a for a, n in s]
    values = [u + e.values(u[None])[0] for u in units]
    start = e.encode_picture(x[None])[0]

    def run(cell: Any, encode: Any, order: list[int]) -> dict[int, Tensor]:
        state, states = start, {}
        for i in order:
            length = e.encode_norm(torch.tensor([lengths[i]]))
            state = cell(torch.cat([encode(values[i][None])[0], length, state]))
            states[i] = state
        return states

    m = len(s)
    up = run(e.cell_up, e.encode_up, list(range(m)))
    down = run(e.cell_down, e.encode_down, list(reversed(range(m))))
    low = max((i for i in range(m) if lengths[i] <= target), default=None)
    high = min((i for i in range(m) if lengths[i] > target), default=None)
    if low is not None and high is not None:
        share = (target - lengths[low]) / (lengths[high] - lengths[low])
        weights = (1 - share, share)
    else:
        weights = (float(low is not None), float(high is not None))
    state_low = start if low is None else up[low]
    state_high = start if high is None else down[high]
    between = weights[0] * state_low + weights[1] * state_high
    wanted = e.encode_norm(torch.tensor([target]))
    query = torch.cat(
        [
            e.query_up(e.cell_up(torch.cat([between, wanted, state_low]))),
            e.query_down(e.cell_down(torch.cat([between, wanted, state_high]))),
        ]
    )
    noise = torch.zeros_like(units[0])
    for index, weight in zip((low, high), weights, strict=True):
        if index is not None:
            noise = noise + weight * values[index]
    for i in range(m):
        key = torch.cat([e.key_up(up[i]), e.key_down(down[i])])
        noise = noise + key @ query * values[i]
    return noise / noise.norm() * target


def plus_by_hand(e: Any, sources: Tensor, x: Tensor, target: float) -> Tensor:
    s = sorted((float(n.norm()), n) for n in sources)
    lengths, units = [a for a, _ in s], [n / a for a, n in s]

    def run(cell: Any, order: list[int]) -> dict[int, Tensor]:
        state, states = x, {}
        for i in order:
            code = e.encode_norm(torch.tensor([[lengths[i]]]))[0]
            state = cell(torch.cat([state, code, units[i]])[None])[0]
            states[i] = state
        return states

    m = len(s)
    up, down = run(e.cell_up, list(range(m))), run(e.cell_down, list(reversed(range(m))))
    maps = [torch.cat([up[i], down[i]]) for i in range(m)]
    rest = torch.cat([x, e.rest, torch.zeros_like(x)])[None]
    maps.append(torch.cat([e.cell_up(rest)[0], e.cell_down(rest)[0]]))
    low = max((i for i in range(m) if lengths[i] <= target), default=None)
    high = min((i for i in range(m) if lengths[i] > target), default=None)
    if low is not None and high is not None:
        share = (target - lengths[low]) / (lengths[high] - lengths[low])
        parts = [(1 - share) * units[low], share * units[high]]
    else:
        zero = torch.zeros_like(x)
        parts = [zero if low is None else units[low], zero if high is None else units[high]]
    base = parts[0] + parts[1]
    query = e.query(torch.cat([*parts, base])[None])[0]
    keys = torch.stack([e.key(one[None])[0] for one in maps])
    weights = torch.softmax(keys @ query / len(query) ** 0.5, 0)
    noise = base + sum(w * e.value(one[None])[0] for w, one in zip(weights, maps, strict=True))
    return noise / noise.norm() * target


@pytest.mark.parametrize(("name", "by_hand"), [("basic", basic_by_hand), ("plus", plus_by_hand)])
@torch.no_grad()
def test_against_the_equations_one_by_one(name: str, by_hand: Any) -> None:
    made = shaken(name)
    sources, x = noises((3, 8, 8))
    own = size(sources).sort(1).values
    targets = torch.stack(
        [own[:, 0] / 2, (own[:, 0] + 2 * own[:, 1]) / 3, own[:, 1:].mean(1), 1.3 * own[:, 2]], 1
    )
    out = made(sources, x, targets)
    for b in range(4):
        for k in range(4):
            expected = by_hand(made, sources[b], x[b], float(targets[b, k]))
            torch.testing.assert_close(out[b, k], expected, rtol=1e-4, atol=1e-5)


def test_every_weight_matters() -> None:
    """No layer is dead, as some of the repository's are."""
    for name in ("basic", "plus"):
        made = shaken(name).train()
        sources, x = noises((3, 8, 8), b=16)
        targets = torch.rand(16, 3) * 2
        (made(sources, x, targets) * torch.randn(16, 3, 3, 8, 8)).sum().backward()
        for key, p in made.named_parameters():
            assert p.grad is not None, key
            assert p.grad.abs().sum() > 0, key


def test_seeded_weights() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = (make_estimator("basic", seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.cell_up[0].weight, two.cell_up[0].weight)  # type: ignore[index]
    assert not torch.equal(one.cell_up[0].weight, other.cell_up[0].weight)  # type: ignore[index]


def test_target_norms() -> None:
    norms = torch.tensor([[2.0, 1.0, 4.0], [0.0, 0.0, 0.0]])
    wanted = (0.01, 0.02, 0.03, 0.05, 0.06, 0.08, 0)
    out = target_norms(norms, (0.04, 0.02, 0.06), wanted)
    torch.testing.assert_close(out[0], torch.tensor([0.5, 1.0, 1.5, 3.0, 4.0, 6.0, 0.0]))
    assert (out[1] == 0).all()
    # Full saturation: the norms are proportional to eps, so the extrapolation is too.
    out = target_norms(torch.tensor([[0.03, 0.06]]) * 3072**0.5, (0.03, 0.06), (0.09,))
    torch.testing.assert_close(out, torch.tensor([[0.09 * 3072**0.5]]))
    constants = target_norms(norms, (0.03, 0.06, 0.09), (0.105, 0.045), WSR_CONSTANTS)
    assert constants.tolist() == [[5.5, pytest.approx(2.3)]] * 2
    one = target_norms(torch.tensor([[1.5]]), (0.03,), (0.06,))
    torch.testing.assert_close(one, torch.tensor([[3.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_estimated_pictures_stay_in_their_ball(norm: Any) -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 3, 8, 8)
    adversarial = {}
    for eps in (0.03, 0.06, 0.09):
        change = torch.sign(torch.randn_like(x)) * eps
        adversarial[eps] = (x + change).clamp(0, 1)
    estimator = make_estimator("interpolate", (3, 8, 8)).train()
    found = estimate_adversarial(estimator, x, adversarial, (0.045, "0.105"), norm=norm)
    assert list(found) == [0.045, 0.105]
    for eps, adv in found.items():
        change = adv.double() - x.double()
        reach = change.abs().amax() if norm == "linf" else size(change).amax()
        assert 0 < reach <= eps * (1 + 1e-6)
        assert 0 <= adv.min() <= adv.max() <= 1
    parts = estimate_adversarial(estimator, x, adversarial, (0.045,), norm=norm, batch_size=7)
    assert torch.equal(parts[0.045], found[0.045])
    free = estimate_adversarial(estimator, x, adversarial, (0.105,), clamp=False)[0.105]
    expected = target_norms(
        torch.stack([size(adv - x) for adv in adversarial.values()], 1), adversarial, (0.105,)
    )
    torch.testing.assert_close(size(free - x), expected[:, 0])
    assert estimator.training


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_estimator("basik"), "did you mean 'basic'"),
        (lambda: make_estimator("basic", (3, 8)), "input_shape"),
        (lambda: make_estimator("basic", (3, 0, 8)), "input_shape"),
        (lambda: make_estimator("plus", hiden=3), "did you mean 'hidden'"),
        (lambda: target_norms(torch.ones(1, 2), (0.1, 0.1), (0.2,)), "strengths"),
        (lambda: target_norms(torch.ones(1, 2), (0, 0.1), (0.2,)), "strengths"),
        (lambda: target_norms(torch.ones(1, 1), (0.1,), (0.2,), {0.3: 1}), "no constant for eps 0"),
        (lambda: target_norms(torch.ones(1, 1), (0.1,), (0.2,), "scale"), "target"),  # type: ignore[arg-type]
        (
            lambda: make_estimator("scale")(torch.rand(1, 2, 3, 8, 8), torch.rand(1, 3, 8, 8), [0]),
            "is made for",
        ),
        (
            lambda: make_estimator("scale", (3, 8, 8))(
                torch.rand(2, 2, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 2)
            ),
            "sources of shape",
        ),
        (
            lambda: estimate_adversarial(make_estimator("scale"), torch.rand(1, 3, 32, 32), {}, []),
            "at least one strength",
        ),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()


def test_another_package_can_add_one() -> None:
    from nni_robust.noise import estimators

    class Middle(NoiseEstimator):
        name = "middle"

        def _raw(self, sources: Any, bracket: Any, targets: Tensor) -> Tensor:
            return sources.units.mean(1, keepdim=True).expand(-1, targets.shape[1], -1, -1, -1)

    estimators.register("middle")(Middle)
    try:
        made = make_estimator("middle", (3, 8, 8))
        sources, x = noises((3, 8, 8))
        assert size(made(sources, x, torch.full((4, 2), 0.7))).flatten().tolist() == (
            pytest.approx([0.7] * 8)
        )
        assert isinstance(made, nn.Module)
    finally:
        del estimators._own["middle"]
