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
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    # Run as a script: the project's root belongs on the path, this folder does not.
    # PYTHONSAFEPATH leaves this folder out.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]
    # OpenMP's waiting threads should sleep: on a busy machine, spinning makes a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # When a peer is lost, we say so in a line; torch would add its stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.shared.cli import command, end_if_nobody_reads
from pipeline.shared.errors import InputError, tell
from training.distributed import (
    RankError,
    World,
    be_deterministic,
    check_device,
    choose_device,
    joined,
    launched,
    leave,
)
from training.judging.heldout import NOTHING_HELD_OUT
from training.model.batch import Batch
from training.model.blocks import initial_tables
from training.model.kernels.group import Group
from training.model.limits import share_of_cores
from training.model.memory import check_memory
from training.model.schedule import linear_decay
from training.model.steps import Step, make_step
from training.reading.epochs import cache_of, check_position, epochs_of, shards_of, stream_of, total_steps
from training.reading.petastorm_stream import check_petastorm
from training.run import Run
from training.runs.heldout_loss import HeldoutLoss
from training.runs.metrics import Meter, Moment
from training.runs.progress import Progress, check_same_run, differences, read_checkpoint
from training.runs.recorder import SLOW_S, NullRecorder, Recorder, opening_lines
from training.runs.run_folder import active_folder, check_free, locked_folder
from training.runs.tensorboard import check_board
from training.runs.warm_start import read_start, warm_start
from training.spawning import needs_spawn, spawn, world_size_with
from training.stopping import StopSignal
from training.train_config import OF_A_MACHINE, TrainConfig, parse


@command()
def main() -> None:
    """Parses and checks, then starts the ranks or is one of them. Prints an InputError once per machine."""
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
        if isinstance(error, RankError) or launched().local_rank == 0:
            tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        pass  # report after this block: the exception keeps spawn's objects alive, and they must be freed before exit
    if launched().local_rank == 0:
        tell("interrupted; there are no new vectors, --resume goes on from the last checkpoint")
    sys.exit(130)


def be_a_rank(config: TrainConfig) -> None:
    """Repeats the checks on this machine, and trains as one rank."""
    world = launched()
    manifest = check_inputs(config, world.local_world_size)
    device = choose_device(config.device, world.local_rank)
    if device.type == "cuda":
        group_size = config.group_size_of("cuda", world.world_size, world.local_world_size)
        check_memory(config, manifest.vocab_size, 1, group_size, torch.cuda.mem_get_info(device)[0])
    if config.deterministic:
        be_deterministic()
    with joined(device, config.join_timeout) as world:
        torch.set_num_threads(config.threads or max(1, int(share_of_cores(world))))
        check_same(config, manifest, device.type, world)
        check_machines(config, device.type, world)
        try:
            exit_code = train(Run(config, manifest, world, device))
        except ManifestError as error:
            raise RankError(f"rank {world.rank}: {error}") from None
        except BrokenPipeError:
            end_if_nobody_reads()
            raise
    leave(world, exit_code)


def check_same(config: TrainConfig, manifest: Manifest, device: str, world: World) -> None:
    """Raises InputError, on every rank, unless all have the same dataset, and the same settings where these matter."""
    settings = {name: value for name, value in asdict(config).items() if name not in OF_A_MACHINE}
    mine = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    mine |= {"dataset": manifest.dataset_id, "device": device}
    first, _ = world.broadcast(mine, {})
    others = [name for name in mine if mine[name] != first[name]]
    text = "".join(f"found {name} {mine[name]!s:.40}, expected {first[name]!s:.40}" for name in others[:1])
    found = world.all_gather(torch.tensor([*text.encode()[:200].ljust(200)], dtype=torch.uint8))
    for rank, row in enumerate(found.tolist()):
        if difference := bytes(row).decode(errors="replace").strip():
            remedy = "start all machines with the same command"
            raise InputError(f"rank {rank}: {difference}, as rank 0 has it; {remedy}")


