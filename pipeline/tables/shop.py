"""The shop: generated events of users who look at items, with a known order to find again.

python -m pipeline.tables.shop --output shop.parquet
python -m pipeline.tables.shop --output shop.parquet --users 500 --events 20000 --seed 1

The shop has 100 groups of 20 items: shop-0000 to shop-0019 are the first. A session is a walk through a group, mostly
from an item to the next, so the order of items says what comes next, while the ten most popular items together have
about a tenth of the events. Items are as unequally popular as the films of MovieLens small: the top 1 % have 17 % of
the events, the top 10 % have 58 % (films: 16 % and 60 % of the ratings). Each group is sought three times as often in
its season, three months of the year. A user's sessions are hours apart, the events of a session minutes.

The events are a pure function of sizes and seed, in integer arithmetic: the same on every machine.
E events, S sessions, L events of the longest session, G groups, M months.
"""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shared.cli import Parser, command, count, path
from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors, write
from pipeline.shared.randomness import Purpose, fold, stream

NUM_GROUPS, GROUP_SIZE = 100, 20
NUM_ITEMS = NUM_GROUPS * GROUP_SIZE

LONGEST = 12
"""Events of a session, which has 2 or more."""

BY_ONE, BY_TWO, JUMPS = 65, 20, 8
"""Of 100 events, how many are one place after the one before, two places after it (after the last place comes the
first), and at a random place of the same group. The others are in another group."""

SEASON_MONTHS, IN_SEASON = 3, 3
"""How long a group's season is, and how many times as often it is sought then."""

YEAR_S = 365 * 24 * 3600
FIRST_S = 1_735_689_600
"""2025-01-01, in seconds since 1970."""
MOST_SESSIONS = 365
"""Of a user: more would not be hours apart."""

Ints = npt.NDArray[np.int64]

_32 = np.uint64(32)


class Events(NamedTuple):
    """Events, in the order of their sessions; (E,) int64 each."""

    user: Ints
    ts: Ints
    """Seconds since 1970."""
    item: Ints
    """From 0 to NUM_ITEMS - 1: group · GROUP_SIZE + place."""
    session: Ints


