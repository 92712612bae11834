"""Rungs: whole trainings, as training/train.py has them, beside others whose losses or bits they must have.

A run on the device is one with ``--device auto``. An epoch of the corpus ``steps`` has as many steps as
``Sizes.num_steps`` says; ``--log-every 1`` writes the loss of each.
"""

import json
import math
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors.numpy import load_file
from torch.nn.parallel import DistributedDataParallel

from benchmarks.ladder.child import stand_in
from benchmarks.ladder.climb import CHILD, Found, Work, begin, said
from benchmarks.ladder.kernels import Shape, batch_of, tables_of, there
from benchmarks.ladder.place import STEPS, place_of
from benchmarks.measuring.corpora import dataset
from pipeline.dataset.manifest_file import Manifest
from training import train
from training.distributed import SINGLE
from training.model.batch import Batch
from training.model.blocks import blocks_of, initial_tables
from training.model.kernels import cuda
from training.model.skip_gram import RowLosses, SkipGram
from training.model.steps import Gradients, make_optimizer, make_step
from training.reading.device_feed import copied
from training.reading.epochs import epochs_of, stream_of
from training.run import Position, Run
from training.train_config import SYNCHRONOUS, TrainConfig

Losses = npt.NDArray[np.float64]
"""Of the steps of a run."""

LN_2 = math.log(2)
"""The loss before the first step."""

MOST_APART = 0.0006
"""Of the mean loss of an epoch on the GPU and on the CPU: three standard deviations over seeds of an epoch's loss."""

MODES: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "sgd": {"optimizer": "sgd", "lr": 1.0},
    "adagrad": {"optimizer": "adagrad"},
    "sgd in place": {"sync_every": 4, "lr": 0.1},
    "rowwise_adagrad in place": {"sync_every": 4, "optimizer": "rowwise_adagrad"},
}
"""At rates with which 50 steps bring the losses far below ln 2, so that a step that does too little shows."""


def make_dataset(work: Work, name: str, folder: str, brought: str | None) -> Found:
    """A corpus's dataset: the one that was brought, or that an earlier climb has made, or a new one."""
    path = Path(brought) if brought else dataset(place_of(work).laws[name], Path(folder))
    return Found(f"{name}: {'; '.join(str(Manifest.load(path)).splitlines()[-3:])}", {"path": str(path)})


def config_of(work: Work, name: str, **others: Any) -> TrainConfig:
    """Of a run of the corpus ``steps``, in the folder ``name``."""
    place, data = place_of(work), work.datasets[STEPS]
    num_rows = Manifest.load(data).counts.examples
    lanes = place.sizes.lanes
    rows = -(-num_rows // (place.sizes.num_steps * lanes)) * lanes
    settings: dict[str, Any] = {
        "epochs": 1,
        "dim": place.sizes.dim,
        "log_every": 1,
        "tensorboard": False,
        "lanes": lanes,
    }
    settings |= {"global_batch": rows, "device": "auto", "kernel": place.kernel, "overwrite": True}
    return TrainConfig(data=data, output=work.folder / name, **{**settings, **others})


def trained(config: TrainConfig) -> Losses:
    """The losses of a run's steps. It has this process to itself."""
    return losses_in(trained_in(config))


def losses_in(output: Path) -> Losses:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if line["kind"] == "step"])


def modes(work: Work, mode: str) -> Found:
    """Losses of a mode on the device and on the CPU."""
    stand_in(place_of(work).stand_ins)
    return beside(trained(config_of(work, "ours", **MODES[mode])), of_cpu(work, mode), "the CPU's")


def of_cpu(work: Work, mode: str) -> list[Losses]:
    """What a mode's losses should be. In place, a run in turn, and one of as many rows at once as Triton has programs.

    A GPU's rows see some of the moves of those that train at the same time, so its losses are between the two.
    """
    on_cpu = {"device": "cpu", "kernel": "auto", **MODES[mode]}
    if "in place" not in mode:
        return [trained(config_of(work, "cpu", **on_cpu))]
    return [
        trained(config_of(work, f"cpu-{rows}", **on_cpu, rows_between_meetings=rows)) for rows in (1, cuda.ROWS_AT_ONCE)
    ]


