"""Encodings, loss predictors, the replay memory, and logits that follow a predictor."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
import yaml
from nni.mutable import MutableExpression
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import nn

from nni_robust.architecture import load_architecture
from nni_robust.errors import UserError
from nni_robust.objective import SpectrumObjective
from nni_robust.predictor import (
    AlphaSettings,
    ArchitectureLogits,
    Encoding,
    LinearPredictor,
    LossPredictor,
    PredictorFit,
    PredictorSettings,
    ReplayMemory,
    make_encoding,
    rank_agreement,
)
from nni_robust.sampling import draw_distinct
from nni_robust.search_spaces import DartsSpace, RobNetSpace, WideResNetSpace

DATA = yaml.safe_load((Path(__file__).parent / "data" / "wsrnas_alphas.yaml").read_text())
OBJECTIVE = SpectrumObjective()


def darts() -> Any:
    return DartsSpace(num_classes=10, width=4, cells=3).simplify()


def robnet() -> Any:
    return RobNetSpace(num_classes=10, init_channels=2, cells=3).simplify()


def logits(encoding: Encoding, **settings: Any) -> ArchitectureLogits:
    return ArchitectureLogits(encoding, AlphaSettings(**{"lr": 3e-4, **settings}), seed=5)


# Encodings


def test_darts_has_the_papers_rows() -> None:
    """14 edges and 8 operations for each of two kinds of cells."""
    encoding = make_encoding(darts())
    assert encoding.mask.shape == (28, 8)
    assert encoding.names[:3] == ("normal/0-2", "normal/1-2", "normal/0-3")
    assert encoding.names[14] == "reduce/0-2"


def test_initial_weights_of_the_repository_decode_to_its_genotype() -> None:
    alphas = torch.tensor([*(DATA["seed1_initial_alphas"][c] for c in ("normal", "reduce"))])
    encoding = make_encoding(darts())
    code = DartsSpace.encode(encoding.decode(alphas.flatten(0, 1)))
    assert {c: code[c] for c in ("normal", "reduce")} == DATA["seed1_initial_genotype"]


def test_wsrnet_basic_is_a_hundred_thousandth_away_from_them() -> None:
    """Its entries up and all others down by 1.1e-5, less than one step of Adam at lr 3e-5."""
    alphas = torch.tensor([*(DATA["seed1_initial_alphas"][c] for c in ("normal", "reduce"))])
    encoding = make_encoding(darts())
    wanted = load_architecture("wsrnet-basic").sample
    up = encoding.encode(wanted) > 0
    up[:, 0] = False
    assert int(up.sum()) == 16
    moved = alphas.flatten(0, 1) + torch.where(up, 1.1e-5, -1.1e-5)
    assert encoding.shared(encoding.decode(moved), wanted) == 16
    start = encoding.decode(alphas.flatten(0, 1))
    assert encoding.shared(start, wanted) == 14  # published: 14 of 16


@pytest.mark.parametrize("layout", ["labels", "edges"])
def test_samples_come_back(layout: Any) -> None:
    encoding = make_encoding(darts(), layout)
    for number in range(20):
        noise, sample = logits(encoding).draw(number)
        again = encoding.decode(encoding.encode(sample) + 1e-3 * noise)
        assert encoding.shared(sample, again) == encoding.choices
        matrix = encoding.encode(sample)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))


@pytest.mark.parametrize("space", [darts, robnet])
@pytest.mark.parametrize("layout", ["auto", "labels"])
def test_relaxation_ends_in_the_architecture(space: Any, layout: Any) -> None:
    """With tau to 0 the matrix is that of the decoded sample; rows always sum to 1."""
    encoding = make_encoding(space(), layout)
    for number in range(10):
        noise, _ = logits(encoding).draw(number)
        soft = encoding.relax(noise.double(), 0.1)
        torch.testing.assert_close(soft.sum(-1), torch.ones(len(soft), dtype=torch.float64))
        hard = encoding.relax(noise.double(), 1e-6)
        sample = encoding.decode(noise)
        torch.testing.assert_close(hard, encoding.encode(sample).double())
        assert float(soft.masked_select(~encoding.mask).abs().sum()) == 0


def test_an_edge_twice_in_a_node_shares_its_row() -> None:
    encoding = make_encoding(darts())
    _, sample = logits(encoding).draw(0)
    sample |= {"normal/input_3_0": [1], "normal/input_3_1": [1]}
    sample |= {"normal/op_3_0": "max_pool_3x3", "normal/op_3_1": "skip_connect"}
    row = encoding.encode(sample)[encoding.names.index("normal/1-3")]
    assert row.tolist() == [0, 0.5, 0, 0.5, 0, 0, 0, 0]


class Choices(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh()], label="op")
        self.use = InputChoice(n_candidates=2, n_chosen=1, label="use")


def test_any_categorical_choices() -> None:
    encoding = make_encoding(Choices().simplify())
    assert encoding.names == ("op", "use")
    assert encoding.mask.tolist() == [[True] * 3, [True, True, False]]
    assert encoding.decode(torch.tensor([[0.0, 2, 1], [0, 1, 9]])) == {"op": 1, "use": [1]}


class Numbers(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.add_mutable(nni.uniform("rate", 0, 1))


def test_refusals_of_spaces() -> None:
    with pytest.raises(UserError, match=r"'rate'.*not one of a few values"):
        make_encoding(Numbers().simplify())
    with pytest.raises(UserError, match="'edges' is not allowed for this space"):
        make_encoding(robnet(), "edges")
    with pytest.raises(UserError, match="no choices"):
        make_encoding({})


# Predictors


def test_1783_parameters_in_the_papers_layout() -> None:
    assert sum(p.numel() for p in LossPredictor(8, 7).parameters()) == 1783


def linear_memory(encoding: Encoding, entries: int = 100) -> ReplayMemory:
    """Architectures drawn as in a search; losses are linear in their matrix."""
    numbers = torch.Generator().manual_seed(0)
    slopes = torch.rand(*encoding.mask.shape, 7, generator=numbers) / encoding.choices
    source, memory = logits(encoding), ReplayMemory(entries)
    for number in range(entries):
        weights = source.weights(source.draw("entry", number)[0]).detach()
        memory.push(weights, 0.2 + 3 * torch.einsum("rc,rco->o", weights, slopes))
    return memory


def agreement(fit: PredictorFit, memory: ReplayMemory) -> float:
    weights, losses = memory.tensors()
    tau = rank_agreement(OBJECTIVE.value(fit.predict(weights)), OBJECTIVE.value(losses))
    assert tau is not None
    return tau


@pytest.mark.parametrize("kind", ["lstm", "linear"])
@pytest.mark.parametrize("space", [darts, robnet])
def test_500_passes_order_100_entries(space: Any, kind: Any) -> None:
    encoding = make_encoding(space())
    memory = linear_memory(encoding)
    fit = PredictorFit(*encoding.mask.shape, 7, PredictorSettings(kind=kind), seed=0)
    fit.fit(memory, 500)
    assert agreement(fit, memory) > 0.8


def test_ridge_orders_what_it_has_not_seen_and_the_lstm_hardly() -> None:
    """Why ridge is the default: an LSTM has no weight for one operation on one edge."""
    encoding = make_encoding(darts())
    memory = linear_memory(encoding, 200)
    weights, losses = memory.tensors()
    seen, new = ReplayMemory(100), ReplayMemory(100)
    seen.load(weights[:100], losses[:100])
    new.load(weights[100:], losses[100:])
    tau = {}
    for kind in ("lstm", "linear"):
        settings = PredictorSettings(kind=kind)  # type: ignore[arg-type]
        fit = PredictorFit(*encoding.mask.shape, 7, settings, seed=0)
        fit.fit(seen, 300)
        tau[kind] = agreement(fit, new)
    assert tau["linear"] > 0.35
    assert tau["lstm"] < tau["linear"] - 0.15


def test_leave_one_out_is_what_a_fit_without_the_entry_says() -> None:
    """The closed form against really leaving each entry out, at the penalty that was chosen."""
    numbers = torch.Generator().manual_seed(1)
    weights = torch.rand(8, 3, 2, generator=numbers)
    losses = torch.rand(8, 2, generator=numbers) + 0.5
    model = LinearPredictor(3, 2, 2)
    left_out = model.fit(weights, losses)
    assert left_out.shape == losses.shape
    errors = (left_out.log() - losses.log()).square().mean()
    fitted = (model(weights).log() - losses.log()).square().mean()
    assert errors > fitted


def test_age_explains_what_training_did() -> None:
    """Losses that only fall with time, whatever the architecture: the next is the newest's."""
    encoding = make_encoding(robnet())
    memory = linear_memory(encoding, 40)
    weights, _ = memory.tensors()
    falling = torch.linspace(0.5, -0.5, 40).exp()[:, None].expand(-1, 7)
    model = LinearPredictor(*encoding.mask.shape, 7)
    model.fit(weights, falling)
    torch.testing.assert_close(model(weights), falling[-1:].expand(40, -1), atol=0.06, rtol=0)


