"""The one place that imports torchvision, so that a mismatched build does not stop us.

PyPI's torchvision is built for CUDA. Beside a CPU-only torch its C++ extension cannot be loaded,
and the import then dies with "operator torchvision::nms does not exist", because torchvision
attaches fake kernels to two operators that only the extension would have declared. Declaring those
two is enough: data sets, transforms and models work; only the operators themselves stay unusable.
With a matching pair of builds nothing is done here.
"""

from __future__ import annotations

from types import ModuleType

import torch

__all__ = ["import_torchvision"]

# A torch library lives as long as its Python object; without this the operators would vanish again.
_declared: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """Import torchvision, also one whose C++ extension does not fit this torch.

    Raises
    ------
    ImportError
        If torchvision is not installed.
    """
    global _declared
    try:
        import torchvision
    except RuntimeError as e:
        if "torchvision::" not in str(e) or _declared is not None:
            raise
        _declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _declared.define(schema)  # type: ignore[no-untyped-call]
        import torchvision
    module: ModuleType = torchvision
    return module
