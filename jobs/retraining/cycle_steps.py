"""The steps of a cycle, in order: plan, prepare, train, evaluate, publish; and rollback.

Every step is idempotent: a finished step is not repeated, and an interrupted step resumes. A step writes its record
last; it is finished when the record exists.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from jobs.children import call
from jobs.retraining.cycle_plan import (
    check_dim,
    check_gates,
    check_grown,
    prepare_command,
    run_id_of,
    settings_of,
    state_of,
    train_command,
    with_secrets,
)
from jobs.retraining.cycle_records import card
from jobs.retraining.registry import CHALLENGER, CHAMPION, reach_registry, register, registry_of
from jobs.retraining.retrain_config import RetrainConfig
from jobs.retraining.workspace import CURRENT, RECORDS, Cycle, Workspace
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError
from pipeline.shared.files import remove
from pipeline.shared.records import digest
from pipeline.shared.redact import redacted_command
from training.vectors.word_vectors import Tables


def plan(config: RetrainConfig, workspace: Workspace, session: Callable[[], SparkSession]) -> bool:
    """Plans the cycle of the current corpus, and prints a summary. Returns False if nothing is new."""
    state = state_of(config, workspace, session)
    cycle = workspace.cycle(run_id_of(state, config))
    champion = champion_for(cycle, workspace)
    if was := settled(config, cycle, champion):
        print(f"nothing is new: this corpus with these settings {was}")
        return False
    if champion:
        Tables.load(champion)  # raises now, not after hours of work, if the version is damaged
    check_dim(config, champion)
    check_gates(config)
    print(f"cycle {cycle.run_id}: {check_grown(state, config, workspace, champion)}")
    reach_registry(config, workspace)
    before = cycle.read("plan")
    base = champion.name if champion else None
    if before and before["base"] != base:  # another version was published since; training starts from it
        cycle.forget("train", "decision")
        remove(cycle.run)
        remove(cycle.challenger)
    record: dict[str, Any] = {"run_id": cycle.run_id, "planned": now(), "base": base, "source_state": state}
    record["prepare"] = redacted_command(prepare_command(config, workspace, cycle.dataset))
    record["train"] = redacted_command(train_command(config, cycle.dataset, cycle.run, champion))
    cycle.write("plan", {**record, "settings": settings_of(config)})
    workspace.begin(cycle)
    return True


def champion_for(cycle: Cycle, workspace: Workspace) -> Path | None:
    """The published version, which ``cycle`` has to beat. If it is the cycle's own, the version that it replaced."""
    current = workspace.current()
    if current is None or card(current)["run_id"] != cycle.run_id:
        return current
    before = card(current)["supersedes"]
    return workspace.version(before) if before else None


def settled(config: RetrainConfig, cycle: Cycle, champion: Path | None) -> str | None:
    """How a cycle ended, in words; None if something is left to do."""
    if published := cycle.read("publish"):
        return f"was published as version {published['version']}"
    decision = cycle.read("decision")
    if decision and not decision["accepted"] and decision["key"] == decision_key(config, cycle, champion):
        return f"was refused ({decision['reason']}); another corpus, or other gates, would be judged again"
    return None


def prepare(config: RetrainConfig, workspace: Workspace, lock: int | None, session: Callable[[], SparkSession]) -> None:
    """Makes a dataset of the corpus. Raises InputError if the corpus has changed since the plan."""
    cycle, planned = open_cycle(workspace)
    if is_done(cycle, "prepare"):
        return
    check_same(config, workspace, planned, session)
    command = with_secrets(planned["prepare"], prepare_command(config, workspace, cycle.dataset))
    call(command, cycle.folder / "prepare.log", lock)
    check_same(config, workspace, planned, session)
    manifest = Manifest.load(cycle.dataset)
    if config.gates.heldout_increase is not None and not manifest.select(0, "heldout"):
        raise InputError(
            f"prepare.holdout: found no held-out sequence with a share of {config.prepare.holdout:g}, expected some "
            f"to judge by; raise it, or set gates: heldout_increase: null"
        )
    cycle.write("prepare", {"prepared": now(), "dataset_id": manifest.dataset_id})


def check_same(
    config: RetrainConfig, workspace: Workspace, planned: dict[str, Any], session: Callable[[], SparkSession]
) -> None:
    """Raises InputError if the corpus has changed since the plan."""
    if state_of(config, workspace, session) != planned["source_state"]:
        raise InputError(
            "corpus: found other files, sizes or times than in the plan, expected a corpus that does not change while "
            "it is read; run the command again (`run`, or `plan` first)"
        )


def train(config: RetrainConfig, workspace: Workspace, lock: int | None) -> None:
    """Trains vectors on the dataset. An interrupted run resumes from its last checkpoint."""
    cycle, planned = open_cycle(workspace, "prepare")
    if is_done(cycle, "train"):
        return
    base = workspace.version(planned["base"]) if planned["base"] else None
    command = with_secrets(planned["train"], train_command(config, cycle.dataset, cycle.run, base))
    call(command, cycle.folder / "train.log", lock)
    cycle.write("train", {"trained": now()})