def test_losses_above_two_can_be_predicted_unless_legacy() -> None:
    encoding = make_encoding(robnet())
    memory = ReplayMemory(20)
    for number in range(20):
        noise, _ = logits(encoding).draw(number)
        memory.push(encoding.relax(noise, 0.1), torch.full((7,), 4.0))
    for head, low, high in (("softplus", 3.8, 4.2), ("legacy", 0.0, 2.0)):
        settings = PredictorSettings(kind="lstm", head=head)  # type: ignore[arg-type]
        fit = PredictorFit(*encoding.mask.shape, 7, settings, seed=0)
        fit.fit(memory, 30)
        predicted = fit.predict(memory.tensors()[0])
        assert float(predicted.min()) >= low
        assert float(predicted.max()) <= high


@pytest.mark.parametrize("kind", ["lstm", "linear"])
def test_a_restored_fit_goes_on_to_the_bit(kind: Any) -> None:
    encoding = make_encoding(robnet())
    memory, settings = linear_memory(encoding, 20), PredictorSettings(kind=kind)
    whole = PredictorFit(*encoding.mask.shape, 7, settings, seed=3)
    whole.fit(memory, 3)
    half = PredictorFit(*encoding.mask.shape, 7, settings, seed=9)
    half.seed = 3
    half.load({k: t.clone() for k, t in whole.tensors().items()}, whole.fits)
    for fit in (whole, half):
        fit.fit(memory, 3)
    assert all(torch.equal(t, half.tensors()[k]) for k, t in whole.tensors().items())


