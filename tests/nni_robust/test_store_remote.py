"""The store over HTTP: two machines are two cache folders that share nothing but the server."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from nni_robust import store_remote
from nni_robust.errors import UserError
from nni_robust.store import URL, Store, open_store, write_json
from nni_robust.store_remote import CHECKSUM, TOKEN_FILE, VERSION, RemoteStore
from nni_robust.store_server import make_token, serve_store

TOKEN = "a-token-of-a-test"


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """The store where the search runs."""
    return Store(tmp_path / "store")


@pytest.fixture
def url(there: Store) -> Iterator[str]:
    with serve_store(there.root, TOKEN, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def machine(url: str, tmp_path: Path) -> RemoteStore:
    return RemoteStore(url, TOKEN, tmp_path / "machine")


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("computed a second time")


def test_a_result_goes_there_with_its_files(machine: RemoteStore, there: Store) -> None:
    def compute(folder: Path) -> dict[str, Any]:
        (folder / "weights.safetensors").write_bytes(b"\x00\xffweights" * 1000)
        (folder / "more").mkdir()
        (folder / "more" / "empty.txt").touch()
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "c.safetensors").write_bytes(b"not sent")
        return {"metrics": {"default": 0.5}}

    record = machine.once("k", compute)
    assert there.result("k") == record
    assert record["metrics"] == {"default": 0.5}
    assert there.file("k", "weights.safetensors").read_bytes() == b"\x00\xffweights" * 1000
    assert there.file("k", "more/empty.txt").read_bytes() == b""
    assert sorted(p.name for p in there.folder("k").iterdir()) == [
        "more",
        "record.json",
        "weights.safetensors",
    ]
    assert machine.once("k", never) == record


def test_what_is_there_already_is_not_computed(
    url: str, machine: RemoteStore, there: Store, tmp_path: Path
) -> None:
    there.once("k", lambda folder: {"metrics": {"default": 1.0}})
    assert machine.once("k", never)["metrics"] == {"default": 1.0}
    other = RemoteStore(url, TOKEN, tmp_path / "other")
    other.once("j", lambda folder: {"n": 2})
    assert machine.once("j", never)["n"] == 2
    assert machine.result("absent") is None


def test_a_file_is_sent_once_and_again_when_it_changed(
    machine: RemoteStore, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = there.folder("k") / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    statuses = []
    get = machine._session.get

    def watched(*args: Any, **kwargs: Any) -> requests.Response:
        answer = get(*args, **kwargs)
        statuses.append(answer.status_code)
        return answer

    monkeypatch.setattr(machine._session, "get", watched)
    assert machine.file("k", "weights.safetensors").read_bytes() == b"first"
    assert machine.file("k", "weights.safetensors").read_bytes() == b"first"
    weights.write_bytes(b"other")
    assert machine.file("k", "weights.safetensors").read_bytes() == b"other"
    assert statuses == [200, 304, 200]
    with pytest.raises(UserError, match="no file 'k/absent'"):
        machine.file("k", "absent")


def test_a_failure_is_told_there_and_forgotten_after_success(
    machine: RemoteStore, there: Store
) -> None:
    def fails(folder: Path) -> dict[str, Any]:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        machine.once("k", fails)
    assert there.failure("k") == machine.failure("k") == "ValueError: no luck"
    assert there.result("k") is None
    machine.once("k", lambda folder: {"n": 1})
    assert there.failure("k") is None


def test_of_two_results_the_first_stays(
    url: str, machine: RemoteStore, there: Store, tmp_path: Path
) -> None:
    other = RemoteStore(url, TOKEN, tmp_path / "other")

    def slow(folder: Path) -> dict[str, Any]:
        other.once("k", lambda folder: {"by": "the other"})
        return {"by": "this one"}

    assert machine.once("k", slow)["by"] == "the other"
    assert there.result("k")["by"] == "the other"  # type: ignore[index]


def test_checkpoints_wait_on_the_machine(machine: RemoteStore) -> None:
    def killed(folder: Path) -> dict[str, Any]:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step").write_text("7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.once("k", killed)
    found = machine.once("k", lambda f: {"from": (f / "checkpoints" / "step").read_text()})
    assert found["from"] == "7"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/k/../../secret",
        "/v1/../secret",
        "/v1/k/.hidden",
        "/v1/k/%2e%2e/secret",
        "/v1/link/secret",
        "/v1/k",
        "/secret",
    ],
)
def test_nothing_outside_the_store_can_be_read_or_written(
    url: str, there: Store, tmp_path: Path, path: str
) -> None:
    import http.client

    (tmp_path / "secret").write_text("secret")
    write_json(there.folder("k") / "record.json", {})
    (there.root / "link").symlink_to(tmp_path)
    for method in ("GET", "PUT"):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        headers = {"Authorization": f"Bearer {TOKEN}", VERSION: nni_robust_version()}
        connection.request(method, path, body=b"x" if method == "PUT" else None, headers=headers)
        answer = connection.getresponse()
        assert answer.status in (400, 404), path
        assert b"secret" not in answer.read()
    assert (tmp_path / "secret").read_text() == "secret"


def nni_robust_version() -> str:
    import nni_robust

    return nni_robust.__version__


@pytest.mark.parametrize("token", ["", "Bearer", f"Bearer {TOKEN}x", f"bearer {TOKEN}"])
def test_without_the_token_nothing_is_told(url: str, there: Store, token: str) -> None:
    write_json(there.folder("k") / "record.json", {"secret": 1})
    headers = {"Authorization": token, VERSION: nni_robust_version()}
    answer = requests.get(f"{url}/v1/k/record.json", headers=headers, timeout=10)
    assert answer.status_code == 401
    assert "secret" not in answer.text


def test_another_version_is_refused_with_both_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_remote, "__version__", "0.0.7")
    store = RemoteStore(url, TOKEN, tmp_path / "machine")
    with pytest.raises(UserError, match=rf"0\.0\.7 on the trial's.*{nni_robust_version()} where"):
        store.result("k")


def test_a_body_that_was_changed_on_the_way_is_not_stored(url: str, there: Store) -> None:
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        VERSION: nni_robust_version(),
        CHECKSUM: "0" * 64,
    }
    answer = requests.put(f"{url}/v1/k/w.bin", data=b"x", headers=headers, timeout=10)
    assert answer.status_code == 400
    assert not list(there.root.rglob("w.bin"))
    assert not list(there.root.rglob("*.tmp"))


def test_a_search_that_is_away_for_a_while_is_waited_for(there: Store, tmp_path: Path) -> None:
    with serve_store(there.root, TOKEN, "127.0.0.1", 0) as port:
        pass
    machine = RemoteStore(f"http://127.0.0.1:{port}", TOKEN, tmp_path / "machine")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(machine.once("k", lambda f: {"n": 1})))
    thread.start()
    with serve_store(there.root, TOKEN, "127.0.0.1", port):
        thread.join(timeout=60)
    assert found[0]["n"] == 1
    assert there.result("k")["n"] == 1  # type: ignore[index]


def test_one_that_stays_away_ends_in_a_sentence(
    there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_store(there.root, TOKEN, "127.0.0.1", 0) as port:
        pass
    monkeypatch.setattr(store_remote, "_PATIENCE", 0.1)
    machine = RemoteStore(f"http://127.0.0.1:{port}", TOKEN, tmp_path / "machine")
    with pytest.raises(UserError, match="does not answer"):
        machine.result("k")


def test_a_port_in_use_is_told(there: Store, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(UserError, match=rf"nni\.store_port: {port} cannot be taken"),
        serve_store(there.root, TOKEN, "127.0.0.1", port),
    ):
        pass


def test_an_address_of_a_router_is_no_hindrance(there: Store, tmp_path: Path) -> None:
    with serve_store(there.root, TOKEN, "192.0.2.77", 0) as port:
        machine = RemoteStore(f"http://127.0.0.1:{port}", TOKEN, tmp_path / "machine")
        assert machine.result("k") is None


def test_trials_find_the_store_by_their_environment(
    url: str, there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(open_store(there.root)) is Store
    monkeypatch.setenv(URL, url)
    monkeypatch.setenv("NNI_CODE_DIR", str(tmp_path))
    monkeypatch.setenv("NNI_ROBUST_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="should have come with the trial code"):
        open_store(there.root)
    (tmp_path / TOKEN_FILE).write_text(TOKEN)
    store = open_store("/nowhere")
    store.once("k", lambda folder: {"n": 3})
    assert there.result("k")["n"] == 3  # type: ignore[index]
    assert store.root.is_relative_to(tmp_path / "cache")


def test_the_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    first = make_token(tmp_path)
    assert make_token(tmp_path) == first
    assert len(first) >= 40
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o077 == 0
    other = tmp_path / "other"
    other.mkdir()
    assert make_token(other) != first


def _count(url: str, cache: Path, log: Path) -> None:
    def compute(folder: Path) -> dict[str, Any]:
        with log.open("a") as f:
            f.write("x")
        return {"n": 1}

    RemoteStore(url, TOKEN, cache).once("k", compute)


def test_processes_of_one_machine_compute_once(url: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [
        context.Process(target=_count, args=(url, tmp_path / "machine", log)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "x"


def test_records_are_the_same_bytes_of_json(machine: RemoteStore, there: Store) -> None:
    value = {"metrics": {"default": 0.1 + 0.2, "n": 10**18}, "text": "ü", "list": [None, True]}
    machine.once("k", lambda folder: dict(value))
    kept = json.loads((there.folder("k") / "record.json").read_text())
    assert {key: kept[key] for key in value} == value
