"""The laws behind the measurements of ``growth.py``: a fit, a table, a plot."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def medians(rows: Sequence[dict[str, str]]) -> Iterator[tuple[str, list[int], list[float]]]:
    """Name of a quantity, its values, and the median seconds at each."""
    for name in dict.fromkeys(row["quantity"] for row in rows):
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["quantity"] == name:
                found.setdefault(int(row["value"]), []).append(float(row["seconds"]))
        if len(found) > 1:
            values = sorted(found)
            yield name, values, [float(torch.tensor(found[v]).quantile(0.5)) for v in values]


def law(values: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit ``seconds = fixed + each * value ** power``.

    Returns
    -------
    fixed, each, power
        Of the least sum of squared relative errors, over powers from 0 to 3 in steps of 0.01;
        fixed and each are not negative.
    """
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.tensor(seconds, dtype=torch.float64)
    best = (float("inf"), 0.0, 0.0, 0.0)
    for power in (torch.arange(301) / 100).tolist():
        columns = torch.stack([torch.ones_like(x), x**power], 1)
        for chosen in ([0, 1], [1], [0]):
            part = columns[:, chosen] / y[:, None]
            found = torch.linalg.lstsq(part, torch.ones_like(y)[:, None]).solution.flatten()
            if (found < 0).any():
                continue
            error = float(((part @ found - 1) ** 2).sum())
            if error < best[0] - 1e-15:
                both = dict(zip(chosen, found.tolist(), strict=True))
                best = (error, both.get(0, 0.0), both.get(1, 0.0), power if 1 in both else 0.0)
    return best[1:]


def fits(values: Sequence[int]) -> bool:
    """Whether there are more values than the law has numbers."""
    return len(values) > 3


def summarise(folder: Path) -> None:
    """Write ``laws.csv`` and ``growth.png``."""
    rows = read(folder / "growth.csv")
    laws = []
    for name, values, seconds in medians(rows):
        last = float(torch.tensor(seconds[-1] / seconds[-2]).log())
        last /= float(torch.tensor(values[-1] / values[-2]).log())
        entry = {"quantity": name, "from": values[0], "to": values[-1]}
        found = [f"{number:.3g}" for number in law(values, seconds)] if fits(values) else [""] * 3
        entry |= zip(("fixed_seconds", "seconds_each", "power"), found, strict=True)
        entry["power_between_last_two"] = f"{last:.2f}"
        laws.append(entry)
        print(*entry.values())
    if not laws:
        raise SystemExit(f"'{folder / 'growth.csv'}' holds no measurements; run measure first")
    with open(folder / "laws.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(laws[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(laws)
    plot_growth(rows).savefig(folder / "growth.png", dpi=110, bbox_inches="tight")


def plot_growth(rows: Sequence[dict[str, str]]) -> Any:
    """Median seconds against each quantity, with the fitted law, on logarithmic axes."""
    from matplotlib.figure import Figure

    panels = list(medians(rows))
    units = {row["quantity"]: row["unit"] for row in rows}
    figure = Figure(figsize=(12, 2.9 * ((len(panels) + 2) // 3)))
    for place, (name, values, seconds) in enumerate(panels, 1):
        axes = figure.add_subplot((len(panels) + 2) // 3, 3, place)
        axes.loglog(values, seconds, "o", color="#0072B2", label="measured")
        if fits(values):
            fixed, each, power = law(values, seconds)
            curve = [fixed + each * v**power for v in values]
            label = f"{fixed:.2g} + {each:.2g} n^{power:.2f}"
            axes.loglog(values, curve, "--", color="#D55E00", label=label)
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()
        axes.set_title(name)
        axes.set_ylabel(f"seconds ({units[name]})")
        axes.legend(fontsize=8)
    figure.tight_layout()
    return figure
