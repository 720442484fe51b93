"""Cell codes: published statistics, round trips, messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nni_robust.errors import UserError
from nni_robust.search_spaces import _robnet_code as rc

_FILE = Path(__file__).parent / "data" / "robnet_architectures.yaml"
FORMAT = yaml.safe_load(_FILE.read_text())["format"]
PUBLISHED = yaml.safe_load(_FILE.read_text())["architectures"]

codes = st.text("0123", min_size=14, max_size=14)


def test_edges_are_in_the_published_order() -> None:
    assert [list(edge) for edge in rc.EDGES] == FORMAT["edge_order"]
    assert list(rc.DIRECT_EDGES) == FORMAT["direct_edges"]
    assert list(rc.INPUT_EDGES) == FORMAT["input_edges"]


@pytest.mark.parametrize("name", [n for n in sorted(PUBLISHED) if "stats" in PUBLISHED[n]])
def test_statistics_of_the_published_codes(name: str) -> None:
    code, stats = PUBLISHED[name]["code"], PUBLISHED[name]["stats"]
    assert rc.count_convs(code) == stats["convs"]
    assert rc.count_identities(code) == stats["identities"]
    assert rc.count_direct_convs(code) == stats["direct_convs"]
    assert rc.density(code) == pytest.approx(stats["density28"], abs=5e-5)
    edges = rc.direct_share(code)
    assert edges == pytest.approx(stats["direct_convs"] / (5 * len(code)))
    assert edges > 0.5  # the authors' rule, which the other definition breaks
    assert rc.direct_share(code, "convs") == pytest.approx(stats["direct_convs"] / stats["convs"])


def test_bits_are_the_tokens_of_the_repository() -> None:
    alphabet = FORMAT["alphabet"]
    code = "01230123012301"
    assert "".join(map(str, rc.bits(code))) == "".join(alphabet[digit] for digit in code)


def test_no_convolution_has_no_direct_share() -> None:
    assert rc.direct_share("2" * 14, "convs") == 0.0
    with pytest.raises(UserError, match="'edges' is not allowed; allowed: direct_edges, convs"):
        rc.direct_share("2" * 14, "edges")  # type: ignore[arg-type]


@given(codes)
def test_shared_code_round_trip(code: str) -> None:
    sample = rc.code_to_sample(code, cells=20, cell_free=False)
    assert len(sample) == 14
    assert rc.sample_to_code(sample) == code
    assert rc.sample_to_code({"evaluator/lr": 0.1, **sample}) == code


@given(st.lists(codes, min_size=3, max_size=12))
def test_cell_free_round_trip(strings: list[str]) -> None:
    sample = rc.code_to_sample(strings, cells=len(strings), cell_free=True)
    assert list(sample) == sorted(sample, key=lambda label: int(label[4:6]))
    assert rc.sample_to_code(dict(reversed(sample.items()))) == strings


def test_labels_and_values_are_readable() -> None:
    sample = rc.code_to_sample("0123" + "0" * 10, cells=20, cell_free=False)
    assert list(sample.items())[:4] == [
        ("cell/0-2", "none"),
        ("cell/1-2", "conv"),
        ("cell/0-3", "skip"),
        ("cell/1-3", "conv+skip"),
    ]
    assert rc.edge_label(6, 13) == "cell06/4-5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell/0-2": "pool"}, "cell/0-2: 'pool' is not allowed; allowed: none, conv, skip"),
        ({"cell/4-5": None}, "no value for 'cell/4-5'"),
    ],
)
def test_bad_samples_are_refused(change: dict[str, Any], message: str) -> None:
    sample = {**rc.code_to_sample("3" * 14, cells=3, cell_free=False), **change}
    with pytest.raises(UserError, match=message):
        rc.sample_to_code({label: value for label, value in sample.items() if value is not None})


def test_missing_cells_and_foreign_samples_are_refused() -> None:
    sample = rc.code_to_sample(["3" * 14] * 4, cells=4, cell_free=True)
    with pytest.raises(UserError, match="no value for 'cell02/0-2'"):
        rc.sample_to_code({k: v for k, v in sample.items() if not k.startswith("cell02")})
    with pytest.raises(UserError, match="no value for 'cell00/0-2'"):
        rc.sample_to_code({"depth": 2})


def test_a_code_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UserError, match="one string per cell is"):
        rc.code_to_sample("3" * 14, cells=4, cell_free=True)
    with pytest.raises(UserError, match="one string for all cells is"):
        rc.code_to_sample(["3" * 14] * 4, cells=4, cell_free=False)
