"""Going on after a kill with spectra, curves and corruptions: nothing twice, the same figures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import conv_net, labelled
from stopping import Stop, stopping_after
from torch import Tensor, nn

from nni_robust.corruptions import evaluate_corruptions
from nni_robust.curves import eps_curve, steps_curve
from nni_robust.errors import DamageWarning, UserError
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import Passes, count_passes, evaluate_spectrum
from nni_robust.transfer import transfer_table

N, STRENGTHS = 36, (0.01, 0.0, 0.03, 0.02)
AUTOATTACK = {"name": "autoattack-light", "steps": 3, "targets": 2}


def pictures(n: int = N) -> tuple[Tensor, Tensor]:
    x, y = labelled(conv_net(), n)
    y[3] = (y[3] + 1) % 5  # one is wrong from the start
    return x, y


Measure = Callable[..., Any]


def spectrum(net: nn.Module, data: Any, **more: Any) -> Any:
    spec = more.pop("attack", {"name": "pgd", "steps": 4, "restarts": 2})
    return evaluate_spectrum(net, data, more.pop("strengths", STRENGTHS), spec, **more)


def cold(net: nn.Module, data: Any, **more: Any) -> Any:
    return spectrum(net, data, warm_start=False, **{"attack": "cw3", **more})


def autoattack(net: nn.Module, data: Any, **more: Any) -> Any:
    return spectrum(net, data, **{"attack": AUTOATTACK, **more})


def by_eps(net: nn.Module, data: Any, **more: Any) -> Any:
    return eps_curve(net, data, STRENGTHS, more.pop("attack", "pgd4"), **more)


def by_steps(net: nn.Module, data: Any, **more: Any) -> Any:
    spec = more.pop("attack", {"name": "pgd", "label": "mine"})
    threat = more.pop("threat", {"eps": 0.02})
    return steps_curve(net, data, more.pop("steps", (1, 5, 3)), spec, threat=threat, **more)


def corrupted(net: nn.Module, data: Any, **more: Any) -> Any:
    names = more.pop("names", ["fog", "contrast", "gaussian_noise"])
    return evaluate_corruptions(net, data, names, more.pop("severities", [2, 5]), **more)


def transferred(net: nn.Module, data: Any, **more: Any) -> Any:
    sources = {"a": net, "b": conv_net(seed=7)}
    targets = {"a": net, "c": more.pop("c", None) or conv_net(seed=8)}
    threat = more.pop("threat", {"eps": 0.1})
    return transfer_table(sources, targets, data, more.pop("attack", "pgd5"), threat=threat, **more)


MEASURES = [spectrum, cold, autoattack, by_eps, by_steps, corrupted, transferred]


_PASSES = ("passes", "forwards")


def figures(found: Any) -> dict[str, Any]:
    """Everything that a result says, but for times."""
    said: dict[str, Any] = {"checks": found.reliability.as_dict()["checks"]}
    for name in ("points", "clean", "accuracy", "losses", "n", *_PASSES):
        said[name] = getattr(found, name, None)
    if any(key.startswith("autoattack") for key in (getattr(found, "keys", None) or {}).values()):
        said |= dict.fromkeys(_PASSES)  # it keeps its own, and counts those of a call
    return said


def accuracies(found: Any) -> dict[str, Any]:
    """The figures without the passes, which are shared out among the pictures of a batch."""
    return {key: value for key, value in figures(found).items() if key not in _PASSES}


def run(measure: Measure, folder: Path | None, batch_size: int = 8, **more: Any) -> Any:
    net = more.pop("net", None) or conv_net()
    data = more.pop("data", None) or pictures()
    more = {"seed": 3, **more}
    return measure(net, data, batch_size=batch_size, folder=folder, **more)


def counted(measure: Measure, folder: Path | None, **more: Any) -> Passes:
    net = conv_net()
    with count_passes(net) as passes, contextlib.suppress(Stop):
        run(measure, folder, net=net, **more)
    return passes


# --- after a stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [2, 5, 7])
@pytest.mark.parametrize("measure", MEASURES)
def test_goes_on_and_attacks_nothing_twice(tmp_path: Path, measure: Measure, batches: int) -> None:
    whole = figures(run(measure, None))
    assert figures(run(measure, tmp_path / "whole")) == whole
    first = counted(measure, tmp_path / "cut", progress=stopping_after(batches))
    second = counted(measure, tmp_path / "cut")
    everything = counted(measure, None)
    nothing = counted(measure, tmp_path / "cut")
    # Answers to clean pictures and checks are given again, and what AutoAttack found is looked at.
    for kind in ("backward", "forward"):
        total = getattr(first, kind) + getattr(second, kind)
        assert total <= getattr(everything, kind) + getattr(nothing, kind)
    assert second.equivalent < everything.equivalent
    assert nothing.backward <= 16
    assert figures(run(measure, tmp_path / "cut")) == whole


@pytest.mark.parametrize("measure", MEASURES)
def test_in_other_batches(tmp_path: Path, measure: Measure) -> None:
    whole = run(measure, None)
    with pytest.raises(Stop):
        run(measure, tmp_path, progress=stopping_after(6))
    found = run(measure, tmp_path, 11)
    assert found.accuracy == whole.accuracy
    assert figures(found)["checks"].keys() == figures(whole)["checks"].keys()
    if measure in (spectrum, cold, autoattack):
        assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    run(measure, tmp_path, 36)


def test_a_kill_between_strengths_loses_only_one(tmp_path: Path) -> None:
    """What withstood goes on from where it was, and its pictures do not stay in the folder."""
    specs: dict[str, Any] = {"attack": "pgd6", "batch_size": N}
    everything = counted(spectrum, None, **specs)
    first = counted(spectrum, tmp_path, progress=stopping_after(3), **specs)
    left = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    second = counted(spectrum, tmp_path, **specs)
    assert 0 < second.backward < everything.backward - first.backward / 2
    assert figures(run(spectrum, tmp_path, **specs)) == figures(run(spectrum, None, **specs))
    run(spectrum, tmp_path / "whole", **specs)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors"))
    one = pictures()[0][0].nbytes
    assert size < N * one / 2  # no picture
    assert left > size + one


def test_more_may_be_asked_for_later(tmp_path: Path) -> None:
    run(spectrum, tmp_path / "s", limit=16)
    assert accuracies(run(spectrum, tmp_path / "s")) == accuracies(run(spectrum, None))
    run(by_steps, tmp_path / "c", steps=(1, 5))
    assert figures(run(by_steps, tmp_path / "c")) == figures(run(by_steps, None))
    run(corrupted, tmp_path / "c", names=["contrast"], severities=[5])
    assert figures(run(corrupted, tmp_path / "c")) == figures(run(corrupted, None))


def test_one_folder_for_all(tmp_path: Path) -> None:
    """They know each other's parts apart, also under one seed and attack."""
    x, y = pictures()
    for _ in range(2):
        for measure in (spectrum, cold, autoattack, corrupted, by_steps):
            assert figures(run(measure, tmp_path)) == figures(run(measure, None))
        evaluate(conv_net(), (x, y), "pgd5", threat={"eps": 0.02}, seed=3, folder=tmp_path)


