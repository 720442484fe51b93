"""Secrets stay out of whatever is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nni_robust.cli import main
from nni_robust.errors import UserError
from nni_robust.experiments import load_experiment
from nni_robust.experiments._state import RunState
from nni_robust.experiments._trials import training_service
from nni_robust.redaction import find_secrets, redact, redact_text, resolve

SECRET = "hunter2!"


def service(password: str = SECRET) -> dict[str, Any]:
    machine = {"host": "10.0.0.1", "user": "me", "password": password, "sshPassphrase": password}
    return {"platform": "remote", "machineList": [machine]}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "secret.yml"
    nni = {"manager_ip": "10.0.0.9", "training_service": service()}
    path.write_text(json.dumps({"nni": nni}))  # JSON is YAML
    return str(path)


def test_settings_are_redacted_by_key_at_any_depth() -> None:
    hidden = redact(service())
    assert SECRET not in str(hidden)
    assert hidden["machineList"][0]["user"] == "me"
    assert service()["machineList"][0]["password"] == SECRET  # the given ones are left alone
    assert [key for key, _ in find_secrets(service(), "nni")] == [
        "nni.machineList.0.password",
        "nni.machineList.0.sshPassphrase",
    ]
    assert redact(service("${SSH}")) == service("${SSH}")
    assert redact({"token": "abc", "tokens": 3, "password": None}) == {
        "token": "***",
        "tokens": 3,
        "password": None,
    }


@pytest.mark.parametrize(
    "text",
    [
        f"nni.training_service.password={SECRET}",
        f"[{{host: a, password: {SECRET}, user: b}}]",
        f"{{'sshPassphrase': '{SECRET}'}}",
        f'"accessKeySecret": "{SECRET}"',
        f"storageAccountKey={SECRET}",
        f"API_TOKEN = {SECRET}",
    ],
)
def test_text_is_redacted(text: str) -> None:
    assert SECRET not in redact_text(text)
    assert "***" in redact_text(text)


@pytest.mark.parametrize("text", ["strategy.candidates=4", "a passage: b", "password=${SSH}"])
def test_other_text_is_left_alone(text: str) -> None:
    assert redact_text(text) == text


def test_references_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH", SECRET)
    assert resolve(service("${SSH}"), "x") == service()
    monkeypatch.delenv("SSH")
    with pytest.raises(UserError, match=r"x\.machineList\.0\.password: .*SSH is not set"):
        resolve(service("${SSH}"), "x")
    with pytest.raises(UserError, match="secrets are not kept"):
        resolve(service("***"), "x")


def test_a_run_folder_keeps_no_secret(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["nni-robust", "run", file, "--set", f"nni.training_service.password={SECRET}"]
    monkeypatch.setattr(sys, "argv", argv)
    settings = load_experiment(file)
    RunState(tmp_path / "run", settings, tmp_path / "run" / "store")
    text = "".join(p.read_text() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert SECRET not in text
    assert SECRET not in json.dumps(settings.as_mapping())
    assert training_service(settings).machine_list[0].password == SECRET


def test_messages_do_not_tell_it(file: str) -> None:
    change = f"nni.training_service.machineList=[{{hostt: a, password: {SECRET}}}]"
    with pytest.raises(UserError, match=r"nni\.training_service") as caught:
        training_service(load_experiment(file, [change]))
    assert SECRET not in str(caught.value)


def test_nnictl_is_not_given_one(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nni-config", file, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "nni.training_service.machineList.0.password is not allowed with nnictl" in said
    assert SECRET not in said
