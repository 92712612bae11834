"""How many cores and how much memory there is: within every limit of a made-up tree of control groups."""

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.distributed import World
from training.model import limits
from training.model.limits import available_bytes, num_cores, quota, share_of_cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "34 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
FOLDER = "sys/fs/cgroup"
NONE = float("inf")

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a file system's root of /proc/self/cgroup, /proc/self/mountinfo and further files."""

    def make(groups: str, mounts: list[str], files: dict[str, str | bytes]) -> Path:
        for name, content in {
            "proc/self/cgroup": groups,
            "proc/self/mountinfo": "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts, ""]),
            **files,
        }.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return make


def of_v1(folder: str, quota_us: int, period_us: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota_us}\n", f"{folder}/cpu.cfs_period_us": f"{period_us}\n"}


CPU = f"{FOLDER}/cpu,cpuacct"
POD = "/kubepods.slice/pod1.slice/cri-2.scope"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param("0::/\n", [V2], {f"{FOLDER}/cpu.max": "150000 100000\n"}, 1.5, id="v2, a container's own view"),
        pytest.param("0::/\n", [V2], {f"{FOLDER}/cpu.max": "max 100000\n"}, NONE, id="v2, no limit"),
        pytest.param("0::/\n", [V2], {}, NONE, id="v2, the host's root, which has no such file"),
        pytest.param("0::/a/b\n", [V2], {f"{FOLDER}/a/b/cpu.max": "50000 100000"}, 0.5, id="v2, a group on the host"),
        pytest.param(
            "0::/a/b/c\n",
            [V2],
            {
                f"{FOLDER}/a/cpu.max": "200000 100000",
                f"{FOLDER}/a/b/cpu.max": "max 100000",
                f"{FOLDER}/a/b/c/cpu.max": "400000 100000",
                f"{FOLDER}/cpu.max": "300000 100000",
            },
            2,
            id="v2, the smallest of all above",
        ),
        pytest.param("0::/a\n", [V2], {f"{FOLDER}/b/cpu.max": "1 100000"}, NONE, id="v2, another group's"),
        pytest.param(
            f"0::{POD}\n",
            [V2.replace(" / /sys", f" {POD} /sys")],
            {f"{FOLDER}/cpu.max": "100000 50000"},
            2,
            id="v2, only its own group is mounted",
        ),
        pytest.param("0::/../x\n", [V2], {f"{FOLDER}/cpu.max": "100000 100000"}, 1, id="v2, outside of its namespace"),
        pytest.param("4:cpu,cpuacct:/\n", [V1], of_v1(CPU, 250_000), 2.5, id="v1"),
        pytest.param("4:cpu,cpuacct:/\n", [V1], of_v1(CPU, -1), NONE, id="v1, no limit"),
        pytest.param(
            "11:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n",
            [V1_MEMORY, V1.replace(" / /sys", " /docker/1 /sys")],
            of_v1(CPU, 30_000, 10_000) | of_v1(f"{FOLDER}/memory", 10_000),
            3,
            id="v1, docker",
        ),
        pytest.param(
            "4:cpuacct,cpu:/a/b\n",
            [V1],
            of_v1(f"{CPU}/a", 100_000) | of_v1(f"{CPU}/a/b", 200_000),
            1,
            id="v1, nested",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/1\n", [V1], of_v1(CPU, 100_000), 1, id="v1, its own group is the top of what it sees"
        ),
        pytest.param(
            "4:cpu,cpuacct:/a\n0::/b\n",
            [V1, HYBRID],
            of_v1(f"{CPU}/a", 300_000) | {f"{FOLDER}/unified/b/cpu.max": "max 100000"},
            3,
            id="hybrid",
        ),
        pytest.param(
            "0::/my group\n",
            [V2.replace("/sys/fs/cgroup", r"/my\040groups")],
            {"my groups/my group/cpu.max": "100000 100000"},
            1,
            id="a folder with a space",
        ),
        pytest.param("0::/a:b\n", [V2], {f"{FOLDER}/a:b/cpu.max": "100000 100000"}, 1, id="a group with a colon"),
        *(
            pytest.param("0::/\n", [V2], {f"{FOLDER}/cpu.max": content}, NONE, id=f"cpu.max {content!r}")
            for content in ("", "abc 100000", "100000", "0 100000", "100000 0", "-5 100000", "1 2 3", b"\xff\xfe")
        ),
        pytest.param("4:cpu,cpuacct:/\n", [V1], of_v1(CPU, 100_000, 0), NONE, id="v1, no period"),
        pytest.param("4:cpu,cpuacct:/\n", [V1], {f"{CPU}/cpu.cfs_quota_us": "5"}, NONE, id="v1, half of it"),
        pytest.param("nonsense\n\n:::\n0:", [V2, "", "- - -", "1 2 - cgroup2"], {}, NONE, id="malformed lines"),
        pytest.param("", [], {}, NONE, id="empty files"),
    ],
)
def test_the_quota_is_the_smallest_of_all_groups_above(
    tree: Tree, groups: str, mounts: list[str], files: dict[str, str | bytes], expected: float
) -> None:
    assert quota(tree(groups, mounts, files)) == expected


