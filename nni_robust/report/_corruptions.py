"""Accuracy under common corruptions: what ``final.json`` says of it, as a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from nni_robust.report import _format as fmt
from nni_robust.report._style import decorate, figure, numbers, plain, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nni_robust.report._run import Record

__all__ = ["corruption_table", "plot_corruptions", "read_corruptions"]

#: Accuracy in [0, 1] by corruption and severity.
Accuracies = Mapping[str, Mapping[int, float]]

_COLUMNS = 5


def plot_corruptions(
    accuracies: Mapping[str, Accuracies], *, clean: Mapping[str, float] | None = None
) -> Figure:
    """Draw accuracy against the severity, one panel per corruption and one line per network.

    Parameters
    ----------
    accuracies
        ``accuracies[network][corruption][severity]``, in [0, 1]; a network may lack some.
    clean
        Accuracy without corruption of each network, drawn at severity 0.
    """
    names = list(dict.fromkeys(name for found in accuracies.values() for name in found))
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    columns = max(1, min(len(names), _COLUMNS))
    canvas = figure(max(2.1 * columns, 4.2), 1.9 * rows + 0.8)
    for place, name in enumerate(names):
        axes = canvas.add_subplot(rows, columns, place + 1)
        lowest, leftmost = place + columns >= len(names), place % columns == 0
        decorate(
            axes,
            spoken(name),
            "severity" if lowest else "",
            "accuracy (%)" if leftmost else "",
        )
        axes.title.set_fontsize(8.5)
        for k, (network, found) in enumerate(accuracies.items()):
            points = dict(sorted(found.get(name, {}).items()))
            if points and clean is not None and network in clean:
                points = {0: clean[network], **points}
            axes.plot(
                list(points), numbers(list(points.values()), 100),
                **series(k), markersize=3.5, linewidth=1.4, label=plain(network),
            )  # fmt: skip
        axes.set_ylim(-2, 102)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:
        handles, labels = canvas.axes[0].get_legend_handles_labels()
        canvas.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return canvas


def spoken(name: str) -> str:
    """``"gaussian_noise"`` -> ``"gaussian noise"``."""
    return plain(name.replace("_", " "))


def read_corruptions(network: Record) -> dict[str, dict[int, float]]:
    """A network's accuracies by corruption and severity; entries of another form are left out."""
    kept = network.get("corruptions")
    found = kept.get("accuracy") if isinstance(kept, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    read = {
        str(name): {
            int(severity): value
            for severity, accuracy in by.items()
            if str(severity).isdecimal() and (value := fmt.number(accuracy)) is not None
        }
        for name, by in found.items()
        if isinstance(by, Mapping)
    }
    return {name: by for name, by in read.items() if by}


def clean_accuracy(network: Record) -> float | None:
    """What the same pictures give without corruption."""
    kept = network.get("corruptions")
    return fmt.number(kept.get("clean")) if isinstance(kept, Mapping) else None


def corruption_table(networks: Sequence[tuple[str, Record]]) -> dict[str, Any] | None:
    """Means over the severities, for the template; None where no network has any.

    Parameters
    ----------
    networks
        Names and records of ``final.json``; those without corruptions are left out.
    """
    found = {name: (n, read) for name, n in networks if (read := read_corruptions(n))}
    if not found:
        return None
    accuracies = [read for _, read in found.values()]
    names = list(dict.fromkeys(name for read in accuracies for name in read))
    sets = {tuple((name, *read[name]) for name in sorted(read)) for read in accuracies}
    severities = sorted({s for read in accuracies for by in read.values() for s in by})
    return {
        "networks": [(name, _doubts(n)) for name, (n, _) in found.items()],
        "pictures": sorted({_pictures(n) for n, _ in found.values()} - {None}),
        "clean": [clean_accuracy(n) for n, _ in found.values()],
        "rows": [
            (name.replace("_", " "), [_cell(read.get(name)) for read in accuracies])
            for name in names
        ],
        "means": [_mean([_mean(list(by.values())) for by in read.values()]) for read in accuracies],
        "severities": ", ".join(map(str, severities)),
        "alike": len(sets) == 1,
    }


def _cell(by: Mapping[int, float] | None) -> tuple[float | None, str]:
    """The mean over the severities, and each of them in words."""
    if not by:
        return None, ""
    told = ", ".join(f"{s}: {fmt.percent(value)} %" for s, value in sorted(by.items()))
    return _mean(list(by.values())), f"severity {told}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pictures(network: Record) -> Any:
    n = fmt.number(network["corruptions"].get("pictures"))
    return None if n is None else f"{n:,.0f}"


def _doubts(network: Record) -> list[str]:
    """Why these figures cannot be believed."""
    flags = network["corruptions"].get("reliability")
    reasons = flags.get("unreliable") if isinstance(flags, Mapping) else None
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else []
