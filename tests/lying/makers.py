"""Makers of lies: each takes a file's honest bytes and a random generator, and gives other bytes.

Damage is of bytes; well-formed lies are of content, written by the format's own writer. lies.py makes checksums right.
"""

import io
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from pipeline.dataset import encode, packing, thrift

Random = random.Random
Maker = Callable[[bytes, Random], bytes]
Int32 = npt.NDArray[np.int32]


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


ODD: list[Any] = [
    *(-1, 0, 1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63, -(2**63), 2**64, 10**400),
    *(0.5, -0.5, 5.0, 1e308, 1e-320, math.nan, math.inf, -math.inf),
    *("", "../..", "a\0b", "a\nb", "\ud800", "x" * 100_000, "0", "1", "é", ".", None, True, False),
    *([], {}, nested(50), nested(300), {"a": {"b": []}}, [1] * 10_000, [None], [""]),
]
ODD_INTS = [0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**20, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1]
ODD_FLOATS = [0.0, -0.0, 1.0, -1.5, 1e-45, 3e38, -3e38, math.nan, math.inf, -math.inf]
ODD_WORDS = ["", " ", "nan", "inf", "1e400", "-1", "0", "1e-400", "99999999999999999999", "\0", "\ufeff", "0x10", "1_0"]
ODD_WORDS += ["a" * 70_000, "é", "\u2028", "\x85", "\t", "\r", "#", ":", ";", ",", '"', "*", "&a", "!!python/none", "|"]


# Damage


def damage(content: bytes, rng: Random) -> bytes:
    """Changes some bytes, in one of the ways in which disks, networks and people do."""
    size = len(content)
    at, other = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
    end = rng.choice((other, min(size, at + rng.choice((1, 2, 4, 8, 64)))))
    match rng.choice(("flip", "flip", "flip", "set", "cut", "insert", "shorten", "double", "zero", "empty", "longer")):
        case "flip":
            changed = bytearray(content)
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                if size:
                    changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case "set":
            return content[:at] + rng.choice((b"\0", b"\xff", b"\n", b" ", b"{", b"9")) + content[at + 1 :]
        case "cut":
            return content[:at] + content[end:]
        case "insert":
            return content[:at] + rng.randbytes(end - at) + content[at:]
        case "shorten":
            return content[:at]
        case "double":
            return content[:end] + content[at:]
        case "zero":
            return content[:at] + bytes(end - at) + content[end:]
        case "empty":
            return b""
    return content + rng.choice((b"\0", b"\n", b"x" * 100, content))


