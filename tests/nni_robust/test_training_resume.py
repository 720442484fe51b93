"""Interrupted and resumed training equals training without interruption, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from nni_robust.data import DataSplits, ImageSet
from nni_robust.errors import UserError
from nni_robust.threat import ThreatModel
from nni_robust.training import Recipe, TrainAttack, _checkpoint, train

THREAT = ThreatModel(eps=0.1)

#: What a finished training leaves.
FILES = ["log.csv", "log.jsonl", "result.json", "weights.safetensors"]


def splits() -> DataSplits:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (80, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(80) % 4, "abcd", ("crop", "flip"))
    return DataSplits("toy", images.take(torch.arange(64)), images.take(torch.arange(64, 80)))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(512, 4),
    )


def recipe(**changes) -> Recipe:
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "averaging": 0.9,
        "nesterov": True,
        "warmup_epochs": 1,
        "attack": TrainAttack(steps=2),
        "validation_attack": "pgd2",
        "accelerator": "cpu",
    }
    return Recipe(**{**settings, **changes})


class Switch:
    """A hook with a memory: freezes or frees the first layer by drawn numbers and its own count."""

    def __init__(self, interrupt_at=None):
        self.count, self.drawn, self.interrupt_at = 0, [], interrupt_at

    def before_batch(self, model, generator):
        if self.count == self.interrupt_at:
            raise KeyboardInterrupt
        self.count += 1
        self.drawn.append(int(torch.randint(1000, (), generator=generator)))
        model[0].weight.requires_grad_((self.drawn[-1] + self.count) % 3 != 0)

    def state_dict(self):
        return {"count": self.count, "drawn": self.drawn}

    def load_state_dict(self, state):
        self.count, self.drawn = state["count"], state["drawn"]


def same(a, b) -> bool:
    """Equal weights to the bit and equal histories but for the time they took."""
    weights = all(torch.equal(t, b.model.state_dict()[n]) for n, t in a.model.state_dict().items())
    histories = [
        [{k: v for k, v in vars(r).items() if k != "seconds"} for r in x.history] for x in (a, b)
    ]
    return weights and histories[0] == histories[1]


def last_checkpoint(folder):
    tensors, state = _checkpoint.load_newest(folder)
    state.pop("elapsed")
    state["history"] = [{**r, "seconds": 0} for r in state["history"]]
    return tensors, state


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("stop", [1, 6, 8, 15])
def test_interrupted_equals_uninterrupted(tmp_path, stop, steps):
    settings = recipe(checkpoint_steps=steps)
    whole_hook = Switch()
    whole = train(network(), splits(), settings, THREAT, seed=5, hook=whole_hook)
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), settings, THREAT, seed=5, hook=Switch(stop), folder=tmp_path)
    assert not (tmp_path / "result.json").exists()
    hook = Switch()
    torch.manual_seed(99)
    fresh = network()
    nn.init.zeros_(fresh[0].weight)  # whatever the caller gives is replaced
    if not list(tmp_path.glob("checkpoint-*")):
        fresh = network()  # nothing was saved before the first checkpoint
    resumed = train(fresh, splits(), settings, THREAT, seed=5, hook=hook, folder=tmp_path)
    assert same(whole, resumed)
    assert hook.drawn == whole_hook.drawn
    assert hook.count == 16


@pytest.mark.parametrize("loss", ["madry", "trades", "clean"])
def test_checkpoints_hold_momentum_average_and_hook(tmp_path, loss):
    # Two runs stopped after two epochs, one of which was also stopped after one, left equal files.
    def stop_after(number):
        def on_epoch(record):
            if record.epoch == number:
                raise KeyboardInterrupt

        return on_epoch

    arguments = network, splits(), recipe(loss=loss), THREAT
    for folder, stops in ((tmp_path / "a", [2]), (tmp_path / "b", [1, 2])):
        for stop in stops:
            build, *rest = arguments
            with pytest.raises(KeyboardInterrupt):
                train(build(), *rest, folder=folder, hook=Switch(), on_epoch=stop_after(stop))
    (first, state), (second, other) = (last_checkpoint(tmp_path / n) for n in "ab")
    assert state == other
    assert first.keys() == second.keys()
    assert all(torch.equal(t, second[n]) for n, t in first.items())
    kinds = {name.split(".")[0] for name in first}
    assert kinds == {"model", "optimizer", "average", "sums"}
    assert any(name.endswith("momentum_buffer") for name in first)
    assert state["hook"]["count"] == 8


def test_on_epoch_is_called_for_new_epochs_only(tmp_path):
    seen = []

    def stop(record):
        seen.append(record.epoch)
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path, on_epoch=stop)
    seen.append("resumed")
    result = train(
        network(),
        splits(),
        recipe(),
        THREAT,
        folder=tmp_path,
        on_epoch=lambda r: seen.append(r.epoch),
    )
    assert seen == [1, 2, "resumed", 3, 4]
    assert [r.epoch for r in result.history] == [1, 2, 3, 4]


def test_a_finished_folder_gives_its_result_at_once(tmp_path):
    first = train(network(), splits(), recipe(), THREAT, folder=tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == FILES

    class Never:
        def before_batch(self, model, generator):
            raise AssertionError("trained again")

    model = network()
    again = train(model, splits(), recipe(), THREAT, folder=tmp_path, hook=Never())
    assert again.model is model
    assert not model.training
    assert same(first, again)
    assert again.seconds == first.seconds


@pytest.mark.parametrize(
    ("changes", "seed", "threat", "sentence"),
    [
        ({"lr": 0.2}, 0, THREAT, "recipe.lr was 0.1, now it is 0.2"),
        ({"attack": TrainAttack(steps=3)}, 0, THREAT, "recipe.attack.steps was 2, now it is 3"),
        ({}, 1, THREAT, "seed was 0, now it is 1"),
        ({}, 0, ThreatModel(eps=0.2), "threat.eps was 0.1, now it is 0.2"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_training_is_refused(
    tmp_path, changes, seed, threat, sentence, finished
):
    stop = None if finished else Switch(6)
    with contextlib.suppress(KeyboardInterrupt):
        train(network(), splits(), recipe(epochs=2), THREAT, folder=tmp_path, hook=stop)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=sentence):
        train(network(), splits(), recipe(epochs=2, **changes), threat, seed=seed, folder=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def garbage(path):
    path.write_bytes(b"not a checkpoint")


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, garbage, nothing])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, damage):
    whole = train(network(), splits(), recipe(), THREAT)
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path, hook=Interrupt(13))
    files = sorted(tmp_path.glob("checkpoint-*"))
    assert [p.name for p in files] == [f"checkpoint-{n:09d}.safetensors" for n in (8, 12)]
    damage(files[1])
    epochs = []
    with pytest.warns(UserWarning, match="checkpoint not used: .*checkpoint-000000012"):
        resumed = train(
            network(),
            splits(),
            recipe(),
            THREAT,
            folder=tmp_path,
            on_epoch=lambda r: epochs.append(r.epoch),
        )
    assert epochs == [3, 4]
    assert same(whole, resumed)


class Interrupt:
    def __init__(self, at):
        self.left = at

    def before_batch(self, model, generator):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


def test_training_never_starts_anew_in_silence(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path, hook=Interrupt(13))
    for path in tmp_path.glob("checkpoint-*"):
        truncate(path)
    with (
        pytest.warns(UserWarning, match="checkpoint not used"),
        pytest.raises(UserError, match=r"no checkpoint in .* is readable; delete the folder"),
    ):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    from nni_robust.training import weights

    whole = train(network(), splits(), recipe(), THREAT)
    real, calls = weights.save_file, []

    def torn(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(weights, "save_file", torn)
    with pytest.raises(OSError, match="No space"):
        train(network(), splits(), recipe(), THREAT, folder=tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    assert not list(tmp_path.glob(".*.tmp"))
    assert same(whole, train(network(), splits(), recipe(), THREAT, folder=tmp_path))


def test_left_over_temporary_files_are_removed(tmp_path):
    (tmp_path / ".checkpoint-000000004.safetensors.123.tmp").touch()
    train(network(), splits(), recipe(epochs=1, warmup_epochs=0), THREAT, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


LONG = recipe(epochs=24)


@pytest.fixture(scope="module")
def long_training():
    return train(network(), splits(), LONG, THREAT, hook=Switch())


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_training_resume import LONG, THREAT, Switch, network, splits
from nni_robust.training import train
result = train(network(), splits(), LONG, THREAT, folder=sys.argv[1], hook=Switch(),
               on_epoch=lambda r: print(r.epoch, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_by_the_system(tmp_path, how, long_training):
    """A real process is killed somewhere in the middle; what it left continues exactly."""
    program = PROGRAM.format(tests=os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            break
    time.sleep(0.05)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-how, 1, 130), errors
    assert not (tmp_path / "result.json").exists()
    resumed = train(network(), splits(), LONG, THREAT, folder=tmp_path, hook=Switch())
    assert same(long_training, resumed)
    assert json.loads((tmp_path / "result.json").read_text())["kept_epoch"] == LONG.epochs
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == LONG.epochs


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again_while_it_writes_all_the_time(tmp_path):
    """A checkpoint after every step, and SIGKILL at random moments, until it is done."""
    settings = recipe(epochs=6, checkpoint_steps=1)
    whole = train(network(), splits(), settings, THREAT, hook=Switch())
    random = torch.Generator().manual_seed(0)
    kills = 0
    while not (tmp_path / "result.json").exists():
        child = os.fork()
        if child == 0:
            train(network(), splits(), settings, THREAT, folder=tmp_path, hook=Switch())
            os._exit(0)
        time.sleep(0.02 + 0.3 * float(torch.rand((), generator=random)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill never damages a checkpoint
            _checkpoint.load_newest(tmp_path)
    assert kills > 3
    assert same(whole, train(network(), splits(), settings, THREAT, folder=tmp_path))
