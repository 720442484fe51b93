"""Keeping the best epoch, and stopping early: against weights noted epoch by epoch."""

from __future__ import annotations

import contextlib
import copy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel
from nni_robust.training import EpochRecord, Recipe, TrainAttack, TrainResult, train
from nni_robust.training._records import impatient, kept_epoch

THREAT = ThreatModel(eps=0.1)


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (112, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(112) % 4, "abcd", ("crop", "flip"))
    return DataSplits("toy", images.take(torch.arange(64)), images.take(torch.arange(64, 112)))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 8,
        "batch_size": 16,
        "lr": 0.05,
        "attack": TrainAttack(steps=2),
        "validation_attack": "pgd2",
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return copy.deepcopy(result.model.state_dict())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def numbers(result: TrainResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(r).items() if k != "seconds"} for r in result.history]


def best_of(history: list[EpochRecord]) -> int:
    """The first of the best epochs, the long way."""
    best, number = -1.0, 0
    for record in history:
        assert record.val_robust is not None
        if record.val_robust > best:
            best, number = record.val_robust, record.epoch
    return number


@pytest.mark.parametrize("averaging", [None, 0.8])
def test_the_weights_are_those_of_the_best_epoch(averaging: float | None) -> None:
    noted: list[dict[str, torch.Tensor]] = []
    model = network()
    if averaging is None:
        last = train(
            model,
            splits(),
            recipe(),
            THREAT,
            on_epoch=lambda r: noted.append(copy.deepcopy(model.state_dict())),
        )
    else:
        # A constant rate: a shorter training is the beginning of the longer one, and ends with the
        # average that was validated then.
        for epochs in range(1, 9):
            last = train(
                network(),
                splits(),
                recipe(epochs=epochs, averaging=averaging, schedule="constant"),
                THREAT,
            )
            noted.append(weights(last))
    schedule = "cosine" if averaging is None else "constant"
    kept = train(
        network(), splits(), recipe(keep="best", averaging=averaging, schedule=schedule), THREAT
    )
    assert numbers(kept) == numbers(last)
    expected = best_of(kept.history)
    assert expected not in (0, 8), "nothing to tell apart"
    assert kept.kept_epoch == expected
    assert equal(weights(kept), noted[expected - 1])
    assert last.kept_epoch == 8
    assert not equal(weights(kept), weights(last))


def test_what_is_kept_has_the_accuracy_that_was_measured() -> None:
    kept = train(
        network(), splits(), recipe(keep="best", averaging=0.8, validation_limit=40), THREAT
    )
    record = kept.history[kept.kept_epoch - 1]
    found = evaluate(kept.model, splits().validation, [], limit=40)
    assert found.metrics()["clean"] == pytest.approx(record.val_clean)


def record(epoch: int, robust: float | None) -> EpochRecord:
    return EpochRecord(epoch, 1.0, 0.1, 0.5, 0.5, robust, 1.0)


def test_patience_counts_from_the_best_and_not_in_clean_epochs() -> None:
    history = [record(n, a) for n, a in enumerate([0.1, 0.3, 0.3, 0.2, 0.25], 1)]
    patient = recipe(keep="best", patience=3)
    assert kept_epoch(history, patient) == 2  # the first of equals
    assert [impatient(history[:n], patient) for n in range(6)] == [False] * 5 + [True]
    clean = recipe(keep="best", patience=3, clean_epochs=4)
    assert not impatient(history, clean)
    assert kept_epoch([], patient) == 0
    assert kept_epoch(history, recipe()) == 5
    assert not impatient(history, recipe(keep="best"))


def test_a_training_stops_early() -> None:
    whole = train(network(), splits(), recipe(keep="best", schedule="constant"), THREAT)
    early = train(network(), splits(), recipe(keep="best", patience=1, schedule="constant"), THREAT)
    curve = [r.val_robust or 0.0 for r in whole.history]
    first = next(n for n in range(1, 8) if curve[n] <= max(curve[:n]))
    assert len(early.history) == first + 1 < 8
    assert numbers(early) == numbers(whole)[: first + 1]
    assert early.kept_epoch == best_of(early.history) == first


class Stop:
    """Interrupts after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, record: EpochRecord) -> None:
        if record.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("changes", [{}, {"averaging": 0.8}, {"patience": 3}])
def test_an_interrupted_training_keeps_the_same(
    tmp_path: Path, stop: int, changes: dict[str, Any]
) -> None:
    settings = recipe(keep="best", **changes)
    whole = train(network(), splits(), settings, THREAT)
    with contextlib.suppress(KeyboardInterrupt):
        train(network(), splits(), settings, THREAT, folder=tmp_path, on_epoch=Stop(stop))
    resumed = train(network(), splits(), settings, THREAT, folder=tmp_path)
    assert equal(weights(whole), weights(resumed))
    assert numbers(whole) == numbers(resumed)
    again = train(network(), splits(), settings, THREAT, folder=tmp_path)
    assert (again.kept_epoch, equal(weights(again), weights(whole))) == (whole.kept_epoch, True)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_training_keep import THREAT, network, recipe, splits
from nni_robust.training import train
train(network(), splits(), recipe(epochs=24, keep="best", averaging=0.8, checkpoint_steps=1),
      THREAT, folder=sys.argv[1], on_epoch=lambda r: print(r.epoch, flush=True))
"""


def test_a_killed_training_keeps_the_same(tmp_path: Path) -> None:
    settings = recipe(epochs=24, keep="best", averaging=0.8, checkpoint_steps=1)
    whole = train(network(), splits(), settings, THREAT)
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    for epoch in (min(whole.kept_epoch + 1, 22), 23):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= epoch:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    resumed = train(network(), splits(), settings, THREAT, folder=tmp_path)
    assert equal(weights(whole), weights(resumed))
    assert resumed.kept_epoch == whole.kept_epoch == best_of(whole.history)
    assert [r.epoch for r in resumed.history] == list(range(1, 25))


def test_two_devices_keep_what_one_does() -> None:
    """Without batch normalisation, and with sums of halves that round alike: on one epoch apart."""

    def plain() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    kept = train(
        plain(),
        splits(),
        recipe(keep="best", averaging=0.8, devices=2, strategy="ddp_fork"),
        THREAT,
    )
    assert kept.kept_epoch == best_of(kept.history)
    found = evaluate(kept.model, splits().validation, [])
    assert found.metrics()["clean"] == pytest.approx(kept.history[kept.kept_epoch - 1].val_clean)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"keep": "first"}, "keep: 'first' is not allowed .allowed: last, best"),
        ({"keep": "best", "validation_attack": None}, "not allowed without validation_attack"),
        ({"patience": 2}, "patience is not allowed with keep: 'last'"),
        ({"keep": "best", "patience": 0}, "patience: 0 is not allowed; a whole number >= 1"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recipe(**changes)


def test_not_where_nothing_or_one_path_is_measured() -> None:
    with pytest.raises(UserError, match="keep: 'best' is not allowed without validating"):
        train(network(), splits(), recipe(keep="best"), THREAT, validate=False)

    class Hook:
        def before_batch(self, model: nn.Module, generator: torch.Generator) -> None:
            raise AssertionError("trained")

    with pytest.raises(UserError, match="keep: 'best' is not allowed with a hook"):
        train(network(), splits(), recipe(keep="best"), THREAT, hook=Hook())
