"""The shop: always the same events, shaped like real ones, with an order that can be found again."""

import hashlib
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command

from pipeline.shared.errors import InputError
from pipeline.tables import shop
from pipeline.tables.shop import (
    GROUP_SIZE,
    LONGEST,
    NUM_GROUPS,
    NUM_ITEMS,
    Events,
    shop_events,
    shop_sessions,
    shop_table,
)

GOLDEN_SHA256 = "4b0916f403ab12a3768d5f11ea6887ace153e4192843f0716a00990a762630b0"
"""Of the arrays of 2,000 users and seed 0, end to end. Figures that are quoted for the shop change with it."""


@pytest.fixture(scope="module")
def events() -> Events:
    return shop_events()


@pytest.fixture(scope="module")
def counts(events: Events) -> list[int]:
    """Events of each item, falling."""
    return sorted(np.bincount(events.item, minlength=NUM_ITEMS).tolist(), reverse=True)


def test_the_events_are_always_the_same(events: Events) -> None:
    assert hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in events)).hexdigest() == GOLDEN_SHA256
    assert (shop_events(seed=1).item != events.item).mean() > 0.9


@pytest.mark.parametrize(("users", "num_events"), [(1, 1), (1, 2), (3, 50), (500, 20_000)])
def test_there_are_as_many_events_and_users_as_were_asked_for(users: int, num_events: int) -> None:
    found = shop_events(users, num_events)
    assert [len(column) for column in found] == [num_events] * 4
    assert set(found.user.tolist()) == set(range(min(users, found.session[-1] + 1)))
    assert 0 <= found.item.min() <= found.item.max() < NUM_ITEMS
    lengths = np.bincount(found.session)
    assert lengths[:-1].tolist() == [length for length in lengths[:-1] if 2 <= length <= LONGEST]


def test_sessions_that_would_not_be_hours_apart_are_refused() -> None:
    with pytest.raises(InputError, match="--users: found 50, expected 53 or more"):
        shop_events(50, 100_000)


def test_sessions_are_hours_apart_and_their_events_minutes() -> None:
    found = shop_events(60, 100_000)  # some 320 sessions a user, of a year
    order = np.lexsort((found.ts, found.user))
    pauses_s, same_user = np.diff(found.ts[order]), np.diff(found.user[order]) == 0
    same_session = np.diff(found.session[order]) == 0
    assert (pauses_s[same_session].min(), pauses_s[same_session].max()) == (20, 299)
    assert pauses_s[same_user & ~same_session].min() > 6 * 3600
    assert (np.diff(found.session[order])[same_user] >= 0).all()


def test_popularity_is_as_unequal_as_that_of_films(counts: list[int]) -> None:
    """MovieLens small: the top 1 % of the films have 15.7 % of the ratings, the top 10 % 60.0 %; median / mean 0.29."""
    assert sum(counts[: NUM_ITEMS // 100]) / sum(counts) == pytest.approx(0.157, abs=0.02)
    assert sum(counts[: NUM_ITEMS // 10]) / sum(counts) == pytest.approx(0.6, abs=0.05)
    assert float(np.median(counts) / np.mean(counts)) == pytest.approx(0.29, abs=0.05)


def test_an_item_is_followed_by_the_next_of_its_group(events: Events) -> None:
    group, place = np.divmod(events.item, GROUP_SIZE)
    inside = np.diff(events.session) == 0
    stays = np.diff(group)[inside] == 0
    steps = np.bincount((np.diff(place)[inside] % GROUP_SIZE)[stays], minlength=GROUP_SIZE) / inside.sum()
    assert stays.mean() == pytest.approx(0.93, abs=0.01)
    assert steps[1] == pytest.approx(0.65, abs=0.02)
    assert steps[2] == pytest.approx(0.20, abs=0.02)
    assert steps[3:].max() < 0.03


def test_a_group_is_sought_in_its_season(events: Events) -> None:
    month = (events.ts - shop.FIRST_S) * 12 // shop.YEAR_S
    group = events.item // GROUP_SIZE
    in_season = (month - group * 5) % 12 < 3
    sought = [
        np.bincount(group[part], minlength=NUM_GROUPS)[:20].sum() / months
        for part, months in ((in_season, 3), (~in_season, 9))
    ]
    assert sought[0] / sought[1] == pytest.approx(3, abs=0.4)


def test_the_next_item_follows_from_the_last_and_not_from_popularity(events: Events) -> None:
    """The share of sessions whose last event is among the ten items that are likeliest by either."""
    sessions = [session for session in shop_sessions(events) if len(session) > 2]
    after: defaultdict[str, Counter[str]] = defaultdict(Counter)
    popular: Counter[str] = Counter()
    for session in sessions:
        popular.update(session[:-1])
        for item, following in pairwise(session[:-1]):
            after[item][following] += 1
    likely = {item: dict(found.most_common(10)) for item, found in after.items()}
    most_popular = dict(popular.most_common(10))
    hits_by_order = sum(session[-1] in likely.get(session[-2], {}) for session in sessions)
    hits_by_popularity = sum(session[-1] in most_popular for session in sessions)
    assert hits_by_order / len(sessions) > 0.8
    assert hits_by_popularity / len(sessions) < 0.12


def test_the_command_writes_the_events_by_time(tmp_path: Path, call: Command) -> None:
    events = shop_events(30, 2000, seed=7)
    ended = call(shop.main, "--output", tmp_path / "shop.parquet", "--users", "30", "--events", "2000", "--seed", "7")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout == f"{tmp_path / 'shop.parquet'}: 2,000 events of 30 users, 2,000 items\n"
    table = pq.read_table(tmp_path / "shop.parquet")
    assert table.equals(shop_table(events))
    assert table.schema == pa.schema({"user_id": pa.int64(), "ts": pa.timestamp("us", tz="UTC"), "item": pa.string()})
    assert (np.diff(table["ts"].to_numpy()) >= np.timedelta64(0)).all()
    rows = table.to_pandas().groupby("user_id")["item"].agg(list)
    expected: defaultdict[int, list[str]] = defaultdict(list)
    for session, items in enumerate(shop_sessions(events)):
        expected[session % 30] += items
    assert rows.to_dict() == dict(expected)


def test_an_output_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path, call: Command) -> None:
    call(shop.main, "--output", tmp_path / "no" / "shop.parquet").assert_refused("--output", "cannot be written")
    call(shop.main, "--output", tmp_path / "x", "--users", "0").assert_refused("--users", "0")
    assert not list(tmp_path.iterdir())