def test_memory_forgets_the_oldest_and_refuses_nan() -> None:
    memory = ReplayMemory(2)
    for number in range(3):
        memory.push(torch.full((2, 2), float(number)), torch.tensor([float(number)]))
    assert memory.tensors()[1].flatten().tolist() == [1, 2]
    with pytest.raises(UserError, match="not finite"):
        memory.push(torch.zeros(2, 2), torch.tensor([float("nan")]))
    with pytest.raises(UserError, match="memory: 0"):
        ReplayMemory(0)


# Logits


@pytest.mark.parametrize("kind", ["lstm", "linear"])
def test_a_step_lowers_the_predicted_objective(kind: Any) -> None:
    encoding = make_encoding(darts())
    fit = PredictorFit(*encoding.mask.shape, 7, PredictorSettings(kind=kind), seed=0)
    fit.fit(linear_memory(encoding), 100)
    moving = logits(encoding, lr=1e-3)
    noise, _ = moving.draw("x")
    values = [moving.step(fit.model, OBJECTIVE, noise) for _ in range(20)]
    assert all(b < a for a, b in itertools.pairwise(values))


def search(lr: float, *, steps: int = 10, epochs: int = 60, seed: int = 0) -> tuple[Any, float]:
    """Wsr-NAS's loop on RobNet's choices, with a known loss instead of a network.

    A choice is good or bad by itself; returns the logits and the share of choices that are the
    best one of their label.
    """
    encoding = make_encoding(robnet())
    numbers = torch.Generator().manual_seed(seed)
    slopes = torch.rand(encoding.mask.shape, generator=numbers).masked_fill(~encoding.mask, 9)
    moving = ArchitectureLogits(encoding, AlphaSettings(lr=lr, steps=steps), seed=seed)
    memory = ReplayMemory(100)
    fit = PredictorFit(*encoding.mask.shape, 7, PredictorSettings(kind="linear"), seed)

    def push(*place: Any) -> torch.Tensor:
        noise, sample = moving.draw(*place)
        loss = 0.2 + 3 * (encoding.encode(sample) * slopes).sum() / encoding.choices
        spread = 1 + 0.02 * torch.randn(7, generator=numbers)
        memory.push(moving.weights(noise), loss * spread)
        return noise

    for number in range(50):
        push("warmup", number)
    for epoch in range(epochs):
        noise = push("search", epoch)
        fit.fit(memory, 1)
        for step in range(steps):
            fresh = noise if step == 0 else moving.draw("step", epoch, step)[0]
            moving.step(fit.model, OBJECTIVE, fresh)
    right = encoding.encode(moving.best()).argmax(1) == slopes.argmin(1)
    return moving, float(right.double().mean())


