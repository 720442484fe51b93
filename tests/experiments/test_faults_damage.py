"""Files of a run folder are damaged: the run goes on, says so, and ends with the same result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nni_robust.cli import main
from nni_robust.errors import DamageWarning, UserError
from nni_robust.experiments import _preflight, _search, run_experiment
from nni_robust.experiments._state import read_state
from nni_robust.store import read_json, read_records

Write = Callable[..., str]

#: A search of a second, whose trials are look-ups that are stored.
QUICK: dict[str, Any] = {
    "task": {"dataset": "blank", "threat": {"eps": "8/255"}, "attack": "pgd20"},
    "space": {
        "name": "wide-resnet",
        "depths": [11, 11, 11],
        "widths": [16, 16, 16],
        "depth_values": [4, 5, 7, 9, 11],
        "width_values": [8, 10, 12, 14, 16],
    },
    "strategy": {"name": "regularized-evolution", "population_size": 4, "sample_size": 2},
    "evaluator": {"name": "tabular", "as_trials": True},
    "final": None,
    "nni": {"engine": "sequential", "trials": 12},
}


@pytest.fixture
def finished(experiment_file: Write, tmp_path: Path) -> tuple[str, Path]:
    """A finished search: its file and its run folder."""
    file = experiment_file(**QUICK)
    return file, run_experiment(file, out="run", html=False, report=lambda line: None)


def plain(run: Path) -> list[Any]:
    """Records of a run in the order of the search, without what depends on speed."""
    records = sorted(read_records(run / "candidates.jsonl"), key=lambda r: r["index"])
    return [(r["index"], r["key"], r["sample"], r["metrics"], r["status"]) for r in records]


@pytest.mark.parametrize("damage", [b"", b'{"metrics": ', b"\x00\xff garbage"])
def test_damaged_results_are_computed_again(
    finished: tuple[str, Path], capfd: pytest.CaptureFixture[str], damage: bytes
) -> None:
    file, run = finished
    expected = plain(run)
    records = sorted(run.glob("store/*/record.json"))
    before = {p: p.stat().st_mtime_ns for p in records}
    for path in records[:2]:
        path.write_bytes(damage)
    assert main(["run", file, "--out", "run", "--resume"]) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 2
    for path, line in zip(records, sorted(told), strict=False):
        assert str(path) in line
        assert path.with_name("record.json.damaged").read_bytes() == damage
    assert {p for p in records if p.stat().st_mtime_ns != before[p]} == set(records[:2])
    assert plain(run) == expected


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (lambda text: text[:-30], 0),  # a torn last line is no damage
        (lambda text: text + b"\x00\x00\x00\x00", 0),
        (lambda text: text[:-30] + b"\n", 1),
        (lambda text: text.replace(b'"index": 3', b'"index": \xff', 1), 1),
        (lambda text: text.replace(b"\n", b"", 1), 1),  # two records in one line
        (lambda text: b"x\n" * 3 + text, 3),
    ],
)
def test_damaged_log_of_candidates(
    finished: tuple[str, Path],
    recwarn: pytest.WarningsRecorder,
    damage: Callable[[bytes], bytes],
    lines: int,
) -> None:
    file, run = finished
    expected = plain(run)
    log = run / "candidates.jsonl"
    damaged = damage(log.read_bytes())
    log.write_bytes(damaged)
    run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    assert plain(run) == expected
    told = [str(w.message) for w in recwarn if issubclass(w.category, DamageWarning)]
    assert [line.partition(" of ")[0] for line in told] == ([str(lines)] if lines else [])
    if lines:
        assert (run / "candidates.jsonl.damaged").read_bytes() == damaged


@pytest.mark.parametrize("damage", ["", '{"name": "tiny", "nni": [', "[]", '{"nni": 1}'])
def test_damaged_state_is_begun_anew(finished: tuple[str, Path], damage: str) -> None:
    file, run = finished
    expected, kept = plain(run), read_json(run / "run.json")
    (run / "run.json").write_text(damage)
    with pytest.warns(DamageWarning, match=r"run\.json' is damaged"):
        run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    assert (run / "run.json.damaged").read_text() == damage
    state = read_json(run / "run.json")
    assert state["status"] == "finished"
    assert state["settings"] == kept["settings"]
    assert plain(run) == expected
    # Settings are compared all the same: with those of config.yaml.
    (run / "run.json").write_text(damage)
    with (
        pytest.warns(DamageWarning, match=r"run\.json"),
        pytest.raises(UserError, match="seed: 0 there, 4 now"),
    ):
        run_experiment(file, out="run", resume=True, overrides=["seed=4"])


def test_state_that_is_whole_is_left_alone(finished: tuple[str, Path]) -> None:
    _, run = finished
    before = (run / "run.json").read_bytes()
    assert read_state(run) == read_json(run / "run.json")
    assert (run / "run.json").read_bytes() == before
    assert read_state(run / "nowhere") is None


def damaged_newest(folder: Path, how: str) -> None:
    """Damage the newest of the two checkpoints of a training."""
    older, newest = sorted(folder.glob("checkpoint-*.safetensors"))
    data = bytearray(newest.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-7] ^= 4  # one bit of a weight
    newest.write_bytes(data)
    assert older.is_file()


@pytest.mark.parametrize("how", [pytest.param("truncated", marks=pytest.mark.slow), "bit"])
def test_damaged_checkpoint_of_a_trial(
    experiment_file: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    """The one before it is used; the user reads so while it runs, and later in the records."""
    training = {
        "epochs": 4,
        "batch_size": 64,
        "lr": 0.05,
        "attack": {"steps": 1},
        "validation_attack": None,
    }
    strategy = {"name": "robust-one-shot", "candidates": 1, "supernet": training}
    file = experiment_file(final=None, strategy=strategy)
    kept = tmp_path / "kept"

    import nni_robust.training._checkpoint as checkpoint

    save = checkpoint.save

    def stop_after_two(folder: Path, *more: Any) -> Path:
        path = save(folder, *more)
        if len(list(folder.glob("checkpoint-*"))) == 2:
            shutil.copytree(folder, kept)
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(file, out="run", html=False, report=lambda line: None)
    (folder,) = {p.parent for p in Path("run").glob("store/*/checkpoints/checkpoint-*")}
    damaged_newest(folder, how)
    assert main(["run", file, "--out", "run", "--resume"]) == 0
    seen = capfd.readouterr()
    assert "warning: checkpoint not used: " in seen.err
    assert "warning: supernet: checkpoint not used: " in seen.out
    records = read_records("run/candidates.jsonl")
    assert [r["phase"] for r in records] == ["supernet", "candidate"]
    assert "checkpoint not used" in records[0]["warnings"][0]
    whole = run_experiment(file, out="whole", html=False, report=lambda line: None)
    expected = read_records(whole / "candidates.jsonl")
    for ours, theirs in zip(records, expected, strict=True):
        ours["metrics"].pop("seconds")
        theirs["metrics"].pop("seconds")
        assert ours["metrics"] == theirs["metrics"]


def test_no_whole_checkpoint_is_told_and_nothing_begins_anew(
    experiment_file: Write, tmp_path: Path
) -> None:
    from nni_robust.training import _checkpoint

    (tmp_path / "checkpoint-000000001.safetensors").write_bytes(b"damage")
    with (
        pytest.warns(DamageWarning, match="checkpoint not used"),
        pytest.raises(UserError, match=r"no checkpoint in .* is readable; delete the folder"),
    ):
        _checkpoint.load_newest(tmp_path)


def test_what_kills_left_half_written_is_removed(finished: tuple[str, Path]) -> None:
    file, run = finished
    (run / "policy" / "deep").mkdir(parents=True)
    (key,) = list(run.glob("store/*/record.json"))[:1]
    of_others = key.with_name(".model.safetensors.1.tmp")  # of a trial that may still write it
    left = [run / ".best.yaml.1.tmp", run / "policy/.a.1.tmp", run / "policy/deep/.b.1.tmp"]
    for path in (of_others, *left):
        path.write_text("half")
    run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    assert not [path for path in left if path.exists()]
    assert of_others.exists()


@pytest.mark.parametrize(
    ("stop", "status"), [(KeyboardInterrupt, "interrupted"), (OSError, "failed")]
)
def test_a_stop_while_the_search_begins_is_written_down(
    experiment_file: Write, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], status: str
) -> None:
    """A run that nobody computes must not be called running."""
    file = experiment_file(**QUICK)

    def stopped(*_: Any) -> Any:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(_search, "build_parts", stopped)
        with pytest.raises(stop):
            run_experiment(file, out="run", html=False, report=lambda line: None)
    assert read_json("run/run.json")["status"] == status
    run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    assert read_json("run/run.json")["status"] == "finished"


def test_a_stop_while_settings_are_checked_can_go_on(
    experiment_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says to go on with --resume; only a refusal leaves no folder."""
    file = experiment_file(**QUICK)

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_preflight, "preflight", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(file, out="run", html=False, report=lambda line: None)
    run_experiment(file, out="run", resume=True, html=False, report=lambda line: None)
    assert read_json("run/run.json")["status"] == "finished"
