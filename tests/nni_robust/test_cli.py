"""The command as a whole: start-up, exit codes, messages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from nni_robust import __version__
from nni_robust.cli import main
from nni_robust.cli._arguments import assignments
from nni_robust.cli._console import print_json, print_table
from nni_robust.cli._main import VERBS
from nni_robust.errors import UserError

HEAVY = ["torch", "nni", "torchvision", "matplotlib", "sklearn", "yaml", "pydantic", "rich"]
HELP = f"""
import sys
from nni_robust.cli import main
for argv in {[["--help"], *([verb, "--help"] for verb in VERBS)]}:
    try:
        main(argv)
    except SystemExit as e:
        assert e.code == 0
print("loaded:", [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nni_robust", *argv], capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the verb ``show`` raise something, to see what the command does with it."""

    def install(error: BaseException) -> None:
        def execute(args: object) -> int:
            raise error

        module = types.ModuleType("raising_verb")
        module.execute = execute  # type: ignore[attr-defined]
        module.add_arguments = lambda parser: parser.add_argument(  # type: ignore[attr-defined]
            "--resume", action="store_true"
        )
        monkeypatch.setitem(sys.modules, "raising_verb", module)
        monkeypatch.setitem(VERBS, "show", ("raising_verb", ""))

    return install


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.strip() == "loaded: []"
    for verb in VERBS:
        assert f"usage: nni-robust {verb}" in answer.stdout


def test_python_m_is_the_same_command() -> None:
    answer = run("--version")
    assert answer.returncode == 0
    assert answer.stdout.strip() == f"nni-robust {__version__}"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["show"], ["doctor", "--port", "99999"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert "usage: nni-robust" in capsys.readouterr().err


def test_a_user_error_is_one_sentence(
    verb: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(UserError("eps: 2 is not allowed"))
    assert main(["show"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: eps: 2 is not allowed\n")


def test_other_errors_keep_their_traceback(verb: Callable[[BaseException], None]) -> None:
    verb(ZeroDivisionError("a defect of ours"))
    with pytest.raises(ZeroDivisionError):
        main(["show"])


@pytest.mark.parametrize(
    ("argv", "again"),
    [
        (["show"], "nni-robust show --resume"),
        (["show", "--resume"], "nni-robust show --resume"),
    ],
)
def test_ctrl_c_says_how_to_continue(
    argv: list[str],
    again: str,
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(KeyboardInterrupt())
    assert main(argv) == 130
    assert capsys.readouterr().err == f"interrupted; continue with: {again}\n"


def test_ctrl_c_of_a_verb_without_resume(capsys: pytest.CaptureFixture[str]) -> None:
    parser_code = "import signal, sys; from nni_robust.cli import main; sys.exit(main(['archs']))"
    process = subprocess.Popen(
        [sys.executable, "-c", parser_code], stderr=subprocess.PIPE, text=True
    )
    # Before torch and NNI are imported there is nothing that could be half done.
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text(errors="replace"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted"


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "nni_robust", "archs", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert err == b""


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        (["epochs=2"], {"epochs": 2}),
        (
            ["attack.steps=3", "attack.step_size=2/255"],
            {"attack": {"steps": 3, "step_size": "2/255"}},
        ),
        (["a=true", "b=null", "c=[1, 2]", "d="], {"a": True, "b": None, "c": [1, 2], "d": None}),
        (["a=1", "a=2"], {"a": 2}),
        (["note=x=y"], {"note": "x=y"}),
    ],
)
def test_assignments(pairs: list[str], expected: dict[str, object]) -> None:
    assert assignments(pairs) == expected


@pytest.mark.parametrize("pairs", [["epochs"], ["=2"], ["a..b=1"], ["a=[1"], ["a=1", "a.b=2"]])
def test_assignments_refuse(pairs: list[str]) -> None:
    with pytest.raises(UserError, match="--set"):
        assignments(pairs)


def test_table_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "n", "share"], [["a", "1,000", "9.50%"], ["longer", "20", ""]])
    assert capsys.readouterr().out == (
        "name        n  share\na       1,000  9.50%\nlonger     20\n"
    )


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], 3: "c"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "3": "c"}
