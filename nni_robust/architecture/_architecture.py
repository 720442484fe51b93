"""The one serial form of an architecture: space, sample, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_robust.architecture.graph import CellGraph
from nni_robust.architecture.space import build_network, check_sample, open_space
from nni_robust.cost import Cost, measure_cost
from nni_robust.errors import UserError, nearest
from nni_robust.registry import search_spaces
from nni_robust.store import write_json, write_yaml

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FORMAT", "Architecture"]

#: First line of every architecture file; the number changes when old readers could not read it.
FORMAT = "nni-robust/architecture/1"

_KINDS = ("published", "repository", "figure", "found")
_KEYS = (
    "format",
    "name",
    "space",
    "space_args",
    "sample",
    "code",
    "provenance",
    "num_classes",
    "input_shape",
    "weights",
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network of a search space, as plain data.

    Parameters
    ----------
    name
        What to call it.
    space
        Registered name of its search space, such as ``"robnet"``.
    space_args
        Arguments of the space besides the number of classes.
    sample
        NNI sample: the value of every choice of the space, by label.
    provenance
        ``kind`` (``published``: printed in a paper, ``repository``: read from its authors' code,
        ``figure``: decoded from a drawing, ``found``: by a search of ours), and optionally
        ``source`` and ``note``.
    num_classes
        Outputs that it was made for.
    input_shape
        (C, H, W) of the pictures that it was made for.
    weights
        File of trained weights (safetensors), or None.

    Raises
    ------
    UserError
        If a field is malformed. Whether the sample is in the space is asked by :meth:`check`.
    """

    name: str
    space: str
    space_args: dict[str, Any]
    sample: dict[str, Any]
    provenance: dict[str, str] = dataclasses.field(default_factory=lambda: {"kind": "found"})
    num_classes: int = 10
    input_shape: tuple[int, int, int] = (3, 32, 32)
    weights: Path | None = None

    def __post_init__(self) -> None:
        where = self._where
        for field in ("name", "space"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise UserError(
                    f"{where}: {field}: {getattr(self, field)!r} is not allowed; a text is"
                )
        for field in ("space_args", "sample", "provenance"):
            value = getattr(self, field)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise UserError(f"{where}: {field}: {value!r} is not allowed; a mapping is")
            object.__setattr__(self, field, {str(k): _plain(v, where) for k, v in value.items()})
        for key, value in self.provenance.items():
            if key not in ("kind", "source", "note") or not isinstance(value, str):
                raise UserError(
                    f"{where}: provenance.{key}: {value!r} is not allowed; texts under "
                    "kind, source and note are"
                )
        if self.provenance.get("kind") not in _KINDS:
            raise UserError(
                f"{where}: provenance.kind: {self.provenance.get('kind')!r} is not allowed; "
                f"allowed: {', '.join(_KINDS)}"
            )
        if not _is_positive(self.num_classes):
            raise UserError(
                f"{where}: num_classes: {self.num_classes!r} is not allowed; a positive integer is"
            )
        shape = self.input_shape
        if not (
            isinstance(shape, (list, tuple)) and len(shape) == 3 and all(map(_is_positive, shape))
        ):
            raise UserError(
                f"{where}: input_shape: {shape!r} is not allowed; three positive integers "
                "(C, H, W) are"
            )
        object.__setattr__(self, "input_shape", tuple(shape))
        if self.weights is not None:
            if not isinstance(self.weights, (str, Path)):
                raise UserError(f"{where}: weights: {self.weights!r} is not allowed; a path is")
            object.__setattr__(self, "weights", Path(self.weights))

    @property
    def _where(self) -> str:
        return f"architecture '{self.name}'"

    @property
    def trained(self) -> bool:
        """Whether it comes with trained weights."""
        return self.weights is not None

    def check(self) -> None:
        """Check that the space exists and has this sample.

        Raises
        ------
        UserError
            Naming the space, argument, label or value that is wrong, and what is allowed.
        """
        check_sample(self._open(), self.sample, self._where)

    def build(self, num_classes: int | None = None, *, pretrained: bool = True) -> nn.Module:
        """The network: a plain ``nn.Module`` on torch's default device, in training mode.

        Parameters
        ----------
        num_classes
            Outputs; None is the architecture's own number.
        pretrained
            Load the trained weights, if there are any.

        Raises
        ------
        UserError
            If the weights are for another number of classes, missing or damaged.
        """
        self.check()
        classes = self.num_classes if num_classes is None else num_classes
        if pretrained and self.weights is not None and classes != self.num_classes:
            raise UserError(
                f"{self._where}: num_classes: {classes} is not allowed with its trained weights, "
                f"which are for {self.num_classes}; pretrained=False builds it untrained"
            )
        network = build_network(self.space, self.space_args, classes, self.sample)
        if pretrained and self.weights is not None:
            from nni_robust.training.weights import load_weights

            load_weights(network, self.weights)
        return network

    def cost(
        self, input_shape: Sequence[int] | None = None, num_classes: int | None = None
    ) -> Cost:
        """Trainable parameters, and MACs for one picture; nothing is allocated.

        Parameters
        ----------
        input_shape
            (C, H, W) in pixels; None is the architecture's own, (3, 32, 32) for CIFAR.
        num_classes
            Outputs; None is the architecture's own number.
        """
        self.check()
        shape = self.input_shape if input_shape is None else tuple(input_shape)
        space = self._open(num_classes)
        if hasattr(space, "cost"):
            cost: Cost = space.cost(self.sample, shape)
            return cost
        import torch

        classes = self.num_classes if num_classes is None else num_classes
        with torch.device("meta"):
            network = build_network(self.space, self.space_args, classes, self.sample)
        return measure_cost(network, shape)

    def code(self) -> Any:
        """The short form that papers print, or None where the space has none."""
        encode = getattr(search_spaces.get(self.space), "encode", None)
        return None if encode is None else encode(self.sample)

    def graphs(self) -> list[CellGraph]:
        """Drawings of its cells; none where the space offers none."""
        space = self._open()
        graphs: list[CellGraph] = (
            space.cell_graphs(self.sample) if hasattr(space, "cell_graphs") else []
        )
        return graphs

    def _open(self, num_classes: int | None = None) -> Any:
        classes = self.num_classes if num_classes is None else num_classes
        return open_space(self.space, self.space_args, classes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` of it gives an equal architecture."""
        return {
            "format": FORMAT,
            **dataclasses.asdict(self),
            "input_shape": list(self.input_shape),
            "weights": None if self.weights is None else str(self.weights),
        }

    @classmethod
    def from_dict(cls, value: Any, *, where: str = "architecture") -> Architecture:
        """Read :meth:`to_dict`'s form; ``code`` may stand in place of ``sample``.

        Parameters
        ----------
        value
            The mapping.
        where
            Its place (a file's name), for messages.

        Raises
        ------
        UserError
            On another format, an unknown or missing key, a space that does not exist, or a sample
            that is not in it.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise UserError(f"{where}: format: {found!r} is not allowed; '{FORMAT}' is")
        for key in value:
            if key not in _KEYS:
                raise UserError(
                    f"{where}: unknown key {key!r}{nearest(str(key), _KEYS)} "
                    f"(allowed: {', '.join(_KEYS)})"
                )
        for key in ("name", "space"):
            if key not in value:
                raise UserError(f"{where}: {key} is missing")
        if ("sample" in value) == ("code" in value):
            raise UserError(f"{where}: give either sample or code")
        fields = {key: v for key, v in value.items() if key not in ("format", "code")}
        architecture = cls(**{"space_args": {}, "sample": {}, **fields})
        if "code" in value:
            sample = architecture._decode(value["code"])
            architecture = dataclasses.replace(architecture, sample=sample)
        architecture.check()
        return architecture

    def _decode(self, code: Any) -> Any:
        decode = getattr(search_spaces.get(self.space), "decode", None)
        if decode is None:
            raise UserError(f"{self._where}: space '{self.space}' has no codes; give a sample")
        return decode(code, **self.space_args)

    def save(self, path: str | Path) -> None:
        """Write it to a YAML or JSON file in one step.

        Weights below the file's folder are named relative to it, so that the folder can be moved.

        Raises
        ------
        UserError
            If the file name ends in none of .yaml, .yml and .json.
        """
        path = Path(path)
        value = self.to_dict()
        if self.weights is not None:
            weights, folder = self.weights.resolve(), path.parent.resolve()
            inside = weights.is_relative_to(folder)
            value["weights"] = (weights.relative_to(folder) if inside else weights).as_posix()
        if path.suffix == ".json":
            write_json(path, value)
        elif path.suffix in (".yaml", ".yml"):
            write_yaml(path, value)
        else:
            raise UserError(f"'{path}': an architecture is saved as .yaml, .yml or .json")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON and YAML know it: NNI's labels and NumPy's numbers become Python's own."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    if hasattr(value, "item"):
        return value.item()
    raise UserError(f"{where}: {value!r} is not allowed; numbers, texts and lists of them are")