def test_the_search_finds_the_known_best_choices() -> None:
    """By chance a choice among RobNet's 4 is right in 25 % of the cases."""
    moving, right = search(0.03)
    assert right >= 0.85
    assert moving.drift()["relative"] > 100
    # It also samples accordingly: half of what is drawn now is the best choice.
    matrices = [moving.encoding.encode(moving.draw("late", i)[1]) for i in range(20)]
    favourite = moving.encoding.encode(moving.best())
    assert float((torch.stack(matrices) * favourite).sum(-1).mean()) > 0.5


def test_with_the_legacy_rate_it_hardly_moves() -> None:
    """One step of 3e-5 in each of 14 epochs (the published WsrNet-Basic is from epoch 14)."""
    moving, right = search(3e-5, steps=1, epochs=14)
    drift = moving.drift()
    assert drift["max"] < 14.5 * 3e-5
    assert drift["relative"] < 0.5
    assert drift["changed"] <= 0.25 * drift["choices"]
    assert right < 0.6
    default, found = search(3e-4, steps=1)
    assert default.drift()["relative"] > 2
    assert found > right


def test_drift_counts_changed_choices() -> None:
    moving = logits(make_encoding(robnet()))
    assert moving.drift()["changed"] == moving.drift()["rms"] == 0
    with torch.no_grad():
        moving.logits.copy_(-moving.initial)
    assert moving.drift()["changed"] > 0
    assert moving.drift()["relative"] == pytest.approx(2)


def test_draws_keep_the_rules_of_the_space() -> None:
    class Ruled(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            a, b = nni.choice("a", [1, 2, 3]), nni.choice("b", [1, 2, 3])
            self.add_mutable(a)
            self.add_mutable(b)
            rule: MutableExpression[bool] = a + b <= 3
            self.add_mutable(nni.mutable.annotation.ExpressionConstraint(rule, label="rule"))

    mutables = Ruled().simplify()
    encoding = make_encoding(mutables)

    def allowed(sample: Any) -> bool:
        return all(m.check_contains(sample) is None for m in mutables.values())

    ruled = ArchitectureLogits(encoding, AlphaSettings(lr=0.1), seed=0, allowed=allowed)
    drawn = [ruled.draw(i)[1] for i in range(30)]
    assert all(s["a"] + s["b"] <= 3 for s in drawn)
    assert len({tuple(s.values()) for s in drawn}) == 3
    never = ArchitectureLogits(encoding, AlphaSettings(lr=0.1), allowed=lambda s: False)
    with pytest.raises(UserError, match="refuse 2000 draws"):
        never.draw(0)


def test_wide_resnets_have_an_encoding() -> None:
    mutables = WideResNetSpace(num_classes=10).simplify()
    encoding = make_encoding(mutables)
    (sample,) = draw_distinct(1, mutables, np.random.RandomState(0))
    assert encoding.decode(encoding.encode(sample)) == sample