def test_thorough_checks(tmp_path: Path) -> None:
    whole = run(spectrum, None, thorough=True)
    assert whole.reliability["large-eps"].status != "not run"
    for _ in range(2):
        assert figures(run(spectrum, tmp_path, thorough=True)) == figures(whole)
    assert counted(spectrum, tmp_path, thorough=True).backward <= 16


def test_half_precision(tmp_path: Path) -> None:
    more: dict[str, Any] = {"net": conv_net().to(torch.bfloat16), "attack": "pgd4"}
    whole = run(spectrum, None, **dict(more))
    assert whole.reliability["precision"].figures["pictures"] > 0
    with pytest.raises(Stop):
        run(spectrum, tmp_path, progress=stopping_after(7), **dict(more))
    for _ in range(2):
        assert figures(run(spectrum, tmp_path, **dict(more))) == figures(whole)


# --- SIGKILL -------------------------------------------------------------------------------------

WORKER = """
import importlib.util, json, sys, time
sys.path[:] = {path!r}
spec = importlib.util.spec_from_file_location("the_test", {test!r})
the_test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(the_test)
net = the_test.conv_net()

def told(module, inputs, output):
    time.sleep(0.005)  # so that the kill comes before the end
    with open({log!r}, "a") as f:
        f.write(f"{{len(output)}}\\n")

net.register_forward_hook(told)
found = the_test.run(getattr(the_test, {name!r}), {folder!r}, net=net)
print(json.dumps(the_test.figures(found)))
"""


