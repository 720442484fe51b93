"""Genotypes: their forms, the mistakes in them, and which of them are the same."""

from __future__ import annotations

import collections
import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.nas.space import model_context

from nni_robust.errors import UserError
from nni_robust.search_spaces import DartsSpace, Genotype, canonical_form, isomorphic
from nni_robust.search_spaces._darts_genotype import (
    KINDS,
    genotype_to_sample,
    read_genotype,
    sample_to_genotype,
)
from nni_robust.search_spaces._darts_layers import Cell
from nni_robust.search_spaces._darts_layout import CellLayout

Edges = tuple[tuple[str, int], ...]

# As in https://github.com/quark0/darts, cnn/genotypes.py.
DARTS_V2_TEXT = """Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0),
    ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0),
    ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0),
    ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
    ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"""

# As in NNI 3.0, nni/nas/hub/pytorch/nasnet.py, DARTS.load_searched_model.
DARTS_V2_SAMPLE = {
    "normal/op_2_0": "sep_conv_3x3",
    "normal/op_2_1": "sep_conv_3x3",
    "normal/input_2_0": [0],
    "normal/input_2_1": [1],
    "normal/op_3_0": "sep_conv_3x3",
    "normal/op_3_1": "sep_conv_3x3",
    "normal/input_3_0": [0],
    "normal/input_3_1": [1],
    "normal/op_4_0": "sep_conv_3x3",
    "normal/op_4_1": "skip_connect",
    "normal/input_4_0": [1],
    "normal/input_4_1": [0],
    "normal/op_5_0": "skip_connect",
    "normal/op_5_1": "dil_conv_3x3",
    "normal/input_5_0": [0],
    "normal/input_5_1": [2],
    "reduce/op_2_0": "max_pool_3x3",
    "reduce/op_2_1": "max_pool_3x3",
    "reduce/input_2_0": [0],
    "reduce/input_2_1": [1],
    "reduce/op_3_0": "skip_connect",
    "reduce/op_3_1": "max_pool_3x3",
    "reduce/input_3_0": [2],
    "reduce/input_3_1": [1],
    "reduce/op_4_0": "max_pool_3x3",
    "reduce/op_4_1": "skip_connect",
    "reduce/input_4_0": [0],
    "reduce/input_4_1": [2],
    "reduce/op_5_0": "skip_connect",
    "reduce/op_5_1": "max_pool_3x3",
    "reduce/input_5_0": [2],
    "reduce/input_5_1": [1],
}


def cells(kind: str = "darts") -> st.SearchStrategy[Edges]:
    """Edges of any cell."""
    operation = st.sampled_from(KINDS[kind].operations)
    states = [st.integers(0, 1 + index // 2) for index in range(2 * KINDS[kind].nodes)]
    return st.tuples(*(st.tuples(operation, state) for state in states))


def genotypes(kind: str = "darts") -> st.SearchStrategy[Genotype]:
    """Any genotype."""
    return st.builds(
        lambda normal, reduce: read_genotype({"normal": normal, "reduce": reduce}, kind),
        cells(kind),
        cells(kind),
    )


def rename(edges: Edges, rng: random.Random) -> tuple[Edges, list[int]]:
    """The cell with inner nodes renamed at random, and the old names of the new nodes 2, 3, ...

    Nodes are picked one by one among those whose states all have a name already.
    """
    pairs = {2 + i: edges[2 * i : 2 * i + 2] for i in range(len(edges) // 2)}
    name = {0: 0, 1: 1}
    renamed: list[tuple[str, int]] = []
    while pairs:
        ready = [n for n, pair in pairs.items() if all(state in name for _, state in pair)]
        node = rng.choice(ready)
        pair = [(op, name[state]) for op, state in pairs.pop(node)]
        rng.shuffle(pair)
        renamed += pair
        name[node] = len(name)
    return tuple(renamed), sorted(name, key=name.__getitem__)[2:]


def test_text_of_a_repository_and_sample_of_nni_are_the_same_network() -> None:
    sample = DartsSpace.decode(DARTS_V2_TEXT)
    assert sample == DARTS_V2_SAMPLE
    assert str(read_genotype(DARTS_V2_TEXT)).startswith("Genotype(normal=(('sep_conv_3x3', 0),")
    assert DartsSpace.decode(str(read_genotype(DARTS_V2_TEXT))) == sample


def test_forms_of_a_genotype_are_read_alike() -> None:
    code = DartsSpace.encode(DARTS_V2_SAMPLE)
    expected = read_genotype(DARTS_V2_TEXT)
    theirs = collections.namedtuple("theirs", "normal normal_concat reduce reduce_concat")
    short = {"normal": code["normal"], "reduce": code["reduce"]}
    for form in (code, json.loads(json.dumps(code)), expected, theirs(**code), short):
        assert read_genotype(form) == expected
    assert code["normal_concat"] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["darts", "nasnet"])
def test_round_trip(kind: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(genotypes(kind))
    def check(genotype: Genotype) -> None:
        sample = genotype_to_sample(genotype)
        assert sample_to_genotype(sample | {"another/choice": 3}) == genotype
        assert DartsSpace.decode(DartsSpace.encode(sample), cell=kind) == sample
        assert DartsSpace.decode(str(genotype), cell=kind) == sample

    check()


def test_nasnet_cells_concatenate_the_nodes_that_nobody_reads() -> None:
    # NASNet-A's reduction cell (Zoph et al. 2018, figure 4), as the DARTS repository writes it.
    reduce = [
        ("sep_conv_5x5", 1),
        ("sep_conv_7x7", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1),
        ("sep_conv_5x5", 0),
        ("skip_connect", 3),
        ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2),
        ("max_pool_3x3", 1),
    ]
    normal = [("skip_connect", 0)] * 10
    genotype = read_genotype({"normal": normal, "reduce": reduce, "reduce_concat": [4, 5, 6]})
    assert genotype.reduce_concat == (4, 5, 6)
    assert genotype.normal_concat == (2, 3, 4, 5, 6)


NORMAL = [[op, state] for op, state in read_genotype(DARTS_V2_TEXT).normal]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": NORMAL[:6]}, "normal: 6 edges are not allowed; 8 are, two for each of the 4"),
        ({"reduce": None}, "reduce: None is not allowed; a list of edges is"),
        ({"normal": [["none", 0], *NORMAL[1:]]}, "normal: edge 0: 'none' is not allowed; allowed:"),
        ({"normal": [[["a"], 0], *NORMAL[1:]]}, r"edge 0: \['a'\] is not allowed"),
        ({"reduce": [["skip_connect", 2], *NORMAL[1:]]}, "reduce: edge 0: state 2 .* 0 to 1 are"),
        ({"normal": [["skip_connect", "0"], *NORMAL[1:]]}, "edge 0: state '0' is not allowed"),
        ({"normal": [["skip_connect", True], *NORMAL[1:]]}, "state True is not allowed"),
        ({"normal": [["skip_connect"], *NORMAL[1:]]}, "a pair"),
        ({"normal_concat": [2, 3]}, r"normal_concat: \[2, 3\] is not allowed; \[2, 3, 4, 5\] is"),
        ({"normal_concat": range(2, 10**30)}, "normal_concat: range"),
        ({"reduce_concat": 4}, "reduce_concat: 4 is not allowed"),
        ({"normals": []}, "unknown field 'normals'"),
    ],
)
def test_malformed_genotypes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DartsSpace.decode({"normal": NORMAL, "reduce": NORMAL, **change})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Genotype(",
        "Genotype([])",
        "Genotype(normal=open('x'))",
        "Genotype(**{})",
        "exit(normal=[])",
        "Genotype(normal=range('a'))",
        "(" * 500,
    ],
)
def test_other_texts_are_refused_and_never_run(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_genotype(text)


@pytest.mark.parametrize("value", [None, 3, [1], {"reduce": NORMAL}])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="genotype: "):
        read_genotype(value)


