"""Colours of figures and pages: told apart by colour-blind people, and readable for all.

Colour blindness is simulated as in G. Machado, M. Oliveira, L. Fernandes, "A Physiologically-based
Model for Simulation of Color Vision Deficiency" (2009), severity 1, on linear RGB; distances are
CIE 1976 in L*a*b* (D65), where about 2.3 is just noticeable; contrasts are those of WCAG 2.
"""

from __future__ import annotations

import importlib.resources
import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from nni_robust.report import (
    plot_best_so_far,
    plot_corruptions,
    plot_eps_curves,
    plot_steps_curves,
    plot_training,
)
from nni_robust.report._style import SERIES, series

SEEN_BY = {
    "everybody": np.eye(3),
    "protanopes": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopes": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopes": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LUMINANCE = np.array([0.2126729, 0.7151522, 0.0721750])
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], LUMINANCE, [0.0193339, 0.1191920, 0.9503041]],
)


def linear(colour: str) -> np.ndarray:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    value = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    white = XYZ.sum(axis=1)
    xyz = XYZ @ np.clip(rgb, 0, 1) / white
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    light, dark = sorted((float(LUMINANCE @ linear(c)) for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measures_give_published_values() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21, abs=0.01)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's checker
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    # Red and green of equal lightness, which protanopes and deuteranopes confuse.
    for who, far in (("everybody", True), ("deuteranopes", False)):
        a, b = (lab(np.array(SEEN_BY[who]) @ linear(c)) for c in ("#a55a00", "#6e7200"))
        assert bool(np.linalg.norm(a - b) > 20) is far


@pytest.mark.parametrize("who", SEEN_BY)
def test_any_two_series_differ_in_colour(who: str) -> None:
    seen = [lab(np.array(SEEN_BY[who]) @ linear(colour)) for colour, _, _ in SERIES]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 15


def test_any_two_series_differ_without_colour() -> None:
    assert len({marker for _, marker, _ in SERIES}) == len(SERIES)
    assert len({str(style) for _, _, style in SERIES}) == len(SERIES)


def test_more_series_than_colours_still_differ() -> None:
    drawn = [series(k) for k in range(len(SERIES) ** 2)]
    assert len({(look["color"], look["marker"]) for look in drawn}) == len(drawn)
    assert [(d["color"], d["marker"], d["linestyle"]) for d in drawn[: len(SERIES)]] == [*SERIES]


def test_every_symbol_stands_out_from_white_paper() -> None:
    assert min(contrast(series(k)["markeredgecolor"], "#ffffff") for k in range(len(SERIES))) > 3


@pytest.mark.parametrize("draw", [plot_eps_curves, plot_steps_curves, plot_best_so_far])
def test_curves_are_drawn_so(draw) -> None:
    points = [0.5, 0.4] if draw is plot_best_so_far else [(1, 0.5), (2, 0.4)]
    figure = draw({f"network {k}": points for k in range(len(SERIES))})
    looks(figure.axes[0])


def test_training_curves_are_drawn_so() -> None:
    history = [{"epoch": e, "loss": 1 / e, "val_clean": 0.5, "val_robust": 0.4} for e in (1, 2)]
    for axes in plot_training({f"network {k}": history for k in range(len(SERIES))}).axes:
        looks(axes)


def test_corruptions_are_drawn_so() -> None:
    found = {"fog": {1: 0.5, 2: 0.4}, "snow": {1: 0.5, 2: 0.4}}
    figure = plot_corruptions({f"network {k}": found for k in range(len(SERIES))})
    assert len(figure.axes) == 2
    for axes in figure.axes:
        looks(axes)


def looks(axes) -> None:
    """Every line of the legend has a symbol, a style and a colour of its own."""
    lines = [line for line in axes.lines if line.get_label().startswith("network")]
    assert len(lines) == len(SERIES)
    for told in (
        {line.get_marker() for line in lines},
        {str(line._unscaled_dash_pattern) for line in lines},
        {to_hex(line.get_color()) for line in lines},
    ):
        assert len(told) == len(SERIES)


def test_texts_of_the_page_have_contrast() -> None:
    """Every rule that sets a text and what is behind it; WCAG wants 4.5."""
    css = importlib.resources.files("nni_robust.report").joinpath("templates/style.css").read_text()
    names = dict(re.findall(r"--(\w+):\s*(#[0-9a-f]+)", css))
    plain = re.sub(r"var\(--(\w+)\)", lambda m: names[m[1]], css)
    pairs = []
    for rule in re.findall(r"\{([^{}]*)\}", plain):
        text = re.search(r"(?<![-\w])color:\s*(#[0-9a-f]+)", rule)
        behind = re.search(r"background:\s*(#[0-9a-f]+)", rule)
        if text and behind:
            pairs.append((text[1], behind[1]))
    assert len(pairs) >= 8
    pairs += [(names[name], "#ffffff") for name in ("ink", "soft", "blue", "red")]
    assert {p: round(contrast(*p), 2) for p in pairs if contrast(*p) < 4.5} == {}
