"""Clean and robust accuracy, against plain loops and closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nni_robust
from nni_robust.attacks import Attack, attack
from nni_robust.errors import UserError
from nni_robust.evaluation import NonFiniteOutput, eps_curve, evaluate, steps_curve
from nni_robust.threat import ThreatModel

N = 40


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv_net(classes: int = 4) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, classes),
    )
    with torch.no_grad():  # centred and spread logits: all classes occur
        model[-1].bias -= model.eval()(torch.rand(64, 3, 8, 8)).mean(0)
        model[-1].weight *= 20
        model[-1].bias *= 20
    return model.double().train()


def labelled(model: nn.Module, n: int = N) -> tuple[Tensor, Tensor]:
    """Pictures of which the network gets most right."""
    x = torch.rand(n, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    y[:6] = (y[:6] + 1) % 4
    return x, y


def state(model: nn.Module) -> list[Any]:
    return [
        *(m.training for m in model.modules()),
        *((p.requires_grad, p.grad) for p in model.parameters()),
        *(v.numpy().tobytes() for v in model.state_dict().values()),
    ]


def plainly(model: nn.Module, made: Attack, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
    """Correct pictures after an attack on all of them at once."""
    model.eval()
    adv = made(model, x, y, **kwargs)
    with torch.no_grad():
        correct = (model(adv).argmax(1) == y) & (model(x).argmax(1) == y)
    model.train()
    return correct


def test_is_the_plain_loop() -> None:
    model = conv_net()
    x, y = labelled(model)
    before = state(model)
    specs: list[Any] = ["fgsm", {"name": "pgd20", "random_start": False, "early_stop": False}]
    result = evaluate(model, (x, y), specs, threat=ThreatModel("linf", 0.02), batch_size=16)
    assert state(model) == before
    assert result.n == N
    assert result.clean == (N - 6) / N
    assert result.clean_correct.tolist() == [False] * 6 + [True] * (N - 6)
    made = (attack("fgsm", eps=0.02), attack("pgd20", eps=0.02, random_start=False))
    for key, one in zip(("fgsm@0.02", "pgd20@0.02"), made, strict=True):
        assert torch.equal(result.attacks[key].correct, plainly(model, one, x, y))
        assert 0 < result.attacks[key].accuracy < result.clean
        assert result.attacks[key].seconds > 0
    assert result.seconds > 0
    assert result.metrics() == {
        "clean": result.clean,
        "fgsm@0.02": result.attacks["fgsm@0.02"].accuracy,
        "pgd20@0.02": result.attacks["pgd20@0.02"].accuracy,
    }
    both = result.attacks["fgsm@0.02"].correct & result.attacks["pgd20@0.02"].correct
    assert result.worst == both.double().mean().item()


def test_defaults() -> None:
    model = conv_net()
    x, y = labelled(model)
    result = nni_robust.evaluate(model, (x, y))
    assert list(result.metrics()) == ["clean", "fgsm@8/255", "pgd20@8/255"]
    early = attack("pgd20", early_stop=True)
    index = torch.arange(N)
    assert torch.equal(
        result.attacks["pgd20@8/255"].correct, plainly(model, early, x, y, seed=0, index=index)
    )


def test_linear_network_in_closed_form() -> None:
    """A linear network of two classes loses a picture when eps exceeds margin / ||w||_1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = 0.3 + 0.4 * torch.rand(200, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    w = (model[1].weight[0] - model[1].weight[1]).detach()
    for norm, size in (("linf", w.abs().sum()), ("l2", w.norm())):
        radius = gap / size
        eps_values = radius.quantile(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).tolist()
        for eps in eps_values:
            result = evaluate(model, (x, y), "fgsm", threat={"norm": norm, "eps": eps})
            (only,) = result.attacks.values()
            assert torch.equal(only.correct, radius > eps)
        curve = eps_curve(model, (x, y), [0, *eps_values], "fgsm", norm=norm)
        assert curve[0] == (0, 1.0)
        for eps, accuracy in curve[1:]:
            assert accuracy == (radius > eps).double().mean().item()


@pytest.mark.parametrize("first", [nn.Conv2d(1, 4, 3), nn.Flatten()])
def test_pictures_of_another_shape(first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(144, 5))
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    with pytest.raises(UserError, match="the network does not take pictures of 3×8×8: "):
        evaluate(model, (x, y), "fgsm")


def test_radius_zero_is_the_clean_accuracy_exactly() -> None:
    model = conv_net()
    data = labelled(model)
    specs = ("fgsm", "pgd5", "mi-fgsm5", "autoattack", "torchattacks:FAB")
    for norm in ("linf", "l2"):
        result = evaluate(model, data, specs, threat={"norm": norm, "eps": 0})
        assert set(result.metrics().values()) == {result.clean}
        assert len(result.attacks) == 5


@pytest.mark.parametrize("batch_size", [1, 7, N, 1000])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    model = conv_net()
    data = labelled(model)
    specs: list[Any] = ["pgd5", {"name": "pgd3", "restarts": 2}, "mi-fgsm5"]
    threat = ThreatModel("linf", 0.02)
    one = evaluate(model, data, specs, threat=threat, batch_size=16, seed=3)
    other = evaluate(model, data, specs, threat=threat, batch_size=batch_size, seed=3)
    assert torch.equal(one.clean_correct, other.clean_correct)
    for key, result in one.attacks.items():
        assert torch.equal(result.correct, other.attacks[key].correct), key


def test_early_exit_is_the_default_and_saves_work() -> None:
    class Counts(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.pictures = net, 0

        def forward(self, x: Tensor) -> Tensor:
            self.pictures += len(x)
            return self.net(x)

    net = conv_net()
    data = labelled(net)
    model, work = Counts(net), {}
    for early in (None, False):
        spec: dict[str, Any] = {"name": "pgd20", "random_start": False}
        model.pictures = 0
        result = evaluate(
            model,
            data,
            spec if early is None else {**spec, "early_stop": early},
            threat={"eps": 0.1},
        )
        # The checks ask five times, once in other company and once for a gradient.
        work[early] = model.pictures - 7 * result.reliability.pictures
        assert result.attacks["pgd20@0.1"].accuracy == 0
    assert work[False] == N + 21 * (N - 6)  # clean, 20 steps and the check, on correct ones only
    assert work[None] < work[False] / 2


def test_attack_objects_are_used_as_they_are() -> None:
    seen: list[int] = []

    class Spy(Attack):
        def _run(self, victim: Any, y: Tensor, ball: Any, noise: Any) -> Tensor:
            seen.append(len(y))
            return ball.x

    model = conv_net()
    result = evaluate(model, labelled(model), [Spy(ThreatModel(), "spy")], batch_size=20)
    assert seen == [14, 20]
    assert result.attacks["spy@8/255"].accuracy == result.clean


class Images:
    """The interface of nni_robust.data.ImageSet."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, batch_size: int, *, device: Any = None) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((batch_size, device))
        yield from zip(self.x.split(batch_size), self.y.split(batch_size), strict=True)


@pytest.mark.parametrize("limit", [None, 1, 17, N, 1000])
def test_every_kind_of_data(limit: int | None) -> None:
    model = conv_net()
    x, y = labelled(model)
    images = Images(x.float(), y.to(torch.uint8))
    results = [
        evaluate(model, data, "pgd3", batch_size=16, limit=limit)
        for data in (
            (x.float(), y),
            [x.float(), y.int()],
            images,
            DataLoader(TensorDataset(x.float(), y), batch_size=30),
            ((x[k : k + 1].float(), y[k : k + 1]) for k in range(N)),
        )
    ]
    n = min(limit or N, N)
    for result in results:
        assert result.n == n
        assert torch.equal(result.clean_correct, results[0].clean_correct)
        assert torch.equal(
            result.attacks["pgd3@8/255"].correct, results[0].attacks["pgd3@8/255"].correct
        )
    assert images.asked == [(16, torch.device("cpu"))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pictures_take_the_type_of_the_network(dtype: torch.dtype) -> None:
    model = conv_net().to(dtype)
    x, y = labelled(conv_net())
    assert evaluate(model, (x.float(), y), "pgd2", limit=8).n == 8


def test_progress() -> None:
    calls: list[Any] = []
    model = conv_net()
    x, y = labelled(model)
    evaluate(model, (x, y), "fgsm", batch_size=25, progress=lambda *a: calls.append(a))
    assert calls == [
        (25, N, "clean"),
        (25, N, "fgsm@8/255"),
        (N, N, "clean"),
        (N, N, "fgsm@8/255"),
    ]
    calls.clear()
    evaluate(model, iter([(x, y)]), (), progress=lambda *a: calls.append(a))
    assert calls == [(N, None, "clean")]


class InPlace(nn.Module):
    """Writes where its pictures are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)[:, :5]


@pytest.mark.parametrize("attacks", [(), "fgsm", "square5"])
def test_a_network_that_writes_into_its_pictures_is_refused(attacks: Any) -> None:
    pictures, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    x = pictures.clone()
    with pytest.raises(UserError, match=r"changes the pictures .* in place"):
        evaluate(InPlace(), (x, y), attacks)
    copied = nn.Sequential(nn.Identity(), InPlace())
    copied[0].forward = torch.clone  # type: ignore[method-assign]
    x = pictures.clone()
    evaluate(copied, (x, y), attacks)
    assert torch.equal(x, pictures)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_gradient_mode_does_not_matter(mode: Any) -> None:
    model = conv_net()
    x, y = labelled(model)
    before = state(model)
    plain = evaluate(model, (x, y), "pgd5")
    with mode():
        other = evaluate(model, (x.clone(), y.clone()), "pgd5")
    assert other.metrics() == plain.metrics()
    assert state(model) == before


# --- curves over eps -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_curve_falls_from_clean_to_nothing(norm: Any) -> None:
    model = conv_net()
    data = labelled(model)
    before = state(model)
    scale = 1 if norm == "linf" else 8
    eps = [0.5 * scale, 0, 0.01 * scale, 0.002 * scale, 0.05 * scale]
    curve = eps_curve(model, data, [*eps, 0], "pgd5", norm=norm, batch_size=16)
    assert [e for e, _ in curve] == sorted(eps)
    accuracies = [a for _, a in curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == (N - 6) / N
    assert accuracies[-1] == 0
    assert len(set(accuracies)) > 2
    assert state(model) == before


def test_curve_at_one_strength_is_the_evaluation() -> None:
    model = conv_net()
    data = labelled(model)
    ((eps, accuracy),) = eps_curve(model, data, ["4/255"], {"name": "pgd", "steps": 5}, seed=2)
    assert eps == 4 / 255
    result = evaluate(model, data, "pgd5", threat=ThreatModel("linf", 4 / 255), seed=2)
    assert result.attacks["pgd5@4/255"].accuracy == accuracy


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("measure", [evaluate, lambda m, d: eps_curve(m, d, [0.1])])
def test_non_finite_output_is_an_error_and_not_an_accuracy(measure: Any, value: float) -> None:
    model = conv_net()
    data = labelled(model)
    model[-1].weight.data[0, 0] = value
    before = [m.training for m in model.modules()]
    with pytest.raises(NonFiniteOutput):
        measure(model, data)
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attacks": "pdg"}, "unknown attack 'pdg'"),
        ({"attacks": [{"name": "pgd", "targeted": True}]}, "targeted"),
        ({"attacks": ["pgd20", {"name": "pgd", "steps": 20}]}, "two attacks are called"),
        ({"attacks": 3}, "attacks"),
        ({"threat": {"eps": 2}}, "threat.eps"),
        ({"threat": {"epsilon": 0.1}}, "unknown key 'epsilon'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"limit": 0}, "limit: 0"),
        ({"limit": True}, "limit: True"),
        ({"device": "cuda"}, "network is on cpu"),
        ({"device": "tpu!"}, "device: 'tpu!'"),
        ({"data": "digits"}, "data must be"),
        ({"data": torch.rand(3, 3, 8, 8)}, "data must be"),
        ({"data": None}, "data must be"),
        ({"data": []}, "no pictures"),
        ({"data": [(1, 2)]}, "pair of tensors"),
        ({"data": [3]}, "pair of tensors"),
        ({"data": [torch.rand(3, 3, 8, 8)]}, "pair of tensors"),
        ({"data": (torch.rand(0, 3, 8, 8), torch.zeros(0).long())}, "no pictures"),
        ({"data": (torch.rand(2, 3, 8, 8), torch.tensor([0, 4]))}, "label 4.*4 classes"),
        ({"data": (torch.rand(2, 3, 8, 8) * 255, torch.tensor([0, 1]))}, "must lie in"),
        ({"data": (torch.rand(2, 3, 8, 8), torch.tensor([0]))}, "labels of shape"),
        ({"model": lambda x: x}, "torch.nn.Module"),
        ({"model": nn.Conv2d(3, 3, 1)}, "logits"),
    ],
)
def test_bad_input(change: dict[str, Any], says: str) -> None:
    model = conv_net()
    given: dict[str, Any] = {"model": model, "data": labelled(model), "attacks": "fgsm", **change}
    with pytest.raises(UserError, match=says):
        evaluate(**given)


@pytest.mark.parametrize(
    ("eps", "spec", "says"),
    [
        ([], "pgd5", "at least one"),
        ([0.1, 2], "pgd5", "threat.eps: 2"),
        ([0.1], {"name": "pgd", "eps": 0.2}, "without eps and norm"),
        ([0.1], attack("pgd5"), "a name or a mapping"),
        ([0.1], {"name": "pgd", "targeted": True}, "targeted"),
    ],
)
def test_bad_curves(eps: Any, spec: Any, says: str) -> None:
    model = conv_net()
    with pytest.raises(UserError, match=says):
        eps_curve(model, labelled(model), eps, spec)


@pytest.mark.parametrize("name", ["pgd", "mi-fgsm"])
def test_steps_curve_is_an_evaluation_for_each_number_of_steps(name: str) -> None:
    """Counting a picture broken by few steps as broken by more loses nothing."""
    model = conv_net()
    data = labelled(model)
    before = state(model)
    threat = ThreatModel(eps=0.02)
    curve = steps_curve(model, data, (8, 1, 3, 2, 8), name, threat=threat, seed=4, batch_size=16)
    assert [steps for steps, _ in curve] == [1, 2, 3, 8]
    accuracies = [accuracy for _, accuracy in curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]
    for steps, accuracy in curve:
        spec = {"name": name, "steps": steps}
        (result,) = evaluate(model, data, [spec], threat=threat, seed=4).attacks.values()
        assert result.accuracy == accuracy
    assert state(model) == before


@pytest.mark.parametrize(
    ("steps", "spec", "says"),
    [
        ([], "pgd", "at least one number of steps"),
        ([3], {"name": "pgd", "steps": 3}, "none in the attack"),
        ([3], "pgd20", "sets steps both in its name and as a setting"),
        ([0], "pgd", "steps: 0 is not allowed"),
        ([True], "pgd", "steps: True is not allowed"),
        ([2.5], "pgd", "steps: 2.5 is not allowed"),
        ([3], "fgsm", "unknown key 'steps'"),
        ([3], attack("pgd"), "as a name or a mapping"),
    ],
)
def test_steps_curve_refuses(steps: Any, spec: Any, says: str) -> None:
    model = conv_net()
    with pytest.raises(UserError, match=says):
        steps_curve(model, labelled(model), steps, spec)