def test_incomplete_samples_are_refused() -> None:
    sample = dict(DARTS_V2_SAMPLE)
    del sample["reduce/input_4_1"]
    with pytest.raises(UserError, match="no value for 'reduce/input_4_1'"):
        DartsSpace.encode(sample)
    with pytest.raises(UserError, match=r"state \[0, 1\] is not allowed"):
        DartsSpace.encode({**DARTS_V2_SAMPLE, "normal/input_2_0": [0, 1]})


@pytest.mark.parametrize("kind", ["darts", "nasnet"])
def test_renamed_genotypes_are_isomorphic(kind: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(genotypes(kind), st.randoms(use_true_random=False))
    def check(genotype: Genotype, rng: random.Random) -> None:
        other = read_genotype(
            {
                "normal": rename(genotype.normal, rng)[0],
                "reduce": rename(genotype.reduce, rng)[0],
            },
            kind,
        )
        form = canonical_form(genotype)
        assert canonical_form(other) == form
        assert canonical_form(form) == form
        assert isomorphic(str(other), genotype)

    check()


@settings(max_examples=10, deadline=None)
@given(cells(), st.randoms(use_true_random=False))
def test_renamed_cells_compute_the_same_in_another_order_of_channels(
    edges: Edges, rng: random.Random
) -> None:
    renamed, old_names = rename(edges, rng)
    layout = CellLayout(2, (6, 6), reduction=True, halve_older=False, out_channels=8)
    with model_context({}):
        first = Cell(layout, edges, (2, 3, 4, 5)).double().eval()
        second = Cell(layout, renamed, (2, 3, 4, 5)).double().eval()
    second.preprocessor.load_state_dict(first.preprocessor.state_dict())
    names = {0: 0, 1: 1, **{old: 2 + i for i, old in enumerate(old_names)}}
    for new, old in enumerate(old_names):
        remaining = [2 * (old - 2), 2 * (old - 2) + 1]
        for k in (0, 1):
            wanted = renamed[2 * new + k]
            match = next(e for e in remaining if (edges[e][0], names[edges[e][1]]) == wanted)
            remaining.remove(match)
            source = first.ops[match // 2][match % 2]  # type: ignore[index]
            second.ops[new][k].load_state_dict(source.state_dict())  # type: ignore[index]
    x = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = first(x, x.flip(1)).split(2, dim=1)
    expected = torch.cat([blocks[old - 2] for old in old_names], dim=1)
    torch.testing.assert_close(second(x, x.flip(1)), expected)


def test_other_genotypes_are_not_isomorphic() -> None:
    genotype = read_genotype(DARTS_V2_TEXT)
    form = canonical_form(genotype)
    for index in range(8):
        operation, state = genotype.normal[index]
        other = "sep_conv_5x5" if operation != "sep_conv_5x5" else "dil_conv_5x5"
        changed = list(genotype.normal)
        changed[index] = (other, state)
        assert canonical_form(genotype._replace(normal=tuple(changed))) != form
    swapped = tuple((op, 1 - state if state < 2 else state) for op, state in genotype.normal)
    assert not isomorphic(genotype._replace(normal=swapped), genotype)
    assert not isomorphic(
        genotype._replace(normal=genotype.reduce, reduce=genotype.normal), genotype
    )
