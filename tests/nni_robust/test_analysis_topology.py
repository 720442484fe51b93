"""Counts of RobNet codes: published numbers, and the search space's own counting."""

from __future__ import annotations

import random

import pytest

from nni_robust.analysis import Topology, robnet_topology
from nni_robust.analysis.budget import budget_of
from nni_robust.analysis.topology import robnet_bit_names
from nni_robust.errors import UserError

# gmh14/RobNets at 0fbcb03 (large, free) and figure 9 of arXiv 1911.10695v3 (small, medium).
FREE = (
    "32332311233031 30121022013230 33311310202203 23211221230012 33102221210213 "
    "32333123021313 33322132122212 13331333131320 33333113210213 23103323133330 "
    "32300030120123 13133223231320 33221023312201 13331131133122 13333101223223 "
    "33033101203133 33133232222233 23133130330201 32333332303133 33113310020113"
)
PUBLISHED = {  # code: convolutions, identities, density to four places, direct convolutions
    "33123210120232": (7, 9, 0.5714, 4),
    "33333103222131": (10, 10, 0.7143, 4),
    "33333131231113": (13, 9, 0.7857, 4),
    FREE: (178, 181, 0.6411, 69),
}


def random_code(rng):
    return "".join(rng.choice("0123") for _ in range(14))


@pytest.mark.parametrize("code", PUBLISHED)
def test_published_networks(code):
    convs, identities, density, direct = PUBLISHED[code]
    found = robnet_topology(code)
    assert (found.convs, found.identities, found.direct_convs) == (convs, identities, direct)
    assert found.density == pytest.approx(density, abs=5e-5)
    assert found.direct_share("direct_edges") == direct / (5 * found.cells)
    assert found.direct_share("convs") == direct / convs
    assert found.code == code


def test_published_networks_pass_the_selection_rule_and_lie_in_their_budgets():
    codes = list(PUBLISHED)
    assert all(robnet_topology(code).direct_share() > 0.5 for code in codes)
    assert [budget_of(robnet_topology(code)) for code in codes[:3]] == ["small", "medium", "large"]
    assert robnet_topology(FREE).convs_per_cell == 8.9
    assert budget_of(robnet_topology(FREE)) == "medium"


@pytest.mark.parametrize(
    ("convs", "budget"),
    [(0, "small"), (7, "small"), (8, "medium"), (10, "medium"), (11, "large"), (14, "large")],
)
def test_limits_of_the_budgets(convs, budget):
    assert budget_of(robnet_topology("1" * convs + "0" * (14 - convs))) == budget


@pytest.mark.parametrize("cells", [1, 4])
def test_agrees_with_the_search_space(cells):
    import nni_robust.search_spaces._robnet_code as space

    rng = random.Random(cells)
    for _ in range(50):
        code = [random_code(rng) for _ in range(cells)]
        found = robnet_topology(code)
        assert list(found.bits) == space.bits(code)
        assert found.convs == space.count_convs(code)
        assert found.identities == space.count_identities(code)
        assert found.direct_convs == space.count_direct_convs(code)
        assert found.density == space.density(code)
        for definition in ("direct_edges", "convs"):
            assert found.direct_share(definition) == space.direct_share(code, definition)


def test_a_list_and_a_text_of_several_cells_are_the_same():
    assert robnet_topology(FREE.split()) == robnet_topology(FREE)


def test_without_convolutions_there_is_no_direct_share():
    assert robnet_topology("0" * 14).direct_share("convs") == 0
    assert robnet_topology("0" * 14).density == 0
    assert robnet_topology("3" * 14).density == 1


def test_bit_names():
    names = robnet_bit_names()
    assert len(names) == 28
    assert names[0] == ("0→2", "identity", True)
    assert names[-1] == ("4→5", "convolution", True)
    assert [edge for edge, operation, direct in names[::2] if direct] == [
        "0→2", "1→2", "2→3", "3→4", "4→5",
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["", [], "3333", "4" * 14, "3" * 15, ["3" * 14, "x"]])
def test_other_codes_are_refused(code):
    with pytest.raises(UserError, match="not a RobNet code"):
        robnet_topology(code)


def test_other_definitions_are_refused():
    with pytest.raises(UserError, match="allowed: direct_edges, convs"):
        Topology("x", (1,), 1, 0, 1, 1).direct_share("edges")
