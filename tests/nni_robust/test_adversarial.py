"""Adversarial examples: what is kept is written down exactly, and holds for whoever asks again."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nni_robust import load_architecture
from nni_robust.adversarial import AdversarialExamples, verify_examples
from nni_robust.attacks import Attack, _fold
from nni_robust.cli import main
from nni_robust.data import load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import AttackResult, evaluate
from nni_robust.threat import ThreatModel
from nni_robust.training import save_weights

N = 60
EPS = 0.03
TENSORS = (
    "clean",
    "adversarial",
    "labels",
    "predicted_clean",
    "predicted_adversarial",
    "index",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    with torch.no_grad():
        model(torch.rand(64, 3, 8, 8))  # running statistics of some pictures
        model[-1].bias -= model.eval()(torch.rand(64, 3, 8, 8)).mean(0)
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    return x, y


def only(found: Any) -> tuple[AttackResult, AdversarialExamples]:
    (result,) = found.attacks.values()
    assert result.examples is not None
    return result, result.examples


def same(one: AdversarialExamples, other: AdversarialExamples) -> bool:
    plain = [f.name for f in dataclasses.fields(one) if f.name not in TENSORS]
    return all(torch.equal(getattr(one, k), getattr(other, k)) for k in TENSORS) and all(
        getattr(one, k) == getattr(other, k) for k in plain
    )


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.4)])
def test_every_break_is_kept_and_holds(norm: Any, eps: float, model: nn.Module, data: Any) -> None:
    threat = ThreatModel(norm, eps)
    plain = evaluate(model, data, "pgd5", threat=threat, seed=3)
    found = evaluate(model, data, "pgd5", threat=threat, seed=3, keep="all", batch_size=16)
    result, examples = only(found)
    assert found.metrics() == plain.metrics()  # a float32 network has nothing to refute
    x, y = data
    broken = (found.clean_correct & ~result.correct).nonzero().flatten()
    assert torch.equal(examples.index, broken)
    assert 0 < len(examples) < N
    assert torch.equal(examples.clean, x[broken])
    assert torch.equal(examples.labels, y[broken])
    change = (examples.adversarial - examples.clean).double().flatten(1).numpy()
    size = abs(change).max(1) if norm == "linf" else (change**2).sum(1) ** 0.5
    assert (size <= eps + 2e-6).all()
    assert size.max() > 0.9 * eps
    with torch.no_grad():
        assert torch.equal(model(examples.adversarial).argmax(1), examples.predicted_adversarial)
    assert torch.equal(examples.predicted_clean, examples.labels)
    assert (examples.predicted_adversarial != examples.labels).all()
    assert (examples.broken, examples.refuted, examples.pictures) == (len(broken), 0, N)
    assert (examples.attack, examples.threat, examples.seed) == (result.attack.key, threat, 3)
    assert verify_examples(model, examples, batch_size=7).holds.all()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_first_are_kept_whatever_the_batch(
    batch_size: int, model: nn.Module, data: Any
) -> None:
    _, every = only(evaluate(model, data, "fgsm", threat={"eps": EPS}, keep="all"))
    _, few = only(evaluate(model, data, "fgsm", threat={"eps": EPS}, keep=5, batch_size=batch_size))
    assert torch.equal(few.index, every.index[:5])
    assert torch.allclose(few.adversarial, every.adversarial[:5], atol=1e-6)
    assert few.broken == every.broken > 5


def test_nothing_is_kept_unasked(model: nn.Module, data: Any) -> None:
    assert next(iter(evaluate(model, data, "fgsm").attacks.values())).examples is None
    for keep in (0, True, 1.5, "some"):
        with pytest.raises(UserError, match="keep: "):
            evaluate(model, data, "fgsm", keep=keep)  # type: ignore[arg-type]


def test_network_is_left_as_it_was(model: nn.Module, data: Any) -> None:
    trained = copy.deepcopy(model).train().double()
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    _, examples = only(evaluate(trained, data, "pgd3", threat={"eps": EPS}, keep=4))
    verify_examples(trained, examples)
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert all(p.requires_grad for p in trained.parameters())


# --- what does not hold is no break --------------------------------------------------------------


class Odd(Attack):
    """Gives back whatever it likes."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(ThreatModel(eps=EPS), "odd")
        self.change = change

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Tensor:
        return self.change(x)

    def _run(self, *_: Any) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    "change",
    [lambda x: 1 - x, lambda x: x - 1.0, lambda x: x + 0.9],
    ids=["far", "dark", "bright"],
)
def test_attack_that_leaves_ball_or_box(change: Any, model: nn.Module, data: Any) -> None:
    loose = evaluate(model, data, Odd(change))
    assert loose.worst < loose.clean  # it claims breaks
    found = evaluate(model, data, Odd(change), keep="all")
    result, examples = only(found)
    assert result.accuracy == found.clean
    assert len(examples) == examples.broken == 0
    assert examples.refuted == round((loose.clean - loose.worst) * N)
    assert [check.name for check in found.reliability.failed] == ["outside-ball"]


