"""The registry: MLflow's record of every cycle, and of which model version is the champion.

A cycle is one MLflow run and one version of the registered model, which are found by their tags. So every call is
idempotent, and may be repeated after a crash at any point.
"""

import hashlib
import sqlite3
import tempfile
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from jobs.children import StepError
from jobs.retraining.mlflow_run import LOGGED_TAG, log_cycle, log_decision
from jobs.retraining.retrain_config import RetrainConfig
from jobs.retraining.workspace import ARTIFACTS, REGISTRY_DB, Cycle, Workspace
from pipeline.shared.errors import InputError, tell
from training.vectors.mlflow_uri import SQLITE, answered, calling, reason, shown, sqlite_file

CHAMPION, CHALLENGER = "champion", "challenger"
AGAIN = "fix that and run the command again"
RUN_ID_TAG, VECTORS_TAG, CHECKED_TAG = "shardvec.run_id", "shardvec.vectors", "shardvec.checked"
FOLDER = "vectors"
"""The folder of a version's files among a run's artifacts."""
BUSY_S = 5.0
"""How long another process may hold an SQLite registry."""


def sqlite_uri(file: Path) -> str:
    """The tracking URI of an SQLite file. The path may contain any characters."""
    return SQLITE + str(file.absolute()).replace("%", "%25").replace("?", "%3F")


