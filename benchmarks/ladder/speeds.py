"""Rungs: how fast the device copies, and how fast it trains; what each part of a training could do alone.

B rows of a step, T targets of a row, D dimensions, V words.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.data import TensorDataset

from benchmarks.ladder.child import stand_in
from benchmarks.ladder.climb import Found, Work
from benchmarks.ladder.place import Place, place_of
from benchmarks.ladder.rungs import BOOK, IN_PLACE
from benchmarks.ladder.trainings import trained_in
from benchmarks.measuring.train_runs import targets_per_row
from benchmarks.rivals import plain_loop
from pipeline.dataset.manifest_file import Manifest, ShardInfo
from training.distributed import SINGLE
from training.model.batch import Batch
from training.model.blocks import initial_tables
from training.model.steps import Step, make_step
from training.reading.device_feed import KeptRows, copied
from training.reading.epochs import plan_of, stream_of
from training.train_config import TrainConfig
from training.vectors.run_files import read_summary


class Case(NamedTuple):
    """What a speed is measured of."""

    corpus: str
    dim: int
    recipe: str

    def config(self, place: Place, data: str, output: Path, **others: Any) -> TrainConfig:
        """Of a run on the device."""
        settings: dict[str, Any] = {"dim": self.dim, "device": "auto", "kernel": place.kernel, "overwrite": True}
        settings |= {"tensorboard": False, "log_every": 1 << 20, "verbosity": -1, "lanes": place.sizes.lanes}
        if self.recipe == IN_PLACE:
            settings |= {"sync_every": 4, "global_batch": place.sizes.in_place_batch}
        elif place.rehearses:
            settings["global_batch"] = place.sizes.in_place_batch
        return TrainConfig(data=data, output=output, **{**settings, **others})

    def bytes_per_row(self, targets: float, words: int, rows: int) -> float:
        """The least that a row's step reads and writes in tables, gradients and moments, wherever they are.

        In place, the center's and the targets' vectors are read once, and once more read and written where they move.
        Adam's gradients are written as zeros, and moved the same way; its update reads them, the table and two moments,
        and writes the last three, of all words.
        """
        vectors = 3 * (1 + targets) * 4 * self.dim
        if self.recipe == IN_PLACE:
            return vectors
        return vectors + 8 * 2 * words * 4 * self.dim / rows


def machine(work: Work) -> Found:
    """The device, and the bytes that it reads and writes in a second by copying."""
    place = place_of(work)
    name, details = "the CPU", ""
    if not place.rehearses:
        about = torch.cuda.get_device_properties(0)
        name = f"{torch.cuda.device_count()} x {about.name}"
        details = f", {about.total_memory / 1e9:.0f} GB, {about.multi_processor_count} multiprocessors, "
        details += f"compute capability {about.major}.{about.minor}, CUDA {torch.version.cuda}"
    found = []
    for num_bytes in place.sizes.copied_bytes:
        source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=place.device) for _ in range(2))
        seconds = seconds_of(lambda target=target, source=source: target.copy_(source), 20, place)  # type: ignore[misc]
        found.append(2 * num_bytes / seconds)
    sizes = [
        f"{num_bytes / 2**20:g} MB at {speed / 1e9:,.0f}"
        for num_bytes, speed in zip(place.sizes.copied_bytes, found, strict=True)
    ]
    text = f"{name}{details}; copies {' and '.join(sizes)} GB/s, read and written"
    return Found(text, {"name": name, "bytes_per_s": found[0], "bytes_per_s_in_cache": found[1]})


def seconds_of(work: Callable[[], Any], calls: int, place: Place) -> float:
    """Seconds of a call: the median of five stretches, after one that is not counted."""
    stretches = []
    for _ in range(6):
        wait_for(place)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait_for(place)
        stretches.append((time.perf_counter() - began) / calls)
    return median(stretches[1:])


def wait_for(place: Place) -> None:
    """Returns when the device has done all that it was given."""
    if not place.rehearses:
        torch.cuda.synchronize()


def part_of(data: str, most_rows: int, folder: Path) -> str:
    """A dataset of the first shards of another: one shard, or as many as have no more rows than that."""
    manifest, num_rows = Manifest.load(data), 0
    shards: list[ShardInfo] = []
    for shard in manifest.select(0):
        if shards and num_rows + shard.rows > most_rows:
            break
        shards.append(shard)
        num_rows += shard.rows
    if len(shards) == len(manifest.select(0)):
        return data
    share = num_rows / manifest.counts.examples
    counts = replace(manifest.counts, examples=num_rows, pairs=round(manifest.counts.pairs * share))
    folder.mkdir()
    (folder / manifest.generation).symlink_to(Path(data).absolute() / manifest.generation)
    replace(manifest, counts=counts, shards=tuple(shards), config=replace(manifest.config, epochs=1)).save(folder)
    return str(folder)


def speed(work: Work, corpus: str, dim: int, recipe: str) -> Found:
    """Whole trainings, in turns with the book's eager loop where the recipe is the book's."""
    place, case = place_of(work), Case(corpus, dim, recipe)
    stand_in((*place.stand_ins, "no_checkpoints"))
    data, examples = work.datasets[corpus], None
    if recipe == BOOK:
        data = part_of(data, place.sizes.rows, work.folder / "part")
        rival_data = Path(part_of(data, place.sizes.rows // 3, work.folder / "rival"))
        examples = plain_loop.read_examples(rival_data, Manifest.load(rival_data), 0)
    manifest, runs, rivals = Manifest.load(data), [], []
    for turn in range(place.sizes.repeats):
        config = case.config(place, data, work.folder / "run", epochs=place.sizes.epochs, seed=turn)
        runs.append(speeds_in(trained_in(config)))
        if examples:
            rivals.append(eager(examples, manifest.vocab_size, dim, turn, torch.device(place.device)))
    whole, later, waits = (median(column) for column in zip(*runs, strict=True))
    targets = targets_per_row(Path(data))
    figures = {
        **case._asdict(),
        "vocab_size": manifest.vocab_size,
        "tokens_per_s": later,
        "tokens_per_s_whole": whole,
        "products_per_s": later * targets,
        "bytes_per_s": later * case.bytes_per_row(targets, manifest.vocab_size, config.global_batch),
        "wait_share": waits,
        "ratio": median(ours / rival for (_, ours, _), rival in zip(runs, rivals, strict=True)) if rivals else None,
    }
    beside = f", {figures['ratio']:.1f} times the eager loop's {median(rivals):,.0f}" if rivals else ""
    return Found(
        f"{later:,.0f} tokens/s{beside}; waiting for data {waits:.1%} of the time after the first epoch", figures
    )


def speeds_in(output: Path) -> tuple[float, float, float]:
    """Tokens/s of the whole run, and of the median epoch after the first, which reads; the share of waiting then."""
    summary = read_summary(output)
    later = summary["epochs"][1:]
    of_epoch, waiting = (median(epoch[name] for epoch in later) for name in ("tokens_per_s", "wait_share"))
    return summary["tokens_per_s"], of_epoch, waiting


def eager(examples: TensorDataset, vocab_size: int, dim: int, seed: int, device: torch.device) -> float:
    """Tokens/s of the book's loop on the device. Its rows are in memory before its clock starts, and it is warm."""
    torch.manual_seed(seed)
    few = TensorDataset(*examples[: 4 * plain_loop.BATCH_SIZE])
    plain_loop.train([plain_loop.shuffled(few)], vocab_size, device, dim)
    return float(plain_loop.train([plain_loop.shuffled(examples)], vocab_size, device, dim)["tokens_per_s"])