def evaluate(config: RetrainConfig, workspace: Workspace) -> bool:
    """Aligns the new vectors with the published ones, and evaluates the gates. Returns True if all gates accept."""
    cycle, _ = open_cycle(workspace, "train")
    # Imported late: torch and scipy take seconds, and on most nights nothing is new.
    from jobs.retraining.challenger import make_challenger
    from jobs.retraining.judge import judge

    decision = decision_of(config, workspace, cycle)
    if decision is None:
        champion = champion_for(cycle, workspace)
        stale = workspace.version_of(cycle.run_id)  # of an earlier decision, and never published
        if stale and stale != workspace.current():  # or it was, and the cycle's records were lost
            remove(stale)
        make_challenger(cycle, champion, config.prepare.holdout > 0)
        judged = judge(config.gates, cycle.challenger, champion, cycle.dataset)
        decision = {"decided": now(), "champion": champion.name if champion else None}
        decision |= {"key": decision_key(config, cycle, champion), "vectors": files_digest(cycle.challenger)}
        decision |= {**asdict(judged), "text": str(judged), "reason": judged.verdict}
        cycle.write("decision", decision)
    print(decision["text"])
    if cycle.read("publish") is None:
        register(config, workspace, cycle, CHALLENGER)
    return bool(decision["accepted"])


def decision_of(config: RetrainConfig, workspace: Workspace, cycle: Cycle) -> dict[str, Any] | None:
    """The decision, if it was made of these vectors, with these gates and this champion; else None."""
    decision = cycle.read("decision")
    judged = workspace.version_of(cycle.run_id) or cycle.challenger
    if decision is None or decision["key"] != decision_key(config, cycle, champion_for(cycle, workspace)):
        return None
    return decision if judged.is_dir() and files_digest(judged) == decision.get("vectors") else None


def files_digest(folder: Path) -> str:
    """A digest of the names and contents of all files."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            found.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return digest(found)


def decision_key(config: RetrainConfig, cycle: Cycle, champion: Path | None) -> str:
    """A digest of what a decision depends on besides the vectors: cycle, champion, gates, and the gates' files."""
    gates = config.gates
    files = [file for file in (*gates.pairs, gates.analogies) if file is not None]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files]
    return digest([cycle.run_id, champion.name if champion else None, asdict(gates), contents])


def publish(config: RetrainConfig, workspace: Workspace) -> None:
    """Publishes the accepted vectors: in the registry, then with the link `current`."""
    cycle, _ = open_cycle(workspace, "evaluate")
    if is_done(cycle, "publish"):
        return
    decision = decision_of(config, workspace, cycle)
    if decision is None:
        raise InputError(
            f"cycle {cycle.run_id}: found other gates, another published version, or other vectors than those of its "
            f"decision; run `evaluate` again first"
        )
    if not decision["accepted"]:
        raise InputError(f"cycle {cycle.run_id}: {decision['reason']}; only an accepted cycle is published")
    version = workspace.add(cycle)
    register(config, workspace, cycle, CHAMPION)
    workspace.point_to(version)
    record = {"published": now(), "version": version.name, "supersedes": card(version)["supersedes"]}
    cycle.write("publish", record)
    workspace.prune(config.keep)
    print(f"published version {version.name}: {workspace.folder / CURRENT}")


def rollback(config: RetrainConfig, workspace: Workspace, to: str | None) -> None:
    """Publishes an earlier version again: ``to``, or the one that the newest publication replaced.

    Idempotent. Moves the link first: readers get the version even if the registry cannot be reached, which then raises.
    """
    publications = workspace.publications()
    if not publications:
        raise InputError(f"{workspace.folder}: found no published version, so there is nothing to roll back")
    name = to or before_the_newest(publications)
    if name not in publications:
        raise InputError(f"rollback --to {name}: found no such version, expected one of {', '.join(publications)}")
    cycle, target = publications[name], workspace.version(name)
    if not target.exists():
        print(f"version {name} is not in {workspace.folder}: fetching it from the registry")
        registry_of(config, workspace).fetch(cycle.run_id, target)
    Tables.load(target)
    workspace.point_to(target)
    print(f"version {name} is published: {workspace.folder / CURRENT}")
    register(config, workspace, cycle, CHAMPION)


def before_the_newest(publications: dict[str, Cycle]) -> str:
    """The version that the newest publication replaced. Raises InputError if there was none."""
    newest = max(publications)
    record = publications[newest].read("publish")
    assert record is not None
    if record["supersedes"] is None:
        raise InputError(f"version {newest}: found it to be the first, expected an earlier one; nothing is changed")
    return str(record["supersedes"])


def open_cycle(workspace: Workspace, after: str = "plan") -> tuple[Cycle, dict[str, Any]]:
    """The newest cycle and its plan. Raises InputError unless there is one, and its step ``after`` is finished."""
    cycle = workspace.newest()
    planned = cycle.read("plan") if cycle else None
    if cycle is None or planned is None:
        raise InputError(f"{workspace.folder}: found no cycle, expected a planned one; run `plan` first")
    if cycle.read(RECORDS[after]) is None:
        raise InputError(f"cycle {cycle.run_id}: found it before the end of {after}; run `{after}` first")
    return cycle, planned


def is_done(cycle: Cycle, step: str) -> bool:
    """Whether the step is finished. Prints a line if it is."""
    if cycle.read(step) is None:
        return False
    print(f"{step}: already done for cycle {cycle.run_id}")
    return True


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
