"""The book's training loop beside ours, on the same examples: loss of each epoch, and tokens a second.

    python benchmarks/textbook.py                                            one process, five epochs, data/ptb
    python benchmarks/textbook.py --nproc 1 4 --repeats 3 --report report.md

The book is Dive into Deep Learning (d2l), section 15.4; its loop is written anew here, in plain eager PyTorch: two
nn.Embedding, Xavier-uniform, torch.optim.Adam as it comes, batches of 512 from a shuffling DataLoader. It has every
fair chance: its examples lie in memory, padded, before its clock starts, and a batch is one indexing of each column,
where the book pads 512 lists. Ours is `training/train.py` as a user runs it; its clock has the reading of shards in it.

A token is an example, one center, as in the book. tokens/s are the examples of all epochs over the time of all epochs;
the book's own line divides the examples of all epochs by the time of the last one, so its figure is about 5 times ours.

B rows of a batch, L = max_len places a row, D dimensions, V words.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path, this folder does not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pipeline.errors import InputError
from pipeline.manifest import Manifest
from training.config import TrainConfig
from training.distributed import choose_device

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE, DIM, LEARNING_RATE = 512, 100, 0.002  # the book's

Batches = Iterable[Sequence[Tensor]]
"""Of one epoch: ``center`` (B, 1), ``contexts_negatives``, ``mask``, ``label`` (B, L)."""


@dataclass(frozen=True)
class Result:
    """What one run of a loop gave; losses are means over the examples."""

    epoch_losses: list[float]
    mean_loss: float
    """Of the whole run: the figure that the book prints."""
    tokens_per_s: float


def main() -> None:
    """Measures both loops in turn, and prints the table."""
    arguments = parse()
    try:
        manifest = check(arguments)
        results = measure(arguments, manifest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    report = "\n".join(["# Textbook loop and ours", "", *describe(arguments, manifest), "", *table(results), ""])
    print(report, end="")
    if arguments.report:
        arguments.report.write_text(report, encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/textbook.py",
        description="Measures the book's training loop and ours, in turn, on the same examples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, default=Path("data/ptb"), help="the dataset, a folder with manifest.json")
    parser.add_argument("--epochs", type=int, default=5, help="passes of each loop")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1], help="processes of ours; each number is measured")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; medians are reported")
    parser.add_argument(
        "--threads",
        type=int,
        default=argparse.SUPPRESS,
        help="CPU threads a process, of both (default: cores / processes on this machine)",
    )
    parser.add_argument("--report", type=Path, default=argparse.SUPPRESS, help="a Markdown file for the output")
    return parser.parse_args(namespace=argparse.Namespace(threads=None, report=None))


def check(arguments: argparse.Namespace) -> Manifest:
    """The dataset's manifest. Raises InputError for what would fail later, after minutes of measuring."""
    config = TrainConfig(data=arguments.data, epochs=arguments.epochs, threads=arguments.threads)
    for name, numbers in (("nproc", arguments.nproc), ("repeats", [arguments.repeats])):
        if min(numbers) < 1:
            raise InputError.flag(name, min(numbers), "1 or more")
    for nproc in arguments.nproc:
        config.check_world(nproc)
    report = arguments.report
    if report and (report.is_dir() or not report.parent.is_dir()):
        raise InputError.flag("report", report, "a file in a folder that is there")
    manifest = Manifest.load(arguments.data)
    manifest.check_files(arguments.data)
    return manifest


def measure(arguments: argparse.Namespace, manifest: Manifest) -> dict[str, list[Result]]:
    """The results of each loop, by name; the loops take turns, so that what else the machine does meets all of them."""
    device = choose_device("auto", local_rank=0)
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    num_sampled = min(arguments.epochs, manifest.sampled_epochs)
    samplings = [read_examples(arguments.data, manifest, epoch) for epoch in range(num_sampled)]
    loaders = [shuffled(samplings[epoch % num_sampled]) for epoch in range(arguments.epochs)]

    results: dict[str, list[Result]] = {}
    for _ in range(arguments.repeats):
        results.setdefault("textbook", []).append(train_textbook(loaders, manifest.vocab_size, device))
        for nproc in arguments.nproc:
            results.setdefault(f"ours, nproc {nproc}", []).append(train_ours(arguments, nproc))
    return results


def read_examples(dataset: Path, manifest: Manifest, epoch: int) -> TensorDataset:
    """The rows of one sampled epoch in memory, every row ``max_len`` places wide; ids int32, mask and label int8."""
    columns = {"center": 1, "contexts_negatives": manifest.max_len, "mask": manifest.max_len, "label": manifest.max_len}
    shards = [dataset / shard.path for shard in manifest.select(epoch)]
    stored = pa.concat_tables(pq.read_table(path, columns=list(columns)) for path in shards)
    tensors = []
    for name, width in columns.items():
        values = stored[name] if width == 1 else pc.list_flatten(stored[name])
        tensors.append(torch.tensor(values.to_numpy()).reshape(-1, width))
    return TensorDataset(*tensors)


def shuffled(examples: TensorDataset) -> Batches:
    """Batches of ``examples`` in an order that is drawn afresh every time."""
    rows = BatchSampler(RandomSampler(examples), BATCH_SIZE, drop_last=False)
    return DataLoader(examples, sampler=rows, batch_size=None)


