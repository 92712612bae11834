"""The summary that `status` prints."""

from jobs.folder_lock import lock_holder
from jobs.retraining.cycle_records import card
from jobs.retraining.registry import CHAMPION, registry_of
from jobs.retraining.retrain_config import RetrainConfig
from jobs.retraining.workspace import RECORDS, REGISTRY_DB, Workspace
from pipeline.shared.errors import InputError


def status(config: RetrainConfig, workspace: Workspace) -> str:
    """The published version, earlier ones, the newest cycle, the registry, and the process that has the lock."""
    folder = workspace.folder
    if not folder.is_dir():
        return f"{folder}: nothing yet; `run` makes the first version"
    lines = [f"{config.name}, in {folder}"]
    publications = workspace.publications()
    try:
        current = workspace.current()
        lines.append(f"published: version {current.name}" if current else "published: nothing yet")
        if current:
            about = card(current)
            lines[-1] += f", cycle {about['run_id']}, {about['vocab_size']:,} words, dim {about['dim']}"
    except InputError as error:
        current = None
        lines.append(f"published: DAMAGED: {error}")
    for version, cycle in publications.items():
        record = cycle.read("publish")
        assert record is not None
        here = "" if workspace.version(version).exists() else ", in the registry alone"
        mark = " <- current" if current and version == current.name else ""
        lines.append(f"  version {version}: published {record['published']}, cycle {cycle.run_id}{here}{mark}")
    if newest := workspace.newest():
        done = [step for step, record in RECORDS.items() if newest.read(record)]
        decision = newest.read("decision")
        lines.append(f"newest cycle: {newest.run_id}, done: {', '.join(done) or 'nothing'}")
        if decision:
            lines.append(f"  judged {decision['decided']}: {decision['reason']}")
    lines.append(_registry_line(config, workspace))
    if holder := lock_holder(workspace.folder):
        lines.append(f"at work: process {holder['pid']} on {holder['host']}")
    return "\n".join(lines)


def _registry_line(config: RetrainConfig, workspace: Workspace) -> str:
    if config.registry.tracking_uri is None and not (workspace.folder / REGISTRY_DB).exists():
        return "registry: nothing yet"
    try:
        run_id = registry_of(config, workspace).alias(CHAMPION)
    except InputError as error:
        return f"registry: {error}"
    return f"registry: {config.name}@{CHAMPION} is " + (f"cycle {run_id}" if run_id else "not there")
