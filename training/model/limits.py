"""What this process may use: cores, those of its affinity within the CPU quota of its container; and memory."""

import math
import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import torch

from training.distributed import World

_MOST_CORES = 4096
"""Of a machine, as far as ranks tell each other theirs. Linux has at most twice as many."""


def num_cores() -> int:
    """The number of cores to occupy, 1 or more. A quota of 1.5 cores is 1: a thread that it stops makes others wait."""
    return max(1, int(min(len(_cores()), quota())))


def share_of_cores(world: World) -> float:
    """This rank's share of the cores that the ranks of its machine may use. A collective call.

    Ranks may all use the same ones, or be bound to some each. A core that several ranks may use is divided among them.
    """
    mine = torch.zeros(_MOST_CORES, dtype=torch.uint8)
    mine[[core for core in _cores() if core < _MOST_CORES]] = 1
    here = [world.on_one_machine(world.rank, other) for other in range(world.world_size)]
    users = world.all_gather(mine)[here].sum(dim=0)
    if sum(here) < world.local_world_size:  # it does not know which ranks the others are
        users[:] = world.local_world_size
    return min(round(float((1 / users[mine > 0].double()).sum()), 6), quota() / world.local_world_size)


def _cores() -> Collection[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


@cache
def quota(root: Path = Path("/")) -> float:
    """The smallest CPU quota, in cores, of this process's control groups and all groups above; infinity without any.

    Reads Linux's cgroups of versions 1 and 2 below ``root``. What cannot be read or understood is no quota.
    """
    return min((found for folder in _groups(root, "cpu") if (found := _quota_of(folder))), default=math.inf)


def available_bytes(root: Path = Path("/")) -> float:
    """How much memory new uses can have without swapping, within the limits of all control groups.

    Infinity if Linux does not tell.
    """
    lines = _lines(root / "proc/meminfo")
    of_machine = (int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))
    return min((*of_machine, *map(_memory_left, _groups(root, "memory"))), default=math.inf)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that can limit this process's use of what ``controller`` controls."""
    paths: dict[str, PurePosixPath] = {}  # of this process's group, by its controllers; version 2 names none
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in _lines(root / "proc/self/mountinfo"):
        # 36 35 98:0 ROOT FOLDER rw,noatime ... - cgroup2 cgroup rw; see proc_pid_mountinfo(5)
        place, _, kind = line.partition(" - ")
        kinds, places = kind.split(), place.split()
        name = {"cgroup": controller, "cgroup2": ""}.get(kinds[0] if kinds else "none")
        if name not in paths or len(kinds) < 3 or len(places) < 5:
            continue
        if name and name not in kinds[2].split(","):
            continue
        top, folder = (PurePosixPath(_unescaped(name)) for name in places[3:5])
        group = root / folder.relative_to("/") if folder.is_absolute() else root / folder
        yield group
        # A container often sees its own group as the top, but reads the host's name for it.
        if paths[name].is_relative_to(top):
            for part in paths[name].relative_to(top).parts:
                group /= part
                yield group


def _quota_of(group: Path) -> float | None:
    """The quota that a group has itself, if any."""
    numbers = " ".join(_lines(group / "cpu.max")).split()
    if not numbers:
        numbers = [" ".join(_lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
    try:
        time_us, period_us = map(int, numbers)
    except ValueError:  # such as "max 100000"
        return None
    return time_us / period_us if time_us > 0 and period_us > 0 else None


def _memory_left(group: Path) -> float:
    """What a group's limit leaves; infinity without one. The page cache is used and can be dropped."""
    for limit, usage, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        statistics = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat") if " " in line)
        try:
            most, used = (int(" ".join(_lines(group / name))) for name in (limit, usage))
            return max(0.0, most - used + int(statistics.get(dropped, "0")))
        except ValueError:  # such as "max"
            continue
    return math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _unescaped(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name)
