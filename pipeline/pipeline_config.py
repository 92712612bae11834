"""PipelineConfig: every setting on which the bytes of a dataset depend. Checked once, and stored in the manifest."""

import re
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.shared.cli import uri
from pipeline.shared.errors import InputError
from pipeline.shared.settings import Number, OneOrMore, Text, setting, settings

MAX_SEQUENCE_TOKENS = 1 << 17
"""The most tokens of a sequence. A task holds at least one whole sequence, so this bounds its memory."""

MAX_EPOCHS = 1000
"""A task keeps a file open for each epoch."""

SEQUENCE = "sequence"
"""The window that is a whole sequence."""

MAX_SEQUENCE_CONTEXTS = 50
"""The most contexts of a row if the window is a whole sequence. Longer sequences give each center a sample."""

CORPUS, SAMPLING = "corpus", "sampling"
"""Titles of flag groups in ``--help``."""

PRESETS: dict[str, dict[str, Any]] = {
    "words": {"window": 5, "window_kind": "dynamic", "min_count": 10, "sample": 1e-4, "ns_exponent": 0.75},
    "items": {"window": 10, "window_kind": "fixed", "min_count": 5, "sample": 0.0, "ns_exponent": 0.5},
}
"""The usual values of settings for each preset; docs/data.md says why they differ."""

ADDED = {"window_kind": "dynamic", "window_side": "both"}
"""Settings that datasets of earlier versions do not have, with the values after which those were made."""


def _usual(name: str) -> Callable[[dict[str, Any]], Any]:
    """The default_factory of a setting whose usual value depends on the preset."""
    return lambda given: PRESETS[given["preset"]][name]


def _kind(given: dict[str, Any]) -> str:
    return "fixed" if given["window"] == SEQUENCE else str(_usual("window_kind")(given))


def _default(name: str) -> str:
    """What the help says of a usual value that depends on the preset."""
    words, items = (preset[name] for preset in PRESETS.values())
    return f"default: {words}" if words == items else f"default: {words}; items: {items}"


def _window(text: str) -> int | str:
    """A window given as a flag; the config checks the number."""
    try:
        return text if text == SEQUENCE else int(text)
    except ValueError:
        raise ArgumentTypeError(f"found {text}, expected a whole number, or {SEQUENCE}") from None


