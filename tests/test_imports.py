"""The import rule (hub and spokes), no unsafe loading, and a light ``import nni_robust``."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPOKES = ("search_spaces", "strategies", "evaluators")
FOLDERS = ("nni_robust", *SPOKES, "experiments")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
PICKLE_ERRORS = {"PickleError", "PicklingError", "UnpicklingError"}  # to catch torch's refusals
FORBIDDEN = {
    *("eval", "exec", "os.system"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}


def dotted(node: ast.expr) -> str:
    """``torch.load`` for the expression of that name, empty for anything that is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, bool]]:
    """Every imported name, absolute, and whether the import waits inside a function.

    Imports for type checkers only count as waiting: they never run.
    """

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            inner = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            inner = inner or (isinstance(child, ast.If) and "TYPE_CHECKING" in dotted(child.test))
            if isinstance(child, ast.Import):
                yield from ((alias.name, inner) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*parents, *([base] if base else [])])
                yield from ((f"{base}.{alias.name}", inner) for alias in child.names)
            elif isinstance(child, ast.Call) and dotted(child.func).endswith("import_module"):
                first = child.args[0] if child.args else None
                if isinstance(first, ast.Constant):
                    yield str(first.value), inner
            yield from walk(child, inner)

    yield from walk(tree, False)


def breaches(source: str, room: str, package: str) -> list[str]:
    """What in a file of `room` (a top folder, or ``nni_robust/cli``) breaks the import rule."""
    bad = []
    for name, lazy in imports(ast.parse(source), package):
        for other in (*SPOKES, "experiments"):
            mine = room == other or room == "experiments"
            target = f"nni_robust.{other}"
            if mine or not (name == target or name.startswith((target + ".", other + "."))):
                continue
            if room == "nni_robust/cli" and other == "experiments" and lazy:
                continue
            bad.append(name)
    return bad


def unsafe(source: str) -> list[str]:
    """Calls and imports that can run code from a data file."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            plain = [a.name for a in node.names if a.name != "pickle" or a.asname]
            bad += [name for name in plain if name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            bad += [a.name for a in node.names if a.name not in PICKLE_ERRORS]
        elif isinstance(node, ast.Attribute) and dotted(node).startswith("pickle."):
            bad += [node.attr] if node.attr not in PICKLE_ERRORS else []
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {k.arg: k.value for k in node.keywords}

        def is_true(key: str, given: dict[str | None, ast.expr] = options) -> bool:
            value = given.get(key)
            return isinstance(value, ast.Constant) and value.value is True

        if name in FORBIDDEN:
            bad.append(name)
        elif name == "torch.load" and not is_true("weights_only"):
            bad.append("torch.load without weights_only=True")
        elif name.endswith("load_state_dict_from_url") and not is_true("weights_only"):
            bad.append(name)
        elif is_true("allow_pickle"):
            bad.append(f"{name} with allow_pickle")
        elif is_true("shell"):
            bad.append(f"{name} with shell")
    return bad


def place(path: Path) -> tuple[str, str]:
    """Room and package of a file, as the two functions above want them."""
    parts = path.relative_to(ROOT).parent.parts
    room = "nni_robust/cli" if parts[:2] == ("nni_robust", "cli") else parts[0]
    return room, ".".join(parts if parts[0] == "nni_robust" else ("nni_robust", *parts))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_hub_and_spokes(path: Path) -> None:
    assert breaches(path.read_text(encoding="utf-8"), *place(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_unsafe_loading(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "room", "package"),
    [
        ("import nni_robust.strategies", "evaluators", "nni_robust.evaluators"),
        ("from nni_robust.strategies import X", "search_spaces", "nni_robust.search_spaces"),
        ("from nni_robust import evaluators", "strategies", "nni_robust.strategies"),
        ("from ..evaluators import X", "strategies", "nni_robust.strategies"),
        ("from ...evaluators.x import X", "strategies", "nni_robust.strategies.deep"),
        ("def f():\n    import nni_robust.search_spaces.robnet", "nni_robust", "nni_robust"),
        ("import_module('nni_robust.evaluators')", "nni_robust", "nni_robust"),
        ("from nni_robust.experiments import X", "nni_robust/cli", "nni_robust.cli"),
        ("def f():\n    from nni_robust.experiments import X", "nni_robust", "nni_robust"),
        ("from search_spaces.robnet import X", "strategies", "nni_robust.strategies"),
    ],
)
def test_the_rule_finds_breaches(source: str, room: str, package: str) -> None:
    assert len(breaches(source, room, package)) == 1


@pytest.mark.parametrize(
    ("source", "room", "package"),
    [
        ("from .robnet import X", "search_spaces", "nni_robust.search_spaces"),
        ("from nni_robust.registry import strategies", "strategies", "nni_robust.strategies"),
        ("from nni_robust.registry import strategies", "nni_robust", "nni_robust"),
        ("from nni_robust.strategies import X", "experiments", "nni_robust.experiments"),
        ("def f():\n    from nni_robust.experiments import X", "nni_robust/cli", "nni_robust.cli"),
    ],
)
def test_the_rule_allows(source: str, room: str, package: str) -> None:
    assert breaches(source, room, package) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b)",
        "import pickle\nload = pickle.load",
        "from pickle import loads",
        "import pickle as p",
        "import cloudpickle as c",
        "from dill import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.unsafe_load(f)",
        "eval(text)",
        "exec(text)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_unsafe_loading_is_found(source: str) -> None:
    assert len(unsafe(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "torch.load(f, weights_only=True)",
        "yaml.safe_load(f)",
        "np.load(f)",
        "import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass",
        "from pickle import UnpicklingError",
    ],
)
def test_safe_loading_passes(source: str) -> None:
    assert unsafe(source) == []


def test_importing_the_package_is_light() -> None:
    heavy = ["torch", "nni", "torchvision", "matplotlib", "sklearn", "yaml", "pydantic", "numpy"]
    code = f"import sys, nni_robust; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout.strip() == "[]"