def check_machines(config: TrainConfig, device: str, world: World) -> None:
    """Raises InputError, on every rank, if columns are to be shared and machines have unequal numbers of ranks."""
    sizes = sorted(set(Counter(world.first_here).values()))
    here = world.local_world_size
    if sizes == [1] and here > 1 and config.group_size_of(device, world.world_size, here) > 1:
        found = "found ranks that are not numbered machine by machine, expected those of a machine in a row"
        raise InputError(f"RANK: {found}, to share tables by columns; or take --sharding replicated")
    if len(sizes) > 1 and any(config.group_size_of(device, world.world_size, size) > 1 for size in sizes):
        found = f"found {' and '.join(map(str, sizes))} processes on a machine, expected as many on each"
        raise InputError(f"machines: {found}, to share tables by columns; or take --sharding replicated")


def check_inputs(config: TrainConfig, ranks_here: int) -> Manifest:
    """The dataset's manifest. Raises InputError if training lacks anything, or the run's folder is taken."""
    device = check_device(config.device, ranks_here)
    config.check_kernel(device)
    world = launched()
    num_nodes = world.world_size // world.local_world_size
    group_size = config.group_size_of(device, num_nodes * ranks_here, ranks_here)
    if config.cache == "device" and device == "cpu":
        raise InputError.flag("cache", config.cache, "auto or none where no GPU is used")
    if config.reader == "petastorm":
        check_petastorm(config.data)
    if config.tensorboard:
        check_board()
    manifest = Manifest.load(config.data)
    for name in ("evaluate_every", "patience"):
        if getattr(config, name) and not manifest.select(0, "heldout"):
            raise InputError(f"--{name.replace('_', '-')} with --data {config.data}: {NOTHING_HELD_OUT}")
    manifest.check_files(config.data)
    if device == "cpu":
        check_memory(config, manifest.vocab_size, ranks_here, group_size)
    if launched().is_first:
        check_free(config)
        start = read_start(config, manifest)[0] if config.init_from else None
        if config.resume is not None:
            check_same_run(active_folder(config.output), config, manifest, device, start)
    if cache := cache_of(config):
        cache.prepare()
    return manifest


def train(run: Run) -> int:
    """The whole run, in the order in which it happens. Returns the exit code: 0 unless a signal stopped it."""
    config, world = run.config, run.world
    with ExitStack() as held:
        stop = held.enter_context(StopSignal(world))
        if world.is_first:
            held.enter_context(locked_folder(config.output))
        resumed = read_checkpoint(run)
        if resumed:
            with resumed.checking():
                check_position(config, run.manifest, world.world_size, resumed.record.progress.position)
        progress = resumed.record.progress if resumed else Progress()

        # A step that trains the tables. Each rank has some of their columns, or all of them, which are kept equal or
        # averaged now and then.
        tables = initial_tables(run.manifest.vocab_size, config.dim, config.seed, config.in_place)
        if resumed:
            start = resumed.start(run.manifest.vocab_size)
        else:
            start, tables = warm_start(run, tables)
        group = Group(world, run.group_size) if run.group_size > 1 else None
        if group:
            held.callback(group.close)
        copies = group.copies if group else world  # the ranks with other copies of what this one has
        num_steps = total_steps(config, run.manifest, world.world_size, progress.position)
        step = make_step(config, tables, run.manifest.config.negatives, num_steps, copies, str(run.device), group)
        del tables  # of a warm start they hold what was read
        # The threads that are really used: they decide the bits, and a small dim uses fewer than --threads.
        threads = step.team.here if step.team else torch.get_num_threads()
        kernel = config.kernel_on(run.device.type)
        execution = {
            "world_size": world.world_size,
            "threads": threads,
            "kernel": kernel,
            "sharding": "columns" if group else "replicated",
            "group_size": run.group_size,
        }
        changes = list(differences(resumed.record, execution, config, step.world_size_invariant)) if resumed else []
        if resumed:
            resumed.restore(step)
        if start and progress.epoch < config.freeze_epochs:
            step.freeze(start.kept_K)

        # What rank 0 alone writes and prints.
        recorder = NullRecorder()
        if world.is_first:
            recorder = Recorder(run, num_steps, execution, start, resumed)
        held.enter_context(closing(recorder))
        recorder.say(opening_lines(run, num_steps, step.team, start))
        recorder.warn_of_useless_settings(has_cache=cache_of(config) is not None)
        if resumed:
            recorder.say("; ".join([f"goes on after step {progress.done:,}", *changes]))
        del resumed  # it holds the tables
        compile_s = warm_up(run, copies)
        if compile_s > SLOW_S:
            recorder.say(f"compiled for this machine in {compile_s:.0f} s, once")

        is_done = run_epochs(run, step, progress, recorder, stop)
        recorder.wait()
        if not is_done:
            world.barrier()  # all wait for rank 0's checkpoint: a launcher that sees one rank end stops the others
            if world.is_first:
                tell(f"stopped after step {progress.done:,}; --resume goes on from there")
            return stop.exit_code
        recorder.finish(progress, step)
        return 0


