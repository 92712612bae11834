"""Estimates of the size of a dataset and of the time to prepare it, from the vocabulary alone."""

import math

from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Tables
from pipeline.sampling.subsample import CERTAIN
from pipeline.sampling.window import mean_contexts

OTHER_BYTES = 20
"""Bytes of an example besides its ids: center, mask, label and a share of the row group. Measured: 6 to 17."""

START_S, TOKEN_S, EPOCH_TOKEN_S = 10.0, 0.73e-6, 0.26e-6
"""Core-seconds: to start, per token, and per token of each further epoch. Measured, see docs/scaling.md."""


def expected_examples(vocab: Vocab, tables: Tables) -> float:
    """Expected examples of an epoch: its kept tokens, so a few too many (a token kept alone gives no example)."""
    return float((vocab.counts_V * (tables.keep_V / CERTAIN)).sum())


def bytes_an_example(vocab_size: int, config: PipelineConfig) -> float:
    """Bytes of an example if sequences are long. If they are short, centers have fewer contexts."""
    bits = math.ceil(math.log2(vocab_size))
    return mean_contexts(config) * (1 + config.negatives) * bits / 8 + OTHER_BYTES


def core_seconds(num_tokens: int, epochs: int) -> float:
    """The time that prepare takes on one core like those in docs/scaling.md, in seconds."""
    return START_S + num_tokens * (TOKEN_S + EPOCH_TOKEN_S * (epochs - 1))


def forecast(vocab: Vocab, tables: Tables, config: PipelineConfig, num_tasks: int) -> str:
    """One line that shows the arithmetic. ``num_tasks`` tasks run at once."""
    examples, size = expected_examples(vocab, tables), bytes_an_example(len(vocab), config)
    seconds = core_seconds(int(vocab.counts_V.sum()), config.epochs) / num_tasks
    takes = "less than a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"
    return (
        f"about {rounded(examples)} examples an epoch x {config.epochs} epoch(s) x at most about {size:.0f} bytes = "
        f"{rounded(examples * config.epochs * size / 1e6)} MB; {takes} in all on {num_tasks} cores like those of "
        f"docs/scaling.md"
    )


def rounded(number: float) -> str:
    """Two significant digits of a number from 1 up, as in 190,000 for 187,344; one digit of a smaller number."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 1 else f"{number:.1g}"
