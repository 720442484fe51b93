"""Damaged files of a run folder are set aside and told, and what they held is made again."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from nni_robust.errors import DamageWarning, disk_full
from nni_robust.store import (
    Store,
    append_record,
    mend_records,
    read_records,
    remove_temporaries,
)

GARBAGE = [b"", b'{"metrics": {"def', b"\x00" * 40, b"\xff\xfe\x80 no text", b"[1, 2]", b"7"]


def answer(number: int) -> Any:
    return lambda folder: {"metrics": {"default": number}}


@pytest.mark.parametrize("damage", GARBAGE)
def test_damaged_record_is_set_aside_and_computed_again(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    store.once("k", answer(1))
    record = tmp_path / "k" / "record.json"
    record.write_bytes(damage)
    with pytest.warns(DamageWarning, match=r"record\.json' is damaged.*computed again"):
        assert store.result("k") is None
    assert (tmp_path / "k" / "record.json.damaged").read_bytes() == damage
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert store.result("k") is None
        assert store.once("k", answer(2))["metrics"] == {"default": 2}
        assert store.result("k") == json.loads(record.read_text())


def test_damage_found_by_the_computation_itself_is_kept_in_its_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.once("k", answer(1))
    for number in (1, 2):  # a second damage must not replace what was set aside first
        (tmp_path / "k" / "record.json").write_text(f"damage {number}")
        with pytest.warns(DamageWarning):
            store.once("k", answer(2))
    aside = sorted(p.name for p in (tmp_path / "k").glob("*.damaged*"))
    assert aside == ["record.json.damaged", "record.json.damaged-2"]

    def warns(folder: Path) -> dict[str, Any]:
        warnings.warn(DamageWarning("a checkpoint was not used"), stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return {"metrics": {}}

    with pytest.warns(DamageWarning, match="a checkpoint") as told:
        store.once("other", warns)
    assert len(told) == 2  # both are told, and only the damage is kept
    assert store.result("other")["warnings"] == ["a checkpoint was not used"]  # type: ignore[index]


def test_damaged_reason_is_no_reason_to_stop(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fail("k", "a reason")
    assert store.failure("k") == "a reason"
    (tmp_path / "k" / "error.json").write_text("{")
    assert "damaged" in str(store.failure("k"))


def test_failures_can_be_told_apart_by_their_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.failed_at("k") == 0
    store.fail("k", "the same")
    first = store.failed_at("k")
    os.utime(tmp_path / "k" / "error.json", ns=(first - 10**12, first - 10**12))  # the clock went
    earlier = store.failed_at("k")  # backwards between two failures
    store.fail("k", "the same")
    assert len({0, earlier, store.failed_at("k")}) == 3


def test_lines_that_are_no_records_are_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    original = b'{"n": 1}\n{"n": \n\x00\x00\n7\n{"n": 3}\n{"n": 4, "te'
    path.write_bytes(original)
    with pytest.warns(DamageWarning, match="3 of 5 lines"):
        assert mend_records(path) == 3
    assert (tmp_path / "r.jsonl.damaged").read_bytes() == original
    assert read_records(path) == [{"n": 1}, {"n": 3}]
    append_record(path, {"n": 5})
    assert read_records(path) == [{"n": 1}, {"n": 3}, {"n": 5}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mend_records(path) == 0
        assert mend_records(tmp_path / "absent.jsonl") == 0


def test_every_cut_of_a_log_leaves_what_was_read_from_it(tmp_path: Path) -> None:
    """Whatever part of the last write reached the disk: what a reader saw is not taken back."""
    path = tmp_path / "r.jsonl"
    whole = b'{"n": 1}\n{"n": 2}\n'
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        seen = read_records(path)
        append_record(path, {"n": 9})
        assert read_records(path) == [*seen, {"n": 9}]
        assert mend_records(path) == 0


def test_left_over_temporaries_go(tmp_path: Path) -> None:
    (tmp_path / ".record.json.123.tmp").touch()
    (tmp_path / "kept.tmp").touch()
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["kept.tmp"]


def test_a_full_disk_is_known_by_number_text_and_cause() -> None:
    assert disk_full(OSError(28, os.strerror(28)))
    assert disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    wrapped = ValueError("outer")
    wrapped.__cause__ = OSError(28, "x")
    assert disk_full(wrapped)
    assert not disk_full(OSError(13, os.strerror(13)))
