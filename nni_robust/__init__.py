"""nni-robust: neural architecture search for adversarially robust networks, on Microsoft NNI 3.0.

The names below are imported on first use, so that ``import nni_robust`` costs no torch.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nni_robust.architecture import list_architectures as list_architectures
    from nni_robust.architecture import load_architecture as load_architecture
    from nni_robust.attacks import attack as attack
    from nni_robust.evaluation import evaluate as evaluate
    from nni_robust.exchange import load as load

__version__ = "0.1.0"
__all__ = ["attack", "evaluate", "list_architectures", "load", "load_architecture"]

_HOMES = {
    "attack": "nni_robust.attacks",
    "evaluate": "nni_robust.evaluation",
    "load": "nni_robust.exchange",
    "list_architectures": "nni_robust.architecture",
    "load_architecture": "nni_robust.architecture",
}

# With a plain install, `python -m nni_robust` started inside a checkout imports the core from the
# checkout, where the spokes lie beside it and not below it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "search_spaces").is_dir():
    __path__.append(str(_checkout))

# NNI wraps torch's layers on import and tells of two new names in torch.nn that are no layers and
# that it passes on as they are. The first import of it may be anywhere below, and nothing else is
# hidden. (NNI 3.0 with torch 2.13.)
warnings.filterwarnings(
    "ignore",
    message=r".* is found to be not a nn\.Module",
    category=RuntimeWarning,
    module=r"nni\.nas\.nn\.pytorch\.layers$",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nni_robust' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
