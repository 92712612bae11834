"""Recorder: everything that a run writes and prints, which rank 0 alone does; the other ranks have a NullRecorder."""

from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import torch

from pipeline.shared.cli import QUIET
from pipeline.shared.errors import tell
from training.model.blocks import read
from training.model.kernels.cpu import ROWS_AT_ONCE
from training.model.kernels.threads import Team
from training.model.skip_gram import TABLES
from training.model.steps import Step
from training.run import Run
from training.runs.checkpoint import Writer
from training.runs.metrics import Metrics, Moment
from training.runs.progress import Progress, Resumed, record_of
from training.runs.run_folder import claim, finish, summary_of, write_best, write_pages, write_vectors, writing
from training.runs.tensorboard import Board
from training.runs.warm_start import KEPT, Start
from training.stopping import outliving_terminal
from training.train_config import width_for
from training.vectors.run_files import BEST, REPORT, is_finished

SLOW_S = 2
"""A compilation that takes longer is mentioned."""


class NullRecorder:
    """Records nothing: the recorder of every rank but 0. Its methods say when each is called."""

    def say(self, line: str) -> None:
        """Prints ``line``, unless the user wants quiet."""

    def warn_of_useless_settings(self, has_cache: bool) -> None:
        """Warns of settings that have no effect in this run; ``has_cache`` says whether a shard cache is in use."""

    def step(self, progress: Progress, lr: float) -> None:
        """After every ``log_every`` steps, once ``progress.now`` is up to date."""

    def epoch(self, progress: Progress) -> None:
        """At the end of an epoch, before ``progress.end_epoch``."""

    def heldout(self, progress: Progress, step: Step) -> None:
        """After an evaluation, once ``progress`` knows it. Writes the vectors of the lowest loss."""
        if progress.evaluated == progress.best:
            self._take_part(step)

    def save(self, progress: Progress, step: Step) -> None:
        """Starts to write a checkpoint. Raises CheckpointError when the previous one could not be written."""
        if step.group and step.group.index == 0:
            read(step.state_dict())

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk. Raises CheckpointError when it could not be written."""

    def finish(self, progress: Progress, step: Step) -> None:
        """Writes vectors, report and summary, and prints the last line."""
        self._take_part(step)

    @staticmethod
    def _take_part(step: Step) -> None:
        """Reads the tables that rank 0 writes, if this rank shares them."""
        if step.group and step.group.index == 0:
            read(dict(zip(TABLES, step.tables(), strict=True)))

    def close(self) -> None:
        """Closes all files. Idempotent."""


class Recorder(NullRecorder):
    """Rank 0's: claims the run's folder, and writes metrics.jsonl, checkpoints, TensorBoard's files and the results."""

    def __init__(
        self, run: Run, num_steps: int, execution: dict[str, Any], start: Start | None, resumed: Resumed | None
    ):
        """``num_steps`` are the whole run's. ``execution`` says how it is computed: ranks, threads, kernel."""
        config = self._config = run.config
        self._run, self._execution, self._start = run, execution, start
        with writing(config.output):
            self._folder = claim(run, resumed=resumed is not None)
        if resumed and resumed.record.progress.best and not is_finished(self._folder / BEST):
            tell(f"warning: {self._folder / BEST} is gone, and with it the vectors of the lowest held-out loss so far")
        done, num_bytes = (resumed.step, resumed.record.metrics_bytes) if resumed else (0, 0)
        with ExitStack() as held:
            board = held.enter_context(closing(Board(self._folder, done))) if config.tensorboard else None
            self._metrics = held.enter_context(
                closing(Metrics(self._folder, num_steps, config.epochs, done, num_bytes, config.verbosity, board))
            )
            self._checkpoints = held.enter_context(closing(Writer(self._folder, config.keep)))
            self._held = held.pop_all()

    def say(self, line: str) -> None:
        if self._config.verbosity != QUIET:
            with outliving_terminal():
                print(line, flush=True)

    def warn_of_useless_settings(self, has_cache: bool) -> None:
        if self._config.shard_cache and not has_cache:
            tell(f"warning: --shard-cache has no effect: {self._config.data} lies on this machine")
        if self._config.freeze_epochs and self._start and not self._start.growth.new:
            tell("warning: --freeze-epochs trains nothing: there is no new word; leave it out")

    def step(self, progress: Progress, lr: float) -> None:
        with outliving_terminal():
            self._metrics.step(progress.epoch, progress.done, progress.now.since(progress.last_line), lr)

    def epoch(self, progress: Progress) -> None:
        of_epoch, so_far = progress.now.since(progress.epoch_begin), progress.now.since(Moment())
        with outliving_terminal():
            self._metrics.epoch(progress.epoch, progress.done, of_epoch, so_far.loss)

    def heldout(self, progress: Progress, step: Step) -> None:
        assert progress.evaluated
        assert progress.best
        with outliving_terminal():
            self._metrics.heldout(progress.evaluated, progress.best)
        if progress.evaluated == progress.best:
            with writing(self._config.output):
                write_best(self._folder, step.tables(), asdict(progress.best))

    def save(self, progress: Progress, step: Step) -> None:
        start, frozen = self._start, {}
        if start and progress.epoch < self._config.freeze_epochs:
            frozen = {KEPT: start.kept_K}
        record = record_of(progress, self._run, self._execution, start, self._metrics.num_bytes)
        self._checkpoints.save(progress.done, lambda: {**step.state_dict(), **frozen}, record)

    def wait(self) -> None:
        self._checkpoints.wait()

    def finish(self, progress: Progress, step: Step) -> None:
        total = progress.now.since(Moment())
        totals = {
            **asdict(total),
            "loss": self._metrics.epochs[-1]["loss"],
            "mean_loss": total.loss,
            "steps": progress.done,
            **self._execution,
            "device": str(self._run.device),
            **({"vocabulary_growth": asdict(self._start.growth)} if self._start else {}),
        }
        if progress.evaluated and progress.best:
            stopped_early = progress.epoch < self._config.epochs
            totals["heldout"] = {
                "last": asdict(progress.evaluated),
                "best": asdict(progress.best),
                "stopped_early": stopped_early,
            }
            if stopped_early:
                since = f"no lower held-out loss in {progress.since_best} measurement(s)"
                self.say(f"stops in epoch {progress.evaluated.epoch + 1} of {self._config.epochs}: {since}")
        with outliving_terminal():
            self._metrics.close()
        summary = summary_of(self._run.manifest, self._metrics.epochs, totals)
        with writing(self._config.output):
            center_VD = write_vectors(self._folder, step.tables())
            write_pages(self._folder, self._run, center_VD, summary)
            finish(self._folder, self._config.output, summary)
        if progress.best and is_finished(self._config.output / BEST):
            best = f"{progress.best.loss:.4f}, of epoch {progress.best.epoch + 1}"
            self.say(f"{self._config.output / BEST} has the vectors of the lowest held-out loss, {best}")
        self.say(f"{self._config.output / REPORT} shows the run")
        with outliving_terminal():
            print(f"loss {total.loss:.3f}, {total.tokens_per_s:.1f} tokens/sec on {self._run.device}", flush=True)

    def close(self) -> None:
        self._held.close()


