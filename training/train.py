"""Trains word vectors on a dataset that prepare wrote.

    torchrun training/train.py --nproc 4                          4 processes on this machine
    torchrun --nproc-per-node 4 training/train.py                 the same
    python training/train.py --nproc 4                            the same
    torchrun --nnodes 2 --nproc-per-node 8 ... training/train.py  many machines, as torchrun has it

B rows of a rank's batch.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # Run as a script: the project's root belongs on the path, this folder does not.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Threads that wait should sleep: on a machine that does anything else, spinning makes a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.manifest import InputError, Manifest, ShardInfo
from training.config import TrainConfig, parse
from training.distributed import World, choose_device, joined, launched, needs_spawn, spawn, world_size_with
from training.kernels import reference
from training.metrics import Meter, Report
from training.model import RowLosses, SkipGram
from training.plan import EpochPlan, plan_epoch
from training.run_folder import check_free, claim, finish
from training.stream import ArrowStream, Batch


def main() -> None:
    """Parses and checks; then makes the ranks, or is one."""
    try:
        config, nproc = parse()
        config.check_world(world_size_with(nproc))
        if needs_spawn(nproc):
            check_inputs(config)
    except InputError as error:
        stop(error)
    try:
        if needs_spawn(nproc):
            assert nproc is not None
            spawn(nproc, be_a_rank, config)
        else:
            be_a_rank(config)
        return
    except KeyboardInterrupt:
        pass  # and out of here, so that what spawn held is freed before the process ends
    print("interrupted; there are no vectors", file=sys.stderr)
    sys.exit(130)


def be_a_rank(config: TrainConfig) -> None:
    """Checks once more, on this machine, and trains as one rank."""
    world = launched()
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // world.local_world_size))
    try:
        manifest = check_inputs(config)
        device = choose_device(config.device, world.local_rank)
    except InputError as error:
        stop(error)
    with joined(device) as world:
        try:
            train(config, manifest, world, device)
        except InputError as error:  # a shard that this rank alone has read
            print(f"error: rank {world.rank}: {error}", file=sys.stderr)
            sys.exit(2)


def stop(error: InputError) -> NoReturn:
    """Says what every rank of this machine has found, once."""
    if launched().local_rank == 0:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def check_inputs(config: TrainConfig) -> Manifest:
    """The dataset's manifest, once its files are there and the run's folder is free. Raises InputError."""
    manifest = Manifest.load(config.data)
    manifest.check_files(config.data)
    if launched().is_first:
        check_free(config.output, config.overwrite)
    return manifest


def train(config: TrainConfig, manifest: Manifest, world: World, device: torch.device) -> None:
    """The run, from tables to files, in the order in which it happens."""
    # The model: tables that are equal on every rank, and stay so.
    model = SkipGram(manifest.vocab_size, config.dim, config.seed).to(device)
    row_losses: nn.Module = RowLosses(model, reference.row_losses, manifest.config.negatives)
    if world.world_size > 1:
        row_losses = DistributedDataParallel(row_losses, gradient_as_bucket_view=True)
    optimizer = make_optimizer(config, model)

    # The order, known before anything is read.
    plans = [plan_of(config, manifest, epoch) for epoch in range(config.epochs)]
    num_steps = sum(plan.num_steps for plan in plans)

    # The run's folder, which is rank 0's.
    report = None
    if world.is_first:
        claim(config.output, config)
        print(opening_lines(config, manifest, world, device, num_steps), flush=True)
        report = Report(config.output, num_steps, config.epochs)

    # Training.
    meter = Meter(device)
    begin = last_line = now = meter.moment(world)
    step = 0
    for epoch, plan in enumerate(plans):
        epoch_begin = now
        stream = ArrowStream(config.data, manifest, shards_of(manifest, epoch), plan)
        for batch, wait_s in timed(stream.batches(world.rank, world.world_size)):
            batch = batch.to(device)
            optimizer.zero_grad()
            losses_B = row_losses(*batch.tensors())
            # The step's loss is the sum over the global batch, but DDP takes the mean over the ranks: hence W.
            (losses_B.sum() * world.world_size).backward()
            optimizer.step()
            meter.add(losses_B.detach(), batch.num_contexts_B, wait_s)
            step += 1
            if step % config.log_every == 0:
                now = meter.moment(world)
                if report:
                    report.step(epoch, step, now.since(last_line), config.learning_rate)
                last_line = now
        now = meter.moment(world)
        if report:
            report.epoch(epoch, step, now.since(epoch_begin), now.since(begin).loss)

    # The run's files, and the book's last line.
    if report:
        report.close()
        run = now.since(begin)
        totals = {**asdict(run), "loss": now.since(epoch_begin).loss, "mean_loss": run.loss, "steps": step}
        finish(config, manifest, model, report, {**totals, **describe(world, device)})
        print(f"loss {run.loss:.3f}, {run.tokens_per_s:.1f} tokens/sec on {device}")


def make_optimizer(config: TrainConfig, model: SkipGram) -> torch.optim.Optimizer:
    """The optimizer of ``config`` over both tables, dense, in torch's fused form."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[config.optimizer](model.parameters(), lr=config.learning_rate, fused=True)


def shards_of(manifest: Manifest, epoch: int) -> tuple[ShardInfo, ...]:
    """What epoch ``epoch`` reads: samplings are used in turn."""
    return manifest.select(epoch % manifest.sampled_epochs)


def plan_of(config: TrainConfig, manifest: Manifest, epoch: int) -> EpochPlan:
    shards = shards_of(manifest, epoch)
    return plan_epoch(shards, manifest.row_group_rows, config.seed, epoch, config.lanes, config.global_batch)


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


def opening_lines(config: TrainConfig, manifest: Manifest, world: World, device: torch.device, num_steps: int) -> str:
    """What is about to happen, with the arithmetic of derived numbers."""
    examples = sum(shard.rows for shard in manifest.shards if shard.split == "train") // manifest.sampled_epochs
    per_rank = config.global_batch // world.world_size
    return "\n".join(
        [
            f"{config.data}: {examples:,} examples an epoch, {manifest.sampled_epochs} sampled epoch(s), "
            f"vocabulary of {manifest.vocab_size:,}",
            f"global batch {config.global_batch} = {world.world_size} rank(s) x {per_rank} rows, "
            f"{config.epochs} epochs, {num_steps:,} steps",
            f"{config.optimizer}, lr {config.learning_rate:g}, dim {config.dim}, on {device}, "
            f"{torch.get_num_threads()} thread(s) a rank",
        ]
    )


def describe(world: World, device: torch.device) -> dict[str, str | int]:
    return {"world_size": world.world_size, "device": str(device), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
