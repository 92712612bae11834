"""EventCorpus: sequences of the events in files or tables, whose rows are one event each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from pipeline.shared.errors import InputError
from pipeline.tables.data_frames import is_integer
from pipeline.tables.sessions import sequences_of_events
from pipeline.text.corpus import State, Values, as_they_are


class Events(Protocol):
    """Files or a table whose rows are events."""

    @property
    def description(self) -> str: ...
    @property
    def has_exact_names(self) -> bool: ...
    def state(self, session: Callable[[], SparkSession]) -> State: ...
    def identities(self) -> State: ...
    def events(self, spark: SparkSession, item: str, group_by: str, order_by: str) -> DataFrame:
        """(item, group, time) of the events, of types that ``sessions`` takes."""


@dataclass(frozen=True)
class EventCorpus:
    """The sequences of events, as ``sessions`` makes them."""

    source: Events
    item: str
    group_by: str
    order_by: str
    max_gap: timedelta | None = None
    _seen: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What ``read`` leaves for ``remarks``."""

    def __post_init__(self) -> None:
        if len({self.item, self.group_by, self.order_by}) < 3:
            found = f"--column {self.item}, --group-by {self.group_by}, --order-by {self.order_by}"
            raise InputError(f"{found}: found a column twice, expected three columns")

    @property
    def description(self) -> str:
        return self.source.description

    @property
    def has_exact_names(self) -> bool:
        return self.source.has_exact_names

    def state(self, session: Callable[[], SparkSession]) -> State:
        ways: dict[str, str | int] = {"item": self.item, "group_by": self.group_by, "order_by": self.order_by}
        if self.max_gap is not None:
            ways["max_gap_s"] = self.max_gap // timedelta(seconds=1)
        return (*self.source.state(session), ways)

    def identities(self) -> State:
        return self.source.identities()

    def read(self, spark: SparkSession) -> DataFrame:
        """(value array<string>); null for an event without a group or a time."""
        events = self.source.events(spark, self.item, self.group_by, self.order_by)
        rows = sequences_of_events(events, self.max_gap)
        sums = F.count("items").alias("sequences"), F.coalesce(F.sum("ties"), F.lit(0)).alias("ties")
        self._seen["sums"] = Observation()
        self._seen["is_number"] = is_integer(events.schema["time"].dataType)
        return rows.observe(self._seen["sums"], *sums).select(F.col("items").alias("value"))

    def values(self, rows: DataFrame) -> Values:
        return as_they_are

    def remarks(self) -> list[str]:
        """How many sequences there are, and whose order time does not decide."""
        found = self._seen["sums"].get
        remarks = [f"{found['sequences']:,} sequences of equal {self.group_by}, in order of {self.order_by}"]
        if self._seen["is_number"] and self.max_gap is not None:
            remarks.append(f"{self.order_by} is a number, read as seconds: --max-gap is {self.max_gap}")
        if found["ties"]:
            remarks.append(
                f"{found['ties']:,} events have the {self.order_by} of the event before them; the items' text decides "
                f"their order"
            )
        return remarks
