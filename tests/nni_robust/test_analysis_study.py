"""Records in, rows out; CSV and back."""

from __future__ import annotations

import csv
import json

import pytest

from nni_robust.analysis import StudyRow, Topology, load_study, read_csv, to_csv
from nni_robust.errors import UserError

LARGE, SMALL = "33333131231113", "33123210120232"


def record(index, code=LARGE, **changes):
    metrics = {"default": 0.5, "clean": 0.8, "pgd20@8/255": 0.5, "fgsm@8/255": 0.55}
    return {
        "phase": "candidate",
        "index": index,
        "key": f"key{index}",
        "code": code,
        "metrics": {**metrics, "params": 6842710, "macs": 1030336128, "seconds": 3.0},
        "status": "ok",
        **changes,
    }


def test_a_record_becomes_a_row():
    (row,) = load_study([record(3)])
    assert (row.index, row.key, row.robust, row.clean) == (3, "key3", 0.5, 0.8)
    assert (row.params, row.macs) == (6842710, 1030336128)
    assert (row.topology.code, row.topology.convs) == (LARGE, 13)
    assert row.fsp == ()
    assert row.gap == pytest.approx(0.3)


def test_supernets_and_failed_trials_are_no_candidates():
    records = [
        record(0, phase="supernet", code=None),
        record(1, status="failed", metrics={}),
        record(2),
    ]
    assert [row.index for row in load_study(records)] == [2]


def test_the_later_record_of_a_key_counts():
    records = [record(0, key="a"), record(1, key="b"), record(2, SMALL, key="a")]
    assert [(row.index, row.topology.code) for row in load_study(records)] == [
        (2, SMALL), (1, LARGE),
    ]  # fmt: skip
    assert len(load_study([record(0, key=None), record(1, key=None)])) == 2


def test_another_metric_can_be_the_robust_one():
    (row,) = load_study([record(0)], robust="fgsm@8/255")
    assert row.robust == 0.55
    assert row.gap == pytest.approx(0.25)


def test_fsp_with_the_accuracies_of_the_weights_it_was_measured_on():
    before = {"distance": [0.1, 0.2], "clean": 0.4, "robust": 0.15}
    rows = load_study([record(0, fsp=before), record(1, fsp={"distance": [1, 2]})])
    assert [row.fsp for row in rows] == [(0.1, 0.2), (1.0, 2.0)]
    assert [row.gap for row in rows] == pytest.approx([0.25, 0.3])


def test_what_was_not_measured_is_none():
    (row,) = load_study([record(0, metrics={"default": 0.5})])
    assert (row.clean, row.params, row.macs, row.gap) == (None, None, None, None)


def test_cell_free_codes_in_either_form():
    rows = load_study([record(0, [LARGE, SMALL]), record(1, f"{LARGE} {SMALL}")])
    assert rows[0].topology == rows[1].topology
    assert rows[0].topology.cells == 2


def test_other_spaces_bring_their_own_counting():
    def describe(code):
        return Topology(code, (1, 0), 1, 0, 1, 2)

    (row,) = load_study([record(0, "something else")], describe=describe)
    assert row.topology.density == 0.5


def test_from_a_run_folder_with_a_torn_last_line(tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(record(i)) + "\n" for i in range(3)) + '{"phase": "cand')
    assert [row.index for row in load_study(tmp_path)] == [0, 1, 2]
    assert load_study(str(path)) == load_study(tmp_path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record(5, metrics={"clean": 1.0}), "candidate 5 has no metric 'default'"),
        (record(5, None), "candidate 5 has no code"),
        (record(5, "abc"), "not a RobNet code"),
        (record(5, metrics={"default": float("nan")}), "candidate 5: default: nan"),
        (record(5, metrics={"default": 0.5, "clean": "high"}), "candidate 5: clean: 'high'"),
        (record(5, fsp={"distance": [1.0, None]}), "candidate 5: fsp: None"),
    ],
)
def test_broken_records_are_named(broken, message):
    with pytest.raises(UserError, match=message):
        load_study([record(0), broken])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"candidates\.jsonl' does not exist"):
        load_study(tmp_path)


def rows():
    full = StudyRow(0, "k", load_study([record(0, [SMALL, LARGE])])[0].topology, 0.1 + 0.2, 1 / 3,
                    7, 8, (1e-9, 1 / 7), 0.1)  # fmt: skip
    empty = StudyRow(1, None, load_study([record(0)])[0].topology, 0.25)
    return [full, empty]


def test_csv_round_trip_is_exact(tmp_path):
    path = tmp_path / "study.csv"
    text = to_csv(rows(), path)
    assert path.read_text() == text
    assert read_csv(path) == rows()
    assert load_study(path) == rows()


def test_csv_holds_the_derived_numbers_too(tmp_path):
    (line, _) = csv.DictReader(to_csv(rows()).splitlines())
    assert float(line["density"]) == 38 / 56
    assert (line["convs"], line["identities"], line["direct_convs"]) == ("20", "18", "8")
    assert float(line["direct_share_of_edges"]) == 0.8
    assert float(line["direct_share_of_convs"]) == 0.4
    assert len(line["bits"]) == 56


def test_an_empty_study(tmp_path):
    to_csv([], tmp_path / "study.csv")
    assert read_csv(tmp_path / "study.csv") == load_study([]) == []


def test_broken_csv(tmp_path):
    path = tmp_path / "study.csv"
    with pytest.raises(UserError, match="no file"):
        read_csv(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="column 'index' is missing"):
        read_csv(path)
    for old, new in (("0.25", "nan"), ("0.25", "x"), ("1111", "1121")):
        text = to_csv(rows())
        path.write_text(
            text[: text.rindex("\n1,") + 1] + text[text.rindex("\n1,") + 1 :].replace(old, new)
        )
        with pytest.raises(UserError, match="damaged in line 3"):
            read_csv(path)
    path.write_text(to_csv(rows())[:-30] + "\n")
    with pytest.raises(UserError, match="damaged"):
        read_csv(path)
