"""Run-folder plumbing: nothing is torn, nothing is computed twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from nni_robust.errors import UserError
from nni_robust.store import (
    Store,
    append_record,
    content_key,
    read_json,
    read_records,
    write_json,
    write_text,
)


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")  # a lone surrogate cannot be encoded
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_torn_last_record_is_dropped_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, {"n": 1})
    with open(path, "ab") as f:
        f.write(b'{"n": 2, "te')
    assert read_records(path) == [{"n": 1}]
    append_record(path, {"n": 3})
    assert read_records(path) == [{"n": 1}, {"n": 3}]


def test_damage_inside_a_log_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_records(path)


def test_damaged_or_missing_json_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_json(tmp_path / "none.json")
    write_text(tmp_path / "bad.json", "{")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "bad.json")


def test_key_does_not_depend_on_order_but_on_every_value() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key("a", "b") != content_key(["a", "b"])


def test_key_survives_a_trip_through_javascript() -> None:
    """JSON.parse and JSON.stringify turn 0.0 into 0; NNI's manager does that to every payload."""
    assert content_key([0.0, 1.0, 2.5], {"a": (3.0,)}) == content_key([0, 1, 2.5], {"a": [3]})
    assert content_key(True) != content_key(2)


def test_once_computes_once_and_again_after_a_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    calls = []

    def fails(folder: Path) -> dict[str, int]:
        calls.append("fails")
        raise RuntimeError("no")

    def works(folder: Path) -> dict[str, int]:
        calls.append("works")
        return {"v": 7}

    with pytest.raises(RuntimeError):
        store.once("k", fails)
    assert store.result("k") is None
    assert store.once("k", works)["v"] == 7
    assert store.once("k", fails)["v"] == 7
    assert calls == ["fails", "works"]


def _append_many(path: str, worker: int) -> None:
    for n in range(50):
        append_record(path, {"worker": worker, "n": n})


def test_many_writers_lose_no_record(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(str(path), w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = {(r["worker"], r["n"]) for r in read_records(path)}
    assert found == {(w, n) for w in range(3) for n in range(50)}


def _compute_slowly(root: str) -> None:
    def compute(folder: Path) -> dict[str, int]:
        (folder / f"started-{os.getpid()}").touch()
        time.sleep(0.5)
        return {"pid": os.getpid()}

    Store(root).once("k", compute)


def test_second_caller_waits_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_compute_slowly, args=(str(tmp_path),))
    first.start()
    while not list(tmp_path.glob("k/started-*")):
        assert first.is_alive()
        time.sleep(0.01)
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    others = [context.Process(target=_compute_slowly, args=(str(tmp_path),)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    # The killed one and exactly one of the two others started to compute.
    assert len(list(tmp_path.glob("k/started-*"))) == 2
    assert Store(tmp_path).result("k")["pid"] in {o.pid for o in others}  # type: ignore[index]


def test_killed_writers_leave_readable_files(tmp_path: Path) -> None:
    """Thirty kills at random moments of a loop of writes: every file is whole."""
    context = multiprocessing.get_context("fork")
    for _ in range(30):
        process = context.Process(target=_write_for_ever, args=(str(tmp_path),))
        process.start()
        time.sleep(0.02)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if (tmp_path / "s.json").exists():
            assert len(read_json(tmp_path / "s.json")["v"]) == 2000
        numbers = [r["n"] for r in read_records(tmp_path / "r.jsonl")]
        assert all(len(str(n)) > 0 for n in numbers)
    assert read_records(tmp_path / "r.jsonl")


def _write_for_ever(root: str) -> None:
    n = 0
    while True:
        n += 1
        write_json(Path(root, "s.json"), {"v": [n] * 2000})
        append_record(Path(root, "r.jsonl"), {"n": n, "padding": "x" * 500})
