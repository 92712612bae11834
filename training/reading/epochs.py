"""The batches of a run's epochs, on its device, from the step at which the run begins."""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import torch

from pipeline.dataset.manifest_file import Manifest, ShardInfo
from pipeline.shared.storage import Location
from training.model.batch import Batch
from training.model.limits import share_of_cores
from training.model.steps import Step
from training.reading.device_feed import KeptRows, can_keep, copied
from training.reading.petastorm_stream import num_steps as petastorm_steps
from training.reading.petastorm_stream import petastorm_epochs, shares_of_epoch
from training.reading.plan import EpochPlan, num_steps, plan_epoch
from training.reading.shard_cache import ShardCache
from training.reading.stream import ArrowStream, read_epochs
from training.run import Position, Run
from training.train_config import TrainConfig


def epochs_of(run: Run, step: Step, begin: Position) -> Generator[Iterator[Batch], None, None]:
    """For each epoch, this rank's batches on its device, in the plan's order, from ``begin`` on.

    The ranks of a group have the same batches, as if they were one rank.
    """
    config, manifest, world, device = run.config, run.manifest, run.world, run.device
    copies = step.group.copies if step.group else world
    numbers, rank = range(begin.epoch, config.epochs), (copies.rank, copies.world_size)

    def stream(epoch: int) -> ArrowStream:
        return stream_of(config, manifest, epoch, begin.step if epoch == begin.epoch else 0)

    if keeps_rows(config, manifest, device):
        kept: dict[int, KeptRows] = {}
        for epoch in numbers:
            read, sampled = stream(epoch), epoch % manifest.sampled_epochs
            if sampled not in kept:
                kept[sampled] = KeptRows(read.read, read.shards, manifest.row_group_rows, manifest.max_len, device)
            yield kept[sampled].batches(read.plan, *rank)
        return
    if config.reader == "petastorm":
        folder, shape = Path(config.data), (config.global_batch, *rank)
        reading = petastorm_epochs(folder, manifest, config.seed, numbers, *shape, begin.step)
    else:
        # A batch of several steps ends where a line of metrics.jsonl, a checkpoint or an evaluation is due.
        at_once = math.gcd(step.max_steps, config.log_every, config.checkpoint_every or 0, config.evaluate_every or 0)
        cores_taken = torch.get_num_threads() >= share_of_cores(world)
        if step.group:
            cores_taken = bool(step.group.agreed(cores_taken))
        reading = read_epochs(
            stream, numbers, *rank, at_once, step.team if cores_taken else None, begin.done, step.group
        )
    with closing(reading) as epochs:
        for batches in epochs:
            yield copied(batches, device) if device.type == "cuda" else batches


def keeps_rows(config: TrainConfig, manifest: Manifest, device: torch.device) -> bool:
    """Whether the rows are kept on the device after their first use."""
    if config.cache != "auto" or device.type == "cpu" or config.reader == "petastorm":
        return config.cache == "device"
    num_rows = sum(shard.rows for shard in manifest.shards if shard.split == "train")
    return config.epochs > manifest.sampled_epochs and can_keep(
        num_rows, manifest.max_len, torch.cuda.get_device_properties(device).total_memory
    )


def stream_of(config: TrainConfig, manifest: Manifest, epoch: int, step: int = 0) -> ArrowStream:
    """The stream of the epoch from ``step`` on. Earlier rows are not read."""
    plan = plan_of(config, manifest, epoch).after(step)
    return ArrowStream(config.data, manifest, shards_of(manifest, epoch), plan, cache_of(config))


def cache_of(config: TrainConfig) -> ShardCache | None:
    """The local shard cache; None if the dataset is local or no cache is set."""
    if config.shard_cache is None or config.shard_cache_bytes is None or Location.of(config.data).local:
        return None
    return ShardCache(config.shard_cache, config.shard_cache_bytes)


def shards_of(manifest: Manifest, epoch: int) -> tuple[ShardInfo, ...]:
    """The shards that epoch ``epoch`` reads: sampled epochs are used in turn."""
    return manifest.select(epoch % manifest.sampled_epochs)


def plan_of(config: TrainConfig, manifest: Manifest, epoch: int) -> EpochPlan:
    """The plan of the whole epoch, the same for every number of ranks."""
    shards = shards_of(manifest, epoch)
    return plan_epoch(shards, manifest.row_group_rows, config.seed, epoch, config.lanes, config.global_batch)


def total_steps(config: TrainConfig, manifest: Manifest, world_size: int, begin: Position) -> int:
    """The number of steps of the whole run, including those before ``begin``."""
    to_come = sum(steps_of(config, manifest, epoch, world_size) for epoch in range(begin.epoch, config.epochs))
    return begin.done - begin.step + to_come


def check_position(config: TrainConfig, manifest: Manifest, world_size: int, position: Position) -> None:
    """Raises ValueError unless a run passes through ``position``."""
    most = steps_of(config, manifest, position.epoch, world_size) if position.epoch < config.epochs else 0
    if position.epoch > config.epochs or position.step > most:
        raise ValueError(f"found step {position.step} of epoch {position.epoch}, expected step 0 to {most}")
    before = position.done - position.step
    expected = sum(steps_of(config, manifest, epoch, world_size) for epoch in range(position.epoch))
    if config.reader == "arrow" and before != expected:  # petastorm's steps depend on the number of ranks
        raise ValueError(f"found {before} steps before epoch {position.epoch}, expected {expected}")


def steps_of(config: TrainConfig, manifest: Manifest, epoch: int, world_size: int) -> int:
    """The number of steps of one epoch, the same on every rank."""
    shards = shards_of(manifest, epoch)
    if config.reader == "petastorm":
        shares = shares_of_epoch(shards, manifest.row_group_rows, config.seed, epoch, world_size)
        return petastorm_steps(shares, config.global_batch // world_size)
    return num_steps(sum(shard.rows for shard in shards), config.lanes, config.global_batch)
