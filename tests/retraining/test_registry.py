"""Laws of registry.py and mlflow_run.py of jobs/retraining, and of vectors/mlflow_uri.py, with MLflow itself."""

import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Command
from servers import tracking
from tiny import write_run

from jobs.retraining.mlflow_run import flat
from jobs.retraining.registry import Registry, sqlite_uri
from pipeline.shared.errors import InputError
from training import neighbors
from training.vectors.export_formats import export
from training.vectors.mlflow_uri import INSTALL, SETTINGS, calling
from training.vectors.word_vectors import Tables, Vectors

WORDS = ["<unk>", "north", "east", "south"]
STEPS = 1500
"""More than MLflow takes in one request."""


class Killed(BaseException):
    """What nothing catches, as kill -9."""


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's database with MLflow's tables, which it takes seconds to make, and nothing in them."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with calling("test", "none"):
        import mlflow

        mlflow.MlflowClient(sqlite_uri(file), sqlite_uri(file)).search_experiments()
    return file


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder)
    with tracking.server(folder) as running:
        yield running


@pytest.fixture
def local(tmp_path: Path, empty_database: Path) -> Registry:
    workspace = tmp_path / "a work space"
    workspace.mkdir()
    shutil.copy(empty_database, workspace)
    return Registry(sqlite_uri(workspace / "mlflow.db"), "demo", workspace / "artifacts")


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.long)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """On the server, which all tests share, a model of the test's own."""
    if request.param == "sqlite":
        found: Registry = request.getfixturevalue("local")
        return found
    return Registry(request.getfixturevalue("address"), tmp_path.name)


def client(registry: Registry) -> Any:
    import mlflow

    return mlflow.MlflowClient(registry._uri, registry._uri)


def write_cycle(folder: Path, number: int = 0, accepted: bool = True, steps: int = 5) -> Path:
    """A cycle's folder as jobs/retrain.py leaves it after `evaluate`."""
    run = folder / "run"
    run.mkdir(parents=True)
    write_run(folder / "challenger", WORDS, np.array([[0, 0], [0, 1], [1, number], [0, -1]], np.float32))
    lines: list[dict[str, Any]] = [
        {"kind": "step", "epoch": 0, "step": step, "lr": 0.01, "loss": 1 / step, "tokens_per_s": 9.5, "wait_share": 0}
        for step in range(1, steps + 1)
    ]
    speed = {"examples": 7, "seconds": 0.5, "tokens_per_s": 9.0, "wait_share": 0}
    last = {"kind": "epoch", "epoch": 0, "step": steps, "mean_loss": 0.3, "loss": 0.25, **speed}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (*lines, last)))
    config = {"dim": 2, "data": "x" * 9000, "seed": None, "kernel": "cpu", "log_every": 50}
    (run / "config.json").write_text(json.dumps(config))
    about = {"dataset_id": "abc", "vocab_size": 4, "versions": {}, "commit": "f00", "kernel": "cpu", "device": "cpu"}
    numbers = {"loss": 0.25, "mean_loss": 0.3, "steps": steps, "world_size": 1, "threads": 1, "epochs": [], **speed}
    (run / "summary.json").write_text(json.dumps({**about, **numbers}))
    (run / "loss.png").write_bytes(b"png")
    (run / "report.html").write_text("<html>")
    (folder / "train.log").write_text("epoch 1\n")
    planned: dict[str, Any] = {
        "run_id": "0" * 16,
        "planned": "now",
        "base": None,
        "source_state": [],
        "prepare": [],
        "train": [],
    }
    settings = {"name": "demo", "prepare": {"window": 5}}
    (folder / "plan.json").write_text(json.dumps({**planned, "settings": settings}))
    gate = {"name": "overlap@10", "passed": accepted, "value": 0.75, "champion_value": None, "bound": "at least"}
    gates = [gate, {**gate, "name": "held-out loss", "champion_value": 0.5}]
    told = {"key": "0" * 64, "decided": "now", "champion": None, "text": "", "reason": ""}
    decision = {"accepted": accepted, "gates": gates, **told}
    (folder / "decision.json").write_text(json.dumps(decision))
    return folder


def record(registry: Registry, run_id: str, cycle: Path) -> str:
    return registry.record(run_id, cycle, cycle / "challenger")


