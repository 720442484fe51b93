"""Tables of published trainings, in the formats of their authors, made here in small."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nni_robust.errors import UserError
from nni_robust.tables import (
    RowTable,
    TaskTables,
    cell_class,
    cell_string,
    is_test,
    open_table,
    read_records_table,
    table_from_run,
    write_table,
)
from nni_robust.task import Task
from nni_robust.threat import ThreatModel

ATTACKED = Task(attack="pgd")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def wide(*values: int) -> dict[str, int]:
    labels = [f"stage{i}/{what}" for i in (1, 2, 3) for what in ("depth", "width")]
    return dict(zip(labels, values, strict=True))


def nares_record(number: int, arch: tuple[int, ...], pgd: float) -> dict[str, Any]:
    """A line as the authors' reader expects it; in percent, the middle epoch is the best."""
    epochs = {
        key: [1.0, value, 2.0]
        for key, value in {
            "train_loss": 1.2, "train_acc": 70.0, "val_loss": 1.4, "val_acc": 75.0 + pgd / 100,
            "pgd": pgd, "pgd_stable": 60.0, "pgd_lip": 3.0, "pgd_loss": 1.6,
            "cw": pgd - 1, "cw_stable": 60.0, "cw_lip": 3.0, "cw_loss": 1.5,
        }.items()
    }  # fmt: skip
    levels = {str(level): {"acc": 90.0 - level, "loss": 0.3} for level in range(1, 6)}
    return {
        "arch_id": number,
        "arch": dict(zip(("D1", "W1", "D2", "W2", "D3", "W3"), arch, strict=True)),
        "MACs": 5.243 if number == 1 else 5243328768.0,
        "Params": 36.479 if number == 1 else 36479194.0,
        "train": [
            {"seed": 0, "gpu_type": "any", "timestamp": "2023-01-02", "training_time": 0.5,
             "best_epoch": 1, **epochs}
        ],
        "test_best": [
            {"test_clean_acc": 87.0, "test_loss": 0.5, "Linf_fgsm_acc": 61.0,
             "Linf_fgsm_stable": 1.0, "Linf_pgd_acc": 56.0, "Linf_pgd_stable": 1.0,
             "Linf_pgd_lip": 1.0, "Linf_cw_acc": 55.0, "Linf_cw_stable": 1.0, "Linf_cw_lip": 1.0,
             "Linf_aa_acc": 52.0, "corruptions": {"fog": levels, "snow": levels}}
        ],
    }  # fmt: skip


