"""Going on with an evaluation after a kill: nothing twice, and nothing else than without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import conv_net, labelled
from stopping import Stop, stopping_after
from torch import Tensor, nn

from nni_robust.attacks import Attack, attack
from nni_robust.errors import DamageWarning, UserError
from nni_robust.evaluation import Evaluation, evaluate
from nni_robust.spectrum import count_passes
from nni_robust.threat import ThreatModel

N, EPS = 40, 0.02
SPECS: list[Any] = [
    "fgsm",
    {"name": "pgd5", "restarts": 2},
    "cw3",
    "apgd-ce5",
    {"name": "fab-t", "steps": 4, "targets": 2},
    "square30",
    {"name": "autoattack", "steps": 4, "targets": 2, "queries": 30},
]


def pictures(net: nn.Module, n: int = N) -> tuple[Tensor, Tensor]:
    x, y = labelled(net, n)
    y[3] = (y[3] + 1) % 5  # one is wrong from the start
    return x, y


def run(folder: Path | None, batch_size: int = 8, **more: Any) -> Evaluation:
    net = more.pop("net", None) or conv_net()
    data = more.pop("data", None) or pictures(conv_net())
    specs = more.pop("specs", SPECS)
    threat = more.pop("threat", {"norm": "linf", "eps": EPS})
    return evaluate(
        net, data, specs, threat=threat, batch_size=batch_size, folder=folder, seed=3, **more
    )


def checks(result: Evaluation) -> dict[str, Any]:
    return result.reliability.as_dict()["checks"]


def same(a: Evaluation, b: Evaluation) -> None:
    assert a.metrics() == b.metrics()
    for key, one in a.attacks.items():
        assert torch.equal(one.correct, b.attacks[key].correct), key
    assert checks(a) == checks(b)


# --- after a stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 6, 17, 34])
@pytest.mark.parametrize("batch_size", [8, 11])
def test_goes_on_picture_by_picture(tmp_path: Path, batches: int, batch_size: int) -> None:
    with pytest.raises(Stop):
        run(tmp_path, progress=stopping_after(batches))
    whole = run(None)
    assert 0 < whole.worst < min(a.accuracy for a in whole.attacks.values()) + 0.001 < whole.clean
    same(run(tmp_path, batch_size), whole)


def test_nothing_is_attacked_twice(tmp_path: Path) -> None:
    run(tmp_path)
    net = conv_net()
    with count_passes(net) as again:
        run(tmp_path, 16, net=net)
    with count_passes(net) as nothing:
        run(None, 16, net=net, specs=[])
    # Clean answers, AutoAttack's look at its pictures before and after, and those of the checks.
    assert again.backward <= 16
    assert again.forward <= nothing.forward + 2 * N + 8 * 8


def test_examples_are_those_of_an_evaluation_in_one_go(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, progress=stopping_after(20), keep="all")
    found, whole = run(tmp_path, 8, keep="all"), run(None, keep="all")
    same(found, whole)
    for key, one in whole.attacks.items():
        ours = found.attacks[key].examples
        assert one.examples is not None
        assert ours is not None
        assert (ours.broken, ours.refuted) == (one.examples.broken, one.examples.refuted)
        assert torch.equal(ours.index, one.examples.index)
        assert torch.equal(ours.adversarial, one.examples.adversarial), key


def test_pictures_that_were_not_kept_are_made_again(tmp_path: Path) -> None:
    run(tmp_path, specs=["pgd5"])
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    whole = run(None, specs=["pgd5"], keep=3)
    (found,) = run(tmp_path, specs=["pgd5"], keep=3).attacks.values()
    (expected,) = whole.attacks.values()
    assert found.examples is not None
    assert expected.examples is not None
    assert torch.equal(found.examples.adversarial, expected.examples.adversarial)
    net = conv_net()
    with count_passes(net) as again:
        run(tmp_path, specs=["pgd5"], keep=3, net=net)
    assert again.backward <= 16
    assert size < sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


def test_more_attacks_and_pictures_later(tmp_path: Path) -> None:
    run(tmp_path, specs=["fgsm"], limit=20)
    net = conv_net()
    with count_passes(net) as rest:
        found = run(tmp_path, specs=["fgsm", "pgd5"], net=net)
    same(found, run(None, specs=["fgsm", "pgd5"]))
    with count_passes(net) as everything:
        run(None, specs=["fgsm", "pgd5"], net=net)
    assert rest.equivalent < everything.equivalent


def test_thorough_checks_are_kept_too(tmp_path: Path) -> None:
    """Under labels of the caller's that tell nothing of the attacks, too."""
    specs = [
        {"name": "pgd4", "label": "one"},
        {"name": "pgd4", "label": "other", "step_size": 0.001},
        {"name": "autoattack-light", "steps": 4},
    ]
    whole = run(None, specs=specs, thorough=True)
    assert whole.reliability["more-steps"].status != "not run"
    run(tmp_path, specs=specs)
    same(run(tmp_path, specs=specs, thorough=True), whole)
    net = conv_net()
    with count_passes(net) as again:
        same(run(tmp_path, specs=specs, thorough=True, net=net), whole)
    assert again.backward <= 16


