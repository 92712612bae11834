"""Trains word vectors on a dataset that prepare wrote.

    torchrun training/train.py --nproc 4                          4 processes on this machine
    torchrun --nproc-per-node 4 training/train.py                 the same
    python training/train.py --nproc 4                            the same
    torchrun --nnodes 2 --nproc-per-node 8 ... training/train.py  many machines, as torchrun has it

B rows of a rank's batch.
"""

import math
import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # Run as a script: the project's root belongs on the path, this folder does not.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Threads that wait should sleep: on a machine that does anything else, spinning makes a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline.errors import InputError
from pipeline.manifest import Manifest, ManifestError, ShardInfo
from training.config import TrainConfig, parse
from training.device_feed import KeptRows, can_keep, copied
from training.distributed import (
    RankError,
    World,
    check_device,
    choose_device,
    joined,
    launched,
    leave,
    needs_spawn,
    spawn,
    world_size_with,
)
from training.kernels.threads import Team, num_cores
from training.metrics import Meter, Moment, Report
from training.model import SkipGram
from training.petastorm_stream import check_petastorm, petastorm_epochs, shares_of_epoch
from training.petastorm_stream import num_steps as petastorm_steps
from training.plan import EpochPlan, num_steps, plan_epoch
from training.run_folder import check_free, claim, finish
from training.schedule import linear_decay
from training.steps import Step, finite, make_step
from training.stream import ArrowStream, Batch, read_epochs


