"""Measures what two machines send each other while they share the tables by columns, and how fast they train.

The machines are two network namespaces of this one, connected by a virtual cable, whose bytes the kernel counts. So
root's rights are needed, and the two divide this machine's cores.

    sudo python benchmarks/machines.py --data data/ptb
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, count, path
from pipeline.shared.errors import InputError
from training.model.kernels.vector import TOGETHER
from training.reading.epochs import stream_of
from training.train_config import TrainConfig

MODES = {"Adam": ["--sync-every=1"], "in place": ["--sync-every=4"]}
STATE = {"Adam": 8, "in place": 2}
"""Tables in a checkpoint."""


class Cable(NamedTuple):
    """The namespaces at the ends of a virtual cable, and the addresses of the ends."""

    machines: tuple[str, str]
    addresses: tuple[str, str]

    def sent(self) -> list[int]:
        """How many bytes each end has sent, with all headers."""
        counter = f"/sys/class/net/{ENDS[0]}/statistics/tx_bytes", f"/sys/class/net/{ENDS[1]}/statistics/tx_bytes"
        return [
            int(_said("ip", "netns", "exec", machine, "cat", file))
            for machine, file in zip(self.machines, counter, strict=True)
        ]


ENDS = "shardvec0", "shardvec1"


def main() -> None:
    parser = Parser(
        "benchmarks/machines.py",
        "Counts the bytes between two machines that share the tables by columns, and times them.",
        "sudo python benchmarks/machines.py --data data/ptb",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--nproc", type=count, default=1, help="ranks of each machine")
    parser.add_argument("--epochs", type=count, default=1, help="epochs of each run")
    parser.add_argument("--repeats", type=count, default=3, help="turns; a figure is their median")
    arguments = parser.parse_args()
    if os.geteuid():
        raise InputError("benchmarks/machines.py: found no root, expected root, who may make namespaces")

    lines = provenance("torch", "numba", "numpy")
    flags = [f"--data={arguments.data}", f"--epochs={arguments.epochs}", "--device=cpu", "--no-tensorboard"]
    num_rows, num_scores, table_bytes = scores_of(arguments.data, arguments.epochs)
    rows = []
    for mode, own in MODES.items():
        found: list[tuple[float, float, list[int]]] = []
        for turn in range(arguments.repeats):
            given = [*flags, *own, f"--seed={turn}"]
            alone = train_alone([*given, f"--nproc={2 * arguments.nproc}"])
            speed, sent = train_on_two(given, arguments.nproc)
            found.append((speed, speed / alone, sent))
            print(f"{mode}: {speed:,.0f} tokens/s, one machine {alone:,.0f}, sent {sent}", file=sys.stderr, flush=True)
        speed, ratio = (statistics.median(values) for values in zip(*((s, r) for s, r, _ in found), strict=True))
        for machine in range(2):
            # Of two machines, all-reduce lets each send each number once. The second one's columns, half of all, go to
            # the first one for each epoch's checkpoint and for the vectors.
            saved = table_bytes // 2 * (STATE[mode] * arguments.epochs + 2) if machine else 0
            model = (4 * num_scores + saved) / num_rows
            measured = statistics.median(sent[machine] for *_, sent in found) / num_rows
            figures = f"{measured:,.1f}", f"{model:,.1f}", f"{measured / model:.2f}"
            speeds = (f"{speed:,.0f}", f"{ratio:.2f}") if machine == 0 else ("", "")
            rows.append((f"{mode}, machine {machine}", *figures, *speeds))
    print("\n".join(["# Two machines that share the tables by columns", "", *lines, ""]))
    heads = "", "bytes sent a row", "model", "ratio", "tokens/s", "/ one machine"
    print("\n".join(table(heads, rows)))
    print(
        f"\nMedians of {arguments.repeats} turns with {arguments.nproc} rank(s) a machine, beside as many ranks in all "
        f"on one machine. {num_rows:,} rows have {num_scores / num_rows:.1f} scores each, with the padding to groups "
        f"of {TOGETHER}, of 4 bytes each; the second machine also sends its columns to the first for each checkpoint."
    )


def scores_of(data: Path, epochs: int) -> tuple[int, int, int]:
    """The rows of a run, their scores with padding, and the bytes of a table."""
    manifest, config = Manifest.load(str(data)), TrainConfig(data=str(data), epochs=epochs)
    num_rows = num_scores = 0
    for epoch in range(epochs):
        stream = stream_of(config, manifest, epoch)
        for piece in (piece for lane in stream.plan.lanes for piece in lane):
            num_targets = stream.read(piece).num_contexts_N.astype(int) * (1 + manifest.config.negatives)
            num_rows += len(num_targets)
            num_scores += int((-(-num_targets // TOGETHER) * TOGETHER).sum())
    return num_rows, num_scores, manifest.vocab_size * config.dim * 4


def train_alone(flags: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(ROOT / "training" / "train.py"), *flags, "--output", folder]
        subprocess.run(call, stdout=subprocess.DEVNULL, check=True)
        return float(json.loads((Path(folder) / "summary.json").read_text())["tokens_per_s"])


def train_on_two(flags: list[str], nproc: int) -> tuple[float, list[int]]:
    """Tokens/s, and how many bytes each machine has sent."""
    with cable() as both, tempfile.TemporaryDirectory() as folder:
        ranks = []
        for number, machine in enumerate(both.machines):
            environment = {
                **os.environ,
                "MASTER_ADDR": both.addresses[0],
                "MASTER_PORT": "29500",
                "WORLD_SIZE": "2",
                "RANK": str(number),
                "GLOO_SOCKET_IFNAME": ENDS[number],
            }
            train = [sys.executable, str(ROOT / "training" / "train.py"), *flags, f"--output={folder}/{number}"]
            call = ["ip", "netns", "exec", machine, *train, f"--nproc={nproc}", f"--group-size={2 * nproc}"]
            ranks.append(subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL))
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise InputError(f"training on two machines ended with {codes}")
        return json.loads(Path(folder, "0", "summary.json").read_text())["tokens_per_s"], both.sent()


@contextmanager
def cable() -> Iterator[Cable]:
    """Two network namespaces with a virtual cable between them."""
    both = Cable((f"shardvec-{os.getpid()}-0", f"shardvec-{os.getpid()}-1"), ("10.77.0.1", "10.77.0.2"))
    try:
        for machine in both.machines:
            _said("ip", "netns", "add", machine)
        ends = "netns", both.machines[0], "type", "veth", "peer", "name", ENDS[1], "netns", both.machines[1]
        _said("ip", "link", "add", "name", ENDS[0], *ends)
        for machine, end, address in zip(both.machines, ENDS, both.addresses, strict=True):
            _said("ip", "-n", machine, "addr", "add", f"{address}/24", "dev", end)
            for link in (end, "lo"):
                _said("ip", "-n", machine, "link", "set", link, "up")
        yield both
    finally:
        for machine in both.machines:
            subprocess.run(["ip", "netns", "del", machine], check=False)


def _said(*call: str) -> str:
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    with command():
        main()
