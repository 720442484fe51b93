"""Matplotlib figures as SVG that can stand inside an HTML page, many on one page."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg"]

#: Figures up to this width (pixels) are scaled down on a narrow screen; others can be scrolled.
_SMALL = 560
_DROP = (
    re.compile(r"^.*?(?=<svg)", re.DOTALL),  # XML declaration and document type
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<style.*?</style>", re.DOTALL),  # its one rule would apply to the whole page
    re.compile(r"<!--.*?-->", re.DOTALL),
)


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Render a figure as an ``<svg>`` element without outside references.

    Parameters
    ----------
    figure
        The figure; text becomes outlines, so it looks the same without its fonts.
    prefix
        Put before every id, so that the ids of several figures on one page stay unique.
    alt
        Description for readers who do not see the figure.

    Returns
    -------
    str
        Markup; `alt` is escaped, the rest comes from matplotlib (which escapes its texts).
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    for pattern in _DROP:
        svg = pattern.sub("", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'\b(xlink:href|href)="#', rf'\1="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    box = re.search(r'viewBox="[^"]*"', svg)
    head = (
        f'<svg class="{"plot small" if width <= _SMALL else "plot"}" role="img" '
        f'aria-labelledby="{prefix}-title" {box[0] if box else ""} '
        f'style="width:{width}px" width="{width}" height="{height}">'
        f'<title id="{prefix}-title">{escape(alt)}</title>'
    )
    return re.sub(r"^\s*<svg\b[^>]*>", lambda _: head, svg, count=1).strip()