def shop_events(num_users: int = 2_000, num_events: int = 100_000, seed: int = 0) -> Events:
    """``num_events`` events. Raises InputError if users would have more than MOST_SESSIONS."""
    draws = _Draws(seed, 1 + num_events // 2)
    lengths_S = 2 + np.minimum(draws.below(LONGEST - 1, _Draws.LENGTH), draws.below(LONGEST - 1, _Draws.LENGTH, 1))
    ends_S = lengths_S.cumsum()
    num_sessions = int(ends_S.searchsorted(num_events)) + 1
    lengths_S = lengths_S[:num_sessions]
    lengths_S[-1] -= ends_S[num_sessions - 1] - num_events
    session_S, sessions_each = np.arange(num_sessions), -(-num_sessions // num_users)
    if sessions_each > MOST_SESSIONS:
        least = -(-num_sessions // MOST_SESSIONS)
        raise InputError.flag("users", num_users, f"{least:,} or more, for {num_events:,} events in a year's sessions")

    # The year is cut into equal parts, one for each session of a user, which begins in the part's first half.
    draws, part_s = _Draws(seed, num_sessions), YEAR_S // sessions_each
    begin_S = session_S // num_users * part_s + draws.below(part_s // 2, _Draws.BEGIN)
    ts_S, month_S = FIRST_S + begin_S, begin_S * 12 // YEAR_S
    group_S, place_S = draws.group(0, month_S), draws.place(0)
    ts, items = [ts_S], [group_S * GROUP_SIZE + place_S]
    for step in range(1, LONGEST):
        ts_S = ts_S + 20 + draws.below(280, _Draws.PAUSE, step)
        move_S = draws.below(100, _Draws.MOVE, step)
        is_walk_S, is_by_one_S = move_S < BY_ONE + BY_TWO, move_S < BY_ONE
        group_S = np.where(move_S < BY_ONE + BY_TWO + JUMPS, group_S, draws.group(step, month_S))
        place_S = np.where(is_walk_S, (place_S + 2 - is_by_one_S) % GROUP_SIZE, draws.place(step))
        ts.append(ts_S)
        items.append(group_S * GROUP_SIZE + place_S)
    real_SL = np.arange(LONGEST) < lengths_S[:, None]
    ts_E, item_E = (np.stack(columns, axis=1)[real_SL] for columns in (ts, items))
    session_E = np.repeat(session_S, lengths_S)
    return Events(session_E % num_users, ts_E, item_E, session_E)


def item_name(item: int) -> str:
    return f"shop-{item:04}"


def shop_sessions(events: Events) -> list[list[str]]:
    """The items of each session, by name, in order."""
    names = [item_name(item) for item in events.item.tolist()]
    borders = np.flatnonzero(np.diff(events.session)) + 1
    begins, ends = [0, *borders.tolist()], [*borders.tolist(), len(names)]
    return [names[begin:end] for begin, end in zip(begins, ends, strict=True)]


def shop_table(events: Events) -> pa.Table:
    """The columns user_id int64, ts timestamp (UTC) and item string, in order of time."""
    order = np.lexsort((events.user, events.ts))
    names = pa.array([item_name(item) for item in range(NUM_ITEMS)])
    return pa.table(
        {
            "user_id": events.user[order],
            "ts": pa.array(events.ts[order] * 1_000_000, pa.timestamp("us", tz="UTC")),
            "item": names.take(pa.array(events.item[order])),
        }
    )


class _Draws:
    """Random numbers (S,) of all sessions; each is a function of the seed, what it is for, the step and the session."""

    LENGTH, BEGIN, PAUSE, MOVE, PLACE, GROUP = range(6)

    def __init__(self, seed: int, num_sessions: int):
        self._seed, self._session_S = seed, np.arange(num_sessions)

    def below(self, bound: int | Ints, what: int, step: int = 0) -> Ints:
        """Uniform in [0, bound)."""
        bits_S = fold(stream(self._seed, Purpose.SHOP, what, step), self._session_S) >> _32
        return (bits_S * np.asarray(bound).astype(np.uint64) >> _32).astype(np.int64)

    def place(self, step: int) -> Ints:
        """A place in a group; the first ones are the most popular."""
        ends = np.cumsum([(1 << 20) // (place + 1) ** 2 for place in range(GROUP_SIZE)])
        return ends.searchsorted(self.below(ends[-1], self.PLACE, step), side="right")

    def group(self, step: int, month_S: Ints) -> Ints:
        """A group; the first ones are the most popular, and those in their season."""
        sought_G, month_M = (1 << 20) // (np.arange(NUM_GROUPS) + 4), np.arange(12)[:, None]
        in_season_MG = (month_M - np.arange(NUM_GROUPS) * 5) % 12 < SEASON_MONTHS
        weights_MG = sought_G * np.where(in_season_MG, IN_SEASON, 1)
        ends, totals_M = weights_MG.cumsum(), weights_MG.sum(axis=1)  # the months' weights one after the other
        drawn_S = self.below(totals_M[month_S], self.GROUP, step) + (totals_M.cumsum() - totals_M)[month_S]
        group_S: Ints = ends.searchsorted(drawn_S, side="right") % NUM_GROUPS
        return group_S


def main(argv: list[str] | None = None) -> None:
    example = "python -m pipeline.tables.shop --output shop.parquet --users 500 --events 20000"
    parser = Parser("python -m pipeline.tables.shop", "Writes the events of a generated shop as Parquet.", example)
    parser.add_argument("--output", type=path, required=True, metavar="FILE", help="a Parquet file; it is replaced")
    parser.add_argument("--users", type=count, default=2_000, help="number of users")
    parser.add_argument("--events", type=count, default=100_000, help="number of events, over all users")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other events")
    with command():
        arguments = parser.parse_args(argv)
        table, content = shop_table(shop_events(arguments.users, arguments.events, arguments.seed)), io.BytesIO()
        pq.write_table(table, content)
        with os_errors(f"--output {arguments.output}: cannot be written", "name another file"):
            write(arguments.output, content.getvalue())
        print(f"{arguments.output}: {table.num_rows:,} events of {arguments.users:,} users, {NUM_ITEMS:,} items")


if __name__ == "__main__":
    main()
