"""Parquet is read from pyarrow's own files and memory.

One of pyarrow's threads may still hold those of Python when Python ends, and then ends the process by SIGABRT: so a
quarter of the calls of training.neighbors ended on a busy machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.verify import problems
from pipeline.dataset.vocab import Vocab
from pipeline.text.parquet_column import column_type
from training.runs.report_data import read_rows
from training.vectors.word_vectors import Tables, Vectors


def read_all(run: Path, data: Path) -> None:
    Vectors.load(run)
    Tables.load(run)
    Vocab.read(run / "vocab.parquet")
    read_rows(str(data), Manifest.load(data))
    assert not list(problems(str(data), Manifest.load(data)))
    column_type(str(run / "vocab.parquet"), "vocab.parquet", "word")


def test_no_source_is_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[Any] = []
    buffers: list[Any] = []

    def recorded(made: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
        def make(source: Any, *rest: Any, **named: Any) -> Any:
            seen.append(source)
            return made(source, *rest, **named)

        return make

    run, data = tmp_path / "run", tmp_path / "data"
    tiny.write_tables(run, tiny.random_model(60, 8, 0))
    tiny.write_tiny_dataset(data)
    monkeypatch.setattr(pq, "ParquetFile", recorded(pq.ParquetFile, opened))
    monkeypatch.setattr(pa, "BufferReader", recorded(pa.BufferReader, buffers))
    read_all(run, data)
    assert len(opened) > 5
    assert [source for source in opened if not isinstance(source, str | Path | pa.NativeFile)] == []
    assert [source for source in buffers if not isinstance(source, pa.Buffer)] == []
    assert [source for source in opened if isinstance(source, pa.PythonFile)] == []