def run_epochs(run: Run, step: Step, progress: Progress, recorder: NullRecorder, stop: StopSignal) -> bool:
    """Trains from ``progress`` on, and advances it, to the run's end, or to a step where the ranks agree to stop.

    Returns whether it is the end: that of the epochs, or of the patience.
    """
    config = run.config
    heldout = HeldoutLoss(run, step) if run.manifest.select(0, "heldout") else None

    def measure(tables_finite: bool = True) -> None:
        progress.now = check_finite(meter.moment(tables_finite), progress, config)

    def evaluate() -> None:
        if heldout:
            progress.evaluate(heldout())
            recorder.heldout(progress, step)

    def save() -> None:
        progress.saved = progress.done
        recorder.save(progress, step)

    num_examples = sum(shard.rows for epoch in range(config.epochs) for shard in shards_of(run.manifest, epoch))
    counts = step.group is None or step.group.member == 0
    meter = Meter(run.device, run.world, progress.now, counts)  # the run's clock starts here
    stopping = False
    if progress.is_out_of(config.patience):
        return True
    reading = epochs_of(run, step, progress.position)
    with closing(reading) as epochs:
        for batches in epochs:
            for batch, wait_s in timed(batches):
                lr = learning_rate(config, progress.examples, num_examples)
                losses_B = step(batch, lr)
                meter.add(losses_B, batch.num_contexts_B, wait_s)
                progress.add(batch.num_steps, config.global_batch)
                if progress.done % config.log_every == 0:
                    measure(step.is_finite())
                    recorder.step(progress, lr)
                    progress.last_line = progress.now
                if step.in_sync and progress.is_due(config.evaluate_every, progress.last_evaluated):
                    evaluate()
                    if progress.is_out_of(config.patience):
                        measure(step.is_finite(thorough=True))
                        recorder.epoch(progress)
                        save()
                        return True
                stopping = stopping or stop.agreed(progress.done)
                if (stopping or progress.is_due(config.checkpoint_every, progress.saved)) and step.in_sync:
                    if progress.saved != progress.done:
                        measure()
                        save()
                    if stopping:
                        return False
            step.sync()
            if progress.epoch + 1 == config.freeze_epochs:
                step.unfreeze()
            measure(step.is_finite(thorough=True))
            recorder.epoch(progress)
            if progress.last_evaluated != progress.done:
                evaluate()
            progress.end_epoch()
            save()
            if stopping or progress.is_out_of(config.patience):
                break
    return progress.epoch >= config.epochs or progress.is_out_of(config.patience)


def learning_rate(config: TrainConfig, examples_seen: int, num_examples: int) -> float:
    """In place, SGD's rate decays with the number of examples that all ranks have seen. Other rates are constant."""
    return linear_decay(config.lr, examples_seen, num_examples) if config.lr_decays else config.lr


def warm_up(run: Run, copies: World) -> float:
    """Compiles all machine code, or loads it, by one step of empty rows on two-word tables and by reading a few rows.

    ``copies``: see ``make_step``. Returns the seconds that it took.
    """
    started = time.perf_counter()
    config, manifest, world = run.config, run.manifest, run.world

    def step() -> None:
        tables = initial_tables(2, config.dim, in_place=config.in_place)
        tiny = make_step(config, tables, manifest.config.negatives, 1, copies, str(run.device))
        tiny(Batch.empty(config.global_batch // copies.world_size, manifest.max_len).to(run.device), 0.0)
        tiny.is_finite(thorough=True)
        tiny.state_dict()

    def read() -> None:
        if config.reader == "arrow":
            stream = stream_of(config, manifest, 0)
            for piece in stream.plan.of_rank(world.rank, world.world_size)[0][:1]:
                stream.read(piece)

    # Each function is compiled by one process while the others wait: odd ranks begin with the reader, even ranks with
    # the step.
    for part in (read, step) if world.local_rank % 2 else (step, read):
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
    """Each batch, with the seconds spent waiting for it."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


if __name__ == "__main__":
    main()
