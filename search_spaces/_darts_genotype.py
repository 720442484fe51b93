"""Genotypes of cells with two edges per node, as papers on DARTS-like spaces print them.

Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.

A cell has two inputs (states 0 and 1: the outputs of cells k-2 and k-1) and inner nodes (states 2,
3, ...). A node is the sum of two edges, each an operation on an earlier state; `normal` and
`reduce` list the edges as ``(operation, state)``, two for each node in turn, and the cell's output
concatenates the nodes in `normal_concat` and `reduce_concat`. Nothing here needs PyTorch or NNI.

Two genotypes are isomorphic if renaming inner nodes and swapping the edges of a node turns one into
the other: their networks then compute the same functions, with the channels of the cells' outputs
in another order.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

from nni_robust.errors import UserError

__all__ = [
    "KINDS",
    "CellKind",
    "Genotype",
    "Kind",
    "canonical_form",
    "genotype_to_sample",
    "get_kind",
    "isomorphic",
    "read_genotype",
    "sample_to_genotype",
]

Edges = tuple[tuple[str, int], ...]
Kind = Literal["darts", "nasnet"]


class Genotype(NamedTuple):
    """Both cells of a network; its text is what papers and their repositories write."""

    normal: Edges
    normal_concat: tuple[int, ...]
    reduce: Edges
    reduce_concat: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CellKind:
    """What the cells of a space have in common.

    Parameters
    ----------
    nodes
        Number of inner nodes.
    operations
        What an edge may hold.
    loose_ends
        The output concatenates only the nodes that no other node reads; else all inner nodes.
    """

    nodes: int
    operations: tuple[str, ...]
    loose_ends: bool

    def concat(self, edges: Edges) -> tuple[int, ...]:
        """States that the output of a cell with these edges concatenates."""
        read = {state for _, state in edges} if self.loose_ends else set()
        return tuple(node for node in range(2, 2 + self.nodes) if node not in read)


_DARTS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

#: ``"darts"``: the primitives of DARTS but ``none``, which no derived network has. ``"nasnet"``:
#: five nodes, and the two operations more that NASNet-A and AmoebaNet-A have.
KINDS: dict[str, CellKind] = {
    "darts": CellKind(4, _DARTS, loose_ends=False),
    "nasnet": CellKind(5, (*_DARTS, "sep_conv_7x7", "conv_7x1_1x7"), loose_ends=True),
}


def get_kind(name: str) -> CellKind:
    """The kind of cells called `name`.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in get_args(Kind):
        raise UserError(f"cell: {name!r} is not allowed; allowed: {', '.join(KINDS)}")
    return KINDS[name]


def read_genotype(value: Any, kind: str | None = None) -> Genotype:
    """Check a genotype in any of its forms.

    Parameters
    ----------
    value
        A :class:`Genotype`, one of another package, a mapping of its fields (YAML, JSON), or the
        text that repositories hold: ``"Genotype(normal=[('sep_conv_3x3', 0), ...],
        normal_concat=range(2, 6), reduce=..., reduce_concat=...)"``, which is parsed, not run. The
        two concats may be missing.
    kind
        Key of :data:`KINDS`; None goes by the number of edges.

    Raises
    ------
    UserError
        Naming the field and the edge that are wrong, and what is allowed.
    """
    fields = _fields(value)
    for key in fields:
        if key not in Genotype._fields:
            raise UserError(
                f"genotype: unknown field {key!r} (allowed: {', '.join(Genotype._fields)})"
            )
    missing = next((key for key in ("normal", "reduce") if key not in fields), None)
    if missing is not None:
        raise UserError(f"genotype: {missing} is missing")
    if kind is None:
        normal = fields["normal"]
        five = isinstance(normal, (list, tuple)) and len(normal) == 2 * KINDS["nasnet"].nodes
        kind = "nasnet" if five else "darts"
    rule = get_kind(kind)
    edges = {cell: _check_edges(cell, fields[cell], rule) for cell in ("normal", "reduce")}
    for cell, cell_edges in edges.items():
        allowed = rule.concat(cell_edges)
        concat = fields.get(f"{cell}_concat", allowed)
        listed = isinstance(concat, (list, tuple, range))
        if not listed or tuple(concat[: len(allowed) + 1]) != allowed:
            raise UserError(
                f"genotype: {cell}_concat: {concat!r} is not allowed; {list(allowed)} is, the "
                + ("nodes that no node reads" if rule.loose_ends else "inner nodes")
            )
    normal, reduce = edges["normal"], edges["reduce"]
    return Genotype(normal, rule.concat(normal), reduce, rule.concat(reduce))


def _fields(value: Any) -> dict[str, Any]:
    """Fields of a genotype in any form, unchecked."""
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    raise UserError(
        f"genotype: {value!r} is not allowed; a mapping with normal and reduce is, or the text "
        "'Genotype(normal=[...], ...)'"
    )


