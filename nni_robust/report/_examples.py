"""Adversarial examples of a run: pictures, what was added to them, and what networks saw."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_robust.errors import UserError
from nni_robust.report import _format as fmt
from nni_robust.report._style import INK, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Examples", "caption", "describe", "plot_examples", "read_examples", "read_run_examples"]

#: Pictures are not drawn larger than this many pixels, so that a page stays small.
_LARGEST = 96
#: Most pictures in a figure.
_SHOWN = 8
_PICTURES = ("clean", "adversarial")
_NUMBERS = ("labels", "predicted_clean", "predicted_adversarial", "index")
_BROKEN, _HELD = "#7a2c00", "#00432f"


@dataclasses.dataclass(frozen=True)
class Examples:
    """Attacked pictures of one network.

    Parameters
    ----------
    clean, adversarial
        (N, C, H, W), float32, in [0, 1].
    labels, predicted_clean, predicted_adversarial
        (N,), int64: true class, and what the network says before and after the attack.
    index
        (N,), int64: places of the pictures in their split.
    attack
        The attack's key, such as ``"pgd20@8/255"``.
    classes
        Names of the classes.
    only_broken
        Whether they are the first that the attack broke (files of
        :class:`nni_robust.adversarial.AdversarialExamples`), not pictures that nobody chose.
    """

    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    labels: NDArray[np.int64]
    predicted_clean: NDArray[np.int64]
    predicted_adversarial: NDArray[np.int64]
    index: NDArray[np.int64]
    attack: str
    classes: tuple[str, ...]
    only_broken: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, label: int) -> str:
        """What a class is called, at most 12 letters."""
        text = self.classes[label] if 0 <= label < len(self.classes) else str(label)
        return text if len(text) <= 12 else f"{text[:11]}…"

    def verdict(self, place: int) -> str:
        """``"held"``, ``"broken"``, or ``"wrong before"`` where there was nothing to break."""
        true = self.labels[place]
        if self.predicted_clean[place] != true:
            return "wrong before"
        return "held" if self.predicted_adversarial[place] == true else "broken"


def read_examples(path: str | Path, most: int | None = None) -> Examples:
    """Read a file of adversarial examples.

    Parameters
    ----------
    path
        What a run keeps in its ``examples`` folder, or a file of
        :meth:`nni_robust.adversarial.AdversarialExamples.save`.
    most
        Read the first so many pictures only; None reads all.

    Raises
    ------
    UserError
        If it cannot be read, or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in (*_PICTURES, *_NUMBERS)}
            sizes = [part.get_shape()[0] for part in slices.values()]
            # A slice beyond the end is an error, and so is an empty one.
            end = min([*sizes, *([most] if most is not None else [])])
            tensors = {
                key: part[:end] if 0 < end < size else file.get_tensor(key)
                for (key, part), size in zip(slices.items(), sizes, strict=True)
            }
            texts = file.metadata() or {}
        if len(set(sizes)) != 1:
            raise ValueError("its tensors do not fit each other")
        classes = json.loads(texts.get("classes", "[]"))
        pictures: dict[str, Any] = {k: np.asarray(tensors[k], dtype=np.float32) for k in _PICTURES}
        rows: dict[str, Any] = {k: np.asarray(tensors[k], dtype=np.int64) for k in _NUMBERS}
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as e:
        raise UserError(
            f"'{path}' holds no adversarial examples: {type(e).__name__}: {e}"
        ) from None
    clean, adversarial = pictures["clean"], pictures["adversarial"]
    fits = clean.ndim == 4 and clean.shape == adversarial.shape and clean.shape[1] in (1, 3)
    fits = fits and all(row.shape == (len(clean),) for row in rows.values())
    if not fits or not isinstance(classes, list):
        raise UserError(f"'{path}' holds no adversarial examples: its tensors do not fit")
    if not (np.isfinite(clean).all() and np.isfinite(adversarial).all()):
        raise UserError(f"'{path}' holds no adversarial examples: a pixel is not finite")
    return Examples(
        **pictures,
        **rows,
        attack=str(texts.get("attack", "")),
        classes=tuple(str(name) for name in classes),
        only_broken="broken" in texts,
    )


def read_run_examples(run: str | Path) -> tuple[dict[str, dict[str, Examples]], list[str]]:
    """Examples in a run folder, by attack and then by network; and sentences about bad files."""
    found: dict[str, dict[str, Examples]] = {}
    problems: list[str] = []
    folder = Path(run) / "examples"
    order = {"best": 0, "random": 1, "undefended": 2}
    files = sorted(
        folder.glob("*/*.safetensors"), key=lambda f: (order.get(f.parent.name, 3), str(f))
    )
    for file in files:
        try:
            examples = read_examples(file, _SHOWN)
        except UserError as e:
            problems.append(str(e))
            continue
        if len(examples):
            found.setdefault(examples.attack, {})[file.parent.name] = examples
    return found, problems