def beside(ours: Losses, theirs: Sequence[Losses], whose: str) -> Found:
    """Raises AssertionError unless the mean loss is nearly that of another run, or between those of two."""
    sizes = {losses.size for losses in theirs}
    assert sizes == {ours.size}, f"found {ours.size} steps, expected {sizes}"
    low, high = (limit(losses.mean() for losses in theirs) for limit in (min, max))
    apart = max(0.0, low - ours.mean(), ours.mean() - high)
    text = f"{ours.size} steps from {ours[0]:.4f} to {ours[-1]:.4f}: mean loss {ours.mean():.5f}, {whose} "
    if len(theirs) == 1:
        text += f"{low:.5f}, {apart:.1e} apart; a step's at most {np.abs(ours - theirs[0]).max():.1e}"
    else:
        text += f"{theirs[0].mean():.5f} row by row, {theirs[1].mean():.5f} with {cuda.ROWS_AT_ONCE} rows at once"
    assert apart <= MOST_APART, f"{text}; found {apart:.2g} apart, expected at most {MOST_APART:g}"
    return Found(text, {"apart": float(apart)})


def trained_in(config: TrainConfig) -> Path:
    train.be_a_rank(config)
    return config.output


def tables_in(output: Path) -> npt.NDArray[np.float32]:
    found = load_file(output / "vectors.safetensors")
    return np.stack([found["center"], found["context"]])


def graphs(work: Work) -> Found:
    """Steps with a captured CUDA graph and without, with frozen words at first: the same bits.

    No word is in two rows of a batch, so that the order of a GPU's atomic additions changes no bit.
    """
    place = place_of(work)
    stand_in(place.stand_ins)
    for optimizer in SYNCHRONOUS:
        without, with_graph = (few_steps(work, optimizer, captures) for captures in (False, True))
        for ours, theirs in zip(with_graph, without, strict=True):
            assert torch.equal(ours, theirs), f"{optimizer}: found other bits with a CUDA graph than without"
    rehearsed = "; rehearsed without a graph" if place.rehearses else ""
    return Found(f"{', '.join(SYNCHRONOUS)}: the same losses, tables and state, to the bit{rehearsed}")


def few_steps(work: Work, optimizer: str, captures: bool) -> list[torch.Tensor]:
    """The losses of some steps, and the tables and the state after them."""
    place = place_of(work)
    rows, num_steps = place.sizes.graphed
    shape = Shape(rows, 2, 5, place.sizes.dim, 4 * rows * 24)
    center_VD, context_VD = tables_of(shape)
    model = SkipGram(shape.words, shape.dim, tables=(blocks_of(center_VD), blocks_of(context_VD))).to(place.device)
    made = make_optimizer(optimizer, SYNCHRONOUS[optimizer], model)
    step = Gradients(model, RowLosses(model, cuda.row_losses, shape.negatives), made, SINGLE, captures)
    step.freeze(torch.arange(1, shape.words, 3))
    losses = []
    for number in range(num_steps):
        if number == num_steps // 2:
            step.unfreeze()
        batch = Batch(*batch_of(shape, number, repeats=False)).to(torch.device(place.device))
        losses.append(step(batch, 0.0).clone().cpu())
    state = step.state_dict().values()
    return [*losses, *(value.clone() for value in state if isinstance(value, torch.Tensor))]


