"""Measures sequences of events: sessions() beside Spark's collect_list and pandas, in rows/s and peak memory.

python benchmarks/measuring/event_sessions.py --rows 10000000

Each way runs in a process of its own on the same Parquet file of events in no order, gives the sequences of all users
(gaps of more than 30 minutes begin another), and counts them and their events; all must agree. The time is without
Spark's and pandas' start; peaks are the sum over the processes of a way (Java, Python workers), sampled 20 times/s.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[2])]

from benchmarks.measuring.provenance import provenance, table
from pipeline.shared.cli import Parser, count

GAP_S = 1800
USERS_PER_ROW = 1 / 50


def write_events(path: Path, num_rows: int) -> None:
    """Events (user_id, ts, item) of one day: 50 a user on average, more of some."""
    rng = np.random.default_rng(0)
    num_users = max(1, int(num_rows * USERS_PER_ROW))
    user = (num_users * rng.random(num_rows) ** 2).astype(np.int64)
    ts = 1_767_225_600_000_000 + rng.integers(0, 86_400_000_000, num_rows)
    item = (200_000 * rng.random(num_rows) ** 3).astype(np.int64)
    times = pa.array(ts).cast(pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": user, "ts": times, "item": item}), path, row_group_size=1 << 20)


def ours(path: Path) -> dict[str, Any]:
    from pyspark.sql import functions as F

    from pipeline.tables.sessions import sessions

    frame = _spark().read.parquet(str(path))
    started = time.perf_counter()
    rows = sessions(frame, "item", "user_id", "ts", timedelta(seconds=GAP_S))
    found = rows.agg(F.count("items"), F.sum(F.size("items")), F.max(F.size("items"))).collect()[0]
    return {"seconds": time.perf_counter() - started, "found": list(found)}


def collected(path: Path) -> dict[str, Any]:
    """Window functions for the sessions, then collect_list and a sort of each."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    frame = _spark().read.parquet(str(path))
    started = time.perf_counter()
    item = F.col("item").cast("string")
    events = frame.select("user_id", F.unix_micros("ts").alias("ts"), item.alias("item"))
    ordered = Window.partitionBy("user_id").orderBy("ts", "item")
    gap = F.col("ts") - F.lag("ts").over(ordered)
    begins = F.coalesce((gap > GAP_S * 1_000_000).cast("int"), F.lit(1))
    numbered = events.withColumn("begins", begins).withColumn("session", F.sum("begins").over(ordered))
    lists = numbered.groupBy("user_id", "session").agg(F.array_sort(F.collect_list(F.struct("ts", "item"))).alias("e"))
    rows = lists.select(F.col("e.item").alias("items"))
    found = rows.agg(F.count("items"), F.sum(F.size("items")), F.max(F.size("items"))).collect()[0]
    return {"seconds": time.perf_counter() - started, "found": list(found)}


def pandas(path: Path) -> dict[str, Any]:
    import pandas as pd

    started = time.perf_counter()
    frame = pd.read_parquet(path)
    frame["item"] = frame["item"].astype("string[pyarrow]")
    frame = frame.sort_values(["user_id", "ts", "item"])
    gap = frame["ts"].diff() > pd.Timedelta(seconds=GAP_S)
    session = (gap | (frame["user_id"] != frame["user_id"].shift())).cumsum()
    sizes = frame.groupby(session)["item"].agg(list).map(len)
    return {"seconds": time.perf_counter() - started, "found": [len(sizes), int(sizes.sum()), int(sizes.max())]}


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {"ours": ours, "collected": collected, "pandas": pandas}
TITLES = {
    "ours": "`sessions()`",
    "collected": "Spark: windows, `collect_list`, sort",
    "pandas": "pandas: sort, groupby",
}


def _spark() -> Any:
    from jobs.session import build_session

    spark = build_session("events")
    spark.range(1000).mapInArrow(lambda batches: batches, "id bigint").count()  # starts Java and a Python worker
    return spark


def measured(way: str, path: Path) -> dict[str, Any]:
    """What a way gives in a process of its own, with ``peak_bytes``."""
    command = [sys.executable, __file__, "--way", way, "--events", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                peak[0] = max(peak[0], sum(map(_resident_bytes, _tree(process.pid))))

        watching = threading.Thread(target=watch)
        watching.start()
        out, _ = process.communicate()
        ended.set()
        watching.join()
    return {**json.loads(out.splitlines()[-1]), "peak_bytes": peak[0]}


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
        for thread in threads:
            if thread != pid:
                children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _resident_bytes(pid: int) -> int:
    """Its share of memory: what n processes share counts 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(lines.split("\nPss:")[1].split()[0]) * 1024


def parse() -> argparse.Namespace:
    example = "python benchmarks/measuring/event_sessions.py --rows 10000000"
    parser = Parser("benchmarks/measuring/event_sessions.py", "Measures sequences of events.", example)
    parser.add_argument("--rows", type=count, default=10_000_000, help="events")
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process; for the benchmark itself")
    parser.add_argument("--events", type=Path, help="the file of events, with --way")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.way:
        print(json.dumps(WAYS[arguments.way](arguments.events)))
        return
    about = provenance("pyspark", "pyarrow", "numpy", "pandas")
    about[0] = about[0].replace("benchmarks/", "benchmarks/measuring/")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        write_events(path, arguments.rows)
        found = {way: measured(way, path) for way in WAYS}
    assert len({tuple(each["found"]) for each in found.values()}) == 1, found
    sequences, _, longest = found["ours"]["found"]
    rows = []
    for way, each in found.items():
        seconds, peak = each["seconds"], each["peak_bytes"] / 1e9
        rows.append((TITLES[way], f"{seconds:.1f}", f"{arguments.rows / seconds:,.0f}", f"{peak:.2f}"))
    print(*about, "", f"{arguments.rows:,} events, {sequences:,} sequences, the longest of {longest}.", "", sep="\n")
    print(*table(["way", "s", "events/s", "peak, GB"], rows), sep="\n")


if __name__ == "__main__":
    main()
