"""A training step, for each way to keep the ranks in sync; ``make_step`` chooses one.

B rows of a rank's batch, W ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from training.distributed import SINGLE, World
from training.model.batch import Batch
from training.model.blocks import Blocks, BlockTables, blocks_of, read, spans
from training.model.cuda_graph import Graphed
from training.model.kernels import cpu, reference
from training.model.kernels.columns import OwnColumns
from training.model.kernels.group import Group
from training.model.kernels.lazy_adam import LazyAdam
from training.model.kernels.reference import InPlaceTrainer
from training.model.kernels.threads import Team
from training.model.memory import is_finite, page_aligned
from training.model.skip_gram import TABLES, LossFunction, RowLosses, SkipGram
from training.model.state import COPIED_BYTES, Slot, check_state, check_unknown
from training.train_config import IN_PLACE, TrainConfig

State = dict[str, Tensor | Blocks]
"""What a step saves, by name."""


class Step(ABC):
    """A rank's part of a step. Every rank makes the same calls."""

    max_steps = 1
    """How many steps one batch may hold."""

    team: Team | None = None
    """The threads that compute the step; None if torch's own threads do."""

    world_size_invariant = False
    """Whether the bits are the same for every number of ranks, if each rank has the same number of threads."""

    group: Group | None = None
    """The ranks that share the tables by columns. Those that share them with rank 0 all call ``state_dict`` and
    ``tables``, whose results rank 0 writes."""

    @property
    def in_sync(self) -> bool:
        """Whether all ranks have the same tables now. No checkpoint can be saved while they differ."""
        return True

    @abstractmethod
    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Trains on a batch. Returns the loss of each row, shape (B,), on one rank of a group; zeros on the others."""

    @abstractmethod
    def freeze(self, words_K: Tensor) -> None:
        """Freezes both rows of these words (ids, int64), bit for bit, until ``unfreeze``.

        Call it before a step has trained the words.
        """

    @abstractmethod
    def unfreeze(self) -> None:
        """Lets all rows train again. Call it between two epochs."""

    def sync(self) -> None:  # noqa: B027
        """Averages the ranks' tables if they differ. Call it at the end of every epoch."""

    @abstractmethod
    def tables(self) -> BlockTables:
        """The tables as they are now, on the CPU. All ranks of a group read all blocks."""

    @abstractmethod
    def is_finite(self, thorough: bool = False) -> bool:
        """Whether this rank's part of the tables contains neither NaN nor infinity.

        Unless ``thorough``, it may leave out what shows in the losses of the next steps.
        """

    @abstractmethod
    def state_dict(self) -> State:
        """Everything that the next step depends on, except the batch, on the CPU.

        Tensors are overwritten by the next call. Blocks are read before the next step, by all ranks of a group.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Restores what ``state_dict`` returned after ``step`` steps of the run. Call it before the first step.

        Keeps none of its tensors. The numbers of threads and ranks may differ from those of the run that saved it.
        Raises ValueError, and restores nothing, unless names, shapes, types and ranges are those of such a state.
        """