# JSON


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON document: what holds it, and its key or number there."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def lie_in(document: Any, rng: Random) -> Any:
    """Changes one place of a document, which is changed itself; returns it."""
    every = list(places(document))
    if not every or rng.random() < 0.02:
        return rng.choice(ODD)
    holder, key = rng.choice(every)
    match rng.choice(("odd", "odd", "odd", "near", "remove", "add", "another", "kind")):
        case "odd":
            holder[key] = rng.choice(ODD)
        case "near" if isinstance(holder[key], int | float):
            holder[key] += rng.choice((-1, 1, 0.5, -(2**31), 2**32))
        case "near" if isinstance(holder[key], str):
            holder[key] = damage(holder[key].encode(), rng).decode(errors="replace")
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[rng.choice(("more", "", "é", "__class__", "self"))] = rng.choice(ODD)
        case "add":
            holder.insert(rng.randrange(len(holder) + 1), rng.choice((*ODD, holder[key])))
        case "kind":
            holder[key] = rng.choice((str(holder[key]), [holder[key]], {"0": holder[key]}))
        case _:
            other, place = rng.choice(every)
            holder[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    return document


def json_text(document: Any, rng: Random) -> bytes:
    """JSON; now and then with a key twice."""
    text = json.dumps(document, indent=1)
    lines = text.split("\n")
    keyed = [number for number, line in enumerate(lines) if line.endswith(",") and '":' in line]
    if keyed and rng.random() < 0.05:
        number = rng.choice(keyed)
        lines.insert(number, lines[number])
    return "\n".join(lines).encode() + b"\n"


def lie_in_json(content: bytes, rng: Random) -> bytes:
    return json_text(lie_in(json.loads(content), rng), rng)


def lie_in_json_lines(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(lie_in(json.loads(lines[number]), rng)).encode()
    if rng.random() < 0.2:
        rng.shuffle(lines)
    return b"\n".join(lines) + b"\n"


# Text


def lie_in_text(content: bytes, rng: Random) -> bytes:
    """Another word, or lines that are moved, doubled or left out."""
    lines = content.decode(errors="surrogateescape").split("\n")
    number = rng.randrange(len(lines))
    words = lines[number].split(" ")
    match rng.choice(("word", "word", "word", "mark", "double", "remove", "swap", "encode", "more")):
        case "word":
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
            lines[number] = " ".join(words)
        case "mark":
            lines[number] = lines[number].replace(" ", rng.choice("\t;,\u00a0"))
        case "double":
            lines.insert(number, lines[number])
        case "remove":
            del lines[number]
        case "swap":
            rng.shuffle(lines)
        case "encode":
            return "\n".join(lines).encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")), errors="replace")
        case _:
            lines[number] = " ".join([*words, *[rng.choice(ODD_WORDS)] * rng.choice((1, 3, 1000))])
    return "\n".join(lines).encode(errors="surrogateescape")


# Parquet


def lie_in_table(content: bytes, rng: Random) -> bytes:
    """A Parquet file of other columns or values, written by pyarrow."""
    table = pq.read_table(io.BytesIO(content))
    number = rng.randrange(table.num_columns)
    name, column = table.schema.names[number], table.column(number)
    values = column.to_pylist()
    options: dict[str, Any] = {}
    try:
        match rng.choice(("value", "value", "type", "null", "drop", "more", "order", "name", "rows", "file", "bytes")):
            case "value":
                values[rng.randrange(len(values))] = rng.choice((*ODD_INTS, *ODD_FLOATS, *ODD_WORDS, "w1", [1], []))
                table = put(table, number, name, pa.array(values, column.type))
            case "type":
                kinds = [pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.int64(), pa.uint32(), pa.float64()]
                kinds += [pa.int32(), pa.bool_(), pa.list_(pa.int64()), pa.dictionary(pa.int32(), pa.string())]
                kinds += [pa.timestamp("us"), pa.decimal128(20), pa.null(), pa.large_list(pa.int32()), pa.date32()]
                table = put(table, number, name, column.cast(rng.choice(kinds)))
            case "null":
                values[rng.randrange(len(values))] = None
                table = put(table, number, name, pa.array(values, column.type))
            case "drop":
                table = table.remove_column(number)
            case "more":
                table = table.append_column(rng.choice((name, "more", "", "a.b")), column)
            case "order":
                table = table.select(table.schema.names[::-1])
            case "name":
                names = [*table.schema.names]
                names[number] = rng.choice(("", "x", names[number].upper(), names[0]))
                table = table.rename_columns(names)
            case "rows":
                rows = [*range(len(table))]
                rng.shuffle(rows)
                table = table.take(rng.choice((rows, rows[1:], [], [*rows, *rows], sorted(rows)[:1], sorted(rows)[1:])))
            case "file":
                options["compression"] = rng.choice(("gzip", "zstd", "none", "brotli"))
                options["row_group_size"] = rng.choice((1, 7, 1000))
                options["use_dictionary"] = rng.random() < 0.5
                table = table.replace_schema_metadata({"x": "y" * rng.choice((1, 10**5))})
            case _:
                raw = [value.encode() if isinstance(value, str) else b"\xff\xfe" for value in values]
                raw[rng.randrange(len(raw))] = rng.randbytes(3)
                table = put(table, number, name, pa.array(raw, pa.binary()).view(pa.string()))
    except (pa.ArrowException, TypeError, OverflowError):  # no such value or conversion
        table = table.slice(rng.randrange(len(table)))
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, **options)
    except pa.ArrowException:
        return damage(content, rng)
    return sink.getvalue()


def put(table: pa.Table, number: int, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(number, name, column)


# Tensors


def lie_in_tensors(content: bytes, rng: Random) -> bytes:
    """A safetensors file of other tensors, or with another header."""
    if rng.random() < 0.3:
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(lie_in(json.loads(content[8 : 8 + size]), rng)).encode()
        header = header.ljust(rng.choice((0, -(-len(header) // 8) * 8)))
        length = len(header) if rng.random() < 0.9 else rng.choice(ODD_INTS) % 2**64
        return length.to_bytes(8, "little") + header + content[8 + size :]
    tensors = load(content)
    name = rng.choice(sorted(tensors))
    found = tensors[name]
    match rng.choice(("value", "value", "value", "type", "shape", "rows", "drop", "name", "more", "another", "row 0")):
        case "value" if found.size:
            changed = found.copy()
            odd: list[Any] = ODD_FLOATS if found.dtype.kind == "f" else ODD_INTS
            with np.errstate(over="ignore"):
                value = np.array(rng.choice(odd)).astype(found.dtype)
            changed.reshape(-1)[rng.randrange(found.size)] = value
            tensors[name] = changed
        case "type":
            kind = rng.choice(("f2", "f8", "i1", "i4", "i8", "u1", "?"))
            with np.errstate(over="ignore", invalid="ignore"):
                tensors[name] = found.astype(kind)
        case "shape":
            tensors[name] = found.reshape(rng.choice(((-1,), (1, *found.shape), (*found.shape, 1), found.shape[::-1])))
        case "rows" if found.ndim:
            tensors[name] = rng.choice((found[1:], found[:-1], found[:0], np.concatenate([found, found])))
        case "drop":
            del tensors[name]
        case "name":
            tensors[rng.choice(("x", name.upper(), ""))] = tensors.pop(name)
        case "more":
            tensors[rng.choice(("more", "kept", "sums"))] = found
        case "row 0" if found.ndim == 2:
            tensors[name] = np.where(np.arange(len(found))[:, None] == 0, np.float32(0.5), found)
        case _:
            tensors[name] = tensors[rng.choice(sorted(tensors))]
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


# Shards


def shard(content: bytes, row_group_rows: int, negatives: int, change: Callable[..., Any] | None = None) -> bytes:
    """The shard's rows, changed, as the project's encoder writes them."""
    table = pq.read_table(io.BytesIO(content))
    columns = (("center", "i4"), ("contexts_negatives", "i4"), ("num_contexts", "i2"))
    rows = tuple(np.array(table[name].to_pylist()).astype(kind) for name, kind in columns)
    if change:
        rows = change(*rows)
    sink = io.BytesIO()
    writer = encode.ExampleWriter(sink, negatives)
    for first in range(0, len(rows[0]), row_group_rows):
        writer.write_row_group(*(column[first : first + row_group_rows] for column in rows))
    writer.close()
    return sink.getvalue()


def lie_in_rows(content: bytes, row_group_rows: int, negatives: int, num_words: int, rng: Random) -> bytes:
    """A shard of rows that no prepare makes."""
    odd = np.int32(rng.choice((-1, 0, 1, num_words - 1, num_words, num_words + 100, 10**9, -(10**9), 2**31 - 1)))

    def change(center_N: Int32, targets_NL: Int32, num_contexts_N: Int32) -> tuple[Int32, Int32, Int32]:
        row = rng.randrange(len(center_N))
        match way:
            case "center":
                center_N[row] = odd
            case "plain":
                targets_NL[row, rng.randrange(targets_NL.shape[1])] = odd
            case "contexts":
                num_contexts_N[row] = rng.randrange(targets_NL.shape[1] // (1 + negatives) + 1)
            case "length":
                targets_NL = np.ascontiguousarray(targets_NL[:, : -(1 + negatives)])
                num_contexts_N = np.minimum(num_contexts_N, targets_NL.shape[1] // (1 + negatives)).astype(np.int16)
            case "rows":
                kept = rng.choice((slice(1, None), slice(None, row), np.arange(len(center_N)).repeat(2)))
                return center_N[kept], targets_NL[kept], num_contexts_N[kept]
        return center_N, targets_NL, num_contexts_N

    def dictionary(ids_NL: Int32, num_real_N: Int32) -> tuple[Int32, Int32]:
        if way == "plain":
            return np.zeros(1 << 20, np.int32), np.zeros(0, np.int32)
        ids, places_V = packing.dictionary(ids_NL, num_real_N)
        if way == "dictionary":
            ids[rng.randrange(len(ids))] = odd
        elif way == "index":
            ids = rng.choice((ids[:-1], ids[: len(ids) // 2], np.append(ids, odd), ids[::-1].copy()))
        return ids, places_V

    way = rng.choice(("center", "plain", "dictionary", "index", "contexts", "length", "rows", "groups"))
    if way == "groups":
        row_group_rows = rng.choice((1, 7, row_group_rows - 1, row_group_rows + 1, 10_000))
    with mock.patch.object(encode, "dictionary", dictionary):
        return shard(content, row_group_rows, negatives, change)


def lie_in_pages(content: bytes, row_group_rows: int, negatives: int, rng: Random) -> bytes:
    """A shard of the same rows, of which one number of a page's header or of the footer is another."""
    calls, wanted, value = 0, -1, rng.choice(ODD_INTS)

    def counting(write: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
        def changed(number: int, honest: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 != wanted:
                return write(number, honest)
            odd = rng.choice((value, honest + 1, honest - 1)) if isinstance(honest, int) else "x" * (value % 300)
            return write(number, odd)

        return changed

    with (
        mock.patch.object(encode, "i32", counting(thrift.i32)),
        mock.patch.object(encode, "i64", counting(thrift.i64)),
        mock.patch.object(thrift, "text", counting(thrift.text)),
    ):
        assert shard(content, row_group_rows, negatives) == content
        wanted, calls = rng.randrange(calls), 0
        return shard(content, row_group_rows, negatives)


def lie_in_bodies(content: bytes, row_group_rows: int, negatives: int, rng: Random) -> bytes:
    """A shard of which one page has other bytes, with the right checksum."""
    real, wanted = encode._page, rng.randrange(9)

    def changed(kind: int, header: Any, body: bytes | memoryview, codec: int) -> tuple[bytes, int]:
        nonlocal wanted
        wanted -= 1
        return real(kind, header, damage(bytes(body), rng) if wanted == -1 else body, codec)

    with mock.patch.object(encode, "_page", changed):
        return shard(content, row_group_rows, negatives)