def _parse(text: str) -> dict[str, Any]:
    """Fields of ``Genotype(name=literal, ...)``; a literal may also be a ``range``."""
    problem = (
        f"genotype: {text!r} cannot be read; the form is \"Genotype(normal=[('sep_conv_3x3', 0), "
        '...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"'
    )
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not _calls(call, "Genotype") or call.args or any(k.arg is None for k in call.keywords):
            raise UserError(problem)
        fields: dict[str, Any] = {}
        for keyword in call.keywords:
            node = keyword.value
            if _calls(node, "range"):
                fields[str(keyword.arg)] = range(*map(ast.literal_eval, node.args))
            else:
                fields[str(keyword.arg)] = ast.literal_eval(node)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(problem) from None
    return fields


def _calls(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    """Whether an expression is a call of the function `name`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _check_edges(cell: str, value: Any, kind: CellKind) -> Edges:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"genotype: {cell}: {value!r} is not allowed; a list of edges is")
    if len(value) != 2 * kind.nodes:
        raise UserError(
            f"genotype: {cell}: {len(value)} edges are not allowed; {2 * kind.nodes} are, two for "
            f"each of the {kind.nodes} nodes"
        )
    edges = []
    for index, edge in enumerate(value):
        where = f"genotype: {cell}: edge {index}"
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise UserError(f"{where}: {edge!r} is not allowed; a pair (operation, state) is")
        operation, state = edge
        if operation not in kind.operations:
            raise UserError(
                f"{where}: {operation!r} is not allowed; allowed: {', '.join(kind.operations)}"
            )
        node = 2 + index // 2
        if isinstance(state, bool) or not isinstance(state, int) or not 0 <= state < node:
            raise UserError(
                f"{where}: state {state!r} is not allowed; 0 to {node - 1} are, the states before "
                f"node {node}"
            )
        edges.append((str(operation), state))
    return tuple(edges)


def canonical_form(genotype: Any) -> Genotype:
    """The same genotype for all isomorphic ones.

    Of all namings of the inner nodes in which a node reads earlier ones only, and with the edges of
    a node sorted by state and operation, the alphabetically first.

    Parameters
    ----------
    genotype
        In any form that :func:`read_genotype` takes.

    Raises
    ------
    UserError
        If it is malformed.
    """
    g = read_genotype(genotype)
    normal, normal_concat = _canonical_cell(g.normal, g.normal_concat)
    reduce, reduce_concat = _canonical_cell(g.reduce, g.reduce_concat)
    return Genotype(normal, normal_concat, reduce, reduce_concat)


def _canonical_cell(edges: Edges, concat: Sequence[int]) -> tuple[Edges, tuple[int, ...]]:
    pairs = list(zip(edges[::2], edges[1::2], strict=True))
    inner = range(2, 2 + len(pairs))
    forms = []
    for order in itertools.permutations(inner):  # at most 120
        name = {0: 0, 1: 1, **{old: new for new, old in zip(inner, order, strict=True)}}
        nodes = [
            sorted((name[state], operation) for operation, state in pairs[old - 2]) for old in order
        ]
        if all(pair[1][0] < node for node, pair in zip(inner, nodes, strict=True)):
            forms.append((nodes, sorted(name[state] for state in concat)))
    nodes, outputs = min(forms)
    return tuple((operation, state) for pair in nodes for state, operation in pair), tuple(outputs)


def isomorphic(first: Any, second: Any) -> bool:
    """Whether two genotypes (in any form) differ only in names of nodes and order of edges."""
    return canonical_form(first) == canonical_form(second)


def genotype_to_sample(genotype: Genotype) -> dict[str, Any]:
    """NNI sample with the labels of NNI's hub: ``"normal/op_2_0"``, ``"normal/input_2_0"``."""
    return {
        f"{cell}/{part}_{2 + index // 2}_{index % 2}": operation if part == "op" else [state]
        for cell, edges in (("normal", genotype.normal), ("reduce", genotype.reduce))
        for index, (operation, state) in enumerate(edges)
        for part in ("op", "input")
    }


def sample_to_genotype(sample: Mapping[str, Any]) -> Genotype:
    """Genotype of an NNI sample; inverse of :func:`genotype_to_sample`.

    Labels of other choices (of an evaluator, say) are passed over.

    Raises
    ------
    UserError
        If an edge is missing, or its value is not allowed.
    """
    kind = "nasnet" if "normal/op_6_0" in sample else "darts"
    cells: dict[str, list[tuple[Any, Any]]] = {}
    for cell in ("normal", "reduce"):
        cells[cell] = []
        for index in range(2 * KINDS[kind].nodes):
            edge = f"{2 + index // 2}_{index % 2}"
            labels = f"{cell}/op_{edge}", f"{cell}/input_{edge}"
            missing = next((label for label in labels if label not in sample), None)
            if missing is not None:
                raise UserError(f"the DARTS sample has no value for '{missing}'")
            operation, states = (sample[label] for label in labels)
            one = isinstance(states, (list, tuple)) and len(states) == 1
            cells[cell].append((operation, states[0] if one else states))
    return read_genotype(cells, kind)
