"""How numbers are written, and the tables for the terminal and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from rich.console import Console

from nni_robust.report._format import attack_name, attack_parts, count, duration, exact, percent
from nni_robust.report._run import strongest_attack
from nni_robust.report.tables import candidates_table, code_text, final_table, ranked, to_csv
from nni_robust.threat import ThreatModel


def record(index, score, **changes):
    metrics = {"default": score, "clean": 0.9, "pgd20@0.1": score, "params": 12345, "macs": 1000000}
    value = {"phase": "candidate", "index": index, "key": f"k{index}", "code": "0123", "trial": "t"}
    return {**value, "status": "ok", "error": None, "metrics": metrics, "sample": {}, **changes}


FAILED = record(3, 0, status="failed", metrics={}, error="no [memory]")


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (percent, 0.5234, "52.3"),
        (percent, 1, "100.0"),
        (percent, None, "–"),
        (percent, math.nan, "–"),
        (percent, "0.5", "–"),
        (percent, True, "–"),
        (count, 4359574, "4.36 M"),
        (count, 664387200, "664 M"),
        (count, 58003, "58.0 k"),
        (count, 999, "999"),
        (count, 0, "0"),
        (count, 999600, "1.00 M"),
        (count, 9996, "10.0 k"),
        (count, 5094615040, "5.09 G"),
        (count, None, "–"),
        (exact, 4359574, "4,359,574"),
        (exact, 4359574.0, "4,359,574"),
        (exact, None, "–"),
        (duration, 4.21, "4.2 s"),
        (duration, 59.4, "59 s"),
        (duration, 231.4, "3 min 51 s"),
        (duration, 3599.7, "1 h 00 min"),
        (duration, 7500, "2 h 05 min"),
        (duration, None, "–"),
        (attack_name, "pgd20@8/255", "PGD-20, eps 8/255"),
        (attack_name, "autoattack", "AutoAttack"),
        (attack_name, "autoattack-light@8/255", "AutoAttack light, eps 8/255"),
        (attack_parts, "fab-t20@0.1", ("FAB-T-20", "0.1")),
        (attack_parts, "fgsm@0.1", ("FGSM", "0.1")),
        (attack_parts, "mifgsm10@0.1", ("MI-FGSM-10", "0.1")),
        (attack_parts, "my-own7@0.1", ("my-own7", "0.1")),
    ],
)
def test_how_values_are_written(function, value, text):
    assert function(value) == text


def test_ranking_puts_failures_last():
    records = [FAILED, record(1, 0.4), record(2, 0.6)]
    assert [r["index"] for r in ranked(records)] == [2, 1, 3]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({}, "0123"), ({"code": ["01", "23"]}, "01 23"), ({"code": None}, "k1"), ({"code": ""}, "k1")],
)
def test_code_as_text(changes, text):
    assert code_text(record(1, 0.5, **changes)) == text


def network(label, **metrics):
    return {"label": label, "metrics": metrics}


def test_strongest_attack_is_the_one_with_the_lowest_mean():
    networks = [
        network("a", **{"fgsm@0.1": 0.6, "pgd20@0.1": 0.5, "pgd20@0.3": 0.1}),
        network("b", **{"fgsm@0.1": 0.4, "pgd20@0.1": 0.4, "pgd20@0.3": 0.0}),
    ]
    assert strongest_attack(networks) == "pgd20@0.3"
    assert strongest_attack(networks, ThreatModel(eps=0.1)) == "pgd20@0.1"
    assert strongest_attack(networks, ThreatModel(eps=0.2)) == "pgd20@0.3"  # nothing at this eps
    assert strongest_attack([network("c", clean=0.9)]) is None
    # An attack that only one network met does not stand for all.
    partly = [*networks, network("c", **{"pgd20@0.1": 0.3, "square@0.1": 0.01})]
    assert strongest_attack(partly, ThreatModel(eps=0.1)) == "pgd20@0.1"


def lines(table):
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue().splitlines()


def test_candidates_in_the_terminal():
    supernet = record(0, 0.9, phase="supernet")
    records = [supernet, record(1, 0.412), record(2, 0.6, code="[red]x"), FAILED]
    text = lines(candidates_table(records))
    rows = [line.replace("│", " ").split() for line in text if "[red]x" in line or "0123" in line]
    assert rows[0] == ["2", "[red]x", "60.0", "90.0", "60.0", "12.3", "k", "1.00", "M", "–"]
    assert rows[1][:5] == ["1", "0123", "41.2", "90.0", "41.2"]
    assert rows[2][:3] == ["3", "0123", "failed"]
    assert len(rows) == 3
    assert any("PGD-20, eps 0.1" in line for line in text)


def test_long_list_of_candidates_is_cut_and_says_so():
    text = lines(candidates_table([record(i, i / 100) for i in range(30)], limit=5))
    assert sum("0123" in line for line in text) == 5
    assert any("and 25 more" in line for line in text)


def test_final_networks_in_the_terminal():
    metrics = {"clean": 0.95, "fgsm@8/255": 0.5, "pgd20@8/255": 0.4, "params": 4359574, "macs": 7}
    final = {"networks": [network("best", **metrics), network("undefended")]}
    text = "\n".join(lines(final_table(final)))
    best = next(line for line in text.splitlines() if "Best found" in line)
    assert " ".join(best.replace("│", " ").split()) == "Best found 95.0 50.0 40.0 4.36 M 7"
    assert "FGSM, eps 8/255" in text
    assert "–" in next(line for line in text.splitlines() if "Undefended" in line)


def test_no_records_are_empty_tables():
    assert lines(candidates_table([]))
    assert lines(final_table({}))
    assert to_csv([]).splitlines() == ["phase,index,key,trial,status,code,unreliable,sample,error"]


def test_csv_keeps_every_number():
    records = [record(1, 0.1 + 0.2, code=["01", "23"], sample={"a,b": "c\nd"}), FAILED]
    rows = list(csv.DictReader(io.StringIO(to_csv(records))))
    assert float(rows[0]["default"]) == 0.1 + 0.2
    assert int(rows[0]["macs"]) == 1000000
    assert json.loads(rows[0]["code"]) == ["01", "23"]
    assert json.loads(rows[0]["sample"]) == {"a,b": "c\nd"}
    assert rows[1]["default"] == ""
    assert rows[1]["error"] == "no [memory]"


def test_csv_says_which_figures_are_unreliable():
    sound, broken = record(1, 0.5), record(2, 0.6)
    sound["reliability"] = {"unreliable": []}
    broken["reliability"] = {"unreliable": ["randomised: it is", "zero-gradient: 3 of 4; more"]}
    rows = csv.DictReader(io.StringIO(to_csv([sound, broken, record(3, 0.7), FAILED])))
    assert [row["unreliable"] for row in rows] == [
        "",
        "randomised;zero-gradient",
        "not checked",
        "",
    ]
