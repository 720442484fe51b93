"""A table made from a formula: the optimum is known, and a search over it costs nothing.

The grid is that of NARes (:mod:`nni_robust.tables.nares`), and so is the scale: validation accuracy
under PGD at 8/255 has its best value near 38.8 %, the best of 500 random architectures lies about
0.6 points below it, and scores are noisy as single trainings are. The formula itself is made up. It
says nothing about real networks, except that its ingredients are what has been reported of them:

* capacity pays, with diminishing returns (logarithm of MACs);
* under attack the last stage should be small, the more so the stronger the attack (Wang et al., KDD
  2024; Huang et al., NeurIPS 2021 and CVPR 2023), while clean accuracy wants balanced stages;
* depth and width have a best ratio (compound scaling), and a best share of depth in stage 2 that
  depends on stage 1: terms that no single choice decides;
* on top, hills and dips at seeded places of the six-dimensional grid, whose heights change with
  the attack: there are several local optima (seven under PGD with the default seed).

A score is ``truth + noise``. A network is trained once, so one part of the noise is common to all
columns of its row; a second part is independent in the validation and in the test column. Both come
from the seed alone, so the same question has the same answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_robust.data.seeding import derive_seed
from nni_robust.errors import UserError
from nni_robust.task import Task

from ._base import Row, Sample, Table, attack_column
from .nares import DEPTHS, WIDTHS

__all__ = ["SyntheticTable"]

Floats = NDArray[np.float64]

_LABELS = tuple(f"stage{stage}/{what}" for stage in (1, 2, 3) for what in ("depth", "width"))

#: How hard an attack is at 8/255, relative to PGD.
_SEVERITY = {"clean": 0.0, "fgsm": 0.6, "pgd": 1.0, "cw": 1.06, "autoattack": 1.15}

#: Hills and dips; their height in points, their width as a share of an axis.
_HILLS, _HEIGHT, _BREADTH = 40, 0.85, 0.27
#: Standard deviations of the noise, in points: of a training, of a measurement.
_TRAINING, _MEASURING = 0.25, 0.3


class SyntheticTable(Table):
    """Scores of wide residual networks by a formula.

    Parameters
    ----------
    seed
        Of the hills and of the noise. With the default the scale is NARes': best noisy score under
        PGD at 8/255 38.82 % (NARes 38.80), best of 500 random ones 38.14 ± 0.21 (38.18 ± 0.22).
    noise
        Factor of the noise; 0 gives the truth.
    depths, widths
        The grid, the same for all stages; None is that of NARes.

    Raises
    ------
    UserError
        If an argument is impossible.
    """

    name = "synthetic:wrn"

    def __init__(
        self,
        *,
        seed: int = 2,
        noise: float = 1.0,
        depths: Sequence[int] | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.depths, self.widths = tuple(depths or DEPTHS), tuple(widths or WIDTHS)
        for key, values in (("depths", self.depths), ("widths", self.widths)):
            if min(values) < 1 or list(values) != sorted(set(values)):
                raise UserError(f"{key}: {list(values)} is not allowed; rising whole numbers are")
        if not noise >= 0:
            raise UserError(f"noise: {noise!r} is not allowed; a number >= 0 is")
        self.seed, self.noise = int(seed), float(noise)
        self._axes = (self.depths, self.widths) * 3
        self._shape = tuple(len(axis) for axis in self._axes)

    def __len__(self) -> int:
        return int(np.prod(self._shape))

    def samples(self) -> Iterator[dict[str, Any]]:
        return (
            dict(zip(_LABELS, values, strict=True)) for values in itertools.product(*self._axes)
        )

    def fingerprint(self) -> Any:
        return {
            "table": self.name,
            "seed": self.seed,
            "noise": self.noise,
            "depths": list(self.depths),
            "widths": list(self.widths),
        }

    def deciding(self, task: Task) -> str:
        return _column(task)

    def row(self, sample: Sample, task: Task) -> Row:
        at = self._position(sample)
        column = _column(task)
        found: Row = {}
        for name, severity in {"clean": 0.0, column: _severity(task)}.items():
            if name != "clean" or severity == 0.0:
                found[name] = self._scores(name, severity, "validation")[at]
                found[f"test {name}"] = self._scores(name, severity, "test")[at]
        params, macs = _cost(np.array([sample[label] for label in _LABELS])[None])
        found = {key: round(float(value) / 100, 6) for key, value in found.items()}
        return found | {"params": float(params[0]), "macs": float(macs[0]), "seconds": 0.0}

    def truth(self, sample: Sample, task: Task) -> float:
        """The score without noise, as a share."""
        return float(self._truth(_severity(task))[self._position(sample)]) / 100

    def optimum(self, task: Task) -> tuple[dict[str, Any], float]:
        """The best architecture without noise, and its score."""
        values = self._truth(_severity(task))
        best = int(values.argmax())
        return next(itertools.islice(self.samples(), best, None)), float(values[best]) / 100

    def _position(self, sample: Sample) -> int:
        place = []
        for label, axis in zip(_LABELS, self._axes, strict=True):
            if label not in sample:
                raise UserError(f"table '{self.name}' has no row without a value for '{label}'")
            if sample[label] not in axis:
                raise UserError(
                    f"table '{self.name}' has no row with {label}={sample[label]!r} (its values: "
                    f"{', '.join(map(str, axis))})"
                )
            place.append(axis.index(sample[label]))
        for label, value in sample.items():
            if label not in _LABELS and not (label.endswith("/block") and value == "basic"):
                raise UserError(f"table '{self.name}' has no row with {label}={value!r}")
        return int(np.ravel_multi_index(place, self._shape))

    def _truth(self, severity: float) -> Floats:
        return _truth(self._axes, self.seed, round(severity, 9))

    def _scores(self, column: str, severity: float, split: str) -> Floats:
        """(grid,) scores in points, noise included."""
        return _noisy(self._axes, self.seed, round(severity, 9), self.noise, column, split)


def _column(task: Task) -> str:
    return attack_column(dataclasses.replace(task, attack="pgd20") if not task.attack else task)


def _severity(task: Task) -> float:
    """0 is no attack, 1 is PGD at 8/255 (or 128/255 in L2)."""
    attack = task.attack or "pgd20"
    name = str(attack.get("name") if isinstance(attack, Mapping) else attack)
    kind = name.rstrip("0123456789").rstrip("-").lower()
    usual = 8 / 255 if task.threat.norm == "linf" else 128 / 255
    return _SEVERITY.get(kind, 1.0) * min(task.threat.eps / usual, 3.0)


Axes = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=64)
def _noisy(axes: Axes, seed: int, severity: float, noise: float, column: str, split: str) -> Floats:
    truth = _truth(axes, seed, severity)
    trained = np.random.default_rng(derive_seed(seed, "training")).normal(size=len(truth))
    measured = np.random.default_rng(derive_seed(seed, column, split)).normal(size=len(truth))
    return truth + noise * (_TRAINING * trained + _MEASURING * measured)


@lru_cache(maxsize=64)
def _truth(axes: Axes, seed: int, severity: float) -> Floats:
    """(grid,) scores in points without noise, in the order of the grid."""
    grid = np.array(list(itertools.product(*axes)), dtype=np.float64)
    macs = _cost(grid)[1] / 1e9
    # 0 … 1 between the ends of NARes' axes, whatever the grid.
    depth, width = (grid[:, 0::2] - 4) / 7, (grid[:, 1::2] - 8) / 8
    hard = min(severity, 1.5)
    capacity = 0.55 * np.log2(macs / 10) - 0.13 * np.log2(macs / 10) ** 2
    last = 0.75 - 0.6 * hard  # best size of the last stage
    final = -0.9 * (depth[:, 2] - last) ** 2 - 0.9 * (width[:, 2] - last) ** 2
    final -= 0.6 * hard * depth[:, 2] * width[:, 2]
    ratio = np.log2(grid[:, 0::2].sum(1) / grid[:, 1::2].sum(1))
    compound = -1.1 * (ratio - np.log2(0.85)) ** 2
    share = -0.9 * (depth[:, 1] - 0.35 - 0.5 * depth[:, 0] * (1 - width[:, 0])) ** 2
    crossed = 0.7 * (width[:, 0] - 0.5) * (0.5 - width[:, 1]) * (1 if hard < 0.5 else -1)
    places = np.concatenate([depth, width], axis=1)
    rng = np.random.default_rng(derive_seed(seed, "hills"))
    centres, phases = rng.uniform(0, 1, (_HILLS, 6)), rng.uniform(0, 2 * np.pi, _HILLS)
    signs = np.where(np.arange(_HILLS) % 3 == 2, -1.0, 1.0)
    heights = _HEIGHT * signs * (1 + 0.5 * np.sin(phases + 1.5 * hard))
    distance = ((places[:, None, :] - centres[None]) ** 2).sum(-1)
    hills = (heights * np.exp(-distance / (2 * _BREADTH**2))).sum(1)
    truth: Floats = _level(severity) + capacity + final + compound + share + crossed + hills
    return truth


def _level(severity: float) -> float:
    """Mean accuracy in points; NARes has 76 without attack and about 36 under PGD at 8/255."""
    return 10 + 66.4 * float(np.exp(-0.90 * severity))


def _cost(grid: Floats) -> tuple[Floats, Floats]:
    """Parameters and MACs (32x32 pictures, ten classes) of (N, 6) depths and widths.

    Basic blocks: two 3x3 convolutions with a batch norm before each, and a 1x1 one where the
    channels change.
    """
    channels_before = np.full(len(grid), 16.0)
    params, macs = np.full(len(grid), 27.0 * 16), np.full(len(grid), 27.0 * 16 * 1024)
    for stage, (base, pixels) in enumerate(((16, 1024), (32, 256), (64, 64))):
        depth, channels = grid[:, 2 * stage], base * grid[:, 2 * stage + 1]
        first = 9 * (channels_before * channels + channels**2) + channels_before * channels
        convs = first + (depth - 1) * 18 * channels**2
        norms = 2 * (channels_before + channels) + (depth - 1) * 4 * channels
        params, macs = params + convs + norms, macs + convs * pixels
        channels_before = channels
    head = channels_before * 10
    return params + 2 * channels_before + head + 10, macs + head