def make_step(
    config: TrainConfig,
    tables: BlockTables,
    negatives: int,
    num_steps: int,
    world: World,
    device: str = "cpu",
    group: Group | None = None,
) -> Step:
    """The step of ``config``, for a run of ``num_steps`` that begins with ``tables``.

    ``world``: the ranks of which each has a copy of the tables, or of its columns of them, which its ``group`` shares.
    """
    name = config.kernel_on(torch.device(device).type)  # of cuda:0 that of cuda
    own = OwnColumns(group, config.dim) if group and name != "cpu" else None
    if config.in_place:
        if name == "cpu":
            rest = group, config.deterministic, config.rows_between_meetings
            trainer: InPlaceTrainer = cpu.CpuTrainer(tables, negatives, config.optimizer, *rest)
        else:
            own_tables = tables if own is None else (own.of(tables[0]), own.of(tables[1]))
            arguments = own_tables, negatives, config.optimizer, device, config.dim, own.add_up if own else None
            trainer = kernel_of(name).trainer(*arguments, config.rows_between_meetings)
        lr_factor = world.world_size if IN_PLACE[config.optimizer].lr_times_ranks else 1
        return PeriodicAveraging(trainer, lr_factor, config.sync_every, world, own)
    if name == "cpu" and config.optimizer == "adam":
        adam = LazyAdam(tables, negatives, config.lr, num_steps, group, config.deterministic)
        return TouchedRows(adam, config.lanes, config.global_batch // config.lanes, world)
    function: Callable[..., Tensor] = kernel_of(name).row_losses
    if own:
        tables, function = (own.of(tables[0]), own.of(tables[1])), partial(function, add_up=own.add_up)
    model = SkipGram(tables[0].shape[0], tables[0].shape[1], tables=tables).to(device)
    optimizer = make_optimizer(config.optimizer, config.lr, model)
    captures = name == "cuda" and own is None
    return Gradients(model, RowLosses(model, function, negatives), optimizer, world, captures, own)


class Kernel(NamedTuple):
    """The function and the class that a module of training/model/kernels offers."""

    row_losses: LossFunction
    trainer: type[InPlaceTrainer]


def kernel_of(name: str) -> Kernel:
    """The kernel with this name. Triton is imported only for ``cuda``."""
    if name == "cuda":
        from training.model.kernels import cuda

        return Kernel(cuda.row_losses, cuda.CudaTrainer)
    if name == "cpu":
        return Kernel(cpu.row_losses, cpu.CpuTrainer)
    return Kernel(reference.row_losses, InPlaceTrainer)


class Gradients(Step):
    """Autograd, DistributedDataParallel and torch.optim, with any kernel."""

    def __init__(
        self,
        model: SkipGram,
        row_losses: RowLosses,
        optimizer: Optimizer,
        world: World,
        captures: bool = False,
        own: OwnColumns | None = None,
    ):
        """``captures``: capture the whole step as a CUDA graph if there is a single process. ``world``: see
        ``make_step``. ``own``: the columns that the model has, if it has not all.
        """
        self._model, self._optimizer, self._own = model, optimizer, own
        self._world_size = world_size = world.world_size
        self.group = own.group if own else None
        self._row_losses: nn.Module = row_losses
        if world_size > 1:
            self._row_losses = DistributedDataParallel(
                row_losses, process_group=world.channel, gradient_as_bucket_view=True
            )
        self._is_first = world_size > 1
        # A graph makes one launch a step instead of a dozen. Capturing DDP's collectives would need more care.
        self._captures = captures and world_size == 1
        self._graphed: Graphed | None = None
        self._hooks: list[RemovableHandle] = []
        self.copies = Copies()

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        if not self._captures:
            return self._step(*batch.tensors())
        if self._graphed is None:
            self._graphed = Graphed(self._step, batch.tensors(), [*self._model.parameters()], self._optimizer)
        return self._graphed(*batch.tensors())

    def _step(self, *batch: Tensor) -> Tensor:
        if self._is_first:
            # After its first backward, DDP splits the gradients into different messages, so that three or more ranks
            # sum them in a different order. An empty backward comes first, so that a resumed run sums as one that was
            # not interrupted.
            self._is_first = False
            self._row_losses(*map(torch.zeros_like, batch)).sum().backward()
        self._optimizer.zero_grad()
        losses_B: Tensor = self._row_losses(*batch)
        # The step's loss is the sum over the global batch, but DDP takes the mean over the ranks: hence W.
        (losses_B.sum() * self._world_size).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return _of_group(losses_B.detach(), self._own)

    def freeze(self, words_K: Tensor) -> None:
        """Zeroes the rows' gradients: then no optimizer moves the rows, and its state for them stays 0."""
        words_K = words_K.to(self._model.center.weight.device)
        for table in self._model.parameters():
            hook = table.register_hook(lambda gradient_VD: gradient_VD.index_fill(0, words_K, 0))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def unfreeze(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._graphed = None  # the hooks were captured

    def tables(self) -> BlockTables:
        center, context = (_whole(table, self._own) for table in tables_of(self._model).values())
        return center, context

    def is_finite(self, thorough: bool = False) -> bool:
        return all(map(is_finite, tables_of(self._model).values()))

    def state_dict(self) -> State:
        found: dict[str, Tensor] = tables_of(self._model)
        for index, values in self._optimizer.state_dict()["state"].items():
            found |= {f"{TABLES[index]}.{key}": value for key, value in values.items() if value is not None}
        if self._own is None:
            return self.copies.of(found)
        whole = {name: _whole(tensor, self._own) for name, tensor in found.items() if tensor.dim() == 2}
        return _saved(whole, {name: tensor for name, tensor in found.items() if name not in whole}, self)

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        check_state(state, self._slots(step))
        check_unknown({name: state[name] for name in TABLES})
        if self._own:
            state = {name: self._own.of(value).whole() if value.dim() == 2 else value for name, value in state.items()}
        for name, table_VD in tables_of(self._model).items():
            table_VD.copy_(state[name])
        found: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(TABLES))}
        for name, value in state.items():
            table, _, key = name.partition(".")
            if key:
                found[TABLES.index(table)][key] = value.clone()
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": found if any(found.values()) else {}, "param_groups": groups})

    def _slots(self, step: int) -> dict[str, Slot]:
        """The state after ``step`` steps. torch's optimizers make theirs in the first step."""
        slots = {}
        kept = {"Adam": ("exp_avg", "exp_avg_sq", "step"), "Adagrad": ("sum", "step")}
        for name, table_VD in tables_of(self._model).items():
            num_words, width = table_VD.shape
            shape = num_words, self._own.dim if self._own else width
            slots[name] = Slot(shape)
            for key in kept.get(type(self._optimizer).__name__, ()) if step else ():
                least = -torch.inf if key == "exp_avg" else 0
                slots[f"{name}.{key}"] = Slot((), least=0, most=step) if key == "step" else Slot(shape, least=least)
        return slots