def cached(work: Work) -> Found:
    """Rows kept on the device, and rows copied there, are the stream's, while the device has other work to do."""
    place = place_of(work)
    config, device = config_of(work, "run", epochs=3), torch.device(place.device)
    manifest = Manifest.load(config.data)
    tables = initial_tables(manifest.vocab_size, config.dim)
    step = make_step(config, tables, manifest.config.negatives, 1, SINGLE, place.device)
    busy = torch.randn(512, 512, device=device)

    def read(cache: str) -> Iterator[list[torch.Tensor]]:
        """The batches of all epochs, of which each is valid only until the next one is asked for."""
        if cache == "streamed":  # epochs_of does the same where the device is a GPU
            streams = (stream_of(config, manifest, epoch) for epoch in range(config.epochs))
            epochs = (copied(stream.batches(0, 1), device) for stream in streams)
        else:
            kept = replace(config, cache="device")
            epochs = epochs_of(Run(kept, manifest, SINGLE, device), step, Position(0, 0, 0))
        for batches in epochs:
            for batch in batches:
                for _ in range(2 if place.rehearses else 50):
                    busy @ busy  # the device has other work, so that a copy which nobody waits for shows
                yield [tensor.clone() for tensor in batch.tensors()]

    expected = [
        [tensor.clone() for tensor in batch.tensors()]
        for epoch in range(config.epochs)
        for batch in stream_of(config, manifest, epoch).batches(0, 1)
    ]
    for cache in ("streamed", "device"):
        found = list(read(cache))
        assert len(found) == len(expected), f"{cache}: found {len(found)} batches, expected {len(expected)}"
        for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            for tensor, wanted in zip(ours, theirs, strict=True):
                assert torch.equal(tensor.cpu(), wanted), f"{cache}: found other rows in batch {number}"
    return Found(f"{len(expected)} batches of {config.epochs} epochs, streamed and kept: the stream's, to the bit")


def caches(work: Work) -> Found:
    """Runs with rows kept on the device and with rows copied there have the same losses."""
    stand_in(place_of(work).stand_ins)
    kept, streamed = (trained(config_of(work, cache, epochs=2, cache=cache)) for cache in ("device", "none"))
    return beside(kept, [streamed], "with --cache none")


# Several ranks


