"""Topology map: which choices of a search space its best candidates make, beside all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_robust.report._style import INK, decorate, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["choice_shares", "plot_choices"]

#: A map is drawn up to this many choices and options; a larger one could not be read.
_MOST_CHOICES, _MOST_OPTIONS = 72, 12
_PER_PANEL = 24
Sample = Mapping[str, Any]


def choice_shares(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Share of the samples that take each option, by choice; options in the order of their names.

    Parameters
    ----------
    samples
        Architectures as mappings of a choice's label to what was chosen.
    """
    labels = list(dict.fromkeys(label for sample in samples for label in sample))
    shares: dict[str, dict[str, float]] = {}
    for label in labels:
        taken = [_text(sample[label]) for sample in samples if label in sample]
        numeric = all(_is_number(option) for option in taken)
        options = sorted(set(taken), key=float if numeric else None)
        shares[label] = {option: taken.count(option) / len(taken) for option in options}
    return shares


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def plot_choices(
    samples: Sequence[Sample], scores: Sequence[float], chosen: Sample | None = None
) -> Figure | None:
    """Draw, for every choice, the share of the best quarter that takes each option.

    Parameters
    ----------
    samples, scores
        The candidates' architectures and their scores (higher is better).
    chosen
        The architecture that the search chose; its options have a frame.

    Returns
    -------
    matplotlib.figure.Figure or None
        In each field the share among the best quarter, in percent, and in small how much larger
        that is than among all candidates. None where there are fewer than eight candidates, no
        choice differs, or there are too many choices or options to read.
    """
    if len(samples) < 8:
        return None
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    top = [samples[i] for i in order[: max(2, round(len(samples) / 4))]]
    every = {k: v for k, v in choice_shares(samples).items() if len(v) > 1}
    best = choice_shares(top)
    options = sorted({option for shares in every.values() for option in shares})
    if all(map(_is_number, options)):
        options.sort(key=float)
    if not every or len(every) > _MOST_CHOICES or len(options) > _MOST_OPTIONS:
        return None
    labels = list(every)
    panels = [labels[i : i + _PER_PANEL] for i in range(0, len(labels), _PER_PANEL)]
    height = max(len(panel) for panel in panels)
    canvas = figure(min(11.0, (1.6 + 0.85 * len(options)) * len(panels) + 0.4), 1.3 + 0.27 * height)
    for place, panel in enumerate(panels, 1):
        axes = canvas.add_subplot(1, len(panels), place)
        title = f"Choices of the best {len(top)} of {len(samples)}" if place == 1 else " "
        decorate(axes, title, "", "")
        _draw(axes, panel, options, every, best, chosen)
    return canvas


def _draw(
    axes: Axes,
    labels: Sequence[str],
    options: Sequence[str],
    every: Mapping[str, Mapping[str, float]],
    best: Mapping[str, Mapping[str, float]],
    chosen: Sample | None,
) -> None:
    shares = np.array(
        [
            [best.get(k, {}).get(o, 0.0) if o in every[k] else np.nan for o in options]
            for k in labels
        ]
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(options)), [plain(o) for o in options])
    axes.set_yticks(range(len(labels)), [plain(k) for k in labels])
    axes.tick_params(length=0, labelsize=7.5)
    for side in axes.spines.values():
        side.set_visible(False)
    for row, label in enumerate(labels):
        for column, option in enumerate(options):
            if option not in every[label]:
                continue
            share = shares[row, column]
            more = 100 * (share - every[label][option])
            colour = "#ffffff" if share > 0.75 else INK
            told = f"{100 * share:.0f}"
            above = f"{more:+.0f}".replace("-", "−") if round(more) else "±0"
            axes.text(column - 0.04, row, told, ha="right", va="center", fontsize=8, color=colour)
            axes.text(
                column + 0.06, row, above, ha="left", va="center", fontsize=6.5, color=colour,
            )  # fmt: skip
            if chosen is not None and _text(chosen.get(label)) == option:
                axes.add_patch(_frame(column, row))


def _frame(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.46, row - 0.42), 0.92, 0.84, fill=False, edgecolor=INK, linewidth=1.6
    )
