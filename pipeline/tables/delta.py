"""A Delta table as a corpus: deltalake reads its log, Spark reads its Parquet files."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.storage import Location, is_uri, local_path
from pipeline.tables.table_versions import TableCorpus, check_columns, live_files
from pipeline.text.corpus import FileCorpus
from pipeline.text.parquet_column import Find

READ = ("deletionVectors", "columnMapping", "timestampNtz", "typeWidening", "v2Checkpoint", "vacuumProtocolCheck")
"""Features of tables that change nothing here, except for the first two, which are refused where they are in use."""
_REWRITE = "rewrite the table without them"


def delta(given: str, columns: dict[str, str], as_of: int | None) -> TableCorpus:
    """The corpus in the Delta table ``given``, a folder or URI, at its newest version or ``as_of``.

    ``columns`` are those that are read, by flag; the first one is --column. Raises InputError if there is no such
    table, version or column, or if its files alone do not say its rows.
    """
    path = local_path(given)
    place = given.rstrip("/") if path is None else str(path.absolute())
    table = _opened(given, place if path is None else path.absolute().as_uri(), as_of)
    what = f"the Delta table {given}"
    names = [field.name for field in table.schema().fields]
    check_columns(columns, names, what)
    _check_features(table, given)
    for flag, column in columns.items():
        if column in table.metadata().partition_columns:
            raise InputError(
                f"{flag} {column}: partitions {what}, so its values are in the log and in no file; expected a column "
                f"of the files, such as a copy of it"
            )
    alive = pa.table(table.get_add_actions()).select(["path", "num_records"]).to_pylist()
    files = live_files([_joined(place, unquote(file["path"])) for file in alive], given, as_of)
    version: dict[str, str | int] = {"format": "delta", "table": str(table.metadata().id)}
    version["version"] = _last_change(place, table.version())
    if all(file["num_records"] is not None for file in alive):
        version["rows"] = sum(file["num_records"] for file in alive)
    column = next(iter(columns.values()))
    return TableCorpus(FileCorpus(files, given, "parquet", column, _by_name), version)


def _opened(given: str, uri: str, as_of: int | None) -> Any:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError
    except ModuleNotFoundError:
        raise InputError("--format delta: deltalake is not installed; pip install 'shardvec[delta]'") from None
    try:
        newest = DeltaTable(uri)
    except TableNotFoundError:
        raise InputError(f"--input {given}: found no Delta table, expected a folder with a _delta_log") from None
    except (DeltaError, OSError, ValueError) as error:
        raise InputError(
            f"--input {given}: deltalake cannot read the table's log ({one_line(error)}); expected a whole Delta table"
        ) from None
    if as_of is None or as_of == newest.version():
        return newest
    try:
        return DeltaTable(uri, version=as_of)
    except (DeltaError, OSError, ValueError):
        raise InputError(
            f"--as-of {as_of}: not in the log of {given}, expected a version that it still has; the newest is "
            f"{newest.version()}"
        ) from None


def _check_features(table: Any, given: str) -> None:
    """Raises InputError if the rows are not those of the files, or if their columns have other names there."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise InputError(
            f"--input {given}: found column mapping (delta.columnMapping.mode = {mapping}), expected files whose "
            f"columns have the table's names; {_REWRITE}, or read it with --table"
        )
    features = table.protocol().reader_features or []
    if unknown := [name for name in features if name not in READ and not name.startswith("variantType")]:
        raise InputError(f"--input {given}: found the feature {unknown[0]}, which is not read; {_REWRITE}")
    if "deletionVectors" in features and _has_deletion_vectors(table):
        raise InputError(
            f"--input {given}: found deletion vectors, which delete rows that its files still hold, expected none; "
            f"REORG TABLE ... APPLY (PURGE) rewrites the files, or read it with --table"
        )


def _has_deletion_vectors(table: Any) -> bool:
    """Whether a file that is alive has one; one that deltalake cannot read is one too."""
    from deltalake.exceptions import DeltaError

    try:
        return any(batch.num_rows for batch in table.deletion_vectors())
    except DeltaError:
        return True


def _last_change(place: str, version: int) -> int:
    """The version that last changed rows or columns, as far back as the log goes: compaction and vacuum do not."""
    log = Location.of(place) / "_delta_log"
    while version > 0:
        try:
            lines = (log / f"{version:020}.json").read_bytes().splitlines()
        except OSError:
            break
        if any(map(_changes, map(json.loads, lines))):
            break
        version -= 1
    return version


def _changes(action: dict[str, Any]) -> bool:
    kind, content = next(iter(action.items()))
    return kind in ("metaData", "protocol") or (kind in ("add", "remove") and content.get("dataChange", True))


def _joined(place: str, path: str) -> str:
    """The file that a log names: below the table, or elsewhere, as in a shallow clone."""
    if is_uri(path):
        local = local_path(path)
        return path if local is None else str(local)
    return str(Path(place, path)) if not is_uri(place) else f"{place}/{path}"


def _by_name(column: str) -> Find:
    def find(fields: pa.Schema) -> list[int]:
        return list(fields.get_all_field_indices(column))

    return find