def one_rank(work: Work) -> Found:
    """One rank with the backend of GPUs: its collectives, and DistributedDataParallel around a step."""
    place = place_of(work)
    device = torch.device(place.device)
    store = dist.HashStore()  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if place.backend == "nccl" else place.backend
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    values = torch.arange(5.0, device=device)
    dist.all_reduce(values)
    assert values.tolist() == [0, 1, 2, 3, 4], f"found {values.tolist()} from all_reduce of one rank"
    shape = Shape(*place.sizes.shapes[2])
    batch, gradients = there(batch_of(shape), place), []
    for wraps in (False, True):
        center_VD, context_VD = tables_of(shape)
        model = SkipGram(shape.words, shape.dim, tables=(blocks_of(center_VD), blocks_of(context_VD))).to(device)
        losses: torch.nn.Module = RowLosses(model, cuda.row_losses, shape.negatives)
        if wraps:
            losses = DistributedDataParallel(losses, gradient_as_bucket_view=True)
        losses(*batch).sum().backward()
        gradients.append([table.grad for table in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()
    return Found(f"{place.backend}: all_reduce, and the gradients of DistributedDataParallel")


def ranks(work: Work, num_ranks: int, one_gpu: bool, way: str) -> Found:
    """Several ranks; each has a GPU of its own, and NCCL, or all share ``one_gpu`` by gloo."""
    place = place_of(work)
    stand_in(place.stand_ins)
    sharding, mode = way.split(", ")
    several = config_of(work, "several", sharding=sharding, **MODES[mode])
    run_ranks(work, several, (*place.stand_ins, *(["one_gpu"] if one_gpu else [])), num_ranks)
    found, expected = losses_in(several.output), of_cpu(work, mode)
    if sharding == "replicated" and several.in_place:  # copies that are averaged now and then: another algorithm
        assert found.mean() < LN_2 + MOST_APART, f"found a mean loss of {found.mean():.4f}, expected one below ln 2"
        return Found(
            f"{found.size} steps from {found[0]:.4f} to {found[-1]:.4f}: mean loss {found.mean():.4f}, of one copy on "
            f"the CPU {expected[0].mean():.4f}; averages of copies are not to be equal"
        )
    return beside(found, expected, "the CPU's")


def run_ranks(work: Work, config: TrainConfig, stand_ins: Sequence[str], num_ranks: int) -> None:
    """A training run in as many processes, described to each as torchrun does. Raises AssertionError if one fails."""
    port = free_port()
    with ExitStack() as held:
        processes = []
        for rank in range(num_ranks):
            place_in_world = {"RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": num_ranks}
            told = {**place_in_world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = begin_training(work, config, stand_ins, None, {name: str(value) for name, value in told.items()})
            held.callback(process.kill)
            processes.append(process)
        for rank, process in enumerate(processes):
            code = process.wait()
            assert code == 0, f"rank {rank}: {said(code)}; the log of this rung has what the ranks printed"


def free_port() -> int:
    """A port where ranks can meet; nobody keeps it free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def begin_training(
    work: Work, config: TrainConfig, stand_ins: Sequence[str], printed: Any, told: dict[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """training/train.py with this config, as a process; it prints to the rung's log if ``printed`` is None."""
    flags = [flag for name, value in asdict(config).items() for flag in flag_of(name, value)]
    environment = {**place_of(work).environment, **(told or {})}
    return begin([*CHILD, "train", ",".join(stand_ins), *flags], environment, printed)


def flag_of(name: str, value: Any) -> list[str]:
    """The flag of a setting; none where it has its usual value."""
    flag = f"--{name.replace('_', '-')}"
    if name == "tensorboard":
        return [] if value else ["--no-tensorboard"]
    if value is None or value is False or name == "verbosity":
        return []
    return [flag] if value is True else [f"{flag}={value}"]


# Kill and resume


def ended(work: Work, config: TrainConfig, stand_ins: Sequence[str]) -> tuple[int, list[str]]:
    """The exit code of a training, and the lines that it printed; the rung's log has them too."""
    log = work.folder / "training.log"
    with log.open("wb") as printed:
        code = begin_training(work, config, stand_ins, printed).wait()
    text = log.read_text(errors="replace")
    print(text)
    return code, text.splitlines()


def resumed(work: Work, exact: bool) -> Found:
    """A run that is killed in its second epoch goes on from a checkpoint, and ends as one that nobody killed."""
    place = place_of(work)
    stand_in(place.stand_ins)
    num_steps = place.sizes.num_steps
    settings: dict[str, Any] = {"epochs": 2, "checkpoint_every": max(1, num_steps // 4)}
    if exact:
        settings |= {"deterministic": True, "kernel": "reference"}
    whole = trained_in(config_of(work, "whole", **settings))
    killed = config_of(work, "killed", **settings)
    code, _ = ended(work, killed, (*place.stand_ins, f"kill_at={3 * num_steps // 2 + 1}"))
    assert code == -signal.SIGKILL, f"found {said(code)} of a run that was to be killed"
    code, lines = ended(work, replace(killed, overwrite=False, resume="auto"), place.stand_ins)
    assert code == 0, f"with --resume auto: {said(code)}; the log of this rung has what it printed"
    where = [line for line in lines if line.startswith("goes on after step")]
    assert where, "with --resume auto: found that it began anew, expected a checkpoint"
    if exact:
        same = np.array_equal(tables_in(whole), tables_in(killed.output))
        assert same, f"{where[0]}: found other bits than those of a run that nobody killed"
        return Found(f"killed, {where[0]}, with --deterministic: the bits of a run that nobody killed")
    found = beside(losses_in(killed.output), [losses_in(whole)], "of a run that nobody killed")
    return found._replace(text=f"killed, {where[0]}: {found.text}")
