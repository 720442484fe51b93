"""Adversarial examples in the report: read safely, drawn as they are, and told in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nni_robust.adversarial import AdversarialExamples
from nni_robust.errors import UserError
from nni_robust.report import Examples, build_report, plot_examples, read_examples
from nni_robust.threat import ThreatModel

CLEAN = np.random.default_rng(0).uniform(0.2, 0.8, (3, 1, 4, 4)).astype(np.float32)
NOISE = 0.05 * np.sign(np.random.default_rng(1).normal(size=CLEAN.shape)).astype(np.float32)
TENSORS = {
    "clean": CLEAN,
    "adversarial": CLEAN + NOISE,
    "labels": np.array([0, 1, 2]),
    "predicted_clean": np.array([0, 1, 1]),
    "predicted_adversarial": np.array([0, 2, 1]),
    "index": np.array([0, 10, 20]),
}
TEXTS = {"attack": "pgd20@0.05", "norm": "linf", "eps": "0.05"}


def write(path: Path, classes: object = ("cat", "dog", "<b>$x$"), **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v for k, v in {**TENSORS, **changes}.items() if v is not None}
    save_file(tensors, path, {**TEXTS, "classes": json.dumps(classes)})
    return path


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return read_examples(write(tmp_path / "e.safetensors"))


def test_what_was_written_is_read(examples: Examples) -> None:
    assert (examples.clean == CLEAN).all()
    assert examples.attack == "pgd20@0.05"
    assert [examples.verdict(i) for i in range(3)] == ["held", "broken", "wrong before"]
    assert [examples.name(i) for i in (0, 2, 7)] == ["cat", "<b>$x$", "7"]


def test_pictures_changes_and_answers_are_drawn(examples: Examples) -> None:
    other = dataclasses.replace(examples, adversarial=CLEAN - 2 * NOISE)
    figure = plot_examples({"A": examples, "B": other})
    grid = np.array(figure.axes).reshape(5, 3)

    def pixels(row: int, column: int) -> np.ndarray:
        return np.asarray(grid[row, column].images[0].get_array())

    # The largest change of the whole figure, 0.1, is stretched to half the range: by five.
    for column in range(3):
        assert pixels(0, column) == pytest.approx(CLEAN[column, 0])
        assert pixels(1, column) == pytest.approx(0.5 + 5 * NOISE[column, 0], abs=1e-4)
        assert pixels(2, column) == pytest.approx((CLEAN + NOISE)[column, 0])
        assert pixels(3, column) == pytest.approx(0.5 - 10 * NOISE[column, 0], abs=1e-4)
    assert grid[1, 0].get_ylabel() == "change × 5"
    assert grid[4, 0].get_ylabel() == "B,\nattacked"
    assert [axes.get_xlabel() for axes in grid[0]] == ["true: cat", "true: dog", r"true: <b>\$x\$"]
    assert [axes.get_xlabel() for axes in grid[2]] == [
        "cat → cat\n✓ held",
        "dog → <b>\\$x\\$\n✗ broken",
        "dog → dog\n– wrong before",
    ]
    assert len(plot_examples({"A": examples}, most=2).axes) == 6


def test_only_the_same_pictures_share_a_figure(examples: Examples) -> None:
    other = dataclasses.replace(examples, index=examples.index + 1)
    with pytest.raises(ValueError, match="same pictures"):
        plot_examples({"A": examples, "B": other})
    with pytest.raises(ValueError, match="no examples"):
        plot_examples({})


def test_large_pictures_are_drawn_smaller(examples: Examples) -> None:
    large = np.zeros((3, 3, 300, 200), dtype=np.float32)
    found = dataclasses.replace(examples, clean=large, adversarial=large)
    shape = plot_examples({"A": found}).axes[0].images[0].get_array().shape
    assert max(shape) <= 96
    assert shape[0] / shape[1] == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": None},
        {"labels": np.array([1])},
        {"adversarial": CLEAN[:2]},
        {"clean": CLEAN[:, 0]},
        {"adversarial": np.full_like(CLEAN, np.nan)},
        {"clean": CLEAN[:0], "adversarial": CLEAN[:0]},  # without pictures, but with labels
        {"classes": 3},
    ],
    ids=["no labels", "one label", "fewer", "no channels", "nan", "empty", "classes"],
)
def test_other_files_are_refused_and_named_in_the_report(tmp_path: Path, changes: dict) -> None:
    path = write(tmp_path / "examples" / "best" / "bad.safetensors", **changes)
    with pytest.raises(UserError, match="holds no adversarial examples"):
        read_examples(path)
    (tmp_path / "config.yaml").write_text("name: mine\n")
    write(tmp_path / "examples" / "undefended" / "pgd20_0.05.safetensors")
    (tmp_path / "examples" / "best" / "text.safetensors").write_text("no tensors")
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("holds no adversarial examples") == 2
    assert (
        "Pictures before and after PGD-20, eps 0.05. Undefended: 1 held, 1 broken, 1 wrong" in page
    )
    assert page.count("<image ") == 9


def test_files_of_an_evaluation_are_read_too(tmp_path: Path) -> None:
    """They hold what was broken, and may be large; or nothing, where nothing was."""
    tensors = {k: torch.from_numpy(v) for k, v in TENSORS.items()}
    claim = AdversarialExamples(**tensors, attack="pgd20@0.05", threat=ThreatModel(eps=0.05))
    saved = claim.save(tmp_path / "examples" / "best")
    assert read_examples(saved).only_broken
    assert len(read_examples(saved, 2)) == 2
    nothing = {k: v[:0] for k, v in tensors.items()}
    AdversarialExamples(**nothing, attack="fgsm@0.05", threat=claim.threat).save(saved.parent)
    (tmp_path / "config.yaml").write_text("name: mine\n")
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "PGD-20, eps 0.05. The first pictures that it broke." in page
    assert "FGSM" not in page