def opening_lines(run: Run, num_steps: int, team: Team | None, start: Start | None) -> str:
    """What is about to happen, with the arithmetic of derived numbers."""
    config, manifest, world_size, group_size = run.config, run.manifest, run.world.world_size, run.group_size
    examples = sum(shard.rows for shard in manifest.shards if shard.split == "train") // manifest.sampled_epochs
    num_copies = world_size // group_size
    each = config.global_batch // num_copies
    ranks = f"{num_copies} rank(s)"
    in_step = "gradients averaged every step"
    if config.in_place:
        in_step = f"in place, averaged every {config.sync_every} steps ({config.sync_every * each:,} rows a rank)"
    if group_size > 1:
        ranks = f"{num_copies} group(s) of {group_size} ranks"
        threads_each = team.here if team else 1
        most = width_for(config.dim, group_size * threads_each) * threads_each
        of_group = " of its group" if num_copies > 1 else ""
        in_step = f"each rank trains all rows{of_group} in its columns of the tables, {most} or fewer"
        if num_copies > 1:
            often = f"tables averaged every {config.sync_every} steps" if config.in_place else "gradients every step"
            in_step += f"; between groups {often}"
        if (num_machines := group_size // run.world.local_world_size) > 1:
            in_step += f"; {num_machines} machines exchange their shares of the scores, 4 bytes each"
            if config.in_place:
                in_step += f", once for {config.rows_between_meetings or ROWS_AT_ONCE} rows (--rows-between-meetings)"
    elif config.sharding == "auto" and world_size > 1:
        obstacle = config.columns_obstacle(run.device.type, world_size, run.world.local_world_size)
        in_step += f"; whole tables on each rank: {obstacle}, to share them by columns" if obstacle else ""
    threads = f"{torch.get_num_threads()} thread(s) a rank"
    if team and team.here < torch.get_num_threads():
        threads += f", of which dim {config.dim} employs {team.here}"
    tables_mb = 2 * manifest.vocab_size * config.dim * 4 / 1e6
    lines = [
        f"{config.data}: {examples:,} examples an epoch, {manifest.sampled_epochs} sampled epoch(s), "
        f"vocabulary of {manifest.vocab_size:,}",
        f"global batch {config.global_batch:,} = {ranks} x {each:,} rows, "
        f"{config.epochs} epochs, {num_steps:,} steps, {in_step}",
        f"{config.optimizer}, lr {config.lr:g}, dim {config.dim}, on {run.device}, {threads}",
        f"2 tables x {manifest.vocab_size:,} words x {config.dim} numbers x 4 bytes = {tables_mb:,.1f} MB",
    ]
    if start:
        source = f" from {config.init_from}" if config.init_from else ""
        frozen = f"; these stay for {config.freeze_epochs} epoch(s)" if config.freeze_epochs else ""
        lines.append(f"warm start{source}: {start.growth}{frozen}")
    return "\n".join(lines)
