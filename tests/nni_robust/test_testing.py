"""The package of the suites: light for those who do not test, clear where pytest is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nni_robust.testing as suites


def answer(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )


def test_without_pytest_it_says_so_in_one_sentence() -> None:
    # None in sys.modules is what Python itself offers to make an import fail.
    found = answer("import sys; sys.modules['pytest'] = None; import nni_robust.testing")
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last == "ImportError: nni_robust.testing needs pytest: pip install pytest"


def test_the_library_itself_does_not_import_pytest() -> None:
    code = (
        "import sys, nni_robust, nni_robust.trial, nni_robust.attacks, nni_robust.supernet\n"
        "from nni_robust.registry import GROUPS\n"
        "[group.get(name) for group in GROUPS.values() for name in group.names()]\n"
        "print([name for name in ('pytest', 'nni_robust.testing') if name in sys.modules])"
    )
    assert answer(code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", suites.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert (getattr(suites, name).__doc__ or "").strip()


@pytest.mark.parametrize(
    ("suite", "method"),
    [
        (suites.AttackConformance, "make_attack"),
        (suites.SpaceConformance, "make_space"),
        (suites.EvaluatorConformance, "make_evaluator"),
        (suites.EvaluatorConformance, "make_others"),
        (suites.StrategyConformance, "make_strategy"),
    ],
)
def test_what_must_be_overridden_says_so(suite: type, method: str) -> None:
    made = suite()
    function = getattr(made, method)
    arguments = [None] * function.__code__.co_argcount
    with pytest.raises(NotImplementedError, match=f"override {method}"):
        function(*arguments[1:])