class Cheat(Attack):
    """Leaves the ball on some pictures that resist it all the same."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        out = x.clone()
        rows = kwargs["index"] % 3 == 0
        out[rows] = out[rows] * 0.999
        out[rows, 0, 0, 0] = 0.5
        return out

    def _run(self, *args: Any) -> Tensor:
        raise NotImplementedError


def test_flags_are_the_same(tmp_path: Path) -> None:
    def cheat() -> Attack:
        return Cheat(ThreatModel("linf", EPS), "cheat")

    with pytest.raises(Stop):
        run(tmp_path, specs=[cheat()], progress=stopping_after(3))
    whole, found = run(None, specs=[cheat()]), run(tmp_path, specs=[cheat()])
    same(found, whole)
    assert found.reliability["outside-ball"].status == "failed"
    again = run(tmp_path, 40, specs=[cheat()])
    assert checks(again)["outside-ball"] == checks(whole)["outside-ball"]


class Flat(nn.Module):
    """Answers without a gradient: only Square gets anywhere, which a check tells."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return (logits * 1e3).round() / 1e3


def test_breaks_without_gradients_are_still_told(tmp_path: Path) -> None:
    specs = [{"name": "autoattack", "steps": 3, "targets": 2, "queries": 60}]
    more = {"net": Flat(), "specs": specs, "threat": {"eps": 0.1}}
    whole = run(None, **dict(more))
    assert whole.reliability["black-box-wins"].status == "failed"
    with pytest.raises(Stop):
        run(tmp_path, progress=stopping_after(3), **dict(more))
    same(run(tmp_path, **dict(more)), whole)
    same(run(tmp_path, **dict(more)), whole)


# --- SIGKILL -------------------------------------------------------------------------------------

WORKER = """
import importlib.util, os, sys, time
sys.path[:] = {path!r}
spec = importlib.util.spec_from_file_location("the_test", {test!r})
the_test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(the_test)
from nni_robust.attacks.autoattack import AutoAttackLight
from nni_robust.attacks.gradient import PGD
from nni_robust.evaluation import evaluate
from nni_robust.threat import ThreatModel

def told(key, index):
    with open({log!r}, "a") as f:
        f.write(f"{{key}} {{int(index[0])}}\\n")
        f.flush()

class Told(PGD):
    def __call__(self, model, x, y, **more):
        told(self.key, more["index"])
        time.sleep(0.02)
        return super().__call__(model, x, y, **more)

net = the_test.conv_net()
threat = ThreatModel("linf", the_test.EPS)
attacks = [Told(threat, steps=1), Told(threat, steps=5), AutoAttackLight(threat, steps=4)]
result = evaluate(
    net, the_test.pictures(net), attacks, threat=threat, batch_size=4, seed=3, folder={folder!r}
)
import json
answer = {{key: one.correct.tolist() for key, one in result.attacks.items()}}
answer["checks"] = result.reliability.as_dict()["checks"]
print(json.dumps(answer))
"""


