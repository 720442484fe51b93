"""AutoAttack: the sum of its parts, few classes, and going on after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_networks import conv_net, labelled
from torch import Tensor, nn

from nni_robust.attacks import attack
from nni_robust.attacks.apgd import APGDCE, APGDDLR, APGDT
from nni_robust.attacks.autoattack import AutoAttack, AutoAttackLight
from nni_robust.attacks.fab import FABT
from nni_robust.attacks.square import Square
from nni_robust.errors import DamageWarning, UserError
from nni_robust.evaluation import evaluate
from nni_robust.spectrum import count_passes

SMALL = {"steps": 6, "targets": 3, "queries": 40}


def resists(net: nn.Module, adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(adv).argmax(1) == y


# --- what it is made of --------------------------------------------------------------------------


def test_standard_settings() -> None:
    made = attack("autoattack", eps=0.1)
    assert isinstance(made, AutoAttack)
    assert made.key == "autoattack@0.1"
    assert attack("autoattack").key == "autoattack@8/255"
    ce, aimed, fab, square = made.parts
    assert isinstance(ce, APGDCE)
    assert (ce.settings.steps, ce.settings.restarts, ce.settings.rho) == (100, 1, 0.75)
    assert isinstance(aimed, APGDT)
    assert (aimed.settings.steps, aimed.settings.restarts, aimed.settings.targets) == (100, 1, 9)
    assert isinstance(fab, FABT)
    assert (fab.settings.steps, fab.settings.restarts, fab.settings.targets) == (100, 1, 9)
    assert (fab.settings.overshoot, fab.settings.pull, fab.settings.shrink) == (1.05, 0.1, 0.9)
    assert isinstance(square, Square)
    assert (square.settings.steps, square.settings.restarts) == (5000, 1)
    assert (square.settings.share, square.settings.rescale) == (0.8, False)
    assert all(part.threat == made.threat for part in made.parts)


def test_rand_and_light() -> None:
    rand = attack("autoattack", version="rand")
    assert isinstance(rand, AutoAttack)
    assert [type(part) for part in rand.parts] == [APGDCE, APGDDLR]
    assert [part.settings.eot for part in rand.parts] == [20, 20]  # type: ignore[attr-defined]
    assert rand.label == "autoattack-rand"
    light = attack("autoattack-light", eps=0.1)
    assert isinstance(light, AutoAttackLight)
    assert light.key == "autoattack-light@0.1"
    assert attack("autoattack-light50", targets=2).label == "autoattack-light50-2targets"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_exactly_what_any_part_breaks(norm: Any) -> None:
    """A part's result does not depend on the batch, so alone it does what it does in the row."""
    net = conv_net()
    x, y = labelled(net)
    eps = 0.01 if norm == "linf" else 0.1
    made = attack("autoattack", eps=eps, norm=norm, **SMALL)
    assert isinstance(made, AutoAttack)
    alone = [resists(net, part(net, x, y, seed=4), y) for part in made.parts]
    together = resists(net, made(net, x, y, seed=4), y)
    assert torch.equal(together, torch.stack(alone).all(0))
    assert 0 < int(together.sum()) < len(y)
    assert len({int(r.sum()) for r in alone}) > 1


def test_each_part_gets_what_resisted_those_before() -> None:
    net = conv_net()
    x, y = labelled(net)
    made = attack("autoattack", eps=0.3, **SMALL)
    assert isinstance(made, AutoAttack)
    assert int(resists(net, made(net, x, y, seed=0), y).sum()) == 0
    with count_passes(net) as whole:
        made(net, x, y, seed=0)
    with count_passes(net) as first:
        made.parts[0](net, x, y, seed=0)
    assert whole.backward == first.backward  # nothing is left for the others


def test_light_breaks_no_more_than_the_same_in_full() -> None:
    net = conv_net()
    x, y = labelled(net)
    light = resists(net, attack("autoattack-light6", eps=0.01)(net, x, y, seed=0), y)
    full = resists(net, attack("autoattack", eps=0.01, **SMALL)(net, x, y, seed=0), y)
    assert not bool((full & ~light).any())


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    net = conv_net(classes)
    x, y = labelled(net)
    pgd = resists(net, attack("pgd20", eps=0.02)(net, x, y, seed=0), y)
    for name, settings in (("autoattack", SMALL), ("autoattack-light", {})):
        kept = resists(net, attack(name, eps=0.02, **settings)(net, x, y, seed=0), y)
        assert int(kept.sum()) <= int(pgd.sum()) < len(y)