@pytest.mark.parametrize("measure", [spectrum, by_steps, corrupted])
def test_a_killed_process(tmp_path: Path, measure: Measure) -> None:
    log, folder, script = tmp_path / "log", tmp_path / "folder", tmp_path / "worker.py"
    log.touch()
    settings: dict[str, Any] = {
        "path": sys.path,
        "test": __file__,
        "log": str(log),
        "name": measure.__name__,
    }
    script.write_text(WORKER.format(folder=str(folder), **settings))
    command = [sys.executable, str(script)]
    net = conv_net()
    with count_passes(net) as once:
        whole = run(measure, None, net=net)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while len(log.read_text().splitlines()) < 25 and process.poll() is None:
            time.sleep(0.001)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    before = len(log.read_text().splitlines())
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(figures(whole)))
    assert not list(folder.rglob(".*.tmp"))
    again = sum(map(int, log.read_text().splitlines()[before:]))
    assert again < once.forward + once.backward


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_something_else_is_refused(tmp_path: Path, measure: Measure) -> None:
    whole = figures(run(measure, tmp_path))
    x, y = pictures()
    for change, told in (
        ({"net": conv_net(seed=1)}, "another network"),
        ({"seed": 4}, "another seed; give another folder"),
        ({"data": (x.flip(0), y.flip(0))}, "other pictures; give another folder"),
    ):
        with pytest.raises(UserError, match=told):
            run(measure, tmp_path, **change)
    assert figures(run(measure, tmp_path)) == whole


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        (spectrum, {"strengths": (0.01, 0.02)}),
        (spectrum, {"warm_start": False}),
        (spectrum, {"attack": {"name": "pgd", "steps": 4, "restarts": 2, "step_size": 0.01}}),
        (by_steps, {"attack": {"name": "pgd", "label": "mine", "step_size": 0.001}}),
        (corrupted, {"scale": "imagenet"}),
        (transferred, {"attack": {"name": "pgd", "steps": 5, "step_size": 0.01}}),
        (transferred, {"c": conv_net(seed=9)}),
    ],
)
def test_other_settings_are_refused(
    tmp_path: Path, measure: Measure, change: dict[str, Any]
) -> None:
    run(measure, tmp_path)
    with pytest.raises(UserError, match="with other settings; give another folder"):
        run(measure, tmp_path, **change)


def test_a_ball_is_one_of_all(tmp_path: Path) -> None:
    run(by_steps, tmp_path)
    with pytest.raises(UserError, match="another threat"):
        run(by_steps, tmp_path, threat={"eps": 0.03})


@pytest.mark.parametrize("measure", MEASURES)
def test_two_at_once_are_refused(tmp_path: Path, measure: Measure) -> None:
    def second(done: int, total: int | None, stage: str) -> None:
        run(measure, tmp_path)

    with pytest.raises(UserError, match="in use by another evaluation"):
        run(measure, tmp_path, progress=second)


# --- damage --------------------------------------------------------------------------------------


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("place", [0, 6, -1])
@pytest.mark.parametrize("damage", [halve, flip])
@pytest.mark.parametrize("measure", [spectrum, by_steps, corrupted, transferred])
def test_damaged_files_are_set_aside(
    tmp_path: Path, measure: Measure, damage: Callable[[Path], None], place: int
) -> None:
    whole = accuracies(run(measure, tmp_path))
    victim = sorted(tmp_path.rglob("*.safetensors"))[place]
    damage(victim)
    with pytest.warns(DamageWarning, match="measured again") as told:
        assert accuracies(run(measure, tmp_path)) == whole
    assert len([w for w in told if w.category is DamageWarning]) == 1
    assert victim.with_name(f"{victim.name}.damaged").is_file()
    assert accuracies(run(measure, tmp_path)) == whole


def test_files_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    run(by_steps, tmp_path)
    path = next(tmp_path.rglob("*.safetensors"))
    with safe_open(path, framework="pt") as f:
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        about = {key: text for key, text in f.metadata().items() if key != "format"}
    save_file(tensors, path, metadata=about)
    with pytest.raises(UserError, match="another version of nni-robust"):
        run(by_steps, tmp_path)