def test_a_killed_process_loses_at_most_one_batch(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "folder"
    log.touch()
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(path=sys.path, test=__file__, log=str(log), folder=str(folder)))
    command = [sys.executable, str(script)]
    kills = 0
    for lines in (1, 6, 13):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            while len(log.read_text().splitlines()) < lines and process.poll() is None:
                time.sleep(0.002)
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    starts = Counter(log.read_text().splitlines())
    for key in ("pgd1@0.02", "pgd5@0.02"):
        of_it = {line: n for line, n in starts.items() if line.startswith(key)}
        assert len(of_it) == N / 4
        assert sum(of_it.values()) - len(of_it) <= kills
    assert sum(starts.values()) - len(starts) <= kills  # a process has one batch at a time
    specs: list[Any] = ["pgd1", "pgd5", {"name": "autoattack-light", "steps": 4}]
    threat = ThreatModel("linf", EPS)
    made = [attack(s, eps=EPS) if isinstance(s, str) else s for s in specs]
    whole = run(None, 4, specs=made, threat=threat)
    for key, one in whole.attacks.items():
        assert found.pop(key) == one.correct.tolist()
    assert found == {"checks": checks(whole)}
    assert not list(folder.rglob(".*.tmp"))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"net": conv_net(seed=1)}, "another network; give another folder"),
        ({"threat": {"eps": 0.03}}, "another threat"),
        ({"threat": {"norm": "l2", "eps": EPS}}, "another threat"),
        ({"specs": [{"name": "pgd5", "step_size": 0.01}]}, "pgd5@0.02 with other settings"),
        ({"specs": ["pgd5"], "precision": "bf16"}, "pgd5@0.02 with other settings"),
    ],
)
def test_something_else_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    run(tmp_path, specs=["pgd5"])
    with pytest.raises(UserError, match=told):
        run(tmp_path, **{"specs": ["pgd5"], **change})


def test_other_data_and_seeds_are_refused(tmp_path: Path) -> None:
    run(tmp_path, specs=["pgd5"])
    x, y = pictures(conv_net())
    for data in ((x.flip(0), y.flip(0)), ((x * 0.9).contiguous(), y)):
        with pytest.raises(UserError, match="other pictures; give another folder"):
            run(tmp_path, specs=["pgd5"], data=data)
    with pytest.raises(UserError, match="another seed"):
        evaluate(conv_net(), (x, y), "pgd5", threat={"eps": EPS}, seed=4, folder=tmp_path)
    with pytest.raises(UserError, match="another network and another seed"):
        evaluate(conv_net(seed=1), (x, y), "fgsm", threat={"eps": EPS}, seed=4, folder=tmp_path)


def test_files_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    """Also where evaluation.json, which says what they are of, was lost."""
    run(tmp_path, specs=["pgd5"])
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(UserError, match="another network; give another folder"):
        run(tmp_path, specs=["pgd5"], net=conv_net(seed=1))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    def second(done: int, total: int | None, stage: str) -> None:
        run(tmp_path, specs=["fgsm"])

    with pytest.raises(UserError, match="in use by another evaluation"):
        run(tmp_path, specs=["fgsm"], progress=second)
    run(tmp_path, specs=["fgsm"])


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        run(tmp_path / "file", specs=["fgsm"])


# --- damage --------------------------------------------------------------------------------------


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [halve, flip])
def test_damaged_files_are_set_aside(tmp_path: Path, damage: Any) -> None:
    whole = run(tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    victims = [next(p for p in files if name in str(p)) for name in ("pgd5", "autoattack")]
    for victim in victims:
        damage(victim)
    with pytest.warns(DamageWarning, match="measured again") as told:
        same(run(tmp_path), whole)
    assert len([w for w in told if w.category is DamageWarning]) == 2
    for victim in victims:
        assert victim.with_name(f"{victim.name}.damaged").is_file()
        assert victim.is_file()
    same(run(tmp_path), whole)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_description_is_set_aside(tmp_path: Path, text: str) -> None:
    whole = run(tmp_path, specs=["pgd5"])
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.warns(DamageWarning, match="written again"):
        same(run(tmp_path, specs=["pgd5"]), whole)
    assert (tmp_path / "evaluation.json.damaged").read_text() == text
    same(run(tmp_path, specs=["pgd5"]), whole)


def test_extra_state_is_a_part_of_the_network(tmp_path: Path) -> None:
    class Extra(nn.Module):
        def __init__(self, extra: dict[str, int]) -> None:
            super().__init__()
            self.net, self.extra = conv_net(), extra

        def get_extra_state(self) -> dict[str, int]:
            return self.extra

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

    for _ in range(2):
        run(tmp_path, specs=["fgsm"], net=Extra({"a": 1}))
    with pytest.raises(UserError, match="another network"):
        run(tmp_path, specs=["fgsm"], net=Extra({"a": 2}))
