"""A process of the ladder: one rung, or one rank of a training run.

    python -m benchmarks.ladder.child rung RUNG TASK.json ANSWER.json
    python -m benchmarks.ladder.child train STAND_INS --data ... --output ...      training/train.py's flags

A training run is training/train.py's own. ``STAND_INS`` names what is replaced in it, separated by commas.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.ladder.climb import Found, Rung, Skip, Work
from pipeline.shared.errors import one_line
from pipeline.shared.files import write_json
from training import train
from training.model import steps
from training.model.batch import Batch
from training.model.cuda_graph import Step, warm_up
from training.runs import recorder


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "train":
        stand_in(arguments[0].split(","))
        sys.argv = ["train.py", *arguments[1:]]
        train.main()
    else:
        try_rung(Rung(*json.loads(arguments[0])), Path(arguments[1]), Path(arguments[2]))


def try_rung(rung: Rung, task: Path, answer: Path) -> None:
    """Tries the rung and writes what came of it. The traceback of a failure goes to the log."""
    given = json.loads(task.read_text())
    work = Work(**{**given, "folder": Path(given["folder"])})
    module, _, name = rung.function.partition(":")
    function = getattr(importlib.import_module(f"benchmarks.ladder.{module}"), name)
    try:
        found: Found = function(work, *rung.arguments)
        result = "passed"
    except Skip as why:
        found, result = Found(str(why)), "skipped"
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        found, result = Found(f"{kind}{one_line(error)}"), "failed"
    write_json(answer, {"result": result, "text": found.text, "figures": found.figures})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a GPU that has failed may keep the process from ending


def stand_in(names: Sequence[str]) -> None:
    """Puts something else in the place of what is not here, in this process, for good."""
    for name in names:
        kind, _, number = name.partition("=")
        STAND_INS[kind](*([int(number)] if number else []))


def no_pages() -> None:
    """No report.html and no loss.png, which take seconds and matplotlib."""
    replace(recorder, write_pages=lambda *_: None)


def interpreter() -> None:
    """``--device auto`` trains as on a GPU, with Triton's interpreter on a CPU, and without CUDA graphs."""
    replace(train, check_device=device_of)
    replace(steps, Graphed=NotGraphed)


def one_gpu() -> None:
    """All ranks of a machine share its first GPU, by gloo: NCCL refuses two ranks on one GPU."""
    gpu, connect = torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), dist.init_process_group

    def by_gloo(backend: str, **others: Any) -> None:
        connect(backend.replace("nccl", "gloo"), **others)

    replace(train, check_device=device_of, choose_device=lambda wanted, _: gpu)
    replace(dist, init_process_group=by_gloo)


def kill_at(number: int) -> None:
    """Kills this process when it has its batch of that number, as the system would: nothing is cleaned up."""
    timed = train.timed

    def deadly(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
        for batch in timed(batches):
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    seen = [0]
    replace(train, timed=deadly)


def no_checkpoints() -> None:
    """A run writes none, so that its speed is that of training, as the eager loop's is, and not that of a disk."""
    replace(recorder.Recorder, save=lambda *_: None)


def replace(owner: Any, **others: Any) -> None:
    """Gives a module or a class other values of its names."""
    for name, value in others.items():
        assert hasattr(owner, name), f"{owner} has no {name}"
        setattr(owner, name, value)


def device_of(wanted: str, _: int) -> str:
    """As ``check_device`` on a machine that has a GPU for every rank."""
    return "cpu" if wanted == "cpu" else "cuda"


STAND_INS: dict[str, Callable[..., None]] = {
    "no_pages": no_pages,
    "no_checkpoints": no_checkpoints,
    "interpreter": interpreter,
    "one_gpu": one_gpu,
    "kill_at": kill_at,
}


class NotGraphed:
    """Graphed without the capture: a batch is copied to the same tensors, and losses are overwritten all the same."""

    def __init__(
        self, step: Step, example: Sequence[Tensor], tensors: Sequence[Tensor], optimizer: Optimizer | None = None
    ):
        self._batch = [tensor.clone() for tensor in example]
        warm_up(step, self._batch, tensors, optimizer)
        self._step, self._losses = partial(step, *self._batch), torch.zeros(len(example[0]))

    def __call__(self, *batch: Tensor) -> Tensor:
        for captured, given in zip(self._batch, batch, strict=True):
            captured.copy_(given)
        return self._losses.copy_(self._step())


if __name__ == "__main__":
    main()