@pytest.fixture
def nares(tmp_path: Path) -> Path:
    path = tmp_path / "cifar10.jsonl"
    records = [
        nares_record(1, (4, 10, 4, 10, 4, 10), 37.5),
        nares_record(2, (11, 8, 4, 16, 7, 12), 38.25),
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_nares_is_read_at_the_best_epoch_as_shares(nares: Path) -> None:
    table = open_table(str(nares))
    assert len(table) == 2
    row = table.row(wide(11, 8, 4, 16, 7, 12), ATTACKED)
    assert row["pgd@8/255"] == pytest.approx(0.3825)
    assert row["cw@8/255"] == pytest.approx(0.3725)
    assert row["clean"] == pytest.approx(0.753825)
    assert row["test autoattack@8/255"] == pytest.approx(0.52)
    assert row["test pgd20@8/255"] == pytest.approx(0.56)
    assert row["test corruptions"] == pytest.approx(0.87)  # mean of 89, 88, 87, 86, 85 percent
    assert row["seconds"] == 43200
    first = table.row(wide(4, 10, 4, 10, 4, 10), ATTACKED)  # counts in M and G are counts too
    assert (first["params"], first["macs"]) == (pytest.approx(36.479e6), pytest.approx(5.243e9))
    assert (row["params"], row["macs"]) == (36479194, 5243328768)


def test_nares_answers_spaces_with_a_choice_of_block(nares: Path) -> None:
    table = open_table(str(nares))
    sample = {**wide(4, 10, 4, 10, 4, 10), "stage2/block": "basic"}
    assert table.row(sample, ATTACKED) == table.row(wide(4, 10, 4, 10, 4, 10), ATTACKED)
    with pytest.raises(UserError, match="no choice 'stage2/block'"):
        table.row({**sample, "stage2/block": "robust"}, ATTACKED)


def test_nothing_is_taken_for_its_neighbour(nares: Path) -> None:
    table = open_table(str(nares))
    with pytest.raises(UserError, match=r"stage1/depth 6 is not among its values \(4, 11\)"):
        table.row(wide(6, 10, 4, 10, 4, 10), ATTACKED)
    with pytest.raises(UserError, match="has no row for"):  # each value known, not together
        table.row(wide(11, 10, 4, 10, 4, 10), ATTACKED)
    with pytest.raises(UserError, match="stage3/width is missing"):
        table.row({k: v for k, v in wide(4, 10, 4, 10, 4, 10).items() if k[5] != "3"} | {
            "stage3/depth": 4}, ATTACKED)  # fmt: skip


def test_the_attack_of_the_task_chooses_the_column(nares: Path) -> None:
    table = open_table(str(nares))
    assert table.deciding(Task()) == "pgd@8/255"  # the authors' objective
    assert table.deciding(Task(attack="clean")) == "clean"
    assert table.deciding(Task(attack="pgd20")) == "pgd@8/255"  # of unknown steps
    with pytest.raises(UserError, match=r"no column 'fgsm@8/255'.*it has: clean, pgd@8/255"):
        table.deciding(Task(attack="fgsm"))  # only measured on the test split
    with pytest.raises(UserError, match=r"no column 'pgd20@0\.1'"):
        table.deciding(Task(attack="pgd20", threat=ThreatModel(eps=0.1)))


def test_the_second_reading_uses_the_extract(nares: Path, tmp_path: Path) -> None:
    from nni_robust.tables import _kept
    from nni_robust.tables import nares as module

    before = module.read_nares(nares).fingerprint()
    (extract,) = (tmp_path / "cache" / "nni-robust" / "tables").iterdir()
    _kept._memory.clear()
    rows = json.loads(extract.read_text(encoding="utf-8"))
    rows[0][1]["pgd@8/255"] = 0.99
    extract.write_text(json.dumps(rows), encoding="utf-8")
    assert module.read_nares(nares).fingerprint() != before  # it was read
    _kept._memory.clear()
    extract.write_text("{ damaged", encoding="utf-8")
    assert module.read_nares(nares).fingerprint() == before
    later = nares.stat().st_mtime_ns + 10**9
    os.utime(nares, ns=(later, later))  # another file of that name
    assert module.read_nares(nares).fingerprint() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no table .*nares.txz"),
        ("", "is no table"),
        ("not json\n", "is no table"),
        ('{"arch_id": 1, "arch": {"D1": 4}}\n', "line 1 is not a record of NARes.*nares.txz"),
        ('{"something": 1}\n', "in no known format"),
        ('{"sample": {"a": 1}}\n', "line 1: a record with sample and metrics is expected"),
        ('{"sample": {"a": 1}, "metrics": {"clean": 1}}\n', "line 1: the metrics lack 'default'"),
    ],
)
def test_foreign_and_damaged_files(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "table.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=why):
        open_table(str(path))


OPERATIONS = ("none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3")
EDGES = ("0_1", "0_2", "1_2", "0_3", "1_3", "2_3")


def cell(*operations: str) -> dict[str, str]:
    return {f"cell/{edge}": name for edge, name in zip(EDGES, operations, strict=True)}


def test_cells_fall_into_as_many_classes_as_were_trained() -> None:
    """6,466 is NAS-Bench-201's and NAS-RobBench-201's published number."""
    cells = [cell_string(cell(*names)) for names in itertools.product(OPERATIONS, repeat=6)]
    assert len(cells) == len(set(cells)) == 15_625
    assert len({cell_class(text) for text in cells}) == 6_466


def test_samples_of_nni_space_are_cell_strings() -> None:
    """The example is from NAS-Bench-201's documentation; the labels are those of NNI's space."""
    from nni.nas.hub.pytorch import NasBench201

    assert set(NasBench201().simplify()) == set(cell(*["none"] * 6))
    text = (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
        "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    )
    assert text == cell_string(
        {
            "cell/0_1": "conv_3x3",
            "cell/0_2": "conv_3x3",
            "cell/1_2": "avg_pool_3x3",
            "cell/0_3": "skip_connect",
            "cell/1_3": "conv_3x3",
            "cell/2_3": "skip_connect",
        }
    )


def robbench_metrics(pgd: float) -> dict[str, Any]:
    seeds = {"1": pgd - 0.01, "2": pgd, "3": pgd + 0.01, "threeseed": pgd}
    return {
        "val_acc": {**seeds, "threeseed": 0.8},
        "val_fgsm_3.0_acc": seeds,
        "val_fgsm_8.0_acc": seeds,
        "val_pgd_3.0_acc": {**seeds, "threeseed": 0.67},
        "val_pgd_8.0_acc": seeds,
        "autoattack": pgd - 0.03,
    }


@pytest.fixture
def robbench(tmp_path: Path) -> Path:
    """Ids 0 and 1 name the same network: skip then convolution, and convolution then skip."""
    cells = {
        "0": cell_string(cell("skip_connect", "none", "conv_3x3", "none", "none", "skip_connect")),
        "1": cell_string(cell("conv_3x3", "none", "skip_connect", "none", "none", "skip_connect")),
        "2": cell_string(cell(*["conv_1x1"] * 6)),
    }
    isomorph = {"0": "0", "1": "0", "2": "2"}
    meta = {"ids": {k: {"nb201-string": v, "isomorph": isomorph[k]} for k, v in cells.items()}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    path = tmp_path / "NAS-RobBench-201_all.json"
    content = {
        "cifar10": {"0": robbench_metrics(0.45), "2": robbench_metrics(0.5)},
        "cifar100": {"0": robbench_metrics(0.25), "2": robbench_metrics(0.2)},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_robbench_knows_cells_that_compute_the_same(robbench: Path) -> None:
    table = open_table(str(robbench))
    task = Task(attack="pgd20")
    trained = table.row(
        cell("skip_connect", "none", "conv_3x3", "none", "none", "skip_connect"), task
    )
    same = table.row(cell("conv_3x3", "none", "skip_connect", "none", "none", "skip_connect"), task)
    assert trained == same
    assert trained["pgd20@8/255"] == 0.45
    assert trained["pgd20@3/255"] == 0.67
    assert trained["clean"] == 0.8
    assert table.deciding(task) == "pgd20@8/255"
    assert table.deciding(Task(attack="fgsm", threat=ThreatModel(eps=3 / 255))) == "fgsm@3/255"
    with pytest.raises(UserError, match=r"no row for the cell \|none~0\|"):
        table.row(cell(*["none"] * 6), task)
    with pytest.raises(UserError, match="'conv_5x5' is no operation"):
        table.row(cell("conv_5x5", *["none"] * 5), task)


def test_robbench_has_a_table_per_data_set(robbench: Path) -> None:
    spec = {"format": "nas-robbench-201", "path": str(robbench), "dataset": "cifar100"}
    sample = cell(*["conv_1x1"] * 6)
    assert open_table(spec).row(sample, Task())["pgd20@8/255"] == 0.2
    with pytest.raises(UserError, match=r"no data set 'svhn' \(it has: cifar10, cifar100\)"):
        open_table({**spec, "dataset": "svhn"})
    robbench.with_name("meta.json").unlink()
    with pytest.raises(UserError, match=r"no '.*meta.json' beside .*nasrobbench201"):
        open_table({**spec, "dataset": "cifar10"})


def test_robbench_by_cell_string_needs_no_meta(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.json"
    text = cell_string(cell(*["conv_1x1"] * 6))
    path.write_text(json.dumps({text: robbench_metrics(0.5)}), encoding="utf-8")
    assert open_table(str(path)).row(cell(*["conv_1x1"] * 6), Task())["pgd20@8/255"] == 0.5


def test_a_run_becomes_a_table_and_the_table_a_file(tmp_path: Path) -> None:
    from nni_robust.store import append_record

    def run(name: str, scores: dict[int, float]) -> Path:
        for index, (width, score) in enumerate(scores.items()):
            append_record(
                tmp_path / name / "candidates.jsonl",
                {
                    "phase": "candidate", "status": "ok", "index": index, "key": f"{name}{width}",
                    "sample": {"width": width, "kernel": [3, 3]},
                    "metrics": {"default": score, "clean": score + 0.1, "macs": 1000 * width},
                },
            )  # fmt: skip
        append_record(
            tmp_path / name / "candidates.jsonl",
            {"phase": "supernet", "status": "ok", "index": 9, "key": "s", "sample": {},
             "metrics": {"default": 1.0}},
        )  # fmt: skip
        return tmp_path / name

    first, second = run("a", {1: 0.25, 2: 0.5, 3: 0.75}), run("b", {1: 0.35, 2: 0.4})
    table = table_from_run(first, test={"a2": {"clean": 0.55}}, again=table_from_run(second))
    assert len(table) == 3
    row = table.row({"kernel": (3, 3), "width": 2.0}, Task())  # JSON's forms of the same
    assert row == {
        "default": 0.5, "clean": 0.6, "macs": 2000, "test clean": 0.55,
        "test second seed default": 0.4, "test second seed clean": 0.5,
    }  # fmt: skip
    assert all(is_test(column) for column in row if "second" in column)
    means = table_from_run([first, second])
    assert len(means) == 2
    assert means.row({"width": 1, "kernel": [3, 3]}, Task())["default"] == pytest.approx(0.3)

    write_table(table, tmp_path / "table.jsonl")
    again = open_table(str(tmp_path / "table.jsonl"))
    assert isinstance(again, RowTable)
    for key, row in table.rows.items():
        assert again.rows[key] == pytest.approx(row, abs=1e-5)
    with pytest.raises(UserError, match="no finished candidate"):
        table_from_run(tmp_path)


def test_rows_keep_their_flags(tmp_path: Path) -> None:
    """A mean is unreliable if one of its runs is, and unknown if one of them was not checked."""
    from nni_robust.flags import Flags
    from nni_robust.store import append_record

    def checked(flags: Flags) -> dict[str, Any]:
        reasons = [f"{name}: because" for name in flags or ()]
        return {} if flags is None else {"reliability": {"unreliable": reasons}}

    def run(name: str, *flags: Flags, test: Flags = None) -> Path:
        for width, found in enumerate(flags):
            record = {"phase": "candidate", "status": "ok", "index": width, "key": f"{name}{width}"}
            record |= {"sample": {"width": width}, "metrics": {"default": width / 10}}
            append_record(tmp_path / name / "candidates.jsonl", record | checked(found))
            line = {"key": f"{name}{width}", "metrics": {"clean": 0.5}} | checked(test)
            append_record(tmp_path / name / "test.jsonl", line)
        return tmp_path / name

    a = run("a", ("one-answer",), (), (), None, test=())
    b = run("b", ("precision",), ("dynamic", "precision"), (), (), test=("eps-zero",))
    scores = {f"{name}{width}": {"clean": 0.5} for name in "ab" for width in range(4)}
    table = table_from_run([a, b], test=scores)
    write_table(table, tmp_path / "t.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["reliability"] for line in lines] == [
        "one-answer;precision", "dynamic;precision", "", "unknown",
    ]  # fmt: skip
    assert {line["test reliability"] for line in lines} == {"eps-zero"}
    again = open_table(str(tmp_path / "t.jsonl"))
    for width, found in enumerate(
        [("one-answer", "precision"), ("dynamic", "precision"), (), None]
    ):
        assert again.row_flags({"width": width}, Task()) == (found, ("eps-zero",))
    for line in lines:
        line["reliability"] = ""
    (tmp_path / "clean.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert open_table(str(tmp_path / "clean.jsonl")).fingerprint() != again.fingerprint()

    write_table(table_from_run(a), tmp_path / "t.jsonl")  # without the test split
    assert "test reliability" not in (tmp_path / "t.jsonl").read_text()
    second = table_from_run(a, again=table_from_run(b))
    assert second.row_flags({"width": 0}, Task()) == (("one-answer",), ("precision",))
    by_task = TaskTables("attack", {"clean": second})
    assert by_task.row_flags({"width": 1}, Task(attack="clean")).test == ("dynamic", "precision")


def test_published_tables_know_no_flags(nares: Path) -> None:
    assert open_table(str(nares)).row_flags(wide(4, 10, 4, 10, 4, 10), ATTACKED) == (None, None)


def test_a_task_can_have_a_table_of_its_own(tmp_path: Path) -> None:
    for name, score in (("easy", 0.9), ("hard", 0.3)):
        line = {
            "sample": {"width": 1},
            "metrics": {"default": score, "clean": 0.9, "fgsm@8/255": 0.3},
        }
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    table = open_table(
        {
            "by": "attack",
            "tables": {
                "clean": str(tmp_path / "easy.jsonl"),
                "fgsm": {"format": "records", "path": str(tmp_path / "hard.jsonl")},
            },
        }
    )
    assert isinstance(table, TaskTables)
    assert table.row({"width": 1}, Task(attack="clean"))["default"] == 0.9
    assert table.row({"width": 1}, Task(attack="fgsm"))["default"] == 0.3
    with pytest.raises(UserError, match=r"no table for attack 'pgd20' \(there are: clean, fgsm\)"):
        table.row({"width": 1}, Task(attack="pgd20"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("synthetic:nasbench", "synthetic:wrn is the only one"),
        ({"format": "narse"}, "'narse' is not allowed; did you mean 'nares'"),
        ({"format": "nares"}, "table.path is missing"),
        ({"format": "synthetic", "sede": 1}, "unknown key 'sede' in table; did you mean 'seed'"),
        ({"format": "synthetic", "noise": -1}, "noise: -1 is not allowed"),
        ({"by": "eps", "tables": {"a": "synthetic:wrn"}}, "table.by: 'eps' is not allowed"),
        (7, "a name, a path or a mapping is"),
    ],
)
def test_impossible_specifications(spec: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        open_table(spec)


def test_a_sample_has_one_row_only(tmp_path: Path) -> None:
    line = json.dumps({"sample": {"a": 1}, "metrics": {"default": 0.5}})
    (tmp_path / "t.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: this sample has a row already"):
        read_records_table(tmp_path / "t.jsonl")
