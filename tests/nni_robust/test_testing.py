"""The package of the suites: light for those who do not test, clear where pytest is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nni_robust.testing as suites
from nni_robust.registry import GROUPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


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


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


THEIR_ATTACKS = """
from nni_robust.attacks import attack

def make(threat, **settings):
    return attack("pgd", eps=threat.eps, norm=threat.norm, **settings)
"""
THEIR_SPACES = """
import nni
from nni_robust.testing import TinySpace

class MySpace(TinySpace):
    def __init__(self, depth):
        super().__init__()
"""


def test_the_page_on_extending_works_for_another_package(tmp_path: Path) -> None:
    """Its examples are run by pytest as files of a package that knows nothing of our tests."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "attacks.py").write_text(THEIR_ATTACKS)
    (package / "spaces.py").write_text(THEIR_SPACES)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    for number, code in enumerate(blocks("python")):
        (tmp_path / f"test_example_{number}.py").write_text(code)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert found.returncode == 0, found.stdout
    assert "cost(sample, input_shape)" in found.stdout  # what the space has not, as a reason


def test_the_page_names_every_group() -> None:
    (text,) = blocks("toml")
    assert set(tomllib.loads(text)["project"]["entry-points"]) == set(GROUPS)


def test_the_page_names_every_claim() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for suite in (getattr(suites, name) for name in suites.__all__ if name.endswith("ance")):
        (row,) = re.findall(rf"^\| `{suite.__name__}` \|.*$", text, flags=re.MULTILINE)
        claims = {name for name in suite.__annotations__ if not name.startswith("_")}
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == claims
