"""``run`` and ``report`` refuse what cannot be done; searches themselves: tests/experiments."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from nni_robust.cli import main


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("task: [")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quickstar"], "did you mean 'quickstart'?"),
        (["missing.yaml"], "no file 'missing.yaml'"),
        (["broken.yaml"], "'broken.yaml' is not valid YAML"),
        (["quickstart", "--set", "sedd=1"], "did you mean 'seed'?"),
        (["quickstart", "--set", "task.threat.eps=2"], "eps: 2"),
        (["quickstart", "--set", "seed"], "--set 'seed'"),
        (["quickstart", "--out", "full"], "'full' is not empty"),
        (["quickstart", "--out", "broken.yaml"], "broken.yaml"),
        (["quickstart", "--resume"], "nothing to resume"),
    ],
)
def test_run_refuses(
    argv: list[str], message: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(inside.rglob("*"))
    assert main(["run", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sorted(inside.rglob("*")) == before


def test_run_refuses_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        port = held.getsockname()[1]
        assert main(["run", "quickstart", "--port", str(port)]) == 2
    assert f"{port} is in use" in capsys.readouterr().err


def test_view_of_what_is_no_run(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, says in (
        ("runs/nowhere", f"error: run folder '{inside / 'runs/nowhere'}' does not exist\n"),
        ("broken.yaml", f"error: run folder '{inside / 'broken.yaml'}' is no folder\n"),
        ("full", f"error: '{inside / 'full'}' holds no data of NNI; a run with"),
    ):
        assert main(["view", run]) == 2
        assert capsys.readouterr().err.startswith(says)


def test_nni_config_names_the_files_port(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(inside))
    assert main(["nni-config", "quickstart", "--out", "a", "--set", "nni.port=18231"]) == 0
    assert capsys.readouterr().out.endswith("nnictl.yml --port 18231\n")
    assert main(["nni-config", "quickstart", "--out", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"][-2:] == ["--port", "8080"]


def test_report_of_a_run_that_has_only_begun(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name in ("a", "b"):
        run = inside / name
        run.mkdir()
        run.joinpath("config.yaml").write_text("name: quickstart\n")
        state = {"name": "quickstart", "status": "running", "nni": [], "seconds": 1.0}
        run.joinpath("run.json").write_text(json.dumps(state))
        runs.append(str(run))
    reports = [f"{run}/report.html" for run in runs]
    assert main(["report", *runs]) == 0
    assert capsys.readouterr().out.split() == [*reports, str(inside.resolve() / "comparison.html")]
    out = str(inside / "two.html")
    assert main(["report", *runs, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reports": reports, "comparison": out}
    assert "<html" in Path(out).read_text(encoding="utf-8")
    assert main(["report", runs[0], runs[0]]) == 2
    assert f"run folder '{runs[0]}' is given twice" in capsys.readouterr().err
    assert main(["report", runs[0], "--out", str(inside / "one.html")]) == 0
    assert capsys.readouterr().out.split() == [str(inside / "one.html")]
    assert main(["report", runs[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reports": [f"{runs[0]}/report.html"]}
    assert "<html" in Path(runs[0], "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", ["full", "missing"])
def test_report_refuses(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", run]) == 2
    assert f"'{run}'" in capsys.readouterr().err
