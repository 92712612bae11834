"""What the registry is told of cycles: each challenger, and which version is the champion."""

from jobs.retraining.children import StepError
from jobs.retraining.registry import Registry, sqlite_uri
from jobs.retraining.retrain_config import RetrainConfig
from jobs.retraining.workspace import ARTIFACTS, REGISTRY_DB, Cycle, Workspace
from pipeline.shared.errors import InputError, tell

CHAMPION, CHALLENGER = "champion", "challenger"


def registry_of(config: RetrainConfig, workspace: Workspace) -> Registry:
    """The registry that the config names, the workspace's own where it names none. Nobody is asked yet."""
    uri = config.registry.tracking_uri
    if uri is None:
        return Registry(sqlite_uri(workspace.folder / REGISTRY_DB), config.name, workspace.folder / ARTIFACTS)
    return Registry(uri, config.name)


def reach_registry(config: RetrainConfig, workspace: Workspace) -> None:
    """Raises InputError where the registry cannot be reached and the config does not allow for that."""
    try:
        registry_of(config, workspace).check()
    except InputError as error:
        if config.registry.if_unreachable == "fail":
            raise
        _warn(error)


def register(config: RetrainConfig, workspace: Workspace, cycle: Cycle, alias: str) -> None:
    """Records a cycle and gives its version ``alias``; and first, what could not be recorded before.

    Told twice, the registry is as if told once. Raises StepError where it cannot be told, unless the config allows for
    that: it could be reached when the cycle began, so the next time may do.
    """
    registry = registry_of(config, workspace)
    try:
        for version, other in workspace.publications().items() if alias == CHAMPION else ():
            if other != cycle and other.read("registry") is None and workspace.version(version).exists():
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
    tell(f"warning: {error}; going on in the workspace alone")