def test_a_step_beyond_the_rim(model: nn.Module, data: Any) -> None:
    """1e-6 is allowed, 3e-6 is not; both measured away from the rounding of float32."""
    x, y = data
    inner = (0.25 + 0.5 * x, y)
    for over, allowed in ((5e-7, True), (3e-6, False)):
        found = evaluate(
            model,
            inner,
            Odd(lambda x, over=over: x + EPS + over),
            keep="all",  # type: ignore[misc]
        )
        _, examples = only(found)
        assert examples.broken + examples.refuted > 0
        assert (examples.refuted == 0) == allowed


class Coarse(nn.Module):
    """Logits far from 0: their differences are lost in half precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 8


def test_breaks_of_half_precision_only(model: nn.Module, data: Any) -> None:
    half = Coarse(copy.deepcopy(model)).bfloat16()
    wide = copy.deepcopy(half).float()
    x = data[0].bfloat16().float()
    with torch.no_grad():
        y = half(x.bfloat16()).argmax(1)
    loose = evaluate(half, (x, y), "pgd3", threat={"eps": EPS})
    found = evaluate(half, (x, y), "pgd3", threat={"eps": EPS}, keep="all")
    result, examples = only(found)
    assert examples.refuted > 0
    assert result.accuracy > loose.worst
    assert round((result.accuracy - loose.worst) * N) == examples.refuted
    with torch.no_grad():
        assert (wide(examples.adversarial).argmax(1) != examples.labels).all()


def test_breaks_under_autocast_only(model: nn.Module, data: Any) -> None:
    class Cast(nn.Module):
        """Where products are rounded, the answer is another."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x)
            moved = (x - (x * 255).round() / 255).abs().flatten(1).amax(1) > 1e-6
            rounded = (x.flatten(1) @ x.new_ones(x[0].numel(), 1)).dtype == torch.bfloat16
            return torch.where((moved & rounded)[:, None], z.roll(1, 1), z)

    x, y = ((data[0] * 255).round() / 255, data[1])
    with torch.autocast("cpu", torch.bfloat16):
        loose = evaluate(Cast(model), (x, y), Odd(lambda x: (x + 0.001).clamp(0, 1)))
        kept = evaluate(Cast(model), (x, y), Odd(lambda x: (x + 0.001).clamp(0, 1)), keep="all")
    assert loose.worst == 0 < loose.clean
    result, examples = only(kept)
    assert examples.refuted > 0.8 * loose.clean * N
    assert result.accuracy == pytest.approx(examples.refuted / N)


