"""A workspace: the folder of all that cycles make, and the link `current` to the published vectors.

WORKSPACE/
  .lock                    one command at a time
  cycle.json               the run id of the newest cycle
  cycles/RUN_ID/           plan.json prepare.json train.json decision.json publish.json: a record a finished step
      prepare.log train.log
      dataset/ run/ challenger/      of the newest cycle alone
  published/000001/        a version: never changed once it is there
  current -> published/000001
  mlflow.db artifacts/     the registry, unless that is elsewhere
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write, fsync
from training.vectors.run_files import SUMMARY

RECORDS = {"plan": "plan", "prepare": "prepare", "train": "train", "evaluate": "decision", "publish": "publish"}
"""The steps of a cycle, in order, and the record that each leaves when it is finished."""

CYCLES, PUBLISHED, CURRENT, POINTER, LOCK = "cycles", "published", "current", "cycle.json", ".lock"
REGISTRY_DB, ARTIFACTS, DEMO = "mlflow.db", "artifacts", "demo.txt"
OWN = (CYCLES, PUBLISHED, CURRENT, POINTER, LOCK, f"{REGISTRY_DB}*", ARTIFACTS, DEMO, ".*")


@dataclass(frozen=True, order=True)
class Cycle:
    """One corpus with one config, on its way to be published."""

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    def read(self, name: str) -> dict[str, Any] | None:
        """The record of that name, such as ``decision``; None where its step is not finished."""
        return read_json(self.folder / f"{name}.json")

    def write(self, name: str, record: dict[str, Any]) -> None:
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
    """Paths and records; knows nothing of what steps do."""

    folder: Path

    def cycle(self, run_id: str) -> Cycle:
        return Cycle(self.folder / CYCLES / run_id)

    def newest(self) -> Cycle | None:
        """The cycle that was planned last."""
        record = read_json(self.folder / POINTER)
        return self.cycle(record["run_id"]) if record else None

    def begin(self, cycle: Cycle) -> None:
        """Makes ``cycle`` the newest, and frees the disk of what others needed, and of what they never published."""
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
        """The folder of the published version; None before the first. Raises InputError where it is damaged."""
        link = self.folder / CURRENT
        if not os.path.lexists(link):
            if self.versions():
                newest = self.versions()[-1]
                raise InputError(
                    f"{link}: missing, but there are published versions; name the one that readers are to have: "
                    f"rollback --to {newest.name}"
                )
            return None
        version = self.folder / PUBLISHED / Path(os.readlink(link)).name
        if not link.is_symlink() or not (version / SUMMARY).is_file():
            others = ", ".join(found.name for found in self.versions()) or "none"
            raise InputError(
                f"{link}: {version} is gone or not whole, expected the published vectors; "
                f"rollback --to VERSION publishes another, or fetches it from the registry (here: {others})"
            )
        return version

    def cycles(self) -> list[Cycle]:
        return [Cycle(folder) for folder in sorted((self.folder / CYCLES).glob("[!.]*"))]

    def publications(self) -> dict[str, Cycle]:
        """Every version that was ever published, oldest first, whether its files are still here, and whose it is."""
        records = [(cycle, cycle.read("publish")) for cycle in self.cycles()]
        return dict(sorted((record["version"], cycle) for cycle, record in records if record))

    def version(self, name: str) -> Path:
        return self.folder / PUBLISHED / name

    def versions(self) -> list[Path]:
        """The published versions that are here, oldest first."""
        folder = self.folder / PUBLISHED
        return sorted(found for found in folder.glob("[0-9]*") if (found / SUMMARY).is_file())

    def version_of(self, run_id: str) -> Path | None:
        """The version that a cycle has published."""
        return next((found for found in self.versions() if card(found)["run_id"] == run_id), None)

    def add(self, cycle: Cycle) -> Path:
        """The challenger of ``cycle`` as a version, which nobody reads yet; done twice, it is the same."""
        if found := self.version_of(cycle.run_id):
            return found
        numbers = map(int, [*(found.name for found in self.versions()), *self.publications()])
        version = self.version(f"{max(numbers, default=0) + 1:06d}")
        version.parent.mkdir(exist_ok=True)
        for path in (*cycle.challenger.iterdir(), cycle.challenger):
            fsync(path)
        cycle.challenger.replace(version)
        fsync(version.parent)
        return version

    def point_to(self, version: Path) -> None:
        """Lets `current` name ``version``, in one step: a reader finds the old one or the new one."""
        beside = self.folder / f".{CURRENT}.{os.getpid()}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(PUBLISHED, version.name))
        beside.replace(self.folder / CURRENT)
        fsync(self.folder)

    def prune(self, keep: int) -> None:
        """Removes old versions: all but the newest ``keep``, the current one, and the one it took the place of."""
        current = self.current()
        stays = {found.name for found in self.versions()[-keep:]}
        if current:
            stays |= {current.name, card(current)["supersedes"]}
        for version in (*self.versions(), *(self.folder / PUBLISHED).glob(".*")):
            if version.name not in stays:
                remove(version)


def card(version: Path) -> dict[str, Any]:
    """What a published version says of itself. Raises InputError for one that is damaged."""
    try:
        return json.loads((version / SUMMARY).read_bytes())  # type: ignore[no-any-return]
    except ValueError as error:
        raise InputError(f"{version / SUMMARY}: damaged ({error}); bring it back, or roll back and remove it") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none. Raises InputError for one that is damaged."""
    try:
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); remove it, and its step is done again") from None


def write_json(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{json.dumps(record, indent=1)}\n".encode())


def remove(folder: Path) -> None:
    """Removes a folder so that nobody finds half of it: under another name first."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.lstrip('.')}")
        if doomed != folder:
            shutil.rmtree(doomed, ignore_errors=True)
            folder.replace(doomed)
        shutil.rmtree(doomed)