def main() -> None:
    """Parses and checks; then makes the ranks, or is one. What the user can mend is said here, once."""
    try:
        config, nproc = parse()
        config.check_world(world_size_with(nproc))
        if needs_spawn(nproc):
            assert nproc is not None
            check_inputs(config, ranks_here=nproc)
            spawn(nproc, be_a_rank, config)
        else:
            be_a_rank(config)
        return
    except InputError as error:
        if launched().local_rank == 0 or isinstance(error, RankError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass  # and out of here, so that what spawn held is freed before the process ends
    print("interrupted; there are no new vectors", file=sys.stderr)
    sys.exit(130)


def be_a_rank(config: TrainConfig) -> None:
    """Checks, on this machine, and trains as one rank."""
    world = launched()
    manifest = check_inputs(config, world.local_world_size)
    device = choose_device(config.device, world.local_rank)
    torch.set_num_threads(config.threads or max(1, num_cores() // world.local_world_size))
    with joined(device) as world:
        try:
            train(config, manifest, world, device)
        except ManifestError as error:
            raise RankError(f"rank {world.rank}: {error}") from None
    leave(world)


def check_inputs(config: TrainConfig, ranks_here: int) -> Manifest:
    """The dataset's manifest, once all that training needs is there and the run's folder is free. Raises InputError."""
    device = check_device(config.device, ranks_here)
    config.check_kernel(device)
    if config.cache == "device" and device == "cpu":
        raise InputError.flag("cache", config.cache, "auto or none where no GPU is used")
    if config.reader == "petastorm":
        check_petastorm(config.data)
    manifest = Manifest.load(config.data)
    manifest.check_files(config.data)
    if launched().is_first:
        check_free(config.output, config.overwrite)
    return manifest


def train(config: TrainConfig, manifest: Manifest, world: World, device: torch.device) -> None:
    """The run, from tables to files, in the order in which it happens."""
    # The model: tables that are equal on every rank, and a step that keeps them so, or brings them together.
    model = SkipGram(manifest.vocab_size, config.dim, config.seed, config.in_place).to(device)
    all_steps = total_steps(config, manifest, world.world_size)
    step = make_step(config, model, manifest.config.negatives, all_steps, world)

    # The run's folder, which is rank 0's.
    report = None
    if world.is_first:
        folder = claim(config, manifest)
        print(opening_lines(config, manifest, world, device, step.team), flush=True)
        report = Report(folder, all_steps, config.epochs)
    compile_s = warm_up(config, manifest, world, device)
    if world.is_first and compile_s > 2:
        print(f"compiled for this machine in {compile_s:.0f} s, once", flush=True)

    # Training.
    meter = Meter(device)
    begin = last_line = now = meter.moment(world)
    done = examples = 0
    with closing(epochs_of(config, manifest, world, device, step)) as epochs:
        for epoch, batches in enumerate(epochs):
            epoch_begin = now
            for batch, wait_s in timed(batches):
                lr = rate(config, manifest, examples)
                losses_B = step(batch, lr)
                meter.add(losses_B, batch.num_contexts_B, wait_s)
                done += batch.num_steps
                examples += batch.num_steps * config.global_batch
                if done % config.log_every == 0:
                    now = check_finite(meter.moment(world, step.is_finite()), done, config)
                    if report:
                        report.step(epoch, done, now.since(last_line), lr)
                    last_line = now
            step.end_epoch()
            step.settle()
            now = check_finite(meter.moment(world, finite(model)), done, config)  # the tables that would be saved
            examples = now.examples
            if report:
                report.epoch(epoch, done, now.since(epoch_begin), now.since(begin).loss)

    # The run's files, and the book's last line.
    if report:
        report.close()
        run = now.since(begin)
        totals = {**asdict(run), "loss": now.since(epoch_begin).loss, "mean_loss": run.loss, "steps": done}
        finish(folder, config, manifest, model, report, {**totals, **describe(world, device)})
        print(f"loss {run.loss:.3f}, {run.tokens_per_s:.1f} tokens/sec on {device}")


def epochs_of(
    config: TrainConfig, manifest: Manifest, world: World, device: torch.device, step: Step
) -> Generator[Iterator[Batch], None, None]:
    """A rank's batches of each epoch, on its device, in the order of the plan."""
    numbers = range(config.epochs)
    if config.reader == "petastorm":
        shape = config.global_batch, world.rank, world.world_size
        with closing(petastorm_epochs(config.data, manifest, config.seed, numbers, *shape)) as epochs:
            for batches in epochs:
                yield copied(batches, device) if device.type == "cuda" else batches
        return
    if keeps_rows(config, manifest, device):
        kept: dict[int, KeptRows] = {}
        for epoch in numbers:
            stream, sampled = stream_of(config, manifest, epoch), epoch % manifest.sampled_epochs
            if sampled not in kept:
                rows = stream.read, stream.shards, manifest.row_group_rows, manifest.max_len
                kept[sampled] = KeptRows(*rows, device)
            yield kept[sampled].batches(stream.plan, world.rank, world.world_size)
        return
    # A batch of several steps ends where a line of metrics.jsonl is due.
    at_once = math.gcd(step.at_once, config.log_every)
    cores_taken = world.local_world_size * torch.get_num_threads() >= num_cores()
    team = step.team if cores_taken else None
    make = partial(stream_of, config, manifest)
    with closing(read_epochs(make, numbers, world.rank, world.world_size, at_once, team)) as epochs:
        for batches in epochs:
            yield copied(batches, device) if device.type == "cuda" else batches


def keeps_rows(config: TrainConfig, manifest: Manifest, device: torch.device) -> bool:
    """Whether the device keeps the rows that it has read."""
    if config.cache != "auto" or device.type == "cpu":
        return config.cache == "device"
    num_rows = sum(shard.rows for shard in manifest.shards if shard.split == "train")
    return config.epochs > manifest.sampled_epochs and can_keep(
        num_rows, manifest.max_len, torch.cuda.get_device_properties(device).total_memory
    )


def rate(config: TrainConfig, manifest: Manifest, examples_seen: int) -> float:
    """The learning rate: SGD's falls in place, by the examples that all ranks have seen; else it stays."""
    if not config.in_place or config.optimizer != "sgd":
        return config.lr
    num_examples = sum(shard.rows for epoch in range(config.epochs) for shard in shards_of(manifest, epoch))
    return linear_decay(config.lr, examples_seen, num_examples)


def warm_up(config: TrainConfig, manifest: Manifest, world: World, device: torch.device) -> float:
    """Lets machine code compile, or load, by a step of empty rows on tables of two words, and one look at a shard; the
    seconds it took.
    """
    started = time.perf_counter()
    model = SkipGram(2, config.dim, in_place=config.in_place).to(device)
    tiny = make_step(config, model, manifest.config.negatives, 1, world)
    tiny(Batch.empty(config.global_batch // world.world_size, manifest.max_len).to(device), 0.0)
    tiny.is_finite()
    tiny.settle()
    if config.reader == "arrow":
        stream = stream_of(config, manifest, epoch=0)
        for piece in stream.plan.of_rank(world.rank, world.world_size)[0][:1]:
            stream.read(piece)
    return time.perf_counter() - started


def stream_of(config: TrainConfig, manifest: Manifest, epoch: int) -> ArrowStream:
    return ArrowStream(config.data, manifest, shards_of(manifest, epoch), plan_of(config, manifest, epoch))


def shards_of(manifest: Manifest, epoch: int) -> tuple[ShardInfo, ...]:
    """What epoch ``epoch`` reads: samplings are used in turn."""
    return manifest.select(epoch % manifest.sampled_epochs)


def plan_of(config: TrainConfig, manifest: Manifest, epoch: int) -> EpochPlan:
    shards = shards_of(manifest, epoch)
    return plan_epoch(shards, manifest.row_group_rows, config.seed, epoch, config.lanes, config.global_batch)


def total_steps(config: TrainConfig, manifest: Manifest, world_size: int) -> int:
    return sum(steps_of(config, manifest, epoch, world_size) for epoch in range(config.epochs))


def steps_of(config: TrainConfig, manifest: Manifest, epoch: int, world_size: int) -> int:
    """Steps of one epoch, the same on every rank."""
    shards = shards_of(manifest, epoch)
    if config.reader == "petastorm":
        shares = shares_of_epoch(shards, manifest.row_group_rows, config.seed, epoch, world_size)
        return petastorm_steps(shares, config.global_batch // world_size)
    return num_steps(sum(shard.rows for shard in shards), config.lanes, config.global_batch)


def check_finite(moment: Moment, step: int, config: TrainConfig) -> Moment:
    """``moment``, the same on every rank. Raises InputError when training has diverged, before anything is saved."""
    if not moment.finite:
        found = "vectors that are no numbers" if math.isfinite(moment.loss) else f"a loss of {moment.loss}"
        raise InputError(f"--lr {config.lr:g}: found {found} by step {step}, expected numbers; lower it")
    return moment


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


def opening_lines(
    config: TrainConfig, manifest: Manifest, world: World, device: torch.device, team: Team | None
) -> str:
    """What is about to happen, with the arithmetic of derived numbers."""
    examples = sum(shard.rows for shard in manifest.shards if shard.split == "train") // manifest.sampled_epochs
    per_rank = config.global_batch // world.world_size
    in_step = (
        f"in place, averaged every {config.sync_every} steps ({config.sync_every * per_rank:,} rows a rank)"
        if config.in_place
        else "gradients averaged every step"
    )
    threads = f"{torch.get_num_threads()} thread(s) a rank"
    if team and team.size < torch.get_num_threads():
        threads += f", of which dim {config.dim} employs {team.size}"
    return "\n".join(
        [
            f"{config.data}: {examples:,} examples an epoch, {manifest.sampled_epochs} sampled epoch(s), "
            f"vocabulary of {manifest.vocab_size:,}",
            f"global batch {config.global_batch:,} = {world.world_size} rank(s) x {per_rank:,} rows, "
            f"{config.epochs} epochs, {total_steps(config, manifest, world.world_size):,} steps, {in_step}",
            f"{config.optimizer}, lr {config.lr:g}, dim {config.dim}, on {device}, {threads}",
        ]
    )


def describe(world: World, device: torch.device) -> dict[str, str | int]:
    return {"world_size": world.world_size, "device": str(device), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
