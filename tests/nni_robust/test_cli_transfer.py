"""``transfer``: its table is that of the library, and its diagonal that of ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_architecture import EMPTY_CODE, write_tiny

from nni_robust.cli import main

COMMON = ["--attack", "fgsm", "--eps", "0.02", "--limit", "64", "--seed", "2"]


@pytest.fixture
def networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The same architecture trained twice."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "tiny.yaml", code=EMPTY_CODE)
    settings = ["loss=clean", "epochs=2", "lr=0.05", "validation_attack=null", "batch_size=32"]
    changes = [part for setting in settings for part in ("--set", setting)]
    for seed in "01":
        assert main(["train", "tiny.yaml", "--out", seed, "--seed", seed, *changes]) == 0
    capsys.readouterr()
    return ["0/architecture.yaml", "1/architecture.yaml"]


def test_white_box_and_black_box(networks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", *networks, *COMMON, "--json"]) == 0
    captured = capsys.readouterr()
    found: dict[str, Any] = json.loads(captured.out)
    assert captured.err == "data set from their training: digits\n"
    assert (found["attack"], found["pictures"], found["untrained"]) == ("fgsm@0.02", 64, [])
    first, second = networks
    reasons = found["unreliable"]  # so short a training may end with one answer for everything
    expected = ("zero-gradient: source '", "one-answer: ")
    assert all(reason.startswith(expected) for reason in reasons)
    assert set(found["reliability"]["targets"]) == set(networks)
    attacked = found["reliability"]["sources"][second]["checks"]
    assert {attacked[c]["status"] for c in ("outside-ball", "randomised", "eps-zero")} == {"passed"}
    argv = ["evaluate", first, "--attacks", *COMMON[1:], "--json"]
    assert main(argv) == 0
    alone = json.loads(capsys.readouterr().out)["metrics"]
    assert found["clean"][first] == alone["clean"]
    assert found["accuracy"][first][first] == alone["fgsm@0.02"]
    assert found["accuracy"][first][second] >= found["accuracy"][first][first]

    assert main(["transfer", first, *COMMON, "--sources", second, "tiny.yaml"]) == 0
    captured = capsys.readouterr()
    told = ["data set from their training: digits", "untrained weights: tiny.yaml"]
    assert captured.err.splitlines() == told
    title, header, row, *flags = captured.out.splitlines()
    assert all(flag.removeprefix("UNRELIABLE: ").startswith(expected) for flag in flags)
    assert title == "fgsm@0.02, 64 test pictures of digits; a column is a source"
    assert header.split() == ["target", "clean", second, "tiny.yaml"]
    assert row.split()[:3] == [
        first,
        f"{alone['clean']:.2%}",
        f"{found['accuracy'][first][second]:.2%}",
    ]


def test_a_folder_keeps_what_was_attacked(
    networks: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["transfer", *networks, *COMMON, "--json", "--batch-size", "32"]
    told = []
    for more in ([], ["--folder", "kept"], ["--folder", "kept"]):
        assert main([*argv, *more]) == 0
        told.append(json.loads(capsys.readouterr().out)["accuracy"])
        told.append([p.stat().st_mtime_ns for p in sorted(Path("kept").rglob("attack-*"))])
    assert told[0] == told[2] == told[4]
    assert told[3] == told[5]
    assert len(told[3]) == 2 * 2 * 3  # sources, batches; on itself and two targets
    assert main([*argv[:-1], "16", "--folder", "kept", "--eps", "0.03"]) == 2
    assert "another threat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tiny.yaml", "tiny.yaml"], "ARCH: tiny.yaml, tiny.yaml names a network twice"),
        (["tiny.yaml", "--sources", "absent.yaml"], "no file 'absent.yaml'"),
        (["tiny.yaml", "--attack", "pdg"], "did you mean 'pgd'"),
    ],
)
def test_wrong_input_costs_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "tiny.yaml", code=EMPTY_CODE)
    assert main(["transfer", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
