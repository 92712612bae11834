"""Trains word vectors on a dataset that prepare wrote.

    torchrun training/train.py --nproc 4                          4 processes on this machine
    torchrun --nproc-per-node 4 training/train.py                 the same
    python training/train.py --nproc 4                            the same
    torchrun --nnodes 2 --nproc-per-node 8 ... training/train.py  many machines, as torchrun has it

B rows of a rank's batch, V words, D dimensions.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    # Run as a script: the project's root belongs on the path, this folder does not.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Threads that wait should sleep: on a machine that does anything else, spinning makes a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.shared.cli import QUIET, end_if_nobody_reads
from pipeline.shared.errors import InputError, tell
from training.distributed import (
    TERMINATED,
    RankError,
    Sigterm,
    World,
    be_deterministic,
    check_device,
    choose_device,
    joined,
    launched,
    leave,
    needs_spawn,
    spawn,
    world_size_with,
)
from training.model.batch import Batch
from training.model.kernels.columns import is_finite
from training.model.kernels.threads import Team, num_cores
from training.model.schedule import linear_decay
from training.model.skip_gram import SkipGram
from training.model.steps import Step, finite, make_step
from training.reading.epochs import cache_of, epochs_of, shards_of, stream_of, total_steps
from training.reading.petastorm_stream import check_petastorm
from training.reading.plan import Position
from training.runs.checkpoint import Checkpoint, CheckpointError, Writer, read, steps
from training.runs.metrics import Meter, Metrics, Moment
from training.runs.progress import Progress, candidates, check_same_run, differences, record_of
from training.runs.run_folder import check_free, claim, current, finish, owned, summary_of, write_pages, write_vectors
from training.runs.tensorboard import Board, check_board
from training.runs.warm_start import Start, read_start, warm_start
from training.train_config import AUTO, TrainConfig, parse
from training.vectors.run_files import REPORT


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
            tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        pass  # and out of here, so that what spawn held is freed before the process ends
    if launched().local_rank == 0:
        tell("interrupted; there are no new vectors, --resume goes on from the last checkpoint")
    sys.exit(130)


def be_a_rank(config: TrainConfig) -> None:
    """Checks, on this machine, and trains as one rank."""
    world = launched()
    manifest = check_inputs(config, world.local_world_size)
    device = choose_device(config.device, world.local_rank)
    torch.set_num_threads(config.threads or max(1, num_cores() // world.local_world_size))
    if config.deterministic:
        be_deterministic()
    with joined(device) as world:
        try:
            has_ended = train(config, manifest, world, device)
        except ManifestError as error:
            raise RankError(f"rank {world.rank}: {error}") from None
        except BrokenPipeError:
            end_if_nobody_reads()
            raise
    leave(world, 0 if has_ended else TERMINATED)


def check_inputs(config: TrainConfig, ranks_here: int) -> Manifest:
    """The dataset's manifest, once all that training needs is there and the run's folder is free. Raises InputError."""
    device = check_device(config.device, ranks_here)
    config.check_kernel(device)
    if config.cache == "device" and device == "cpu":
        raise InputError.flag("cache", config.cache, "auto or none where no GPU is used")
    if config.reader == "petastorm":
        check_petastorm(config.data)
    if config.tensorboard:
        check_board()
    manifest = Manifest.load(config.data)
    manifest.check_files(config.data)
    if launched().is_first:
        check_free(config)
        start = read_start(config, manifest)[0] if config.init_from else None
        if config.resume is not None:
            check_same_run(current(config.output), config, manifest, device, start)
    if cache := cache_of(config):
        cache.prepare()
    return manifest


def train(config: TrainConfig, manifest: Manifest, world: World, device: torch.device) -> bool:
    """The run, from tables to files, in the order in which it happens; False when SIGTERM has ended it before."""
    with ExitStack() as held:
        sigterm = held.enter_context(Sigterm(world))
        if world.is_first:
            held.enter_context(owned(config.output))
        begun = read_checkpoint(config, world)
        progress = Progress.of(begun.record) if begun else Progress()
        begin = Position(progress.epoch, progress.step, progress.done)

        # The model: tables that are equal on every rank, and a step that keeps them so, or brings them together.
        model = SkipGram(manifest.vocab_size, config.dim, config.seed, config.in_place)
        start = Start.of(begun) if begun else warm_start(config, manifest, world, model)
        model.to(device)
        all_steps = total_steps(config, manifest, world.world_size, begin)
        step = make_step(config, model, manifest.config.negatives, all_steps, world)
        # Bits go by how many share the columns: on few cores, or with a small dim, fewer than were asked for.
        threads = step.team.size if step.team else torch.get_num_threads()
        how = {"world_size": world.world_size, "threads": threads, "kernel": config.kernel_on(device.type)}
        changes = list(differences(begun.record, how, config, step.world_size_invariant)) if begun else []
        if begun:
            step.load_state_dict(begun.state)
            step.write_back()
        if start and progress.epoch < config.freeze_epochs:
            step.freeze(start.kept_K)

        # The run's folder, which is rank 0's.
        metrics = writer = None
        if world.is_first:
            folder = claim(config, manifest, goes_on=begun is not None)
            say(config, opening_lines(config, manifest, world, device, step.team, all_steps, start))
            if config.shard_cache and not cache_of(config):
                tell(f"warning: --shard-cache has no effect: {config.data} lies on this machine")
            if config.freeze_epochs and start and not start.growth.new:
                tell("warning: --freeze-epochs trains nothing: there is no new word; leave it out")
            if begun:
                say(config, "; ".join([f"goes on after step {progress.done:,}", *changes]))
            told_bytes = begun.record["metrics_bytes"] if begun else 0
            board = Board(folder, progress.done) if config.tensorboard else None
            metrics = Metrics(folder, all_steps, config.epochs, progress.done, told_bytes, config.verbosity, board)
            held.enter_context(closing(metrics))
            writer = held.enter_context(closing(Writer(folder, config.keep)))

        def save() -> None:
            progress.saved = progress.done
            if metrics and writer:
                metrics.flush()
                record = record_of(progress, config, manifest, how, start, metrics.num_bytes)
                kept = {"kept": start.kept_K} if start and progress.epoch < config.freeze_epochs else {}
                writer.save(progress.done, lambda: {**step.state_dict(), **kept}, record)

        del begun
        compile_s = warm_up(config, manifest, world, device)
        if world.is_first and compile_s > 2:
            say(config, f"compiled for this machine in {compile_s:.0f} s, once")
        run_epochs(config, manifest, world, device, model, step, progress, metrics, save, sigterm)
        if writer:
            writer.wait()
        if progress.epoch < config.epochs:
            world.largest(0)  # nobody ends before all is written, or a launcher would end rank 0 too
            if world.is_first:
                tell(f"stopped after step {progress.done:,}; --resume goes on from there")
            return False

        # The run's files, and the book's last line.
        if metrics:
            total = progress.now.since(Moment())
            numbers = {"loss": metrics.epochs[-1]["loss"], "mean_loss": total.loss, "steps": progress.done}
            grown = {"vocabulary_growth": asdict(start.growth)} if start else {}
            totals = {**asdict(total), **numbers, **how, "device": str(device), **grown}
            metrics.close()
            summary = summary_of(manifest, metrics.epochs, totals)
            center_VD = write_vectors(folder, config, model)
            write_pages(folder, config, manifest, center_VD, summary)
            finish(folder, config, summary)
            say(config, f"{config.output / REPORT} shows the run")
            print(f"loss {total.loss:.3f}, {total.tokens_per_s:.1f} tokens/sec on {device}", flush=True)
        return True


def run_epochs(
    config: TrainConfig,
    manifest: Manifest,
    world: World,
    device: torch.device,
    model: SkipGram,
    step: Step,
    progress: Progress,
    metrics: Metrics | None,
    save: Callable[[], None],
    sigterm: Sigterm,
) -> None:
    """Trains from ``progress`` on, which it moves, to the end, or to a step where ranks agree to stop."""
    num_examples = sum(shard.rows for epoch in range(config.epochs) for shard in shards_of(manifest, epoch))
    meter = Meter(device, world, progress.now)  # whose clock starts here
    stopping = False
    begin = Position(progress.epoch, progress.step, progress.done)
    with closing(epochs_of(config, manifest, world, device, step, begin)) as epochs:
        for batches in epochs:
            for batch, wait_s in timed(batches):
                lr = rate(config, progress.examples, num_examples)
                losses_B = step(batch, lr)
                meter.add(losses_B, batch.num_contexts_B, wait_s)
                progress.add(batch.num_steps, config.global_batch)
                if progress.done % config.log_every == 0:
                    progress.now = check_finite(meter.moment(step.is_finite()), progress, config)
                    if metrics:
                        metrics.step(progress.epoch, progress.done, progress.now.since(progress.last_line), lr)
                    progress.last_line = progress.now
                stopping = stopping or sigterm.agreed(progress.done)
                if (stopping or progress.is_due(config.checkpoint_every)) and step.in_sync:
                    if progress.saved != progress.done:
                        progress.now = check_finite(meter.moment(), progress, config)
                        save()
                    if stopping:
                        return
            step.sync()
            if progress.epoch + 1 == config.freeze_epochs:
                step.unfreeze()
            step.write_back()
            progress.now = check_finite(meter.moment(finite(model)), progress, config)
            if metrics:
                stretch = progress.now.since(progress.epoch_begin)
                metrics.epoch(progress.epoch, progress.done, stretch, progress.now.since(Moment()).loss)
            progress.end_epoch()
            save()
            if stopping:
                return


def read_checkpoint(config: TrainConfig, world: World) -> Checkpoint | None:
    """What the run goes on from, on every rank; None at the beginning. Rank 0 reads it."""
    if config.resume is None:
        return None
    run = current(config.output)
    found = None
    for step in candidates(run, config) if world.is_first else []:
        try:
            found = read(run, step)
            break
        except CheckpointError as error:
            if config.resume != AUTO or not any(earlier < step for earlier in steps(run)):
                raise
            tell(f"warning: {error}")
    elsewhere = world.largest(max(steps(run), default=0))
    record, state = world.of_first(found.record if found else None, found.state if found else {})
    if record is None and elsewhere:
        raise InputError(
            f"--resume {config.resume}: {run} has no checkpoint on the machine of rank 0, but one of step {elsewhere} "
            f"on another; share the folder between the machines, or let rank 0 run there"
        )
    return Checkpoint(record, state) if record is not None else None


def rate(config: TrainConfig, examples_seen: int, num_examples: int) -> float:
    """The learning rate: SGD's falls in place, by the run's examples that all ranks have seen; else it stays."""
    return linear_decay(config.lr, examples_seen, num_examples) if config.rate_falls else config.lr


def warm_up(config: TrainConfig, manifest: Manifest, world: World, device: torch.device) -> float:
    """Lets machine code compile, or load, by a step of empty rows on tables of two words, and one look at a shard; the
    seconds it took.
    """
    started = time.perf_counter()

    def step() -> None:
        model = SkipGram(2, config.dim, in_place=config.in_place).to(device)
        tiny = make_step(config, model, manifest.config.negatives, 1, world)
        tiny(Batch.empty(config.global_batch // world.world_size, manifest.max_len).to(device), 0.0)
        tiny.is_finite()
        tiny.write_back()
        all(is_finite(tensor) for tensor in tiny.state_dict().values())

    def look() -> None:
        if config.reader == "arrow":
            stream = stream_of(config, manifest, 0)
            for piece in stream.plan.of_rank(world.rank, world.world_size)[0][:1]:
                stream.read(piece)

    # One process compiles what the others wait for: so two of them begin with what the other does not need yet.
    for part in (look, step) if world.local_rank % 2 else (step, look):
        part()
    return time.perf_counter() - started


def check_finite(moment: Moment, progress: Progress, config: TrainConfig) -> Moment:
    """``moment``, the same on every rank. Raises InputError when training has diverged, before anything is saved."""
    if not moment.finite:
        found = "vectors that are no numbers" if math.isfinite(moment.loss) else f"a loss of {moment.loss}"
        good = f"; the last checkpoint, of step {progress.saved}, is good" if progress.saved else ""
        raise InputError(f"--lr {config.lr:g}: found {found} by step {progress.done}, expected numbers; lower it{good}")
    return moment


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


def say(config: TrainConfig, line: str) -> None:
    """On stdout at once, unless the user wants it quiet."""
    if config.verbosity != QUIET:
        print(line, flush=True)


def opening_lines(
    config: TrainConfig,
    manifest: Manifest,
    world: World,
    device: torch.device,
    team: Team | None,
    all_steps: int,
    start: Start | None,
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
    tables_mb = 2 * manifest.vocab_size * config.dim * 4 / 1e6
    warm = []
    if start:
        source = f" from {config.init_from}" if config.init_from else ""
        frozen = f"; these stay for {config.freeze_epochs} epoch(s)" if config.freeze_epochs else ""
        warm = [f"warm start{source}: {start.growth}{frozen}"]
    return "\n".join(
        [
            f"{config.data}: {examples:,} examples an epoch, {manifest.sampled_epochs} sampled epoch(s), "
            f"vocabulary of {manifest.vocab_size:,}",
            f"global batch {config.global_batch:,} = {world.world_size} rank(s) x {per_rank:,} rows, "
            f"{config.epochs} epochs, {all_steps:,} steps, {in_step}",
            f"{config.optimizer}, lr {config.lr:g}, dim {config.dim}, on {device}, {threads}",
            f"2 tables x {manifest.vocab_size:,} words x {config.dim} numbers x 4 bytes = {tables_mb:,.1f} MB",
            *warm,
        ]
    )


if __name__ == "__main__":
    main()
