"""Parquet files as other people have them."""

import decimal
import gzip
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpora.kinds import Input, Read, Refused

Writer = Callable[[Path], object]
STRINGS = pa.list_(pa.string())
INTEGERS = {
    **{name: pa.list_(getattr(pa, name)()) for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")},
    **{f"decimal({digits}, 0)": pa.list_(pa.decimal128(digits, 0)) for digits in (5, 15, 38)},
}


def table(values: list[Any], kind: pa.DataType, name: str = "items", **others: pa.Array) -> pa.Table:
    columns = {"id": pa.array(range(len(values))), name: pa.array(values, kind), **others}
    return pa.table(list(columns.values()), list(columns))


def file(values: list[Any], kind: pa.DataType, name: str = "items", **others: pa.Array) -> Writer:
    return lambda path: pq.write_table(table(values, kind, name, **others), path)


def compressed(codec: str) -> Writer:
    return lambda path: pq.write_table(table([["a", "b"]], STRINGS), path, compression=codec)


def compressed_each(**codecs: str) -> Writer:
    columns = {name: pa.array([["a", "b"]], STRINGS) for name in codecs}
    leaves = {f"{name}.list.element": codec for name, codec in codecs.items()}
    return lambda path: pq.write_table(pa.table(columns), path, compression=leaves)


def invalid(kind: pa.DataType) -> Writer:
    """``caf\\xe9`` in a column that says it is text, as some programs write it."""
    bad = pa.array([b"caf\xe9", b"b"], pa.binary())
    bad = pa.StringArray.from_buffers(2, *bad.buffers()[1:])
    values = pa.ListArray.from_arrays([0, 2], bad) if pa.types.is_list(kind) else bad
    return lambda path: pq.write_table(pa.table({"items": values}), path)


def names(*columns: str) -> Writer:
    """Columns of these names, the first with the words, the others with integers."""
    arrays = [pa.array([["a", "b"]], STRINGS), *([pa.array([7])] * (len(columns) - 1))]
    return lambda path: pq.write_table(pa.table(arrays, list(columns)), path)


def read(files: Writer | dict[str, Any], *expected: str, column: str = "items", **counts: Any) -> Read:
    files = files if isinstance(files, dict) else {"x.parquet": files}
    return Read(files, format="parquet", column=column, expected=expected, counts=counts)


def refused(files: Writer | dict[str, Any], *words: str, column: str = "items", given: str = "") -> Refused:
    files = files if isinstance(files, dict) else {"x.parquet": files}
    return Refused(files, (given,), format="parquet", column=column, words=words)


def largest(kind: pa.ListType) -> int:
    if pa.types.is_decimal(kind.value_type):
        return int(10**kind.value_type.precision) - 1
    return int(np.iinfo(kind.value_type.to_pandas_dtype()).max)


def value(kind: pa.ListType, number: int) -> Any:
    return decimal.Decimal(number) if pa.types.is_decimal(kind.value_type) else number


UNTYPED = {
    "timestamps in nanoseconds": pa.array([1], pa.timestamp("ns")),
    "times": pa.array([1], pa.time64("ns")),
    "half floats": pa.array([np.float16(1)], pa.float16()),
    "unsigned 64": pa.array([2**64 - 1], pa.uint64()),
    "durations": pa.array([1], pa.duration("ns")),
    "bytes of UUIDs": pa.array([uuid.uuid4().bytes], pa.binary(16)),
    "UUIDs": pa.array([uuid.uuid4().bytes], pa.uuid()),
    "nothing but nulls": pa.array([None], pa.null()),
    "structs": pa.array([{"items": 1}], pa.struct([("items", pa.int8())])),
    "maps": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
}
"""Columns that have nothing to do with the corpus; Spark has no type for some of them."""

TYPES: dict[str, tuple[pa.DataType, list[Any], tuple[str, ...], dict[str, int]]] = {
    "strings": (pa.string(), ["a b", None, ""], ("a b",), {"nulls": 1, "too_short": 1}),
    "large strings": (pa.large_string(), ["a b"], ("a b",), {}),
    "views of strings": (pa.string_view(), ["a b"], ("a b",), {}),
    "bytes": (pa.binary(), [b"caf\xe9 b"], ("caf\ufffd b",), {"invalid_utf8_lines": 1}),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a b", "c d", "a b"], ("a b", "c d", "a b"), {}),
    "JSON": (pa.json_(), ['{"a": 1}'], ('{"a": 1}',), {}),
    "zero and mark": (pa.string(), ["a\0 b", "\ufeffc d"], ("a\ufffd b", "c d"), {"invalid_utf8_lines": 1}),
    "line ends": (pa.string(), ["a\nb\r\nc"], ("a b c",), {}),
    "nulls": (pa.null(), [None, None], (), {"nulls": 2}),
    "arrays": (STRINGS, [["a", None, "", "b c"], None, []], ("a b c",), {"nulls": 3, "too_short": 1}),
    "arrays of bytes": (pa.list_(pa.binary()), [[b"caf\xe9", b"b"]], ("caf\ufffd b",), {"invalid_utf8_lines": 1}),
    "arrays of categories": (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["a", "b"]], ("a b",), {}),
    "large arrays": (pa.large_list(pa.large_string()), [["a", "b"]], ("a b",), {}),
    "arrays of fixed size": (pa.list_(pa.int16(), 2), [[1, 2], [3, 4]], ("1 2", "3 4"), {}),
    "arrays of nulls": (pa.list_(pa.null()), [[None], []], (), {"nulls": 1, "too_short": 2}),
}

