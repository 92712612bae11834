"""Runs the book's training loop in plain, eager PyTorch on one of our datasets; prints one JSON object.

    python benchmarks/rivals/plain_loop.py data/ptb --epochs 5                   a minute

benchmarks/train.py measures this rival. The book is Dive into Deep Learning (d2l), section 15.4. This is our rewrite of
its loop: two nn.Embedding, Xavier-uniform, torch.optim.Adam with its defaults, batches of 512 from a shuffling
DataLoader. The comparison is fair to the rival: its examples are in memory, padded, before its clock starts, and a
batch takes one indexing operation per column, while the book pads 512 lists.

tokens/s is the number of examples of all epochs divided by the time of all epochs. The book's own line divides the
examples of all epochs by the time of the last epoch, so its figure is about 5 times this one.

B rows of a batch, L = max_len places per row, D dimensions, V words.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: the project's root belongs on the path, this folder does not
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[2])]

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, path
from training.distributed import choose_device
from training.model.limits import num_cores

BATCH_SIZE, DIM, LEARNING_RATE = 512, 100, 0.002  # the book's

Batches = Iterable[Sequence[Tensor]]
"""The batches of one epoch: ``center`` (B, 1), ``contexts_negatives``, ``mask``, ``label`` (B, L)."""


def main() -> None:
    parser = Parser(
        "benchmarks/rivals/plain_loop.py",
        "Trains like the book; prints losses and speed as JSON.",
        "python benchmarks/rivals/plain_loop.py data/ptb --epochs 5",
    )
    parser.add_argument("data", type=path, help="the dataset, a folder with manifest.json")
    parser.add_argument(
        "--epochs", type=int, default=5, help="epochs; epoch e reads sampled epoch e modulo their number"
    )
    parser.add_argument("--threads", type=int, default=num_cores(), help="torch's threads")
    parser.add_argument("--seed", type=int, default=0, help="the seed of torch's global generator")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    manifest = Manifest.load(arguments.data)
    num_sampled = min(arguments.epochs, manifest.sampled_epochs)
    samplings = [read_examples(arguments.data, manifest, epoch) for epoch in range(num_sampled)]
    loaders = [shuffled(samplings[epoch % num_sampled]) for epoch in range(arguments.epochs)]
    print(json.dumps(train(loaders, manifest.vocab_size, choose_device("auto", local_rank=0))))


def read_examples(dataset: Path, manifest: Manifest, epoch: int) -> TensorDataset:
    """Loads the rows of one sampled epoch, padded to ``max_len`` places; ids are int32, mask and label int8."""
    columns = {"center": 1, "contexts_negatives": manifest.max_len, "mask": manifest.max_len, "label": manifest.max_len}
    shards = [dataset / shard.path for shard in manifest.select(epoch)]
    stored = pa.concat_tables(pq.read_table(path, columns=list(columns)) for path in shards)
    tensors = []
    for name, width in columns.items():
        values = stored[name] if width == 1 else pc.list_flatten(stored[name])
        tensors.append(torch.tensor(values.to_numpy()).reshape(-1, width))
    return TensorDataset(*tensors)


def shuffled(examples: TensorDataset) -> Batches:
    """Batches of ``examples``, in a new random order for each pass."""
    rows = BatchSampler(RandomSampler(examples), BATCH_SIZE, drop_last=False)
    return DataLoader(examples, sampler=rows, batch_size=None)


def train(loaders: Sequence[Batches], vocab_size: int, device: torch.device, dim: int = DIM) -> dict[str, Any]:
    """Trains one epoch per loader. Losses are means over the examples of each epoch, and of the whole run."""
    center, context = (nn.Embedding(vocab_size, dim).to(device) for _ in range(2))
    for embedding in (center, context):
        nn.init.xavier_uniform_(embedding.weight)
    optimizer = torch.optim.Adam([center.weight, context.weight], lr=LEARNING_RATE)

    loss_sums, counts = [], []
    began = time.perf_counter()
    for batches in loaders:
        loss_sum, count = 0.0, 0
        for batch in batches:
            optimizer.zero_grad()
            losses_B = row_losses(center, context, *(tensor.to(device) for tensor in batch))
            losses_B.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += losses_B.detach().sum().item()
            count += losses_B.numel()
        loss_sums.append(loss_sum)
        counts.append(count)
    seconds = time.perf_counter() - began
    return {
        "losses": [loss_sum / count for loss_sum, count in zip(loss_sums, counts, strict=True)],
        "mean_loss": sum(loss_sums) / sum(counts),
        "examples": sum(counts),
        "tokens_per_s": sum(counts) / seconds,
    }


def row_losses(
    center: nn.Embedding,
    context: nn.Embedding,
    center_B1: Tensor,
    targets_BL: Tensor,
    mask_BL: Tensor,
    label_BL: Tensor,
) -> Tensor:
    """The loss of each row, shape (B,): the mean over its real places (d2l 15.4.2)."""
    v_B1D, u_BLD = center(center_B1), context(targets_BL)
    scores_BL = torch.bmm(v_B1D, u_BLD.permute(0, 2, 1)).squeeze(1)
    loss_BL = F.binary_cross_entropy_with_logits(scores_BL, label_BL.float(), weight=mask_BL, reduction="none")
    return loss_BL.mean(dim=1) / mask_BL.sum(dim=1) * mask_BL.shape[1]


if __name__ == "__main__":
    with command():
        main()
