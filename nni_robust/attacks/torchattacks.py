"""Every attack of torchattacks under our contract.

torchattacks (Kim, 2010.01950; version 3.3 or newer) wants the network in the attack's constructor,
prints, seeds torch's global generators, leaves sub-modules in another mode and trusts the caller
with the number of classes. Here an attack is built for each call around a view of the frozen
network; the generators are put back; classes are counted on the logits; the result is projected.

A class runs only in the norm that it searches: the smallest L2 change, cut to an L∞ ball, breaks
next to nothing, whatever the network. Its steps (`alpha`), which are made for the class's default
radius, follow the threat's radius unless they are given.

Its AutoAttack (3.5.1) runs APGD and FAB for 10 steps and against every class; the authors' code
runs 100 steps against at most 9 classes, and so does our ``autoattack``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import random
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nni_robust import registry
from nni_robust.attacks._base import Attack, Victim
from nni_robust.attacks._noise import Noise
from nni_robust.attacks._norms import Ball
from nni_robust.errors import UserError, nearest
from nni_robust.threat import Norm, ThreatModel

__all__ = ["TorchAttack"]

# The norm of classes that take none: the "Distance Measure" in the documentation of each
# (torchattacks 3.5.1). EADEN's is L1 and L2, its objective L2 with a little L1; VANILA (nothing)
# and GN (noise) have none. All others have L∞.
_SEARCHES = {
    **dict.fromkeys(("CW", "DeepFool", "EADEN", "PGDL2", "PGDRSL2"), "l2"),
    "EADL1": "l1",
    **dict.fromkeys(("JSMA", "OnePixel", "Pixle", "SparseFool"), "l0"),
    **dict.fromkeys(("GN", "VANILA"), "any"),
}
# A network has to be trained, or several attacks given: no attack on one network by its name.
_WRAPPERS = ("LGV", "MultiAttack")
# Their losses compare the label with the third or fourth largest logit.
_LEAST_CLASSES = {"APGDT": 4, "AutoAttack": 4}
# What the adapter itself fills in.
_OURS = ("self", "model", "eps", "max_epsilon", "norm", "seed", "n_classes", "verbose")
_NORMS = {"linf": "Linf", "l2": "L2"}


class _View(nn.Module):
    """The network for torchattacks: always in evaluation mode, and it has a device.

    The network is no sub-module, so that no ``train`` or ``eval`` of torchattacks reaches it.
    """

    def __init__(self, victim: Victim, device: torch.device) -> None:
        super().__init__()
        self._victim = victim
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # Some classes divide 0 by 0; the network sees no NaN, so one in its logits is its own.
        return self._victim(x.nan_to_num(0.5, 1, 0)).float()


@registry.attacks.register("torchattacks")
class TorchAttack(Attack):
    """One class of torchattacks.

    Parameters
    ----------
    threat
        Ball. Its radius and norm are given to classes that take them. A class that searches in
        another norm is refused.
    attack
        Name of the class, such as ``"CW"``; upper and lower case do not matter.
    project
        What becomes of a result outside the ball, which happens with minimum-norm attacks such as
        CW and DeepFool that know no radius. True moves it to the nearest picture in the ball.
        False gives the clean picture back: only what the
        attack itself found inside the ball counts. Where the class computes NaN, the clean picture
        comes back in either case.
    targeted
        The labels given are the classes to reach; only for classes that can.
    label
        Name in results; None is ``"torchattacks:CW"``.
    **settings
        Arguments of the class other than network, radius, norm, seed and number of classes. Where
        it takes `alpha` and none is given, that is the class's own share of the radius (its
        default alpha over its default eps), so that at its default eps it runs as it comes.

    Raises
    ------
    UserError
        If torchattacks is missing or older than 3.3, the class is unknown or works in another norm,
        or a setting is unknown.
    """

    def __init__(
        self,
        threat: ThreatModel,
        *,
        attack: str | None = None,
        project: bool = True,
        targeted: bool = False,
        label: str | None = None,
        **settings: Any,
    ) -> None:
        self._class = _find_class(attack)
        name = self._class.__name__
        super().__init__(threat, label or f"torchattacks:{name}")
        for key, value in (("project", project), ("targeted", targeted)):
            if not isinstance(value, bool):
                raise UserError(f"torchattacks:{name}.{key}: {value!r} is not allowed; a bool is")
        self.project, self.targeted = project, targeted
        takes = inspect.signature(self._class.__init__).parameters
        self._takes = set(takes)
        _check_settings(name, settings, self._takes)
        if "norm" not in takes:
            _check_norm(name, threat.norm)
        #: Length of a step in pixel units; None where the class has none.
        self.step_size: float | None = None
        #: Whether that was asked for.
        self.own_step = "alpha" in settings
        if {"alpha", "eps"} <= self._takes:
            share = takes["alpha"].default / takes["eps"].default
            self.step_size = settings.setdefault("alpha", share * threat.eps)
        #: Steps; None where the class does not call them so.
        self.steps: int | None = settings.get("steps")
        if self.steps is None and "steps" in takes:
            self.steps = takes["steps"].default
        self.settings = settings

    def _run(self, victim: Victim, y: Tensor, ball: Ball, noise: Noise) -> Tensor:
        # torchattacks computes in float32; the victim calls the network in the pictures' own type.
        # FAB views its pictures as rows, which other memory formats do not allow.
        x = ball.x.float().contiguous()
        seed = noise.seed
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        else:
            seed = (seed + int(noise.index[0])) % 2**31
        with _seeded(seed):
            with torch.no_grad():
                classes = victim(x[:1]).shape[1]
            built = self._build(_View(victim, x.device), classes, seed)
            self._aim(built, classes)
            adv: Tensor = built(x, y).detach().to(ball.x.dtype)
        far = (ball.project_(adv.clone()) - adv).abs().amax((1, 2, 3), keepdim=True)
        failed = far.isnan() if self.project else ~(far < 1e-6)
        return torch.where(failed, ball.x, adv)

    def _build(self, view: nn.Module, classes: int, seed: int) -> Any:
        """The torchattacks object for this network and batch."""
        name, eps = self._class.__name__, self.threat.eps
        if classes < (least := _LEAST_CLASSES.get(name, 2)):
            raise UserError(f"{self.label} needs {least} classes; the network has {classes}")
        ours = {
            "eps": eps,
            "max_epsilon": eps,
            "norm": _NORMS[self.threat.norm],
            "seed": seed,
            "n_classes": classes,
            "verbose": False,
        }
        ours = {key: value for key, value in ours.items() if key in self._takes}
        return self._class(view, **ours, **self.settings)

    def _aim(self, built: Any, classes: int) -> None:
        """Choose the classes to reach, if this is an attack that aims."""
        # JSMA always aims, by itself at the next of 10 classes.
        shift = 0 if self.targeted else 1
        if self.targeted or self._class.__name__ == "JSMA":
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    built.set_mode_targeted_by_function(lambda _, y: (y + shift) % classes)
            except ValueError as e:
                raise UserError(f"{self.label} cannot be targeted: {e}") from None


def _find_class(name: str | None) -> Any:
    """The torchattacks class of that name."""
    try:
        import torchattacks
    except ImportError as e:
        raise UserError(
            f"torchattacks cannot be imported ({e}); pip install 'torchattacks>=3.3'"
        ) from e
    version = tuple(int(part) for part in torchattacks.__version__.split(".")[:2])
    if version < (3, 3):
        raise UserError(
            f"torchattacks {torchattacks.__version__} is too old; 3.3 or newer is needed"
        )
    known = {
        key: value
        for key, value in vars(torchattacks).items()
        if inspect.isclass(value) and key not in _WRAPPERS
    }
    for key, value in known.items():
        if name is not None and key.lower() == name.lower():
            return value
    if name is None:
        raise UserError("torchattacks needs the name of a class, such as 'torchattacks:CW'")
    raise UserError(
        f"torchattacks has no attack '{name}'{nearest(name, known)} (known: {', '.join(known)})"
    )


def _check_norm(name: str, norm: str) -> None:
    """Refuse a class that searches for changes that are small in another norm."""
    works = _SEARCHES.get(name, "linf")
    if works in ("any", norm):
        return
    advice = f"give norm: {works} (--norm {works})"
    if works not in get_args(Norm):
        advice = f"there is no norm {works} here; pgd20 and autoattack work in {norm}"
    elif name == "DeepFool":
        advice += ", or take 'deepfool', which has an L∞ form"
    raise UserError(
        f"torchattacks:{name} works in {works}, not in {norm}, where it breaks next to nothing "
        f"whatever the network; {advice}"
    )


def _check_settings(name: str, settings: dict[str, Any], takes: set[str]) -> None:
    """Refuse arguments that the class does not take, or that are not the user's to set."""
    allowed = sorted(takes.difference(_OURS))
    for key in settings:
        if key in _OURS:
            raise UserError(f"torchattacks:{name}.{key} is set by the threat model and the caller")
        if key not in allowed:
            raise UserError(
                f"unknown key '{key}' in torchattacks:{name}{nearest(key, allowed)} "
                f"(allowed: {', '.join(['project', 'targeted', 'label', *allowed])})"
            )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every global generator that torchattacks draws from, and put them back afterwards."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if started else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
