"""What a search kept of its teacher: a table and a figure of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.analysis.compression import RunTopology, mean_keep, run_topology
from nni_robust.config import read_yaml
from nni_robust.errors import UserError
from nni_robust.report._style import INK, SERIES, decorate, figure, plain

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compression_figures", "plot_compression", "read_compression"]


def read_compression(run: str | Path) -> dict[str, Any] | None:
    """Rows of the table and sentences; None where the run has no teacher with stages.

    Returns
    -------
    dict
        ``stages`` (one mapping each; shares in [0, 1]), ``networks`` (how many the means are of),
        ``lipschitz`` and ``teacher_lipschitz`` (None where unknown).
    """
    found = _topology(run)
    if found is None:
        return None
    rows = [
        {
            "stage": stage.stage,
            "depth": f"{stage.depth} of {stage.teacher_depth}",
            "width": f"{stage.width} of {stage.teacher_width}",
            "block": stage.block,
            "keep_depth": stage.keep_depth,
            "keep_width": stage.keep_width,
            "mean_depth": depth,
            "mean_width": width,
        }
        for stage, (depth, width) in zip(found.best, mean_keep(found.top), strict=True)
    ]
    return {
        "stages": rows,
        "networks": len(found.top),
        "lipschitz": found.lipschitz,
        "teacher_lipschitz": found.teacher_lipschitz,
    }


def compression_figures(run: str | Path) -> dict[str, Markup]:
    """The figure of the stages as inline SVG; empty where there is none to draw."""
    found = _topology(run)
    if found is None:
        return {}
    from markupsafe import Markup

    from nni_robust.report._svg import inline_svg

    alt = "Shares of the teacher's depth and width that each stage keeps: " + "; ".join(
        f"stage {stage.stage} {stage.depth} of {stage.teacher_depth} blocks, "
        f"width {stage.width} of {stage.teacher_width}, {stage.block} blocks"
        for stage in found.best
    )
    # Safe: matplotlib escapes the texts of its SVG, and inline_svg escapes the description.
    return {"compression": Markup(inline_svg(plot_compression([found]), "fig-compression", alt))}


def _topology(run: str | Path) -> RunTopology | None:
    """The run's topology where its space is one of depths and widths below a teacher."""
    try:
        space = read_yaml(Path(run) / "config.yaml").get("space")
        name = space.get("name") if isinstance(space, dict) else space
        return run_topology(run) if name == "wide-resnet" else None
    except (UserError, KeyError, TypeError, ValueError):
        return None  # a report of a run must not fail because it is old or damaged


def plot_compression(runs: Sequence[RunTopology]) -> Figure:
    """Draw the shares of depth and width that each stage keeps, side by side for several runs.

    Parameters
    ----------
    runs
        What :func:`nni_robust.analysis.run_topology` gives, such as one run without and one with an
        attack.

    Returns
    -------
    matplotlib.figure.Figure
        A bar is a run's best network, with its number of blocks or its width in it, and an R where
        a stage of basic blocks has become robust. The line over it spans the run's best candidates,
        the mark is their mean.
    """
    canvas = figure(10.4, 3.9)
    depth, width = canvas.subplots(1, 2, sharey=True)
    _panel(depth, runs, "depth", "Depth that stays", "share of the teacher's blocks (%)")
    _panel(width, runs, "width", "Width that stays", "share of the teacher's width (%)")
    handles, names = depth.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return canvas


def _panel(axes: Axes, runs: Sequence[RunTopology], what: str, title: str, label: str) -> None:
    decorate(axes, title, "", label)
    stages = len(runs[0].best)
    size = 0.8 / len(runs)
    for place, run in enumerate(runs):
        colour, marker, _ = SERIES[place % len(SERIES)]
        for stage in run.best:
            at = stage.stage - 1 + (place - (len(runs) - 1) / 2) * size
            share = 100 * getattr(stage, f"keep_{what}")
            every = [100 * getattr(n[stage.stage - 1], f"keep_{what}") for n in run.top]
            first = stage.stage == 1
            axes.bar(
                at, share, 0.9 * size, color=colour, alpha=0.35, edgecolor=colour,
                label=plain(run.label) if first else None,
            )  # fmt: skip
            if len(every) > 1:
                mean = sum(every) / len(every)
                axes.plot([at, at], [min(every), max(every)], color=INK, linewidth=1.2)
                axes.plot(
                    at, mean, marker, color=INK, markersize=5, linestyle="none",
                    label=f"mean and range of its best {len(every)}" if first else None,
                )  # fmt: skip
            changed = stage.block == "robust" and stage.teacher_block != "robust"
            text = f"{getattr(stage, what)}{' R' if changed else ''}"
            axes.text(at, 2, text, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_xticks(range(stages), [f"stage {i + 1}" for i in range(stages)])
    axes.set_ylim(0, 105)
    axes.grid(False, axis="x")
