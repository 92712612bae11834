"""MLflow as this project calls it, and the vectors that are registered there: models:/NAME@ALIAS, models:/NAME/VERSION.

MLflow is imported in ``calling`` only: that takes seconds, and training never needs it.
"""

import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.storage import local_path

MODELS, SQLITE = "models:/", "sqlite:///"

DEADLINE_S = 10.0
"""How long a tracking server may take for its first answer, including the DNS lookup."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's variables of the environment, set before its first call unless the user has set them. MLflow's own defaults
retry for minutes."""

INSTALL = "run make setup-retrain, or pip install 'shardvec[retrain]'"
REMEDY = "MLFLOW_TRACKING_URI says where the registry is"

Answer = TypeVar("Answer")


@contextmanager
def opened(run: Path | str) -> Iterator[Path]:
    """The folder that ``run``, a path or the URI of a registered version, names; valid inside the ``with``.

    A version in a folder of this machine is read there; others are copied to a temporary folder. The tracking server is
    MLflow's own setting (MLFLOW_TRACKING_URI, or ``mlflow.set_tracking_uri``). Raises InputError when there is no such
    version, no server, or no MLflow.
    """
    if not isinstance(run, str | Path):
        raise TypeError(f"found {run!r:.60} ({type(run).__name__}), expected a path, or {MODELS}NAME@ALIAS")
    if not str(run).startswith(MODELS):
        path = local_path(str(run))
        if path is None:
            raise InputError(f"{run}: found a URI, expected a path on this machine, or {MODELS}NAME@ALIAS")
        yield path
        return
    with ExitStack() as stack:
        with calling(str(run), REMEDY):
            folder = _version(str(run), stack)
        yield folder


def _version(uri: str, stack: ExitStack) -> Path:
    """The folder of a registered version; ``stack`` removes it if it is a copy."""
    name, alias, version = _parsed(uri)
    import mlflow

    server = mlflow.get_registry_uri()
    where = f"{uri}: registry {shown(server)}"
    file = sqlite_file(server)
    if file and not file.exists():  # MLflow would make one
        raise InputError(f"{where}: no such file; {REMEDY}")
    client = mlflow.MlflowClient()

    def source() -> str:
        found = client.get_registered_model(name).aliases.get(alias) if alias else version
        if found is None:
            raise InputError(f"{where}: {name} has no version that is called {alias}; publish one, or name another")
        return str(client.get_model_version_download_uri(name, str(found)))

    try:
        artifacts = answered(source)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{where}: no such model or version; {REMEDY}") from None
    copy = None
    if urlsplit(artifacts).scheme not in ("", "file"):
        copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="shardvec-"))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=artifacts, dst_path=copy))


def _parsed(uri: str) -> tuple[str, str, str]:
    """Name, and alias or version, of models:/NAME@ALIAS or models:/NAME/VERSION. Raises InputError."""
    found = re.fullmatch(r"models:/([^/:@]+)(?:@([^/:@]+)|/([0-9]+))", uri)
    if not found:
        raise InputError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION, as in models:/demo@champion")
    return found[1], found[2] or "", found[3] or ""


@contextmanager
def calling(where: str, remedy: str) -> Iterator[None]:
    """MLflow may be imported and called in the block: silently, with bounded retries, and without telemetry.

    Raises MLflow's errors as InputError "WHERE: found REASON; REMEDY".
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()  # what MLflow and its libraries log, MLflow also raises
        try:
            import mlflow
        except ModuleNotFoundError as error:
            if error.name != "mlflow":
                raise
            raise InputError(f"{where}: MLflow is not installed; {INSTALL}") from None
        try:
            yield
        except (mlflow.MlflowException, OSError) as error:
            raise InputError(f"{where}: found {reason(error)}; {remedy}") from error


def answered(call: Callable[[], Answer]) -> Answer:
    """What ``call`` returns. Raises TimeoutError after DEADLINE_S: a DNS lookup, for one, has no limit of its own."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(DEADLINE_S)
    except TimeoutError:
        raise TimeoutError(f"no answer in {DEADLINE_S:.0f} s") from None


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite registry; None for any other registry."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def shown(uri: str) -> str:
    """A tracking server's URI without credentials."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else uri


def reason(error: BaseException) -> str:
    """The message of an error, in one line and without credentials; of a failed connection only the reason."""
    text = re.sub(r"//[^/@\s]*@", "//", one_line(error)) or type(error).__name__
    refused = re.search(r"\[Errno -?\d+\] ([\w ,]+)", text)
    return refused[1] if refused else text[:300]