def test_where_there_is_no_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path) == NONE


@pytest.mark.parametrize(
    ("affinity", "limit", "expected"),
    [(8, NONE, 8), (8, 2.0, 2), (2, 8.0, 2), (8, 1.5, 1), (8, 1.999, 1), (8, 0.1, 1), (1, NONE, 1)],
)
def test_threads_that_spin_are_never_more_than_the_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, limit: float, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(affinity))
    monkeypatch.setattr(limits, "quota", lambda: limit)
    assert num_cores() == expected


@pytest.mark.parametrize(
    ("cores", "ranks_each", "limit", "expected"),
    [
        pytest.param([range(6)] * 3, 3, NONE, [2, 2, 2], id="all may use all"),
        pytest.param([range(2)] * 4, 4, NONE, [0.5] * 4, id="fewer cores than ranks"),
        pytest.param([range(4), range(4, 8)], 2, NONE, [4, 4], id="bound to some each"),
        pytest.param([[0], [0, 1, 2]], 2, NONE, [0.5, 2.5], id="bound to some of the same"),
        pytest.param([range(8)] * 4, 2, NONE, [4] * 4, id="on two machines"),
        pytest.param([range(8)] * 4, 4, 2.0, [0.5] * 4, id="within a quota"),
        pytest.param([range(8)], 1, NONE, [8], id="alone"),
    ],
)
def test_ranks_divide_the_cores_of_their_machine(
    monkeypatch: pytest.MonkeyPatch,
    cores: list[Collection[int]],
    ranks_each: int,
    limit: float,
    expected: list[float],
) -> None:
    """Also a process that a launcher has bound to its own cores has all of them."""
    monkeypatch.setattr(limits, "quota", lambda: limit)

    def share(rank: int, told: list[Tensor]) -> float:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores[rank])
        first_here = tuple(other // ranks_each * ranks_each for other in range(len(cores)))
        return share_of_cores(Told(rank, len(cores), rank % ranks_each, ranks_each, first_here, told=told))

    told: list[Tensor] = []
    for rank in range(len(cores)):  # at first only to hear what each says
        with suppress(NotImplementedError):
            share(rank, told)
    assert [share(rank, told[: len(cores)]) for rank in range(len(cores))] == expected


@dataclass(frozen=True)
class Told(World):
    """A world in which ranks say something one after the other."""

    told: list[Tensor] = field(default_factory=list)

    def all_gather(self, values: Tensor) -> Tensor:
        if len(self.told) < self.world_size:
            self.told.append(values)
            raise NotImplementedError
        return torch.stack(self.told)


MACHINE = {"proc/meminfo": "MemTotal: 24000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n"}
MEMORY = f"{FOLDER}/memory"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param("", [], {}, 8_192_000_000, id="no groups"),
        pytest.param("0::/\n", [V2], {f"{FOLDER}/memory.max": "max\n"}, 8_192_000_000, id="v2, no limit"),
        pytest.param(
            "0::/a\n",
            [V2],
            {
                f"{FOLDER}/a/memory.max": "5000",
                f"{FOLDER}/a/memory.current": "3000",
                f"{FOLDER}/a/memory.stat": "anon 1500\ninactive_file 1000\n",
            },
            3000,
            id="v2, a limit, and pages of files that can be dropped",
        ),
        pytest.param(
            "0::/a\n",
            [V2],
            {f"{FOLDER}/a/memory.max": "5", f"{FOLDER}/a/memory.current": "9"},
            0,
            id="v2, nothing left",
        ),
        pytest.param(
            "11:memory:/\n",
            [V1_MEMORY],
            {f"{MEMORY}/memory.limit_in_bytes": "700", f"{MEMORY}/memory.usage_in_bytes": "300"},
            400,
            id="v1",
        ),
        pytest.param("0::/\n", [V2], {f"{FOLDER}/memory.max": b"\xff"}, 8_192_000_000, id="no text"),
    ],
)
def test_memory_is_what_the_machine_and_every_group_leave(
    tree: Tree, groups: str, mounts: list[str], files: dict[str, str | bytes], expected: float
) -> None:
    assert available_bytes(tree(groups, mounts, {**MACHINE, **files})) == expected


def test_memory_is_endless_where_nothing_tells(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == NONE
