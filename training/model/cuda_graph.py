"""A whole training step as one CUDA graph, so that its dozen small kernels cost one launch.

Written after the section "CUDA Graphs" of PyTorch's notes on CUDA semantics. Not yet run on a GPU.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

Step = Callable[..., Tensor]
"""Trains on the tensors of a batch (forward, backward, optimizer) and returns the losses."""

WARM_UPS = 3  # as in PyTorch's notes; meanwhile Triton compiles and libraries allocate their workspaces


class Graphed:
    """``step``, captured once with copies of ``example`` and replayed for every batch of tensors of the same shapes.

    ``step`` must not wait for the GPU, must launch the same kernels whatever the batch contains, and must use no
    collectives: it runs in a single process, without DistributedDataParallel. It calls ``optimizer.zero_grad()`` first,
    so that the graph allocates the gradients in its own memory. torch's Adam must be made with ``capturable=True``. A
    Python number is read only once, during capture: a value that changes between steps, such as a learning rate, must
    be a tensor on the device that is changed in place.

    ``tensors`` are all tensors that ``step`` changes, except the optimizer's state. Capturing leaves both unchanged.
    """

    def __init__(
        self, step: Step, example: Sequence[Tensor], tensors: Sequence[Tensor], optimizer: Optimizer | None = None
    ):
        self._batch = [tensor.clone() for tensor in example]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            warm_up(step, self._batch, tensors, optimizer)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads may read shards and pin memory: only an error in this thread should end a capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._losses = step(*self._batch)

    def __call__(self, *batch: Tensor) -> Tensor:
        """The step's losses, which the next call overwrites."""
        for captured, given in zip(self._batch, batch, strict=True):
            captured.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._losses


def warm_up(step: Step, batch: Sequence[Tensor], tensors: Sequence[Tensor], optimizer: Optimizer | None = None) -> None:
    """Takes ``WARM_UPS`` steps and undoes them in place, because the graph will read and write these very tensors.

    State that the first step creates, such as Adam's, is kept and set to zero: if it were created during capture, every
    replay would create it again.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in _changing(tensors, optimizer)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
        for _ in range(WARM_UPS):
            step(*batch)
    with torch.no_grad():
        for tensor in _changing(tensors, optimizer):
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()


def _changing(tensors: Sequence[Tensor], optimizer: Optimizer | None) -> list[Tensor]:
    states = optimizer.state.values() if optimizer else ()
    return [*tensors, *(value for state in states for value in state.values() if isinstance(value, Tensor))]