def test_evaluate() -> None:
    net = conv_net()
    result = evaluate(
        net,
        labelled(net),
        ["pgd5", {"name": "autoattack", **SMALL}],
        threat={"norm": "linf", "eps": 0.01},
        batch_size=7,
    )
    other = evaluate(
        net,
        labelled(net),
        {"name": "autoattack", "label": "mine", **SMALL},
        threat={"norm": "linf", "eps": 0.01},
    )
    full = result.attacks["autoattack6-3targets-40queries@0.01"]
    assert torch.equal(full.correct, other.attacks["mine@0.01"].correct)
    assert 0 < full.accuracy <= result.attacks["pgd5@0.01"].accuracy


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"version": "plus"}, "torchattacks:AutoAttack"),
        ({"version": "full"}, "standard, rand"),
        ({"steps": 0}, "steps"),
        ({"targets": 0}, "targets"),
        ({"queries": 0}, "queries"),
        ({"query": 10}, "did you mean 'queries'"),
    ],
)
def test_bad_settings(settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attack("autoattack", **settings)


# --- going on ------------------------------------------------------------------------------------


class Crashes(nn.Module):
    """A network whose process dies after some calls."""

    def __init__(self, net: nn.Module, calls: int | None = None) -> None:
        super().__init__()
        self.net, self.calls = net, calls

    def forward(self, x: Tensor) -> Tensor:
        if self.calls is not None:
            self.calls -= 1
            if self.calls < 0:
                raise KeyboardInterrupt
        return self.net(x)


def measure(net: nn.Module, folder: Path | None, batch_size: int, seed: int = 3) -> Tensor:
    spec = {"name": "autoattack", "label": "aa", **SMALL}
    if folder is not None:
        spec["folder"] = str(folder)
    threat = {"norm": "linf", "eps": 0.01}
    data = labelled(conv_net())
    result = evaluate(net, data, spec, threat=threat, batch_size=batch_size, seed=seed)
    return result.attacks["aa@0.01"].correct


@pytest.mark.parametrize("calls", [3, 60, 150, 300])
def test_goes_on_after_a_crash(tmp_path: Path, calls: int) -> None:
    net = Crashes(conv_net())
    with count_passes(net) as all_work:
        expected = measure(net, None, 16)
    net.calls = calls
    with pytest.raises(KeyboardInterrupt):
        measure(net, tmp_path, 16)
    kept = len(list(tmp_path.glob("*")))
    net.calls = None
    with count_passes(net) as rest:
        assert torch.equal(measure(net, tmp_path, 16), expected)
    if kept:
        assert rest.equivalent < all_work.equivalent
    assert (kept > 0) == (calls > 3)
    # Once more: nothing is attacked.
    made = attack("autoattack", eps=0.01, folder=str(tmp_path), **SMALL)
    x, y = labelled(net)
    with count_passes(net) as again:
        adv = made(net, x, y, seed=3)
    assert (again.backward, again.forward) == (0, len(y))
    assert torch.equal(resists(net, adv, y), expected)
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_goes_on_with_other_batches(tmp_path: Path) -> None:
    net = Crashes(conv_net(), 150)
    with pytest.raises(KeyboardInterrupt):
        measure(net, tmp_path, 16)
    net.calls = None
    assert torch.equal(measure(net, tmp_path, 11), measure(net, None, 40))


def test_what_was_found_lies_in_the_folder(tmp_path: Path) -> None:
    net = conv_net()
    resisting = measure(net, tmp_path, 16)
    x, y = labelled(net)
    broken: set[int] = set()
    for path in tmp_path.iterdir():
        with safe_open(path, framework="pt") as f:
            index, found = f.get_tensor("index"), f.get_tensor("broken")
            kept, adv = f.get_tensor("kept"), f.get_tensor("adversarial")
        rows = index[kept]
        assert len(adv) == len(rows)
        assert bool(((adv.double() - x[rows].double()).abs() <= 0.01).all())
        assert torch.equal(net(adv).argmax(1) != y[rows], found[kept])
        broken |= set(index[found].tolist())
    assert broken == set((~resisting).nonzero().flatten().tolist())


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    net = conv_net()
    measure(net, tmp_path, 16)
    with pytest.raises(UserError, match="another network"):
        measure(conv_net(seed=1), tmp_path, 16)
    with pytest.raises(UserError, match="another seed"):
        measure(net, tmp_path, 16, seed=4)
    made = attack("autoattack", eps=0.01, folder=str(tmp_path), **SMALL)
    x, y = labelled(net)
    with pytest.raises(UserError, match="only with a seed"):
        made(net, x, y)
    with pytest.raises(UserError, match="other pictures"):
        made(net, x.flip(0), y.flip(0), seed=3)


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    net = conv_net()
    expected = measure(net, tmp_path, 16)
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.warns(DamageWarning, match="measured again"):
        assert torch.equal(measure(net, tmp_path, 16), expected)
    assert (tmp_path / f"{victim.name}.damaged").is_file()
    assert victim.is_file()