def contents(registry: Registry) -> dict[str, Any]:
    """All that a registry holds of the cycles of its model, but for the ids and times that MLflow gives."""
    mlflow = client(registry)
    experiment = mlflow.get_experiment_by_name(registry._name)
    runs = mlflow.search_runs([experiment.experiment_id])
    found: dict[str, Any] = {"versions": []}
    for version in mlflow.search_model_versions(f"name = '{registry._name}'"):
        found["versions"].append((str(version.version), dict(version.tags), version.status))
    for number, run in enumerate(runs):
        history = {
            name: sorted((point.step, point.value) for point in mlflow.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        files = sorted(
            entry.path
            for folder in (None, "run", "vectors")
            for entry in mlflow.list_artifacts(run.info.run_id, folder)
            if not entry.is_dir
        )
        tags = {name: value for name, value in run.data.tags.items() if name.startswith("shardvec.")}
        found[f"run {number}"] = (history, run.data.params, tags, files, run.info.status)
    return found


def test_a_cycle_is_one_run_and_one_version_however_often_it_is_recorded(
    registry: Registry, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    registry.check()
    cycle = write_cycle(tmp_path / "cycle", steps=STEPS)
    version = record(registry, "r1", cycle)
    assert capfd.readouterr() == ("", "")
    once = contents(registry)
    assert (version, record(registry, "r1", cycle), contents(registry)) == ("1", "1", once)
    history, params, tags, files, status = once["run 0"]
    assert (len(once["versions"]), len(once), status) == (1, 2, "FINISHED")
    assert history["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, STEPS + 1)]
    assert history["epoch/loss"] == [(STEPS, 0.25)]
    assert history["gates/overlap_at_10"] == [(0, 0.75)]
    assert history["gates/held-out loss/champion"] == [(0, 0.5)]
    assert params == {
        "plan.name": "demo",
        "plan.prepare.window": "5",
        "train.dim": "2",
        "train.data": "x" * 500,
        "train.kernel": "cpu",
        "train.log_every": "50",
    }
    assert tags["shardvec.decision"] == "accepted"
    assert (tags["shardvec.dataset_id"], tags["shardvec.commit"]) == ("abc", "f00")
    inside = ["config.json", "loss.png", "metrics.jsonl", "report.html", "summary.json"]
    own = ["summary.json", "vectors.safetensors", "vocab.parquet"]
    assert files == sorted(
        ["decision.json", "plan.json", "train.log", *(f"run/{n}" for n in inside), *(f"vectors/{n}" for n in own)]
    )


WRITES = [("create_run", 1), ("log_batch", 3), ("log_artifacts", 1), ("create_model_version", 1)]
OTHER_WRITES = [
    *[(method, 1) for method in ("create_experiment", "set_tag", "log_artifact", "log_batch", "set_terminated")],
    *[("set_tag", 3), ("log_artifact", 3), ("create_registered_model", 1)],
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[str, Any]:
    """What a registry holds of a cycle that was recorded once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_database, folder)
    registry = Registry(sqlite_uri(folder / "mlflow.db"), "demo")
    record(registry, "r1", write_cycle(folder / "cycle"))
    return contents(registry)


@pytest.mark.parametrize(
    ("method", "call"), [*WRITES, *(pytest.param(*other, marks=pytest.mark.long) for other in OTHER_WRITES)]
)
def test_killed_after_any_write_and_repeated_is_as_never_killed(
    local: Registry,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    call: int,
) -> None:
    monkeypatch.setattr("jobs.retraining.mlflow_run.METRICS_AT_ONCE", 10)
    cycle = write_cycle(tmp_path / "cycle")
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, method, call)
        with pytest.raises(Killed):
            record(local, "r1", cycle)
    assert record(local, "r1", cycle) == "1"
    assert contents(local) == undisturbed


def kill_after(patch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """The ``call``-th call of a client's ``method`` is the last thing that happens."""
    import mlflow

    whole, calls = getattr(mlflow.MlflowClient, method), iter(range(1, 10_000))

    def killed(*arguments: Any, **named: Any) -> Any:
        answer = whole(*arguments, **named)
        if next(calls) == call:
            raise Killed
        return answer

    patch.setattr(mlflow.MlflowClient, method, killed)


def test_killed_in_mid_copy_leaves_no_version(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    cycle = write_cycle(tmp_path / "cycle")
    half, whole = write_half(tmp_path), mlflow.MlflowClient.log_artifacts

    def log_half(client: Any, run: str, source: str, target: str) -> None:
        whole(client, run, str(half), target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", log_half)
        with pytest.raises(Killed):
            record(local, "r1", cycle)
    assert_recorded_whole(local, tmp_path, cycle)


def write_half(folder: Path) -> Path:
    """A folder with a part of what is to be copied."""
    (folder / "half").mkdir()
    (folder / "half" / "vectors.safetensors").write_bytes(b"half")
    return folder / "half"


def assert_recorded_whole(local: Registry, folder: Path, cycle: Path) -> None:
    assert contents(local)["versions"] == []
    assert record(local, "r1", cycle) == "1"
    local.fetch("r1", folder / "fetched")
    assert files_of(folder / "fetched") == files_of(cycle / "challenger")


@pytest.mark.long
def test_killed_in_mid_copy_a_process_leaves_no_version(local: Registry, tmp_path: Path) -> None:
    cycle, half = write_cycle(tmp_path / "cycle"), write_half(tmp_path)
    code = f"""if True:
        import os, signal
        from pathlib import Path
        import mlflow
        from jobs.retraining.registry import Registry
        whole = mlflow.MlflowClient.log_artifacts
        def log_half(client, run, source, target):
            whole(client, run, {str(half)!r}, target)
            os.kill(os.getpid(), signal.SIGKILL)
        mlflow.MlflowClient.log_artifacts = log_half
        registry = Registry({local._uri!r}, "demo", Path({str(tmp_path / "a work space" / "artifacts")!r}))
        registry.record("r1", Path({str(cycle)!r}), Path({str(cycle)!r}, "challenger"))
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'jobs'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert_recorded_whole(local, tmp_path, cycle)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_other_vectors_of_a_cycle_are_another_version(local: Registry, tmp_path: Path) -> None:
    first, again = write_cycle(tmp_path / "first"), write_cycle(tmp_path / "again", number=7)
    assert (record(local, "r1", first), record(local, "r1", again), record(local, "r1", first)) == ("1", "2", "1")


def test_a_cycle_judged_again_has_the_last_decision(local: Registry, tmp_path: Path) -> None:
    cycle = write_cycle(tmp_path / "cycle", accepted=False)
    record(local, "r1", cycle)
    assert contents(local)["run 0"][2]["shardvec.decision"] == "refused"
    decision = json.loads((cycle / "decision.json").read_text()) | {"accepted": True}
    (cycle / "decision.json").write_text(json.dumps(decision))
    assert record(local, "r1", cycle) == "1"
    assert contents(local)["run 0"][2]["shardvec.decision"] == "accepted"


def test_aliases_move_and_move_back(registry: Registry, tmp_path: Path) -> None:
    assert registry.alias("champion") is None
    registry.remove_alias("champion")
    versions = [record(registry, f"r{n}", write_cycle(tmp_path / f"{n}", number=n)) for n in (1, 2)]
    for number in (0, 1, 1, 0):
        registry.set_alias("champion", versions[number])
        assert registry.alias("champion") == f"r{number + 1}"
    registry.remove_alias("champion")
    registry.remove_alias("champion")
    assert registry.alias("champion") is None


def test_what_was_deleted_by_hand_is_missed(registry: Registry, tmp_path: Path) -> None:
    cycle = write_cycle(tmp_path / "cycle")

    def published() -> None:
        registry.set_alias("champion", record(registry, "r1", cycle))
        assert registry.alias("champion") == "r1"

    published()
    deletions: tuple[Callable[[], object], ...] = (
        lambda: client(registry).delete_registered_model_alias(registry._name, "champion"),
        lambda: client(registry).delete_model_version(registry._name, record(registry, "r1", cycle)),
        lambda: client(registry).delete_registered_model(registry._name),
    )
    for delete in deletions:
        delete()
        assert registry.alias("champion") is None
        published()
    with pytest.raises(InputError, match=r"Model Version .*version=99. not found; fix that"):
        registry.set_alias("champion", "99")


def test_a_run_deleted_by_hand_is_logged_anew(local: Registry, tmp_path: Path) -> None:
    cycle = write_cycle(tmp_path / "cycle")
    record(local, "r1", cycle)
    once = contents(local)
    client(local).delete_run(client(local).get_model_version("demo", "1").run_id)
    assert record(local, "r1", cycle) == "1"
    assert contents(local) == once


def test_an_experiment_deleted_by_hand_is_named(local: Registry) -> None:
    local.check()
    client(local).delete_experiment(client(local).get_experiment_by_name("demo").experiment_id)
    with pytest.raises(InputError, match=r"was deleted by hand; bring it back with `mlflow experiments restore"):
        local.check()


def test_a_moved_workspace_does_not_fill_its_old_place(local: Registry, tmp_path: Path) -> None:
    local.check()
    (tmp_path / "a work space").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="the workspace has moved"):
        Registry(sqlite_uri(tmp_path / "moved" / "mlflow.db"), "demo", tmp_path / "moved" / "artifacts").check()


def test_a_version_is_fetched_whole_or_not_at_all(registry: Registry, tmp_path: Path) -> None:
    cycle, target = write_cycle(tmp_path / "cycle"), tmp_path / "published" / "000001"
    with pytest.raises(InputError, match="no version of cycle r1"):
        registry.fetch("r1", target)
    version = record(registry, "r1", cycle)
    registry.fetch("r1", target)
    assert files_of(target) == files_of(cycle / "challenger")
    shutil.rmtree(target)
    run = client(registry).get_model_version(registry._name, version).run_id
    (tmp_path / "vectors.safetensors").write_bytes(b"damaged")
    client(registry).log_artifact(run, str(tmp_path / "vectors.safetensors"), "vectors")
    with pytest.raises(InputError, match="are not those that were recorded"):
        registry.fetch("r1", target)
    assert list(target.parent.iterdir()) == []


def test_vectors_that_are_gone_are_one_line(local: Registry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the vectors of cycle r1; run that cycle again"):
        local.record("r1", tmp_path, tmp_path / "challenger")


def test_artifacts_that_are_gone_are_one_line(local: Registry, tmp_path: Path) -> None:
    record(local, "r1", write_cycle(tmp_path / "cycle"))
    shutil.rmtree(tmp_path / "a work space" / "artifacts")
    with pytest.raises(InputError, match="fix that, or roll back to another version"):
        local.fetch("r1", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_readers_get_what_an_alias_points_at(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry._uri)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    name = registry._name
    cycles = [write_cycle(tmp_path / f"{n}", number=n) for n in (1, 2)]
    versions = [record(registry, cycle.name, cycle) for cycle in cycles]
    for cycle, version in zip(cycles, versions, strict=True):
        registry.set_alias("champion", version)
        expected = Tables.load(cycle / "challenger").center_VD
        assert (Vectors.load(f"models:/{name}@champion").center_VD == expected).all()
        assert (Tables.load(Path(f"models:/{name}/{version}")).center_VD == expected).all()
    assert export(Path(f"models:/{name}@champion"), "projector", tmp_path / "out.tsv").startswith("3 words")
    assert list((tmp_path / "temporary").iterdir()) == []
    for uri, message in (
        (f"models:/{name}@challenger", "no version that is called challenger"),
        ("models:/nobody@champion", "no such model or version"),
        (f"models:/{name}/99", "no such model or version"),
        (f"models:/{name}", "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        with pytest.raises(InputError, match=message):
            Vectors.load(uri)


def test_neighbors_of_a_registered_model(
    local: Registry, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.set_alias("champion", record(local, "r1", write_cycle(tmp_path / "cycle", number=2)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local._uri)
    ended = call(neighbors.main, "models:/demo@champion", "east", "--topk", 1)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "cosine sim=0.894: north\n", "")


def test_reading_makes_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "none.db"))
    with pytest.raises(InputError, match="no such file; MLFLOW_TRACKING_URI says where"):
        Vectors.load("models:/demo@champion")
    assert list(tmp_path.iterdir()) == []


def test_without_mlflow_only_the_registry_is_missed(tmp_path: Path) -> None:
    write_run(tmp_path / "run", WORDS, np.eye(4, 2, k=-1, dtype=np.float32))
    code = f"""if True:
        import sys
        sys.modules["mlflow"] = None
        from training.vectors.word_vectors import InputError, Path, Vectors
        Vectors.load(Path({str(tmp_path / "run")!r}))
        try:
            Vectors.load("models:/demo@champion")
        except InputError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "models:/demo@champion: MLflow is not installed; " + INSTALL


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address, with credentials, of a server that is no tracking server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://somebody:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def says(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Retry-After", "3600")
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def refused(uri: str) -> str:
    """What check() says of it, within 15 s and without credentials."""
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        Registry(uri, "demo").check()
    message = str(caught.value)
    assert time.monotonic() - begin < 15
    assert "secret" not in message
    assert "\n" not in message
    assert message.startswith("registry http://")
    assert message.endswith("; start it, or set registry.if_unreachable: publish_locally")
    return message


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b"<html>oh</html>", "too many 500 error responses"),
        (503, b"", "too many 503 error responses"),
        (401, b"You are not authenticated.", "error code 401 != 200. Response body: 'You are not authenticated.'"),
        (403, b"Permission denied", "error code 403 != 200. Response body: 'Permission denied'"),
        (404, b"<html>nothing here</html>", "error code 404 != 200"),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "what?"}', "INVALID_PARAMETER_VALUE: what?"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "PERMISSION_DENIED: no"),
        (200, b"<html>please log in</html>", "the response body was not in a valid JSON format"),
    ],
)
def test_what_is_no_tracking_server_is_one_line(status: int, body: bytes, expected: str) -> None:
    with answering(says(status, body)) as uri:
        assert expected in refused(uri)


def test_a_server_that_is_not_there_is_one_line() -> None:
    assert "found Connection refused;" in refused(f"http://somebody:secret@127.0.0.1:{tracking.free_port()}")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before MLflow itself would give up."""
    monkeypatch.setattr("training.vectors.mlflow_uri.DEADLINE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://somebody:secret@127.0.0.1:{silent.getsockname()[1]}"
        assert "found no answer in 1 s;" in refused(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError, match=r"models:/demo@champion: found no answer in 1 s; MLFLOW_TRACKING_URI"):
            Vectors.load("models:/demo@champion")


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.vectors.mlflow_uri.DEADLINE_S", 1.0)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for _ in range(100):
            handler.wfile.write(b"X-Slow: yes\r\n")
            time.sleep(0.5)

    with answering(trickle) as uri:
        assert "found no answer in 1 s;" in refused(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////dev/null/mlflow.db", "registry sqlite:////dev/null/mlflow.db: cannot be written .unable to open"),
        ("sqlite:////proc/mlflow.db", "registry sqlite:////proc/mlflow.db: cannot be written .unable to open"),
        ("ftp://me:secret@host/x", "registry.tracking_uri: found ftp://host/x, expected http"),
        ("mlruns", "registry.tracking_uri: found mlruns, expected http"),
    ],
)
def test_what_cannot_be_a_registry_is_one_line(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Registry(uri, "demo").check()


def test_a_file_that_is_no_database_or_is_in_use_is_one_line(
    local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.retraining.registry.BUSY_S", 0.1)
    (tmp_path / "text.db").write_text("no database at all\n" * 100)
    with pytest.raises(InputError, match="file is not a database"):
        Registry(sqlite_uri(tmp_path / "text.db"), "demo").check()
    with sqlite3.connect(tmp_path / "a work space" / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="database is locked"):
            local.check()


def test_nobody_is_called_and_nothing_is_said(empty_database: Path, tmp_path: Path) -> None:
    """Not by telemetry, nor in progress bars, logs and warnings of MLflow's; in a process that has yet to import it."""
    shutil.copy(empty_database, tmp_path)
    cycle = write_cycle(tmp_path / "cycle")
    code = """if True:
        import os, socket
        from pathlib import Path
        def refuse(*arguments, **named):
            os.write(2, f"called {arguments}".encode())
            os._exit(1)
        socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse
        from jobs.retraining.registry import Registry
        from training.vectors.word_vectors import Vectors
        registry = Registry("sqlite:///mlflow.db", "demo")
        registry.check()
        registry.set_alias("champion", registry.record("r1", Path("cycle"), Path("cycle/challenger")))
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
        Vectors.load("models:/demo@champion")
        assert sorted(os.listdir()) == ["artifacts", "cycle", "mlflow.db"], os.listdir()
    """
    unset = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'jobs'}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (cycle / "run").exists()


def test_what_the_user_has_set_and_logs_stay_as_they_were(local: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    before = dict(os.environ)
    local.check()
    assert dict(os.environ) == {**SETTINGS, **before}
    assert logging.root.manager.disable == logging.NOTSET


def test_settings_are_flat_and_short() -> None:
    assert list(flat({"a": {"b": 1, "c": None, "f": ""}, "d": ["x", 2], "e": "y" * 600})) == [
        ("a.b", "1"),
        ("d", '["x", 2]'),
        ("e", "y" * 500),
    ]