def train_textbook(loaders: Sequence[Batches], vocab_size: int, device: torch.device) -> Result:
    """The book's loop, an epoch for each of ``loaders``."""
    torch.manual_seed(0)
    center, context = (nn.Embedding(vocab_size, DIM).to(device) for _ in range(2))
    for embedding in (center, context):
        nn.init.xavier_uniform_(embedding.weight)
    optimizer = torch.optim.Adam([center.weight, context.weight], lr=LEARNING_RATE)

    loss_sums, counts = [], []
    began = time.perf_counter()
    for epoch, batches in enumerate(loaders):
        loss_sum, count = 0.0, 0
        for batch in batches:
            optimizer.zero_grad()
            losses_B = textbook_losses(center, context, *(tensor.to(device) for tensor in batch))
            losses_B.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += losses_B.detach().sum().item()
            count += losses_B.numel()
        loss_sums.append(loss_sum)
        counts.append(count)
        print(f"textbook, epoch {epoch + 1}/{len(loaders)}: loss {loss_sum / count:.4f}", file=sys.stderr)
    seconds = time.perf_counter() - began
    epoch_losses = [loss_sum / count for loss_sum, count in zip(loss_sums, counts, strict=True)]
    return Result(epoch_losses, sum(loss_sums) / sum(counts), sum(counts) / seconds)


def textbook_losses(
    center: nn.Embedding,
    context: nn.Embedding,
    center_B1: Tensor,
    targets_BL: Tensor,
    mask_BL: Tensor,
    label_BL: Tensor,
) -> Tensor:
    """The loss of each row, its mean over the real places, shape (B,) (d2l 15.4.2)."""
    v_B1D, u_BLD = center(center_B1), context(targets_BL)
    scores_BL = torch.bmm(v_B1D, u_BLD.permute(0, 2, 1)).squeeze(1)
    loss_BL = F.binary_cross_entropy_with_logits(scores_BL, label_BL.float(), weight=mask_BL, reduction="none")
    return loss_BL.mean(dim=1) / mask_BL.sum(dim=1) * mask_BL.shape[1]


def train_ours(arguments: argparse.Namespace, nproc: int) -> Result:
    """One run of training/train.py; ends this process with its exit code when it fails, for it has said why."""
    with tempfile.TemporaryDirectory(prefix="shardvec-textbook-") as folder:
        run = Path(folder) / "run"
        flags = {"data": arguments.data, "output": run, "epochs": arguments.epochs, "nproc": nproc}
        if arguments.threads:
            flags["threads"] = arguments.threads
        command = [sys.executable, str(ROOT / "training" / "train.py")]
        command += [f"--{name}={value}" for name, value in flags.items()]
        print(f"ours, nproc {nproc}: {shlex.join(command)}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            sys.exit(done.returncode)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return Result([epoch["loss"] for epoch in summary["epochs"]], summary["mean_loss"], summary["tokens_per_s"])


def table(results: dict[str, list[Result]]) -> list[str]:
    """Markdown: a row for each loop, medians over its runs; then, for more than one run, the speed of each."""
    medians = {name: median(runs) for name, runs in results.items()}
    textbook = medians["textbook"]
    losses = [*(f"loss, epoch {epoch + 1}" for epoch in range(len(textbook.epoch_losses))), "loss, run"]
    lines = [row("loop", *losses, "tokens/s", "ours / textbook"), row("---", *["---:"] * (len(losses) + 2))]
    for name, result in medians.items():
        losses = [f"{loss:.4f}" for loss in (*result.epoch_losses, result.mean_loss)]
        ratio = "" if result is textbook else f"{result.tokens_per_s / textbook.tokens_per_s:.2f}"
        lines.append(row(name, *losses, f"{result.tokens_per_s:,.0f}", ratio))
    repeats = len(results["textbook"])
    if repeats > 1:
        lines += ["", f"Medians of {repeats} runs, taken in turn; their tokens/s:", ""]
        for name, runs in results.items():
            lines.append(f"- {name}: " + "; ".join(f"{run.tokens_per_s:,.0f}" for run in runs))
    return lines


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def median(runs: Sequence[Result]) -> Result:
    """Number by number."""
    return Result(
        [statistics.median(losses) for losses in zip(*(run.epoch_losses for run in runs), strict=True)],
        statistics.median(run.mean_loss for run in runs),
        statistics.median(run.tokens_per_s for run in runs),
    )


def describe(arguments: argparse.Namespace, manifest: Manifest) -> list[str]:
    """Markdown: everything that the figures depend on."""
    examples = sum(shard.rows for shard in manifest.select(epoch=0))
    threads = arguments.threads or "cores / processes"
    processor = cpu_model() + (f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")
    return [
        f"- Command: `{shlex.join(['python', *sys.argv])}`",
        f"- Data: {arguments.data}, {examples:,} examples an epoch, {manifest.sampled_epochs} sampled epoch(s), "
        f"vocabulary of {manifest.vocab_size:,}, id {manifest.dataset_id}",
        f"- Hardware: {processor}; {os.cpu_count()} cores; threads of a process: {threads}",
        f"- Software: commit {commit()}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- Date: {datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
    ]


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this code, "-dirty" behind it where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


if __name__ == "__main__":
    main()
