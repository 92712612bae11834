"""A workspace: the folder for everything that cycles make, with the link `current` to the published vectors.

WORKSPACE/
  .lock                    one command at a time
  cycle.json               the run id of the newest cycle
  cycles/RUN_ID/           plan.json prepare.json train.json decision.json publish.json: one record per finished step
      prepare.log train.log
      dataset/ run/ challenger/      of the newest cycle only
  published/000001/        a version; immutable
  current -> published/000001
  mlflow.db artifacts/     the registry, unless the config names another
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.folder_lock import LOCK, alone_in
from jobs.retraining.cycle_records import card, read_record
from pipeline.shared.cli import check_output
from pipeline.shared.errors import InputError
from pipeline.shared.files import fsync, make_folder, remove, write_json
from training.vectors.run_files import is_finished

RECORDS = {"plan": "plan", "prepare": "prepare", "train": "train", "evaluate": "decision", "publish": "publish"}
"""The steps of a cycle, in order, and the record that each step writes last."""

CYCLES, PUBLISHED, CURRENT, POINTER = "cycles", "published", "current", "cycle.json"
REGISTRY_DB, ARTIFACTS, DEMO = "mlflow.db", "artifacts", "demo.txt"
OWN = (CYCLES, PUBLISHED, CURRENT, POINTER, LOCK, f"{REGISTRY_DB}*", ARTIFACTS, DEMO, ".*")


@dataclass(frozen=True, order=True)
class Cycle:
    """The folder and the records of one corpus with one config."""

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    def read(self, name: str) -> dict[str, Any] | None:
        """The record ``name``, such as ``decision``; None if its step is not finished."""
        return read_record(self.folder / f"{name}.json")

    def write(self, name: str, record: dict[str, Any]) -> None:
        make_folder(self.folder)
        write_json(self.folder / f"{name}.json", record)

    def forget(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.json").unlink(missing_ok=True)

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def challenger(self) -> Path:
        return self.folder / "challenger"


@dataclass(frozen=True)
class Workspace:
    """The paths, cycles and versions of a workspace."""

    folder: Path

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Keeps other commands out. Yields the lock's file descriptor, for children to inherit; None without locks.

        Waits for the children of a killed command, which need a moment to end. Raises InputError if another command is
        running, and for any OSError of the block.
        """
        check_output(self.folder, OWN, "workspace", "workspace:")
        with alone_in(self.folder) as lock:
            make_folder(self.folder / CYCLES)
            for leftover in self.folder.glob(f".{CURRENT}.*"):
                leftover.unlink(missing_ok=True)
            yield lock

    def cycle(self, run_id: str) -> Cycle:
        return Cycle(self.folder / CYCLES / run_id)

    def newest(self) -> Cycle | None:
        """The cycle that was planned last; None before the first one."""
        record = read_record(self.folder / POINTER)
        return self.cycle(record["run_id"]) if record else None

    def begin(self, cycle: Cycle) -> None:
        """Makes ``cycle`` the newest. Removes the datasets and runs of others, and unpublished versions."""
        write_json(self.folder / POINTER, {"run_id": cycle.run_id})
        for other in self.cycles():
            if other != cycle:
                other.forget("prepare", "train")
                for heavy in other.folder.iterdir():
                    if heavy.is_dir():
                        remove(heavy)
        published = self.publications()
        for version in self.versions():
            if version.name not in published and version != self.current() and version != self.version_of(cycle.run_id):
                remove(version)

    def current(self) -> Path | None:
        """The folder of the published version; None before the first one. Raises InputError if it is damaged."""
        link = self.folder / CURRENT
        if not os.path.lexists(link):
            published = self.publications()  # a version that is none was added by a first cycle that ended there
            if newest := next((found for found in reversed(self.versions()) if found.name in published), None):
                raise InputError(
                    f"{link}: missing, but there are published versions; choose the one that readers should get: "
                    f"rollback --to {newest.name}"
                )
            return None
        version = self.folder / PUBLISHED / Path(os.readlink(link)).name
        if not link.is_symlink() or not is_finished(version):
            others = ", ".join(found.name for found in self.versions()) or "none"
            raise InputError(
                f"{link}: {version} is gone or incomplete, expected the published vectors; "
                f"rollback --to VERSION publishes another, or fetches it from the registry (here: {others})"
            )
        return version

    def cycles(self) -> list[Cycle]:
        return [Cycle(folder) for folder in sorted((self.folder / CYCLES).glob("[!.]*"))]

    def publications(self) -> dict[str, Cycle]:
        """The cycle of every version that was ever published, oldest first. The version's files may be gone."""
        records = [(cycle, cycle.read("publish")) for cycle in self.cycles()]
        return dict(sorted((record["version"], cycle) for cycle, record in records if record))

    def version(self, name: str) -> Path:
        return self.folder / PUBLISHED / name

    def versions(self) -> list[Path]:
        """The versions whose files exist, oldest first."""
        folder = self.folder / PUBLISHED
        return sorted(found for found in folder.glob("[0-9]*") if is_finished(found))

    def version_of(self, run_id: str) -> Path | None:
        """The version of a cycle; None if there is none."""
        return next((found for found in self.versions() if card(found)["run_id"] == run_id), None)

    def add(self, cycle: Cycle) -> Path:
        """Makes the challenger of ``cycle`` a version, which nobody reads yet. Idempotent."""
        if found := self.version_of(cycle.run_id):
            return found
        numbers = map(int, [*(found.name for found in self.versions()), *self.publications()])
        version = self.version(f"{max(numbers, default=0) + 1:06d}")
        make_folder(version.parent)
        for path in (*cycle.challenger.iterdir(), cycle.challenger):
            fsync(path)
        cycle.challenger.replace(version)
        fsync(version.parent)
        return version

    def point_to(self, version: Path) -> None:
        """Points `current` to ``version``, atomically: readers find the old version or the new one."""
        temporary = self.folder / f".{CURRENT}.{secrets.token_hex(8)}"
        temporary.symlink_to(Path(PUBLISHED, version.name))
        temporary.replace(self.folder / CURRENT)
        fsync(self.folder)

    def prune(self, keep: int) -> None:
        """Removes old versions: all but the newest ``keep``, the current one, and the one that it replaced."""
        current = self.current()
        kept = {found.name for found in self.versions()[-keep:]}
        if current:
            kept |= {current.name, card(current)["supersedes"]}
        for version in (*self.versions(), *(self.folder / PUBLISHED).glob(".*")):
            if version.name not in kept:
                remove(version)