def plot_examples(examples: Mapping[str, Examples], *, most: int = _SHOWN) -> Figure:
    """Draw pictures, and for each network the added change and the attacked picture.

    Parameters
    ----------
    examples
        Of each network by its name, under one attack, for the same pictures.
    most
        Pictures that are drawn.

    Returns
    -------
    matplotlib.figure.Figure
        Changes are stretched alike in the whole figure, by the factor that is written beside them;
        grey is no change.

    Raises
    ------
    ValueError
        If there are no examples, or they are not of the same pictures.
    """
    if not examples:
        raise ValueError("there are no examples to draw")
    first = next(iter(examples.values()))
    count = min(most, len(first))
    for other in examples.values():
        same = len(other) == len(first) and (other.index == first.index).all()
        if not same or other.clean.shape != first.clean.shape:
            raise ValueError("the examples are not of the same pictures")
    changes = {name: e.adversarial[:count] - e.clean[:count] for name, e in examples.items()}
    largest = max((float(np.abs(change).max()) for change in changes.values()), default=0.0)
    factor = 0.5 / largest if largest > 0 else 1.0
    rows = 1 + 2 * len(examples)
    canvas = figure(1.1 + 1.14 * count, 0.25 + 1.38 * rows)
    grid = canvas.subplots(rows, count, squeeze=False)
    for column in range(count):
        _picture(grid[0, column], first.clean[column])
        _say(grid[0, column], f"true: {first.name(int(first.labels[column]))}", INK, False)
        for number, (name, found) in enumerate(examples.items()):
            added, attacked = grid[1 + 2 * number, column], grid[2 + 2 * number, column]
            _picture(added, 0.5 + factor * changes[name][column])
            _picture(attacked, found.adversarial[column])
            before = found.name(int(found.predicted_clean[column]))
            after = found.name(int(found.predicted_adversarial[column]))
            verdict = found.verdict(column)
            mark, colour = {
                "held": ("✓ held", _HELD),
                "broken": ("✗ broken", _BROKEN),
                "wrong before": ("– wrong before", INK),
            }[verdict]
            _say(attacked, f"{before} → {after}\n{mark}", colour, verdict == "broken")
    titles = ["picture"]
    for name in examples:
        titles += [f"change × {factor:.3g}", f"{name},\nattacked"]
    for row, title in enumerate(titles):
        grid[row, 0].set_ylabel(
            plain(title), rotation=0, ha="right", va="center", fontsize=8, color=INK, labelpad=6
        )
    return canvas


def _picture(axes: Axes, pixels: NDArray[Any]) -> None:
    """One picture (C, H, W) without axes, as large pixels where it has few."""
    step = max(1, -(-max(pixels.shape[1:]) // _LARGEST))
    shown = np.clip(pixels[:, ::step, ::step].transpose(1, 2, 0), 0, 1)
    grey = shown.shape[2] == 1
    axes.imshow(
        shown[:, :, 0] if grey else shown, cmap="gray" if grey else None, vmin=0, vmax=1,
        interpolation="none",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#9aa5b1")


def _say(axes: Axes, text: str, colour: str, strong: bool) -> None:
    axes.set_xlabel(
        plain(text), fontsize=7.5, color=colour, labelpad=3, weight="bold" if strong else "normal"
    )


def describe(examples: Mapping[str, Examples], most: int = _SHOWN) -> str:
    """What the figure shows, in words."""
    told = []
    for name, found in examples.items():
        verdicts = [found.verdict(i) for i in range(min(most, len(found)))]
        parts = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)]
        told.append(f"{name}: {', '.join(parts)}")
    attack = next(iter(examples.values())).attack
    return f"Pictures before and after {fmt.attack_name(attack)}. {'; '.join(told)}."


def caption(examples: Mapping[str, Examples]) -> str:
    """The attack, and how the pictures of the figure were chosen."""
    attack = next(iter(examples.values())).attack
    if any(found.only_broken for found in examples.values()):
        chosen = "The first pictures that it broke"
    else:
        chosen = "Pictures at equal distances over the test split: nobody chose them"
    return (
        f"{fmt.attack_name(attack) or 'An attack'}. {chosen}. Below an attacked picture: what the "
        "network says of the clean one, and of this one."
    )