PARQUETS: dict[str, Input] = {
    **{
        name: read(file(values, kind), *expected, column="items", **counts)
        for name, (kind, values, expected, counts) in TYPES.items()
    },
    **{
        f"{name} and {other}": read(
            {
                "a.parquet": file([[value(kind, 1), value(kind, largest(kind))]], kind),
                "b.parquet": file([[value(other_kind, 2), value(other_kind, largest(other_kind))]], other_kind),
            },
            f"1 {largest(kind)}",
            f"2 {largest(other_kind)}",
        )
        for (name, kind), (other, other_kind) in zip(
            INTEGERS.items(), [*INTEGERS.items()][3:] + [*INTEGERS.items()][:3], strict=True
        )
    },
    "integers and strings": read(
        {"a.parquet": file([[1, 2]], pa.list_(pa.int32())), "b.parquet": file([["x", "y"]], STRINGS)}, "1 2", "x y"
    ),
    "arrays and arrays of nulls": read(
        {"a.parquet": file([[1, 2]], pa.list_(pa.int64())), "b.parquet": file([[None]], pa.list_(pa.null()))},
        "1 2",
        nulls=1,
        too_short=1,
    ),
    "arrays and nulls": read(
        {"a.parquet": file([["a", "b"]], STRINGS), "b.parquet": file([None], pa.null())}, "a b", nulls=1
    ),
    "text that is none": read(invalid(pa.string()), "caf\ufffd", "b", invalid_utf8_lines=1, too_short=2),
    "text that is none in arrays": read(invalid(STRINGS), "caf\ufffd b", invalid_utf8_lines=1),
    **{f"beside {name}": read(file([["a", "b"]], STRINGS, other=column), "a b") for name, column in UNTYPED.items()},
    "another column has two types": read(
        {
            "a.parquet": file([["a", "b"]], STRINGS, x=pa.array([1])),
            "b.parquet": file([["c", "d"]], STRINGS, x=pa.array(["s"])),
        },
        "a b",
        "c d",
    ),
    "columns that differ by case": read(names("items", "Items", "ITEMS"), "a b"),
    "other columns of one name": read(names("items", "x", "x", "X"), "a b"),
    "a name with dots and backticks": read(names("a.b`c d", "a"), "a b", column="a.b`c d"),
    "an empty table beside another": read(
        {"a.parquet": file([], STRINGS), "b.parquet": file([["a", "b"]], STRINGS)}, "a b"
    ),
    **{
        f"compressed with {codec}": read(compressed(codec), "a b")
        for codec in ("none", "snappy", "gzip", "zstd", "lz4")
    },
    "another column that Spark cannot decompress": read(compressed_each(items="snappy", items_raw="brotli"), "a b"),
    "strings and arrays of nulls": read(
        {"a.parquet": file(["a b"], pa.string()), "b.parquet": file([[None]], pa.list_(pa.null()))}, "a b", nulls=1
    ),
    # Refused
    "one column that Spark cannot decompress": refused(compressed_each(items="brotli", other="snappy"), "brotli"),
    "decimals of 50 digits": refused(file([[decimal.Decimal(7)]], pa.list_(pa.decimal256(50, 0))), "decimal(50,0)"),
    "compressed text": refused({"x.csv.gz": gzip.compress(b"a b\n")}, "gzip"),
    "many columns": refused(names(*(f"c{number}" for number in range(400))), "c19, ..."),
    "compressed with brotli": refused(compressed("brotli"), "brotli", "zstd"),
    "our column twice": refused(names("items", "items"), "2 columns"),
    "only another case": refused(names("Items"), "items", "Items"),
    "missing in one file": refused(
        {"a.parquet": file([["a"]], STRINGS), "b.parquet": file([["a"]], STRINGS, "words")}, "b.parquet", "words"
    ),
    "strings and arrays": refused(
        {"a.parquet": file(["a"], pa.string()), "b.parquet": file([["a"]], STRINGS)}, "a.parquet", "b.parquet"
    ),
    "numbers": refused(file([1.5], pa.float64()), "double"),
    "numbers in arrays": refused(file([[1.5]], pa.list_(pa.float16())), "halffloat"),
    "decimals with places": refused(file([[decimal.Decimal("1.5")]], pa.list_(pa.decimal128(5, 1))), "decimal(5,1)"),
    "true or false": refused(file([[True]], pa.list_(pa.bool_())), "array<boolean>"),
    "arrays of arrays": refused(file([[["a"]]], pa.list_(STRINGS)), "array<array<string>>"),
    "structs": refused(file([{"a": "b"}], pa.struct([("a", pa.string())])), "struct<a:string>"),
    "a text file beside": refused({"README.md": b"# Read me\n", "x.parquet": names("items")}, "README.md", "*.parquet"),
    "an empty file": refused({"a.parquet": b"", "b.parquet": names("items")}, "a.parquet", "empty"),
    "gzip": refused({"x.parquet": b"\x1f\x8b\x08\0" + bytes(20)}, "gzip"),
    "pointer of Git LFS": refused(
        {"x.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"}, "git lfs pull"
    ),
    "half a file": refused({"x.parquet": b"PAR1" + b"\x15" * 100}, "whole"),
    "a Delta table": refused({"t/_delta_log/0.json": b"{}", "t/a.parquet": names("items")}, "Delta", given="t"),
    "a file of a Delta table": refused(
        {"t/_delta_log/0.json": b"{}", "t/d=1/a.parquet": names("items")}, "Delta", given="t/d=1/a.parquet"
    ),
    "an Iceberg table": refused(
        {"t/metadata/v1.metadata.json": b"{}", "t/data/a.parquet": names("items")}, "Iceberg", given="t/data/*"
    ),
    "a Hudi table": refused({"t/.hoodie/hoodie.properties": b"", "t/a.parquet": names("items")}, "Hudi", given="t"),
}
