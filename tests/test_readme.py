"""The code in README and docs works: Python is run, YAML and TOML are read, commands are parsed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_robust.cli._main import VERBS, build_parser
from nni_robust.experiments import load_experiment
from nni_robust.registry import GROUPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: How figures were measured; the commands there are to work today, too.
RESULTS = sorted((ROOT / "experiments" / "benchmarks" / "results").glob("*/README.md"))

#: Pages whose Python names packages of the reader's; test_testing.py makes some, and runs it.
ELSEWHERE = ("extending.md",)

#: Programs of commands that are not ours.
PROGRAMS = {"cd", "mkdocs", "nnictl", "pip", "pytest", "python", "ssh", "tensorboard"}


def blocks(language: str, page: Path = PAGES[0]) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def on_pages(language: str, without: tuple[str, ...] = ()) -> list[Any]:
    """The blocks of all pages, named after page and place."""
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        if page.name not in without
        for number, block in enumerate(blocks(language, page), 1)
    ]


def commands(text: str = README, inline: bool = True) -> list[str]:
    found = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in found for line in block.splitlines()]
    parts = [part for line in lines for part in line.split(" && ") if "nni-robust" in part]
    return [*parts, *(re.findall(r"`(nni-robust [^`]+)`", text) if inline else [])]


def links() -> list[tuple[Path, str]]:
    pattern = r"\]\((?!https?:)([^)#]+)\)"
    return [(page, link) for page in PAGES for link in re.findall(pattern, page.read_text())]


@pytest.mark.parametrize("code", on_pages("python", ELSEWHERE))
def test_python_runs(code: str, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    for said in re.findall(r"^print\(.*# (\d[\d ]+):", code, flags=re.MULTILINE):
        assert said in answer.stdout


@pytest.mark.parametrize("text", on_pages("yaml"))
def test_yaml_is_an_experiment(text: str, tmp_path: Path) -> None:
    path = tmp_path / "my-search.yaml"
    path.write_text(text)
    experiment = load_experiment(str(path))
    assert experiment.name == yaml.safe_load(text).get("name", "my-search")


def test_a_change_from_the_command_line(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    path = tmp_path / "my-search.yaml"
    path.write_text(text)
    experiment = load_experiment(str(path), ["strategy.candidates=4"])
    assert experiment.strategy.arguments["candidates"] == 4


def test_toml_names_every_group() -> None:
    (text,) = blocks("toml")
    assert set(tomllib.loads(text)["project"]["entry-points"]) == set(GROUPS)


@pytest.mark.parametrize(
    "command",
    [
        *(command for page in PAGES for command in commands(page.read_text())),
        *(command for page in RESULTS for command in commands(page.read_text(), inline=False)),
    ],
)
def test_commands_are_understood(command: str) -> None:
    said = shlex.split(re.sub(r"^([A-Z_]+=\S+ )*(nice -n -?\d+ )?", "", command), comments=True)
    program, verb, *arguments = said
    assert program == "nni-robust"
    assert verb in VERBS
    build_parser(verb).parse_args([verb, *arguments])


def test_every_language_is_checked() -> None:
    """No block says another language, which no test would look at."""
    for page in PAGES:
        named = re.findall(r"^```(\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(named) <= {"python", "yaml", "bash", "toml"}, page
        plain = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        hidden = [text for language, text in plain if not language and "import " in text]
        assert not hidden, page


@pytest.mark.parametrize("text", on_pages("bash"))
def test_other_commands(text: str) -> None:
    """Each line begins with a program that is known, and pip is asked for extras that there are."""
    lines = [line for line in text.splitlines() if line.split("#")[0].strip()]
    for part in [part for line in lines for part in line.split(" && ")]:
        words = [w for w in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", w)]
        assert not words or words[0] in {*PROGRAMS, "nni-robust"}, part
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"(?:nni-robust|\.)\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_every_verb_has_an_example() -> None:
    assert {shlex.split(command, comments=True)[1] for command in commands()} == set(VERBS)


@pytest.mark.parametrize(
    "command", ["pip install . && nni-robust run quickstart", "pip install -e '.[dev]' && pytest"]
)
def test_the_two_commands(command: str) -> None:
    assert f"{command}\n" in blocks("bash")


@pytest.mark.parametrize(("page", "target"), links())
def test_local_links_exist(page: Path, target: str) -> None:
    assert (page.parent / target).exists()
