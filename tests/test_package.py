"""What is installed: folders, data files, version, entry points, public names."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

import nni_robust
from nni_robust.registry import GROUPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nni_robust", "search_spaces", "strategies", "evaluators", "experiments")
#: What belongs to the repository and not to an installation: a project of its own, measurements.
OUTSIDE = (ROOT / "experiments" / "examples", ROOT / "experiments" / "benchmarks")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def package_name(folder: Path) -> str:
    """``search_spaces/x`` is the package ``nni_robust.search_spaces.x``."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "nni_robust" else ("nni_robust", *parts))


def package_folders() -> dict[str, Path]:
    return {
        package_name(init.parent): init.parent
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(package_folders())


def test_every_package_comes_from_its_folder(project: dict[str, Any]) -> None:
    """setuptools maps each package by the longest known prefix of its name."""
    mapping = project["tool"]["setuptools"]["package-dir"]
    for name, folder in package_folders().items():
        prefix = max((p for p in mapping if f"{name}.".startswith(f"{p}.")), key=len)
        rest = name[len(prefix) :].strip(".").split(".") if name != prefix else []
        assert ROOT.joinpath(mapping[prefix], *rest) == folder


def test_every_python_file_is_in_a_package() -> None:
    folders = set(package_folders().values())
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    lost = [path for path in files if path.parent not in folders]
    assert [str(path) for path in lost if not set(OUTSIDE) & set(path.parents)] == []


def test_every_data_file_is_installed(project: dict[str, Any]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("the tests do not lie in a git checkout")
    data = {
        ROOT / name
        for name in tracked.stdout.splitlines()
        # Benchmarks, their figures and examples belong to the repository, not to an installation.
        if not name.endswith(".py")
        and not name.startswith(("experiments/benchmarks/", "experiments/examples/"))
    }
    patterns = project["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for name, folder in package_folders().items()
        for pattern in [*patterns.get(name, []), *patterns.get("*", [])]
        for path in folder.glob(pattern)
    }
    assert sorted(str(p.relative_to(ROOT)) for p in data - installed if p.is_file()) == []


def test_versions_agree(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == nni_robust.__version__ == version("nni-robust")


def test_the_package_is_typed() -> None:
    assert (Path(nni_robust.__file__).parent / "py.typed").is_file()


def test_console_script(project: dict[str, Any]) -> None:
    (point,) = entry_points(group="console_scripts", name="nni-robust")
    assert point.value == project["project"]["scripts"]["nni-robust"]
    assert callable(point.load())


def test_entry_point_groups_are_known(project: dict[str, Any]) -> None:
    assert set(project["project"]["entry-points"]) <= set(GROUPS)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (group, name, value)
        for group, points in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]["entry-points"].items()
        for name, value in points.items()
    ],
)
def test_entry_points_load(group: str, name: str, value: str) -> None:
    module, attribute = value.split(":")
    assert GROUPS[group].get(name) is getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", ["attack", "evaluate", "list_architectures", "load_architecture"])
def test_public_names(name: str) -> None:
    assert name in nni_robust.__all__
    assert name in dir(nni_robust)
    assert callable(getattr(nni_robust, name))


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        nni_robust.nonsense  # noqa: B018


def test_the_changelog_has_a_place_for_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert headings
    assert headings[0] == "Unreleased" or headings[0] == nni_robust.__version__


def test_from_python_nni_s_import_warns_of_nothing_and_others_still_do() -> None:
    """NNI tells of two names in torch.nn that it does not know, which no user can change."""
    code = (
        "import warnings\n"
        "from nni_robust.search_spaces import RobNetSpace\n"
        "warnings.warn('is found to be not a nn.Module', RuntimeWarning)\n"
        "warnings.warn_explicit('other', RuntimeWarning, 'f', 1, 'nni.nas.nn.pytorch.layers')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    told = [line for line in answer.stderr.splitlines() if "RuntimeWarning" in line]
    assert [line.rpartition(": ")[2] for line in told] == [
        "is found to be not a nn.Module",
        "other",
    ]
