"""MLflow as this project calls it, and the vectors that are registered there: models:/NAME@ALIAS, models:/NAME/VERSION.

MLflow is imported inside ``calling`` alone: that takes seconds, and training never needs it.
"""

import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.shared.errors import MENDABLE, InputError

MODELS, SQLITE = "models:/", "sqlite:///"
LOGGERS = ("mlflow", "alembic", "urllib3.connectionpool")
"""What they log, MLflow also raises."""

DEADLINE_S = 10.0
"""How long a tracking server may take for its first answer, names that are looked up and all."""

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's settings while it is called, where the user has not set them: by itself it tries again for minutes."""

AT_FIRST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
"""Of a first answer, whatever the user has set: both tries end before the deadline."""

ONE_AT_A_TIME = threading.RLock()
"""The environment and the loggers are the whole process's."""

BUGS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
"""Answers that say that we have asked for nonsense."""

INSTALL = "run make setup-retrain, or pip install 'shardvec[retrain]'"
REMEDY = "MLFLOW_TRACKING_URI says where the registry is"

Answer = TypeVar("Answer")


@contextmanager
def opened(run: Path | str) -> Iterator[Path]:
    """The folder that ``run`` names, be it a path or a registered version's URI; valid inside the ``with``.

    A version that lies in a folder of this machine is read where it is, others are copied to a temporary one. The
    tracking server is MLflow's own setting (MLFLOW_TRACKING_URI, or ``mlflow.set_tracking_uri``). Raises InputError
    when there is no such version, no server, or no MLflow.
    """
    if not str(run).startswith(MODELS):
        yield Path(run)
        return
    with ExitStack() as stack:
        with calling(str(run), REMEDY):
            folder = _version(str(run), stack)
        yield folder


def _version(uri: str, stack: ExitStack) -> Path:
    """The folder of a registered version; ``stack`` removes it, should it be a copy."""
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
def calling(where: str, remedy: str, bugs: tuple[str, ...] = BUGS) -> Iterator[None]:
    """MLflow may be imported and called inside: it is quiet, gives up in time, and calls nobody but its server.

    What the user can mend becomes an InputError, ``where``: what was found; ``remedy``. Our own mistakes, ``bugs``
    among MLflow's error codes, stay as they are.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at MLflow's import
    unset = {name: value for name, value in BOUNDS.items() if name not in os.environ}
    with ONE_AT_A_TIME, _environment(unset), warnings.catch_warnings(), ExitStack() as quiet:
        warnings.simplefilter("ignore")
        try:
            import mlflow  # which sets up its loggers, so they are silenced after it
        except ModuleNotFoundError as error:
            if error.name != "mlflow":
                raise
            raise InputError(f"{where}: MLflow is not installed; {INSTALL}") from None
        quiet.enter_context(_silence())
        try:
            yield
        except mlflow.MlflowException as error:
            if error.error_code in bugs:
                raise
            raise InputError(f"{where}: found {reason(error)}; {remedy}") from None
        except OSError as error:
            if error.errno not in (None, *MENDABLE):  # those of HTTP, and of artifacts that are gone, have no number
                raise
            raise InputError(f"{where}: found {reason(error)}; {remedy}") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is logged: by these loggers' level, since those below them have none of their own."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in LOGGERS}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def answered(call: Callable[[], Answer]) -> Answer:
    """What ``call`` returns, within DEADLINE_S: else a TimeoutError. Looking up a host, for one, has no bound."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((call(), None))
        except BaseException as error:
            outcome.extend((None, error))

    with _environment(AT_FIRST):
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
    if not outcome:
        raise TimeoutError(None, f"no answer in {DEADLINE_S:.0f} s")
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite registry; None of any other."""
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def shown(uri: str) -> str:
    """A tracking server's URI without credentials."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.netloc else uri


def reason(error: BaseException) -> str:
    """What has gone wrong, in a few words without credentials."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if refused := re.search(r"\[Errno -?\d+\] ([\w ,]+)", text):
        return refused[1]
    if "timed out" in text:
        return "no answer in time"
    if status := re.search(r"error code (\d{3})|too many (\d{3}) error|(\d{3}) (?:Client|Server) Error", text):
        code = next(filter(None, status.groups()))
        return f"HTTP {code}" + (", which asks for other credentials" if code in ("401", "403") else "")
    if "valid JSON" in text:
        return "an answer that is not MLflow's"
    lines = re.sub(r"//[^/@\s]*@", "//", text).splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables as ``values`` has them, for a while: MLflow reads them at each call."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
