"""Corpora as other people have them: each is read, with the words and counts of its row, or refused in one line.

The next report of a corpus that went wrong is one more row in texts.py, json_texts.py or parquets.py. Each row is tried
with its files in both orders of names.
"""

from collections import Counter
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from corpora.json_texts import JSONS
from corpora.kinds import Input, Read, Refused
from corpora.parquets import PARQUETS
from corpora.texts import TEXTS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError
from pipeline.text.corpus import Corpus, Values, corpus, exact_names
from pipeline.text.tokens import tokenized
from pipeline.text.word_counts import Totals

ROWS: dict[str, Input] = {
    f"{kind}: {name}": row
    for kind, rows in (("text", TEXTS), ("json", JSONS), ("parquet", PARQUETS))
    for name, row in rows.items()
}
READ = {name: row for name, row in ROWS.items() if isinstance(row, Read)}
REFUSED = {name: row for name, row in ROWS.items() if isinstance(row, Refused)}
COUNTS = ("nulls", "invalid_utf8_lines", "cut", "too_short", "long_tokens")


Found = dict[str, list[tuple[list[str], Counter[str]]]]
"""The sequences and the counts of each row, in every order of its files."""


def orders(row: Input) -> list[dict[str, str]]:
    """The names that the files of a row get: their own, and if all of a folder are read, such that the order turns."""
    own = {name: name for name in row.files}
    is_flat = all("/" not in name and name[0] not in "._" for name in row.files)
    if len(row.files) == 1 or row.given != ("",) or not is_flat or not all(map(is_written, row.files.values())):
        return [own]
    return [own, {name: f"{len(own) - number} {name}" for number, name in enumerate(own)}]


def is_written(file: object) -> bool:
    """Whether a file has no link or the like, which another name would change."""
    return isinstance(file, bytes) or getattr(file, "__module__", "") == "corpora.parquets"


def opened(row: Input, names: dict[str, str], folder: Path) -> Corpus:
    """The corpus of a row, whose files are written to ``folder``."""
    for name, content in row.files.items():
        path = folder / names[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    return corpus([given_as(name, folder) for name in row.given], row.format, row.column)


def try_to_read(spark: SparkSession, row: Input, names: dict[str, str], folder: Path) -> None:
    made = opened(row, names, folder)
    made.values(made.read(spark))


def given_as(name: str, folder: Path) -> str:
    """A path or a URI of a row, as it is given on the command line."""
    return name.format(folder) if "{}" in name else name if ":" in name else str(folder / name)


@pytest.fixture(scope="module")
def found(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All rows that are read: by two jobs of Spark, since a union has columns of one type."""
    frames: dict[str, list[DataFrame]] = {}
    values: dict[str, Values] = {}
    with exact_names(spark):
        for name, row in READ.items():
            for number, names in enumerate(orders(row)):
                made = opened(row, names, tmp_path_factory.mktemp("row", numbered=True))
                rows, key = made.read(spark), f"{name}\n{number}"
                values[key] = made.values(rows)
                kind = rows.schema["value"].dataType.simpleString()
                frames.setdefault(kind, []).append(rows.select(F.lit(key).alias("row"), "value"))
        tables = [reduce(DataFrame.unionAll, some).toArrow() for some in frames.values()]
    found: Found = {name: [] for name in READ}
    for key, of_batch in values.items():
        name = key.partition("\n")[0]
        batches = [table.filter(pc.equal(table["row"], key))["value"].combine_chunks() for table in tables]
        found[name].append(sequences([of_batch(batch) for batch in batches if len(batch)], READ[name]))
    return found


def sequences(columns: list[pa.Array], row: Input) -> tuple[list[str], Counter[str]]:
    """The sequences of some columns of values, in order of spelling, and the counts."""
    totals, spelled = Totals(), []
    for column in columns:
        for piece in tokenized(column, PipelineConfig(**row.config)):
            totals.add(piece)
            words = iter(piece.words.to_pylist())
            spelled += [" ".join(next(words) for _ in range(length)) for length in piece.lengths.tolist()]
    return sorted(spelled), totals.seen


@pytest.mark.parametrize("name", READ)
def test_a_corpus_is_read_with_its_words_and_counts(found: Found, name: str) -> None:
    row = READ[name]
    for spelled, counts in found[name]:
        assert spelled == sorted(row.expected)
        expected = dict.fromkeys(COUNTS, 0) | row.counts
        assert {count: counts[count] for count in expected} == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_corpus_is_refused_in_one_line(spark: SparkSession, tmp_path: Path, name: str) -> None:
    row = REFUSED[name]
    for number, names in enumerate(orders(row)):
        with pytest.raises(InputError) as refused:
            try_to_read(spark, row, names, tmp_path / str(number))
        line = str(refused.value)
        assert len(line.splitlines()) == 1
        assert "--input" in line or "--column" in line
        assert [word for word in row.words if word not in line] == [], line


@pytest.mark.parametrize(("given", "told"), [(("x", "x"), "x: named twice"), (("x", "y"), "y: the same file as ")])
def test_a_file_that_is_read_once_though_it_is_named_twice_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: tuple[str, str], told: str
) -> None:
    (tmp_path / "x").write_text("a b\n")
    (tmp_path / "y").symlink_to("x")
    assert corpus([str(tmp_path / name) for name in given]).paths == (str(tmp_path / "x"),)
    assert [told in line and line.endswith("; read once") for line in caplog.messages] == [True]