def waiting(work: Work, corpus: str) -> Found:
    """Rows/s of each part of a training in place, alone: reader, copies to the device, rows kept there, kernel."""
    place = place_of(work)
    device = torch.device(place.device)
    case = Case(corpus, place.sizes.dims[0], IN_PLACE)
    data = part_of(work.datasets[corpus], 4 * place.sizes.rows, work.folder / "part")
    config, manifest = case.config(place, data, work.folder / "run"), Manifest.load(data)
    stream = stream_of(config, manifest, 0)
    kept = KeptRows(stream.read, stream.shards, manifest.row_group_rows, manifest.max_len, device)
    step = step_of(case, config, manifest, place)
    batch = first_of(stream.batches(0, 1)).to(device)

    def streamed() -> Iterator[Batch]:
        return copied(stream_of(config, manifest, 0).batches(0, 1), device)

    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "reader, on the CPU": lambda: stream_of(config, manifest, 0).batches(0, 1),
        "reader, and copies to the device": streamed,
        "rows kept on the device, first epoch": lambda: kept.batches(plan_of(config, manifest, 0), 0, 1),
        "rows kept on the device, later": lambda: kept.batches(plan_of(config, manifest, 1), 0, 1),
        "step alone, on one batch": lambda: (step(batch, 1e-6) for _ in range(place.sizes.calls)),
        "reader, copies and steps": lambda: (step(batch, 1e-6) for batch in streamed()),
        "kept rows and steps": lambda: (step(row, 1e-6) for row in kept.batches(plan_of(config, manifest, 2), 0, 1)),
    }
    for _ in range(3):
        step(batch, 1e-6)
    speeds = {name: rows_per_s(way, config.global_batch, place) for name, way in ways.items()}
    figures = {"corpus": corpus, "rows_per_s": speeds, "row_bytes": sum(x[:1].nbytes for x in batch.tensors())}
    kernel, reader = speeds["step alone, on one batch"], speeds["reader, and copies to the device"]
    return Found(f"the step alone trains {kernel / reader:.2g} times what reader and copies bring", figures)


def rows_per_s(way: Callable[[], Iterator[Any]], rows: int, place: Place) -> float:
    """Rows of one pass, without what makes it. The empty rows that fill an epoch's last steps count too."""
    passing = way()
    wait_for(place)
    began = time.perf_counter()
    num_steps = sum(1 for _ in passing)
    wait_for(place)
    return num_steps * rows / (time.perf_counter() - began)


def step_of(case: Case, config: TrainConfig, manifest: Manifest, place: Place) -> Step:
    """The step that a run of the case has."""
    tables = initial_tables(manifest.vocab_size, case.dim, in_place=config.in_place)
    return make_step(config, tables, manifest.config.negatives, 1, SINGLE, place.device)


def first_of(batches: Iterator[Batch]) -> Batch:
    """A copy of a stream's first batch."""
    return copy_of(next(batches))


def copy_of(batch: Batch) -> Batch:
    """One that stays valid when the stream goes on."""
    center_B, targets_BL, num_contexts_B = (tensor.clone() for tensor in batch.tensors())
    return Batch(center_B, targets_BL, num_contexts_B)