def test_folding_that_goes_wrong(
    model: nn.Module, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack on wrongly folded weights claims what it likes; only what holds is kept."""
    right = _fold._merge

    def wrong(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
        weight, bias = right(conv, norm)
        return weight.flip(0), bias + 0.3

    sound = evaluate(model, data, "pgd5", threat={"eps": EPS})
    monkeypatch.setattr(_fold, "_merge", wrong)
    monkeypatch.setattr(_fold, "_close", lambda *_: True)
    fresh = copy.deepcopy(model)  # no plan of an earlier test
    found = evaluate(fresh, data, "pgd5", threat={"eps": EPS}, keep="all")
    assert not torch.equal(only(found)[0].correct, next(iter(sound.attacks.values())).correct)
    _, examples = only(found)
    monkeypatch.undo()
    with torch.no_grad():
        assert (model(examples.adversarial).argmax(1) != examples.labels).all()
    assert verify_examples(model, examples).holds.all()


# --- files ---------------------------------------------------------------------------------------


def test_files_give_back_the_same_bits(model: nn.Module, data: Any, tmp_path: Path) -> None:
    _, examples = only(evaluate(model, data, "pgd3", threat={"eps": "8/255"}, keep=9, seed=5))
    examples = dataclasses.replace(examples, classes=("a", 'b "c"', "d", "e", "f"), network="n")
    path = examples.save(tmp_path / "new")
    assert path == tmp_path / "new" / "pgd3_8_255.safetensors"
    assert same(AdversarialExamples.load(path), examples)
    tensors = load_file(path)
    assert sorted(tensors) == sorted(TENSORS)
    assert tensors["clean"].dtype == tensors["adversarial"].dtype == torch.float32
    assert all(tensors[key].dtype == torch.int64 for key in TENSORS[2:])
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    metadata = json.loads(header)["__metadata__"]
    assert json.loads(metadata["classes"]) == list(examples.classes)
    assert (metadata["attack"], metadata["norm"]) == ("pgd3@8/255", "linf")
    assert float(metadata["eps"]) == 8 / 255


def test_nothing_broken_is_a_file_too(model: nn.Module, data: Any, tmp_path: Path) -> None:
    _, examples = only(evaluate(model, data, "pgd2", threat={"eps": 0}, keep=3))
    read = AdversarialExamples.load(examples.save(tmp_path))
    assert same(read, examples)
    assert len(read) == read.broken == 0
    assert len(verify_examples(model, read).holds) == 0


def rewritten(path: Path, **changes: Tensor) -> AdversarialExamples:
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    save_file({**load_file(path), **changes}, path, metadata=metadata)
    return AdversarialExamples.load(path)


def test_who_tampers_is_found_out(model: nn.Module, data: Any, tmp_path: Path) -> None:
    _, examples = only(evaluate(model, data, "pgd3", threat={"eps": EPS}, keep=6))
    path = examples.save(tmp_path)
    clean, adv = examples.clean, examples.adversarial
    far, nan = adv.clone(), adv.clone()
    far[2, 0, 3, 3] = 1 - far[2, 0, 3, 3].round()  # a pixel far off
    nan[4, 1, 0, 0] = torch.nan
    for changed, what, row in ((far, "outside", 2), (nan, "outside", 4)):
        told = verify_examples(model, rewritten(path, adversarial=changed))
        assert getattr(told, what).nonzero().flatten().tolist() == [row]
        assert not told.holds[row]
    examples.save(tmp_path)
    told = verify_examples(model, rewritten(path, adversarial=clean.clone()))
    assert told.resisted.all()
    assert not told.holds.any()
    examples.save(tmp_path)
    told = verify_examples(model, rewritten(path, labels=(examples.labels + 1) % 5))
    assert told.clean_wrong.all()
    other = network()
    with torch.no_grad():
        other[-1].weight.neg_()
    told = verify_examples(other, examples)
    assert not told.same_network
    assert not told.holds.all()
    assert verify_examples(model, examples).same_network


def test_other_files_are_refused(tmp_path: Path, model: nn.Module, data: Any) -> None:
    with pytest.raises(UserError, match="no file of adversarial examples"):
        AdversarialExamples.load(tmp_path / "none.safetensors")
    other = tmp_path / "weights.safetensors"
    save_file({"clean": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="holds no adversarial examples"):
        AdversarialExamples.load(other)
    _, examples = only(evaluate(model, data, "fgsm", keep=2))
    path = examples.save(tmp_path)
    with pytest.raises(UserError, match=r"clean: expected \(3, C, H, W\)"):
        rewritten(path, labels=torch.zeros(3, dtype=torch.int64))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        AdversarialExamples.load(path)


# --- the command line ----------------------------------------------------------------------------


def spread(network: nn.Module) -> nn.Module:
    """Untrained, but its answers are of several classes and easily changed."""
    (x, _) = next(iter(load_dataset("digits").validation.batches(200)))
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= network.eval()(x).mean(0)
    return network


def test_a_second_user_verifies_without_attacking(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "examples"
    weights = tmp_path / "weights.safetensors"
    save_weights(spread(load_architecture(tiny).build(10)), weights)
    network = [tiny, "--weights", str(weights)]
    argv = ["evaluate", *network, "--limit", "200", "--attacks", "fgsm,pgd3", "--eps", "0.2"]
    saving = [*argv, "--save-examples", str(folder), "--examples", "4"]
    assert main([*saving, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in folder.iterdir()) == [
        "fgsm_51_255.safetensors",
        "pgd3_51_255.safetensors",
    ]
    broken = round((answer["metrics"]["clean"] - answer["metrics"]["pgd3@51/255"]) * 200)
    told = answer["examples"]["pgd3@51/255"]
    assert told["broken"] == broken > 4 == told["saved"]
    found = AdversarialExamples.load(told["file"])
    assert found.network == "tiny"
    assert found.classes == tuple("0123456789")

    again = ["evaluate", *network, "--examples-from", str(folder)]
    assert main(again) == 0
    assert "verified: every example holds" in capsys.readouterr().out
    assert main(["evaluate", tiny, *again[-2:], "--json"]) == 1  # fresh weights
    answer = json.loads(capsys.readouterr().out)
    assert answer["holds"] is False
    assert all(not one["same_network"] for one in answer["files"].values())
    assert main(saving) == 0
    assert f"4 of {broken} adversarial pictures of pgd3@51/255 in {told['file']}" in (
        capsys.readouterr().out
    )


def test_files_without_an_example_are_no_error(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "examples"
    weights = tmp_path / "weights.safetensors"
    save_weights(spread(load_architecture(tiny).build(10)), weights)
    network = ["evaluate", tiny, "--weights", str(weights)]
    argv = [*network, "--limit", "20", "--attacks", "fgsm", "--eps", "0"]  # breaks nothing
    assert main([*argv, "--save-examples", str(folder)]) == 0
    capsys.readouterr()
    again = [*network, "--examples-from", str(folder)]
    assert main(again) == 0
    assert "0 examples: there is nothing to verify" in capsys.readouterr().out
    assert main([*again, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (one,) = answer["files"].values()
    assert (answer["holds"], one["examples"], one["broken"], one["holds"]) == (True, 0, 0, 0)
    assert one["same_network"] is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--save-examples", "/proc/no"], "--save-examples '/proc/no' cannot be written"),
        (["--save-examples", "x", "--examples-from", "x"], "give one"),
        (["--save-examples", "x", "--strengths", "0.1"], "--save-examples is not allowed with"),
        (["--examples-from", "nowhere"], "--examples-from 'nowhere': there is no *.safetensors"),
        # What would be left out silently is refused.
        (["--examples", "5"], "--examples 5 needs --save-examples"),
        (["--examples-from", "x", "--corruptions"], "--corruptions is not allowed with --examples"),
        (["--examples-from", "x", "--strengths", "0.1"], "--strengths is not allowed with --exam"),
        (["--examples-from", "x", "--eps", ".3"], "--eps '.3' is not allowed with --examples-from"),
        (["--examples-from", "x", "--norm", "l2"], "--norm 'l2' is not allowed with --examples-f"),
        (["--examples-from", "x", "--dataset", "svhn"], "which brings its pictures"),
        (["--examples-from", "x", "--thorough"], "--thorough is not allowed with --examples-from"),
        (["--examples-from", "x", "--precision", "bf16"], "--precision 'bf16' is not allowed with"),
        (["--severities", "1,2"], "--severities '1,2' needs --corruptions"),
        (["--corruptions", "--thorough"], "--thorough is not allowed with --corruptions"),
    ],
)
def test_refusals(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "robnet-small", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "many", "1.5"])
def test_a_wrong_number_of_examples_is_told_in_words(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "robnet-small", "--save-examples", "x", "--examples", text])
    assert ended.value.code == 2
    message = f"--examples: {text} is not allowed; a whole number above 0 is, or 'all'"
    assert message in capsys.readouterr().err