FROM_COLUMNS = ("parquet", "json", "delta", "iceberg")
"""Formats whose rows have columns."""
WITH_VERSIONS = ("delta", "iceberg")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta | None:
    """The duration that is spelled 45s, 30m, 12h or 1d; None for other text."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


@settings()
class Source:
    """Where sequences come from."""

    input: OneOrMore[Text] = setting(
        default=(),
        group="options",
        help="files, folders, patterns, or URIs that Spark reads; of Delta or Iceberg, the table's folder",
        flag={"type": uri, "nargs": "+"},
    )
    table: Text | None = setting(
        default=None,
        group="options",
        help="instead of --input: a table or view of Spark's catalog",
        flag={"metavar": "NAME"},
    )
    where: Text | None = setting(
        default=None,
        group=CORPUS,
        help="of --table: a condition that its rows must meet",
        flag={"metavar": "SQL"},
    )
    format: Literal["text", "parquet", "json", "delta", "iceberg"] = setting(
        default="text", group=CORPUS, help="text is one sequence a line, plain, .gz, .bz2 or .zst"
    )
    as_of: int | None = setting(
        default=None,
        ge=0,
        le=2**63 - 1,
        group=CORPUS,
        help="version of a Delta table, or snapshot of an Iceberg table (default: the newest)",
        flag={"metavar": "VERSION"},
    )
    column: Text | None = setting(
        default=None,
        group=CORPUS,
        help="of Parquet, JSON or a table: strings, or arrays of strings or integers; of events, their item",
        flag={"metavar": "NAME"},
    )
    group_by: Text | None = setting(
        default=None,
        group=CORPUS,
        help="each row is an event, and a sequence is the events with the same value here, such as a user",
        flag={"metavar": "NAME"},
    )
    order_by: Text | None = setting(
        default=None,
        group=CORPUS,
        help="the time of events, by which they are sorted: a timestamp, a date or an integer",
        flag={"metavar": "NAME"},
    )
    max_gap: Text | None = setting(
        default=None,
        group=CORPUS,
        help="a longer gap between two events begins another sequence: 45s, 30m, 12h or 1d; integers are seconds "
        "(default: none does)",
        flag={"metavar": "TIME"},
    )

    def __post_init__(self) -> None:
        if bool(self.input) == (self.table is not None):
            found = "it with --input" if self.input else "neither it nor --input"
            raise InputError(f"--table: found {found}, expected one of the two")
        self.check_columns()

    def check_columns(self) -> None:
        """Raises InputError if some settings do not go together."""
        if self.table is not None and self.format != "text":
            raise InputError(f"--format: found {self.format} with --table, expected none: Spark's catalog knows it")
        if self.where is not None and self.table is None:
            raise InputError("--where: found it without --table, expected a table of Spark's catalog")
        if self.as_of is not None and self.format not in WITH_VERSIONS:
            raise InputError(f"--as-of: found it without --format {' or '.join(WITH_VERSIONS)}, which have versions")
        has_columns = self.table is not None or self.format in FROM_COLUMNS
        if has_columns and self.column is None:
            of = f"--table {self.table}" if self.table else f"--format {self.format}"
            raise InputError(f"--column: found None, for {of} expected the name of a column")
        if (self.group_by is None) != (self.order_by is None):
            given, other = ("group", "order") if self.order_by is None else ("order", "group")
            raise InputError(
                f"--{given}-by: found it without --{other}-by, expected both: whose events, and their time"
            )
        if self.group_by is not None and (not has_columns or self.format == "json"):
            raise InputError(f"--group-by: found it with --format {self.format}, expected Parquet or a table")
        if self.max_gap is not None and (self.group_by is None or self.gap is None):
            expected = "a time such as 45s, 30m, 12h or 1d" if self.gap is None else "--group-by and --order-by with it"
            raise InputError.flag("max_gap", self.max_gap, expected)

    @property
    def gap(self) -> timedelta | None:
        """``max_gap`` as a duration; None if it is none."""
        return duration(self.max_gap or "")


@settings()
class PipelineConfig:
    """What prepare does to a corpus. Two runs with equal configs on equal corpora write equal bytes."""

    tokenizer: Literal["whitespace", "words"] = setting(
        default="whitespace", group=CORPUS, help="words: runs of Unicode letters and numbers"
    )
    """How text becomes tokens (pipeline/text/tokens.py). It has no effect on arrays."""

    lowercase: bool = setting(
        default=False,
        group=CORPUS,
        help="of every token (default: with --tokenizer words only)",
        flag={"action": BooleanOptionalAction, "default": None},
    )

    preset: Literal["words", "items"] = setting(
        default="words", group=SAMPLING, help="what tokens are; other settings have usual values for each"
    )
    """It changes nothing but the usual values in PRESETS."""

    window: Annotated[int, Field(ge=1)] | Literal["sequence"] = setting(
        default_factory=_usual("window"),
        group=SAMPLING,
        help=f"largest distance of a context from its center, in tokens; {SEQUENCE}: all other tokens are contexts, "
        f"or {MAX_SEQUENCE_CONTEXTS} of them at random ({_default('window')})",
        flag={"type": _window, "metavar": f"N|{SEQUENCE}"},
    )
    """Distances are between kept tokens."""

    window_kind: Literal["dynamic", "fixed"] = setting(
        default_factory=_kind,
        group=SAMPLING,
        help=f"dynamic: each center draws a radius from 1 to the window; fixed: the window is the radius "
        f"({_default('window_kind')}; always fixed with --window {SEQUENCE})",
    )

    window_side: Literal["both", "left", "right"] = setting(
        default="both", group=SAMPLING, help="where contexts are: left is before their center, right after it"
    )
    """With one side alone, a token at that end of its sequence gives no example."""

    negatives: int = setting(default=5, ge=1, group=SAMPLING, help="noise words for each context (K)")

    min_count: int = setting(
        default_factory=_usual("min_count"),
        ge=1,
        group=SAMPLING,
        help=f"words seen fewer times become <unk> ({_default('min_count')})",
    )
    """<unk> is never a center, context or negative."""

    max_vocab: int | None = setting(
        default=None, ge=1, group=SAMPLING, help="keep at most this many words, the most frequent (default: all)"
    )
    """<unk> is not counted."""

    sample: Number = setting(
        default_factory=_usual("sample"),
        ge=0,
        le=1,
        group=SAMPLING,
        help=f"subsampling threshold t, a relative frequency; 0 keeps every token ({_default('sample')})",
    )

    subsample_rule: Literal["paper", "word2vec"] = setting(
        default="paper", group=SAMPLING, help="paper: min(1, sqrt(t/f)); word2vec: min(1, sqrt(t/f) + t/f)"
    )
    """The probability of keeping a token of relative frequency f; word2vec.c and gensim follow ``word2vec``."""

    ns_exponent: Number = setting(
        default_factory=_usual("ns_exponent"),
        ge=-4,
        le=4,
        group=SAMPLING,
        help=f"the noise law is count ** this ({_default('ns_exponent')})",
    )
    """0 is uniform; a negative exponent favors rare words."""

    num_shards: int | None = setting(
        default=None,
        ge=1,
        le=100_000,
        group=SAMPLING,
        help="shards an epoch (default: 16, or one for each 2^20 examples if these are more)",
    )
    """Shards of each epoch and split."""

    epochs: int = setting(default=1, ge=1, le=MAX_EPOCHS, group=SAMPLING, help="independent samplings, all in one pass")
    """The trainer's epoch e reads sampling e mod epochs."""

    holdout: Number = setting(
        default=0.0,
        ge=0,
        le=0.5,
        group=SAMPLING,
        help="share of sequences, 0 to 0.5, that is kept aside and never trained on",
    )
    """Chosen by a hash of the sequence. The sequences kept aside are the split ``heldout``."""

    max_sentence_length: int = setting(
        default=1000, ge=2, le=MAX_SEQUENCE_TOKENS, group=SAMPLING, help="longer sequences are cut, in tokens"
    )
    """Raw tokens, before subsampling."""

    seed: int = setting(default=0, group=SAMPLING, help="of subsampling, windows and negatives; any integer")

    def __post_init__(self) -> None:
        if self.window == SEQUENCE and self.window_kind == "dynamic":
            raise InputError.flag("window_kind", "dynamic", f"fixed with --window {SEQUENCE}, which has no radius")
        if self.max_len > 2**15 - 1:
            raise InputError.flag(
                "window",
                self.window,
                f"{self.max_contexts} contexts x (1 + negatives) <= 32767 (here it is {self.max_len})",
            )

    def __str__(self) -> str:
        """All settings that are not None, then the width of a row, for people."""
        settings = ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value is not None)
        return f"{settings}; rows of {self.max_contexts} contexts x (1 + {self.negatives}) = {self.max_len}"

    @property
    def max_contexts(self) -> int:
        """The most contexts of a row."""
        if isinstance(self.window, str):
            return MAX_SEQUENCE_CONTEXTS
        return self.window * (2 if self.window_side == "both" else 1)

    @property
    def max_len(self) -> int:
        """L, the width of a row: room for ``max_contexts``, and K negatives for each."""
        return self.max_contexts * (1 + self.negatives)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings for digests: equal ones give equal datasets.

        Those of ADDED are left out where they have the values of datasets without them, which so keep their digests;
        ``preset`` always, since the settings that follow from it are there.
        """
        left_out = {**ADDED, "preset": self.preset}.items()
        return {name: value for name, value in asdict(self).items() if (name, value) not in left_out}