class Registry:
    """The experiment and the registered model ``name`` at ``tracking_uri``: a tracking server, or sqlite:///FILE.

    ``artifacts`` is the folder for the files of an SQLite registry, by default beside it; a server has its own. Methods
    raise InputError for every failure: a server that does not answer, credentials, a full disk.
    """

    def __init__(self, tracking_uri: str, name: str, artifacts: Path | None = None):
        if not tracking_uri.startswith((SQLITE, "http://", "https://")):
            found = shown(tracking_uri)
            raise InputError(f"registry.tracking_uri: found {found}, expected http(s)://HOST:PORT or {SQLITE}FILE")
        self._uri, self._name = tracking_uri, name
        self._where = f"registry {shown(tracking_uri)}"
        self._file = sqlite_file(tracking_uri)
        self._artifacts = self._file and (artifacts or self._file.with_name("artifacts")).resolve().as_uri()

    def check(self) -> None:
        """Raises InputError unless the registry answers within seconds, and can be written."""

        def write() -> None:
            self._client().set_experiment_tag(self._experiment(), CHECKED_TAG, "yes")

        with self._calling("start it, or set registry.if_unreachable: publish_locally"):
            if self._file:
                write()  # the first call creates MLflow's tables, which is slow on slow disks
            else:
                answered(write)

    def record(self, run_id: str, cycle: Path, vectors: Path) -> str:
        """The model version of the cycle in folder ``cycle``, with the files of folder ``vectors``. Idempotent.

        A cycle that was trained or aligned again has other vectors, and so becomes another run and another version.
        """
        if not vectors.is_dir():
            raise InputError(f"{vectors}: found nothing, expected the vectors of cycle {run_id}; run that cycle again")
        digest = digest_of(vectors)
        with self._calling(AGAIN):
            client = self._client()
            version = self._version(run_id, digest)
            run = self._run(run_id, digest)
            if version is None or LOGGED_TAG not in run.data.tags:  # new, or deleted by hand
                log_cycle(client, run, cycle)
                client.log_artifacts(run.info.run_id, str(vectors), FOLDER)
                client.set_terminated(run.info.run_id)
            log_decision(client, run, cycle)
            if version is None:
                if self._model() is None:
                    client.create_registered_model(self._name)
                tags = {RUN_ID_TAG: run_id, VECTORS_TAG: digest}
                source = f"{run.info.artifact_uri}/{FOLDER}"
                version = client.create_model_version(
                    self._name, source, run.info.run_id, tags=tags, await_creation_for=0
                )
            return str(version.version)

    def set_alias(self, alias: str, version: str) -> None:
        """Points ``alias`` to ``version``, atomically."""
        with self._calling(AGAIN):
            self._client().set_registered_model_alias(self._name, alias, version)

    def remove_alias(self, alias: str) -> None:
        """Removes ``alias``. Idempotent."""
        with self._calling(AGAIN):
            if (model := self._model()) and alias in model.aliases:
                self._client().delete_registered_model_alias(self._name, alias)

    def alias(self, alias: str) -> str | None:
        """The run id of the cycle that ``alias`` points to; None if the alias, its version or the model is missing."""
        with self._calling(AGAIN):
            model = self._model()
            version = model and model.aliases.get(alias)
            found = version and _or_none(self._client().get_model_version, self._name, str(version))
            return found.tags.get(RUN_ID_TAG) if found else None

    def fetch(self, run_id: str, target: Path) -> None:
        """Downloads the vectors of cycle ``run_id`` to the folder ``target``, atomically."""
        with self._calling("fix that, or roll back to another version"):
            import mlflow

            version = self._version(run_id)
            if version is None:
                raise InputError(f"{self._where}: found no version of cycle {run_id} in {self._name}; it was deleted")
            source = self._client().get_model_version_download_uri(self._name, str(version.version))
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
                found = Path(
                    mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=self._uri)
                )
                if digest_of(found) != version.tags[VECTORS_TAG]:
                    raise InputError(
                        f"{self._where}: the artifacts of version {version.version} are not those that were recorded; "
                        f"roll back to another version"
                    )
                found.replace(target)

    def _calling(self, remedy: str) -> AbstractContextManager[None]:
        if self._file:
            self._check_database(self._file)
        return calling(self._where, remedy)

    def _check_database(self, file: Path) -> None:
        """Raises InputError if the file cannot be written: MLflow would retry for an hour."""
        try:
            with closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise InputError(f"{self._where}: cannot be written ({reason(error)}); fix that, or name another") from None

    def _client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(self._uri, self._uri)

    def _experiment(self) -> str:
        """The id of the experiment, which is created if needed. Raises InputError if it cannot be used."""
        client, place = self._client(), self._artifacts
        found = client.get_experiment_by_name(self._name)
        if found is None:
            return str(client.create_experiment(self._name, artifact_location=place))
        if found.lifecycle_stage != "active":
            raise InputError(
                f"{self._where}: experiment {self._name} was deleted by hand; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        if place and found.artifact_location != place:
            raise InputError(
                f"{self._where}: keeps artifacts in {found.artifact_location}, expected {place}, so the workspace has "
                f"moved; move it back, or remove the registry's file to start a new one"
            )
        return str(found.experiment_id)

    def _run(self, run_id: str, digest: str) -> Any:
        """The MLflow run of these vectors, which is created if needed."""
        client, experiment = self._client(), self._experiment()
        wanted = f"tags.`{RUN_ID_TAG}` = '{run_id}' and tags.`{VECTORS_TAG}` = '{digest}'"
        if found := client.search_runs([experiment], wanted, max_results=1):
            return found[0]
        return client.create_run(experiment, run_name=run_id, tags={RUN_ID_TAG: run_id, VECTORS_TAG: digest})

    def _version(self, run_id: str, digest: str | None = None) -> Any:
        """The newest version of a cycle, with these vectors if ``digest`` is given; None if there is none."""
        found = self._client().search_model_versions(f"name = '{self._name}' and tags.`{RUN_ID_TAG}` = '{run_id}'")
        matching = [version for version in found if digest in (None, version.tags.get(VECTORS_TAG))]
        return max(matching, key=lambda version: int(version.version), default=None)

    def _model(self) -> Any:
        """The registered model; None before the first version."""
        return _or_none(self._client().get_registered_model, self._name)


def digest_of(folder: Path) -> str:
    """The SHA-256 of a folder's files and their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)  # goes on with the digest of the files before
    return digest.hexdigest()


def _or_none(get: Any, *names: str) -> Any:
    """Calls ``get``; None if MLflow has no such thing."""
    from mlflow import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def registry_of(config: RetrainConfig, workspace: Workspace) -> Registry:
    """The config's registry; by default an SQLite file in the workspace. Calls nothing yet."""
    uri = config.registry.tracking_uri
    if uri is None:
        return Registry(sqlite_uri(workspace.folder / REGISTRY_DB), config.name, workspace.folder / ARTIFACTS)
    return Registry(uri, config.name)


def reach_registry(config: RetrainConfig, workspace: Workspace) -> None:
    """Raises InputError if the registry cannot be reached, unless the config allows that."""
    try:
        registry_of(config, workspace).check()
    except InputError as error:
        if config.registry.if_unreachable == "fail":
            raise
        _warn(error)


def register(config: RetrainConfig, workspace: Workspace, cycle: Cycle, alias: str) -> None:
    """Records a cycle and points ``alias`` to its version. First records cycles that could not be recorded earlier.

    Idempotent. Raises StepError if the registry cannot be reached, unless the config allows that: the registry was
    there when the cycle began, so a retry may succeed.
    """
    registry = registry_of(config, workspace)
    unrecorded = [
        other
        for version, other in (workspace.publications().items() if alias == CHAMPION else ())
        if other != cycle and other.read("registry") is None and workspace.version(version).exists()
    ]
    try:
        for other in unrecorded:
            _record(registry, workspace, other)
        number = _record(registry, workspace, cycle)
        registry.set_alias(alias, number)
        if alias == CHAMPION:
            registry.remove_alias(CHALLENGER)
    except InputError as error:
        if config.registry.if_unreachable == "fail":
            raise StepError(error) from None
        _warn(error)


def _record(registry: Registry, workspace: Workspace, cycle: Cycle) -> str:
    vectors = workspace.version_of(cycle.run_id) or cycle.challenger
    number = registry.record(cycle.run_id, cycle.folder, vectors)
    cycle.write("registry", {"version": number})
    return number


def _warn(error: InputError) -> None:
    tell(f"warning: {error}; only the workspace is updated")
