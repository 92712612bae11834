"""sessions(): sequences of events, one row an event. A group's items in order of time; a long gap begins another.

One shuffle and one sort, by group, time and item; then the rows stream through Python, which holds one batch and one
sequence. So a user with millions of events needs memory only if no gap cuts them.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipeline.tables.data_frames import Pick, is_integer, is_word, picked

SESSIONS = "items array<string>, ties bigint"
_DAY_S = 86_400

Bools = npt.NDArray[np.bool_]


def sessions(frame: DataFrame, item: str, group_by: str, order_by: str, max_gap: timedelta | None = None) -> DataFrame:
    """(items array<string>, ties bigint): a row for each group of equal ``group_by``, its ``item``s by ``order_by``.

    ``item`` is a column of strings or integers, ``group_by`` of strings, integers or dates, ``order_by`` of timestamps,
    dates, or integers, which are seconds. A gap of more than ``max_gap`` to the event before begins another row.

    Equal times are in the order of the items' text (of its bytes). ``ties`` counts the events that have the time of the
    event before them, but not its item. An event without ``group_by`` or ``order_by`` gives a row whose items are null,
    so prepare skips and counts it; an event without ``item`` gives a null in its row. The rows are the same for any
    partitions; their order is not. Raises InputError if a column is missing or of another type.
    """
    return sequences_of_events(event_rows(frame, item, group_by, order_by, "the DataFrame"), max_gap)


def event_rows(frame: DataFrame, item: str, group_by: str, order_by: str, description: str) -> DataFrame:
    """(item, group, time): three columns of a DataFrame. Raises InputError if one is missing or of another type."""
    picks = {
        "item": Pick("--column", item, is_word, "a string or an integer, one item a row"),
        "group": Pick("--group-by", group_by, _is_key, "a string, an integer or a date"),
        "time": Pick("--order-by", order_by, _is_time, "a timestamp, a date or a signed integer"),
    }
    return picked(frame, picks, description)


def sequences_of_events(events: DataFrame, max_gap: timedelta | None) -> DataFrame:
    """As ``sessions``, of (item, group, time), columns of types that it takes."""
    kind = events.schema["time"].dataType
    gap = None if max_gap is None else max_gap // _tick(kind)
    item, group = (F.col(name).cast("string").alias(name) for name in ("item", "group"))
    time = F.col("time").cast("bigint") if is_integer(kind) or kind == T.NullType() else F.col("time")
    rows = events.select(item, group, time.alias("time"))
    known = F.col("group").isNotNull() & F.col("time").isNotNull()
    # Events without a group are often many. Equal groups must meet in a task, but these need not.
    spread = F.when(~known, F.xxhash64("item", "time"))
    sorted_rows = rows.repartition("group", spread).sortWithinPartitions("group", "time", "item")
    return sorted_rows.mapInArrow(partial(joined, max_gap=gap), SESSIONS)


def _is_key(kind: T.DataType) -> bool:
    return is_word(kind) or isinstance(kind, T.DateType)


def _is_time(kind: T.DataType) -> bool:
    return isinstance(kind, T.IntegralType | T.DateType | T.TimestampType | T.TimestampNTZType | T.NullType)


def _tick(kind: T.DataType) -> timedelta:
    """What the numbers of ``_ticks`` count."""
    return timedelta(microseconds=1) if isinstance(kind, T.TimestampType | T.TimestampNTZType) else timedelta(seconds=1)


def _ticks(times: pa.Array) -> npt.NDArray[np.int64]:
    """Microseconds of timestamps, seconds of dates; integers are seconds already."""
    is_date = pa.types.is_date(times.type)
    numbers: npt.NDArray[np.int64] = times.cast(pa.int32() if is_date else pa.int64()).to_numpy().astype(np.int64)
    return numbers * _DAY_S if is_date else numbers


def joined(batches: Iterator[pa.RecordBatch], max_gap: int | None) -> Iterator[pa.RecordBatch]:
    """The sequences of sorted rows (item, group, time): ``items`` and their number of ``ties``."""
    items: list[pa.Array] = []
    ties: list[Bools] = []
    last = None
    for given in batches:
        known = pc.and_(given["group"].is_valid(), given["time"].is_valid())
        batch = given.filter(known)
        if batch.num_rows < given.num_rows:
            skipped = given.num_rows - batch.num_rows
            yield _rows(pa.nulls(skipped, pa.list_(given["item"].type)), np.zeros(skipped, np.int64))
        if batch.num_rows == 0:
            continue
        begins, is_tie = _compared(batch, last, max_gap)
        last = batch.slice(batch.num_rows - 1)
        items.append(batch["item"])
        ties.append(is_tie)
        bounds = np.flatnonzero(begins) + sum(map(len, items[:-1]))
        if bounds.size and bounds[-1] > 0:
            whole, all_ties = pa.concat_arrays(items), np.concatenate(ties)
            yield _sequences(whole, all_ties, np.union1d(0, bounds))
            items, ties = [whole[bounds[-1] :]], [all_ties[bounds[-1] :]]
    if items:
        whole, all_ties = pa.concat_arrays(items), np.concatenate(ties)
        yield _sequences(whole, all_ties, np.array([0, len(whole)]))


def _compared(batch: pa.RecordBatch, last: pa.RecordBatch | None, max_gap: int | None) -> tuple[Bools, Bools]:
    """Which rows begin a sequence, and which are ties with the row before, which is ``last`` for the first one."""
    rows = batch if last is None else pa.concat_batches([last, batch])
    items, groups, ticks = rows["item"], rows["group"], _ticks(rows["time"])
    begins = pc.not_equal(groups[1:], groups[:-1]).to_numpy(zero_copy_only=False)
    gaps = (ticks[1:] - ticks[:-1]).view(np.uint64)  # the difference of two int64 may need 64 bits
    if max_gap is not None:
        begins = begins | (gaps > np.uint64(max_gap))
    differs = pc.not_equal(items[1:], items[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
    is_tie = ~begins & (gaps == 0) & differs
    if last is None:
        begins, is_tie = np.append(True, begins), np.append(False, is_tie)
    return begins, is_tie


def _sequences(items: pa.Array, ties: Bools, bounds: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The sequences between neighbouring ``bounds``."""
    lists = pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), items)
    return _rows(lists, np.add.reduceat(ties[: bounds[-1]], bounds[:-1], dtype=np.int64))


def _rows(items: pa.Array, ties: npt.NDArray[np.int64]) -> pa.RecordBatch:
    return pa.record_batch([items, pa.array(ties)], ["items", "ties"])
