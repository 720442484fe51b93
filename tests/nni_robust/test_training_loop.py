"""The training loop: against a loop written out, on real digits, and when things go wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nni_robust.attacks import attack
from nni_robust.data import DataSplits, ImageSet, derive_seed, load_dataset
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, TrainingDiverged, check_training, train

CPU = {"accelerator": "cpu", "validation_attack": "pgd2"}


def splits(n=96, classes=4, augment=("crop",)) -> DataSplits:
    """Pictures whose class is their brightest quarter, with noise."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 160, (n, 3, 8, 8), generator=random, dtype=torch.uint8)
    labels = torch.arange(n) % classes
    for picture, label in zip(pixels, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 90
    images = ImageSet(pixels, labels, "abcd"[:classes], augment)
    return DataSplits(
        "toy", images.take(torch.arange(n - 32)), images.take(torch.arange(n - 32, n))
    )


def network(seed=0, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_equals_the_same_training_written_out():
    data, threat = splits(), ThreatModel(eps=0.1)
    recipe = Recipe(
        epochs=3,
        batch_size=16,
        lr=0.2,
        nesterov=True,
        weight_decay=1e-3,
        grad_clip=0.5,
        schedule="linear",
        attack=TrainAttack(steps=3),
        channels_last=False,
        **CPU,
    )
    ours = train(network(), data, recipe, threat, seed=7, validate=False)

    model = network().train()
    sgd = torch.optim.SGD(model.parameters(), 0.2, 0.9, weight_decay=1e-3, nesterov=True)
    pgd = attack("pgd", eps=0.1, steps=3)
    step, losses = 0, []
    for epoch in range(3):
        batches = data.train.batches(
            16, shuffle=True, seed=derive_seed(7, "data"), epoch=epoch, augment=("crop",)
        )
        for number, (x, y) in enumerate(batches):
            x_adv = pgd(model, x, y, seed=derive_seed(7, "attack", epoch, number, 0))
            sgd.param_groups[0]["lr"] = 0.2 * (1 - step / 12)
            loss = F.cross_entropy(model(x_adv), y)
            sgd.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            sgd.step()
            step, losses = step + 1, [*losses, loss.item()]
    assert equal(ours.model, model)
    means = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [r.loss for r in ours.history] == pytest.approx(means)
    assert [r.lr for r in ours.history] == pytest.approx([0.2 * (1 - s / 12) for s in (3, 7, 11)])
    assert not ours.model.training


def test_digits_are_learned_robustly():
    data = load_dataset("digits", train_limit=600, validation_limit=200)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    threat = ThreatModel(eps=0.1)
    recipe = Recipe(epochs=6, batch_size=50, attack=TrainAttack(steps=3), **CPU)
    clean = train(
        copy.deepcopy(model), data, Recipe(epochs=6, batch_size=50, loss="clean", **CPU), threat
    )
    robust = train(copy.deepcopy(model), data, recipe, threat)
    trades = train(
        copy.deepcopy(model),
        data,
        Recipe(epochs=6, batch_size=50, loss="trades", attack=TrainAttack(steps=3), **CPU),
        threat,
    )
    scores = [
        evaluate(r.model, data.validation, ["pgd10"], threat=threat).metrics()
        for r in (clean, robust, trades)
    ]
    assert all(s["clean"] > 0.85 for s in scores)
    against = [s["pgd10@0.1"] for s in scores]
    assert against[1] > against[0] + 0.1
    assert against[2] > against[0] + 0.1
    assert robust.history[-1].train_robust > robust.history[0].train_robust


def test_records_tell_what_evaluate_tells():
    data, threat, records = splits(), ThreatModel(eps=0.05), []
    recipe = Recipe(epochs=2, batch_size=32, validation_limit=20, loss="clean", **CPU)
    result = train(network(), data, recipe, threat, seed=3, on_epoch=records.append)
    assert records == result.history
    found = evaluate(
        result.model,
        data.validation,
        ["pgd2"],
        threat=threat,
        limit=20,
        seed=derive_seed(3, "validation"),
    )
    assert records[-1].val_clean == found.clean
    assert records[-1].val_robust == found.attacks["pgd2@0.05"].accuracy
    assert [r.epoch for r in records] == [1, 2]
    assert result.seconds == pytest.approx(sum(r.seconds for r in records))
    assert json.loads(json.dumps(asdict(records[0]), allow_nan=False)) == asdict(records[0])

    without = Recipe(epochs=1, batch_size=32, accelerator="cpu", validation_attack=None)
    (record,) = train(network(), data, without, threat).history
    assert record.val_clean is not None
    assert record.val_robust is None


def test_averaged_weights_are_validated_and_returned():
    data, threat = splits(), ThreatModel(eps=0.05)
    recipe = Recipe(epochs=2, batch_size=16, averaging=0.8, **CPU)
    averaged = train(network(), data, recipe, threat)
    # The same training without averaging, whose weights are averaged here.
    live = network()

    class Watch:
        def __init__(self):
            self.shadow, self.updates = None, -1

        def look(self):
            state = {n: t.clone() for n, t in live.state_dict().items() if t.is_floating_point()}
            self.updates += 1
            if self.shadow is None:
                self.shadow = state
                return
            d = min(0.8, (1 + self.updates) / (10 + self.updates))
            self.shadow = {n: d * self.shadow[n] + (1 - d) * t for n, t in state.items()}

        def before_batch(self, model, generator):
            self.look()

    watch = Watch()
    plain = Recipe(epochs=2, batch_size=16, accelerator="cpu")
    train(live, data, plain, threat, validate=False, hook=watch)
    watch.look()
    assert watch.updates == 8
    for name, tensor in watch.shadow.items():
        assert torch.allclose(averaged.model.state_dict()[name], tensor, atol=1e-6), name
    found = evaluate(averaged.model, data.validation, [])
    assert averaged.history[-1].val_clean == found.clean


class Branches(nn.Module):
    """A two-path supernet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.paths = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(4, 4)
        self.chosen = 0

    def forward(self, x):
        return self.head(self.paths[self.chosen](x).mean((2, 3)))


def test_paths_that_are_not_taken_stay_the_same_to_the_bit():
    model = Branches()
    seen = []

    class Choose:
        def before_batch(self, model, generator):
            # Path 1 is trained first, so that it has momentum when path 0 takes over.
            model.chosen = 1 if len(seen) < 3 else 0
            state = {n: t.clone() for n, t in model.state_dict().items()}
            seen.append((model.chosen, state))

    recipe = Recipe(epochs=2, batch_size=16, weight_decay=0.1, schedule="constant", **CPU)
    train(model, splits(), recipe, ThreatModel(), hook=Choose(), validate=False)
    states = [state for _, state in seen] + [model.state_dict()]
    for (chosen, before), after in zip(seen, states[1:], strict=True):
        for name, tensor in after.items():
            still = name.startswith(f"paths.{1 - chosen}.")
            assert torch.equal(tensor, before[name]) == still, name
    assert len(seen) == 8


def test_a_hook_draws_the_same_numbers_in_every_run_of_a_seed():
    def numbers(seed):
        drawn = []

        class Draw:
            def before_batch(self, model, generator):
                drawn.append(int(torch.randint(10**9, (), generator=generator)))
                torch.rand(3)  # the global generator is somebody else's

        recipe = Recipe(epochs=2, batch_size=16, loss="clean", **CPU)
        train(network(), splits(), recipe, ThreatModel(), seed=seed, hook=Draw())
        return drawn

    first = numbers(1)
    assert len(set(first)) == 8
    assert first == numbers(1)
    assert not set(first) & set(numbers(2))


def test_seed_decides_everything_and_the_callers_generator_is_left_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 4))
    recipe = Recipe(epochs=2, batch_size=16, **CPU)

    def run(seed, noise):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        result = train(copy.deepcopy(model), splits(), recipe, ThreatModel(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return result.model

    assert equal(run(1, 0), run(1, 99))
    assert not equal(run(1, 0), run(2, 0))


def test_weight_decay_without_biases_and_norms():
    def decayed(**kwargs):
        model = network()
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
            model[5].weight.fill_(0.0)  # no gradient passes: only weight decay moves the rest
        recipe = Recipe(
            epochs=1,
            batch_size=64,
            lr=0.1,
            momentum=0.0,
            weight_decay=0.5,
            loss="clean",
            **kwargs,
            **CPU,
        )
        data = splits()
        train(model, data, recipe, ThreatModel(), validate=False)
        return {
            name: p.detach() for name, p in model.named_parameters() if not name.startswith("5")
        }

    everything, spared = decayed(), decayed(no_decay_norm_bias=True)
    for name, p in everything.items():
        assert torch.allclose(p, torch.full_like(p, 0.95)), name
        expected = 0.95 if spared[name].dim() > 1 else 1.0
        assert torch.allclose(spared[name], torch.full_like(p, expected)), name


def test_low_precision_and_memory_format_are_settings():
    threat = ThreatModel(eps=0.05)
    plain = train(network(), splits(), Recipe(epochs=1, batch_size=16, **CPU), threat)
    low = train(
        network(), splits(), Recipe(epochs=1, batch_size=16, precision="bf16-mixed", **CPU), threat
    )
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    assert low.history[0].loss == pytest.approx(plain.history[0].loss, rel=0.05)
    assert low.history[0].loss != plain.history[0].loss
    assert plain.model[0].weight.is_contiguous(memory_format=torch.channels_last)


class Poison:
    """Makes a weight infinite before a certain batch."""

    def __init__(self, step, value):
        self.step, self.value, self.calls = step, value, 0

    def before_batch(self, model, generator):
        if self.calls == self.step:
            with torch.no_grad():
                model[5].weight[0, 0] = self.value
        self.calls += 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", ["clean", "madry", "trades"])
def test_divergence_is_reported_where_it_happened(loss, value, tmp_path):
    recipe = Recipe(epochs=3, batch_size=16, lr=0.1, schedule="constant", loss=loss, **CPU)
    with pytest.raises(TrainingDiverged) as caught:
        train(network(), splits(), recipe, ThreatModel(), hook=Poison(5, value), folder=tmp_path)
    sentence = str(caught.value)
    assert "epoch 2, step 6, at learning rate 0.1" in sentence
    assert "\n" not in sentence
    assert (caught.value.epoch, caught.value.step, caught.value.lr) == (2, 6, 0.1)
    # The checkpoint of the good epoch is still there, and no bad one.
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["checkpoint-000000004.safetensors"]


def test_a_weight_that_overflows_in_the_last_step_is_found():
    recipe = Recipe(epochs=1, batch_size=64, lr=1e38, schedule="constant", loss="clean", **CPU)
    with pytest.raises(TrainingDiverged, match=r"is NaN or infinite in epoch 1, step 1"):
        train(network(), splits(), recipe, ThreatModel(), validate=False)


def test_divergence_travels_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(TrainingDiverged("the loss", 2, 6, 0.1)))
    assert str(error) == str(TrainingDiverged("the loss", 2, 6, 0.1))


def test_no_epochs_leave_the_network_as_it_is(tmp_path):
    model = network()
    result = train(
        model, splits(), Recipe(epochs=0, **CPU, batch_size=16), ThreatModel(), folder=tmp_path
    )
    assert equal(model, network())
    assert result.history == []
    assert result.seconds == 0


class Two(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.weight, self.give = nn.Parameter(torch.zeros(1)), give

    def forward(self, x):
        return self.give(x, self.weight)


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        (None, {"batch_size": 65}, "'toy' has only 64 training pictures"),
        (None, {"augment": ("resized-crop",)}, "needs streamed pictures"),
        (None, {"validation_attack": "pdg10"}, "pdg10"),
        (None, {"accelerator": "gpu", "devices": 99}, "cannot be used on this machine"),
        (None, {"accelerator": "abacus"}, "accelerator: 'abacus' is not allowed"),
        (network(classes=3), {}, "knows 3 classes; 'toy' has 4"),
        (nn.Flatten(), {}, "has no weights to train"),
        (Two(lambda x, w: x * w), {}, "must be .N, classes."),
        (Two(lambda x, w: [x]), {}, "must be .N, classes., not list"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(model, arguments, sentence, tmp_path):
    recipe = Recipe(**{"epochs": 1, "batch_size": 16, **CPU, **arguments})
    with pytest.raises(UserError, match=sentence) as caught:
        train(model or network(), splits(), recipe, ThreatModel(), folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_validating_needs_pictures():
    data = splits()
    bare = DataSplits("toy", data.train, data.validation.take(torch.arange(0)))
    recipe = Recipe(epochs=1, batch_size=16, **CPU)
    with pytest.raises(UserError, match="no search-validation pictures"):
        check_training(None, bare, recipe, ThreatModel())
    assert (
        train(network(), bare, recipe, ThreatModel(), validate=False).history[0].val_clean is None
    )


def test_all_classes_of_a_batch_reach_their_class_under_l2():
    threat = ThreatModel(norm="l2", eps=0.5)
    result = train(network(), splits(), Recipe(epochs=4, batch_size=16, **CPU), threat)
    assert result.history[-1].val_robust > 0.5


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path):
    """Two processes: each step is that of one device, up to rounding (no batch norm here)."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))

    arguments = {"epochs": 2, "batch_size": 16, "accelerator": "cpu", "loss": "trades"}
    still = {"attack": TrainAttack(steps=1, step_size=1e-9)}  # starts differ between devices
    threat = ThreatModel(eps=1e-6)
    one = train(model(), splits(), Recipe(**arguments, **still), threat)
    two = train(
        model(),
        splits(),
        Recipe(**arguments, **still, devices=2, strategy="ddp_fork"),
        threat,
        folder=tmp_path,
    )
    for name, tensor in one.model.state_dict().items():
        assert torch.allclose(tensor, two.model.state_dict()[name], atol=1e-4), name
    assert [r.loss for r in two.history] == pytest.approx([r.loss for r in one.history], rel=1e-3)
    for record, other in zip(one.history, two.history, strict=True):
        assert record.val_clean == pytest.approx(other.val_clean, abs=1 / 32)
    assert (tmp_path / "result.json").is_file()


class FirstPath:
    def before_batch(self, model, generator):
        model.chosen = 0


@pytest.mark.slow
def test_paths_that_are_not_taken_stay_the_same_on_two_devices():
    recipe = Recipe(
        epochs=1,
        batch_size=16,
        devices=2,
        strategy="ddp_fork",
        weight_decay=0.1,
        **CPU,
    )
    result = train(Branches(), splits(), recipe, ThreatModel(), hook=FirstPath(), validate=False)
    before = Branches().state_dict()
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("paths.1."), name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clean", "madry"])
def test_divergence_on_two_devices_is_one_sentence(loss):
    recipe = Recipe(epochs=2, batch_size=16, loss=loss, devices=2, strategy="ddp_fork", **CPU)
    with pytest.raises(TrainingDiverged, match=r"^training diverged: .* epoch 1, step 3,"):
        train(network(), splits(), recipe, ThreatModel(), hook=Poison(2, float("nan")))


@pytest.mark.slow
def test_a_batch_has_to_be_divisible_among_devices():
    recipe = Recipe(epochs=1, batch_size=15, devices=2, strategy="ddp_fork", **CPU)
    with pytest.raises(UserError, match="15 is not allowed with 2 devices"):
        train(network(), splits(), recipe, ThreatModel())
