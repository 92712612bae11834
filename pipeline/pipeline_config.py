"""PipelineConfig: every setting that decides which bytes prepare writes, checked once, stored in the manifest."""

import math
from dataclasses import asdict, dataclass

from pipeline.shared.errors import InputError

MAX_SEQUENCE_TOKENS = 1 << 17
"""The longest sequence there can be: a task samples at least one at once, so this bounds its memory."""

TOKENIZERS = ("whitespace", "words")
SUBSAMPLE_RULES = ("paper", "word2vec")

MAX_EPOCHS = 1000  # a task keeps a file open for each
MAX_SHARDS = 100_000


@dataclass(frozen=True)
class PipelineConfig:
    """What prepare does to a corpus. Two runs with equal configs on equal corpora write equal bytes."""

    tokenizer: str = "whitespace"
    """``whitespace`` or ``words``: how text becomes tokens (pipeline/text/tokens.py). Of no effect on arrays."""

    lowercase: bool = False

    window: int = 5
    """Largest distance, in kept tokens, between a center and its contexts; the radius is uniform in 1..window."""

    negatives: int = 5
    """K: noise words drawn for each context."""

    min_count: int = 10
    """Words seen less often become <unk>, which is never a center, context or negative."""

    max_vocab: int | None = None
    """Keep at most this many words, the most frequent ones, <unk> not counted; None keeps all."""

    sample: float = 1e-4
    """Subsampling threshold t, a relative frequency; 0 keeps every token."""

    subsample_rule: str = "paper"
    """``paper``: keep with min(1, sqrt(t/f)); ``word2vec``: min(1, sqrt(t/f) + t/f), as word2vec.c and gensim do."""

    ns_exponent: float = 0.75
    """The noise law is count ** ns_exponent; 0 is uniform, negative favours rare words."""

    num_shards: int | None = None
    """Shards an epoch and split; None: max(16, one for each 2^20 expected examples)."""

    epochs: int = 1
    """Independent samplings of the corpus; the trainer's epoch e reads number e mod epochs."""

    holdout: float = 0.0
    """Share of sequences, by hash, that is kept aside as split ``heldout`` and never trained on; in [0, 0.5]."""

    max_sentence_length: int = 1000
    """Longer sequences are cut into pieces of this many raw tokens."""

    seed: int = 0
    """Any integer; another seed draws other subsamples, windows and negatives."""

    def __post_init__(self) -> None:
        for name in ("sample", "ns_exponent", "holdout"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 0 and 0.0 are one config, with one digest
        if self.tokenizer not in TOKENIZERS:
            raise InputError.flag("tokenizer", self.tokenizer, " or ".join(TOKENIZERS))
        for name in ("window", "negatives", "min_count", "max_vocab", "num_shards", "epochs"):
            found = getattr(self, name)
            if found is not None and found < 1:
                raise InputError.flag(name, found, "1 or more")
        if self.epochs > MAX_EPOCHS:
            raise InputError.flag("epochs", self.epochs, f"at most {MAX_EPOCHS}: each is a copy of the examples")
        if self.num_shards is not None and self.num_shards > MAX_SHARDS:
            raise InputError.flag("num_shards", self.num_shards, f"at most {MAX_SHARDS}")
        if not 2 <= self.max_sentence_length <= MAX_SEQUENCE_TOKENS:
            raise InputError.flag("max_sentence_length", self.max_sentence_length, f"2 to {MAX_SEQUENCE_TOKENS} tokens")
        if self.max_len > 2**15 - 1:
            raise InputError.flag(
                "window", self.window, f"2 * window * (1 + negatives) <= 32767 (here it is {self.max_len})"
            )
        if not (math.isfinite(self.sample) and 0 <= self.sample <= 1):
            raise InputError.flag("sample", self.sample, "a relative frequency in [0, 1]; 0 turns subsampling off")
        if self.subsample_rule not in SUBSAMPLE_RULES:
            raise InputError.flag("subsample_rule", self.subsample_rule, " or ".join(SUBSAMPLE_RULES))
        if not (math.isfinite(self.ns_exponent) and abs(self.ns_exponent) <= 4):
            raise InputError.flag("ns_exponent", self.ns_exponent, "a number in [-4, 4]; 0.75 is usual")
        if not (math.isfinite(self.holdout) and 0 <= self.holdout <= 0.5):
            raise InputError.flag("holdout", self.holdout, "a share in [0, 0.5]")

    def __str__(self) -> str:
        """All settings, for people, with the width of a row that follows from them."""
        settings = ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None)
        return f"{settings}; rows of 2 x {self.window} x (1 + {self.negatives}) = {self.max_len}"

    @property
    def max_len(self) -> int:
        """L, the width of a row: room for 2·window contexts and K negatives for each."""
        return 2 * self.window * (1 + self.negatives)