def shared_group(team: Team | None) -> Group | None:
    """The team's group if it has several processes."""
    return team.group if team and team.group.size > 1 else None


class TouchedRows(Step):
    """Adam in machine code. Ranks exchange words and slopes, not gradients: 60 kB a rank for tables of 5 MB.

    Every rank then computes the gradients of the whole global batch, lane by lane, as a single process would. So all
    ranks have the same tables, bit for bit those of a single process with the same number of threads.
    """

    world_size_invariant = True

    def __init__(self, adam: LazyAdam, lanes: int, rows_per_lane: int, world: World):
        self._adam, self._world = adam, world
        self.team, self.group = adam.team, shared_group(adam.team)
        self._message: Tensor | None = None  # of all copies, made when it is first gathered
        self.max_steps = 50 if world.world_size == 1 else 1  # the overhead of a call is a tenth of a step or more
        places = [divmod(lane, world.world_size) for lane in range(lanes)]
        self._ranges = np.array([(rank, n * rows_per_lane, (n + 1) * rows_per_lane) for n, rank in places])

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        if self._world.world_size == 1:
            return self._adam.steps(batch.tensors(), batch.num_steps)
        mine, losses_B = self._adam.slopes(batch.tensors())
        self._adam.apply(self._gathered(mine), self._ranges, batch.contexts_negatives_BL.shape[1])
        return losses_B

    def _gathered(self, mine: Tensor) -> Tensor:
        """Every copy's input of ``apply``. The ranks of a machine with the same ``mine`` exchange a part of it each."""
        here = self.group.here if self.group else SINGLE
        if here.world_size == 1:
            return self._world.all_gather(mine)
        assert self.group
        if self._message is None:
            size = -(-len(mine) // here.world_size) * here.world_size
            message = self.group.array(self._world.world_size, size, dtype=np.int32)
            self._message = torch.from_numpy(message)
        length = self._message.shape[1] // here.world_size
        part = slice(here.rank * length, (here.rank + 1) * length)
        own = mine.new_zeros(length)
        own[: len(mine[part])] = mine[part]
        self.group.barrier()  # now all have applied the last message
        self._message[:, part] = self._world.all_gather(own)
        self.group.barrier()
        return self._message

    def freeze(self, words_K: Tensor) -> None:
        self._adam.freeze(words_K.numpy())

    def unfreeze(self) -> None:
        self._adam.unfreeze()

    def tables(self) -> BlockTables:
        return self._adam.blocks()

    def is_finite(self, thorough: bool = False) -> bool:
        """A row that diverged shows in the losses of the next step that computes its scores."""
        return not thorough or self._adam.is_finite()

    def state_dict(self) -> State:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        self._adam.load_state_dict(state, step)


class PeriodicAveraging(Step):
    """Copies of the tables are trained in place, and averaged every ``sync_every`` steps (local SGD).

    Each rank has a copy, or its columns of its group's copy. A single copy is never averaged.
    """

    def __init__(
        self, trainer: InPlaceTrainer, lr_factor: int, sync_every: int, world: World, own: OwnColumns | None = None
    ):
        """``trainer`` trains at ``lr_factor`` times the learning rate. ``world``: see ``make_step``. ``own``: the
        columns that the trainer has, unless it has all or divides them itself.
        """
        self._trainer, self._factor, self._own = trainer, lr_factor, own
        self._every, self._world = sync_every, world
        self.team, self.group = trainer.team, own.group if own else trainer.group
        self._since = 0
        self.copies = Copies()

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        losses_B = _of_group(self._trainer.update(batch.tensors(), lr * self._factor), self._own)
        self._since += 1
        if self._since == self._every:
            self._average()
        return losses_B

    def freeze(self, words_K: Tensor) -> None:
        frozen_V = torch.zeros(self._trainer.num_words, dtype=torch.bool)
        frozen_V[words_K] = True
        self._trainer.frozen_V = frozen_V.to(self._trainer.parts()[0].device)

    def unfreeze(self) -> None:
        self._trainer.frozen_V = None

    def sync(self) -> None:
        if self._since:
            self._average()

    def tables(self) -> BlockTables:
        center, context = (_whole(table, self._own) for table in self._trainer.blocks())
        return center, context

    def is_finite(self, thorough: bool = False) -> bool:
        return self._trainer.is_finite()

    @property
    def in_sync(self) -> bool:
        return self._world.world_size == 1 or self._since == 0

    def state_dict(self) -> State:
        small = {**self._trainer.state, "since": torch.tensor(self._since)}
        return _saved(dict(zip(TABLES, self.tables(), strict=True)), small, self)

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        check_state(state, self._slots())
        check_unknown({name: state[name] for name in TABLES})
        center, context = (self._own.of(state[name]) if self._own else state[name] for name in TABLES)
        self._trainer.load((center, context), state)
        self._since = int(state["since"])

    def _slots(self) -> dict[str, Slot]:
        num_words, dim = self._trainer.num_words, self._trainer.dim
        tables = {name: Slot((num_words, dim)) for name in TABLES}
        state = {name: Slot((num_words,), least=0) for name in self._trainer.state_names}
        return {**tables, **state, "since": Slot((), torch.int64, 0, self._every - 1)}

    def _average(self) -> None:
        self._since = 0
        if self._world.world_size == 1:
            return
        frozen_V = self._trainer.frozen_V
        for part in self._trainer.parts():
            for rows in spans(part.shape[1]):
                own = part[:, rows]
                mean = self._world.all_reduce(own / self._world.world_size)
                if frozen_V is not None:  # the mean of three equal numbers may differ from them by a bit
                    mean[:, frozen_V[rows]] = own[:, frozen_V[rows]]
                own.copy_(mean)


def _of_group(losses_B: Tensor, own: OwnColumns | None) -> Tensor:
    """The losses on one of the ranks that all have them, zeros on the others: ranks' losses are added up."""
    return losses_B if own is None or own.group.member == own.group.size - 1 else torch.zeros_like(losses_B)


def _whole(table: Tensor | Blocks, own: OwnColumns | None) -> Blocks:
    """The table, of which a rank has all columns or its ``own``, on the CPU."""
    blocks = blocks_of(table)
    return own.whole(blocks) if own else Blocks(blocks.shape, partial(_on_cpu, blocks))


def _on_cpu(table: Blocks) -> Iterator[Tensor]:
    return map(Tensor.cpu, table.blocks())


def _saved(tables: dict[str, Blocks], others: dict[str, Tensor], step: "Gradients | PeriodicAveraging") -> State:
    """A state as ``state_dict`` returns it: large tables as blocks, small ones copied on the rank that saves them."""
    if sum(table.nbytes for table in tables.values()) > COPIED_BYTES:
        return {**tables, **step.copies.of(others)}
    if step.group and step.group.member:
        read(tables)
        return {}
    return step.copies.of({**tables, **others})


def make_optimizer(name: str, lr: float, model: SkipGram) -> Optimizer:
    """torch's dense optimizer over both tables, in its fused form."""
    kinds: dict[str, Callable[..., Optimizer]] = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }
    options: dict[str, Any] = {"lr": lr, "fused": True}
    if name == "adam" and model.center.weight.is_cuda:
        options["capturable"] = True
    return kinds[name](model.parameters(), **options)


class Copies:
    """Copies of tensors on the CPU, in reused memory: allocating new memory takes longer than copying."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor | Blocks]) -> State:
        for name, tensor in tensors.items():
            if name not in self._kept:
                self._kept[name] = page_aligned(*tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, Tensor):
                self._kept[name].copy_(tensor)
            else:
                for rows, block_BD in zip(spans(tensor.shape[0]), tensor.blocks(), strict=True):
                    self._kept[name][rows] = block_BD
        return dict(self._kept)


def tables_of(model: SkipGram) -> dict[str, Tensor]:
    return {name: table.detach() for name, table in zip(TABLES, model.parameters(), strict=True)}
