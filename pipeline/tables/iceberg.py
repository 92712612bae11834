"""An Iceberg table as a corpus: pyiceberg reads its metadata, Spark reads its Parquet files."""

import re
from typing import Any

import pyarrow as pa

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import os_errors
from pipeline.shared.storage import Location, local_path
from pipeline.tables.table_versions import TableCorpus, check_columns, live_files
from pipeline.text.corpus import FileCorpus
from pipeline.text.parquet_column import Find, Finder

SUFFIX = ".metadata.json"
_NUMBER = re.compile(r"v?(\d+)(-.*)?(\.gz)?\.metadata\.json(\.gz)?")
_FIELD_ID = b"PARQUET:field_id"


def iceberg(given: str, columns: dict[str, str], as_of: int | None) -> TableCorpus:
    """The corpus in the Iceberg table ``given``, a folder, a metadata file or a URI, at its snapshot ``as_of``.

    ``columns`` are those that are read, by flag; the first one is --column. Raises InputError if there is no such
    table, snapshot or column, or if its files alone do not say its rows.
    """
    table = _opened(given)
    snapshot = _snapshot(table, given, as_of)
    what = f"the Iceberg table {given}"
    metadata = table.metadata
    schema = (metadata.schema_by_id(snapshot.schema_id) if as_of is not None else None) or metadata.schema()
    fields = {field.name: field for field in schema.fields}
    check_columns(columns, fields, what)
    for flag, column in columns.items():
        if fields[column].initial_default is not None:
            raise InputError(f"{flag} {column}: has an initial default in {what}, which is not read; expected none")
    try:
        tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    except (ValueError, NotImplementedError) as error:  # of equality deletes
        raise InputError(f"--input {given}: {one_line(error)}; rewrite the table's files without deletes") from None
    except OSError as error:
        raise InputError(
            f"--input {given}: a manifest cannot be read ({one_line(error)}); give a whole table"
        ) from None
    for task in tasks:
        _check_task(task, given)
    files = live_files([_path(task.file.file_path) for task in tasks], given, as_of)
    version: dict[str, str | int] = {"format": "iceberg", "table": str(metadata.table_uuid)}
    version |= {"version": _last_change(metadata, snapshot), "rows": sum(task.file.record_count for task in tasks)}
    find = _by_id(table, {name: field.field_id for name, field in fields.items()}, what)
    return TableCorpus(FileCorpus(files, given, "parquet", next(iter(columns.values())), find), version)


def _opened(given: str) -> Any:
    try:
        from pyiceberg.table import StaticTable
    except ModuleNotFoundError:
        raise InputError("--format iceberg: pyiceberg is not installed; pip install 'shardvec[iceberg]'") from None
    file = given if given.endswith(SUFFIX) else _newest_metadata(given)
    path = local_path(file)
    try:
        return StaticTable.from_metadata(file if path is None else str(path.absolute()))
    except Exception as error:  # of pyiceberg, of pydantic, and of the library of each file system
        raise InputError(
            f"--input {file}: pyiceberg cannot read it ({one_line(error)}); expected an Iceberg table's metadata"
        ) from None


def _newest_metadata(given: str) -> str:
    """The metadata file with the largest number. A catalog may say otherwise, but a folder knows no catalog."""
    folder = Location.of(given) / "metadata"
    with os_errors(f"--input {given}: cannot be read", "expected an Iceberg table"):
        names = [entry.base_name for entry in folder.entries()]
    numbered = [(int(found[1]), name) for name in names if (found := _NUMBER.fullmatch(name))]
    if not numbered:
        raise InputError(f"--input {given}: found no Iceberg table, expected a folder with metadata/*{SUFFIX}")
    newest = sorted(name for number, name in numbered if number == max(numbered)[0])
    if len(newest) > 1:
        raise InputError(
            f"--input {given}: found {' and '.join(newest)}, expected one newest metadata file; name the one that the "
            f"table's catalog names"
        )
    return str(folder / newest[0])


def _snapshot(table: Any, given: str, as_of: int | None) -> Any:
    snapshot = table.current_snapshot() if as_of is None else table.snapshot_by_id(as_of)
    if snapshot is not None:
        return snapshot
    if as_of is None:
        raise InputError(f"--input {given}: the table has no rows, expected some")
    known = ", ".join(str(each.snapshot_id) for each in table.snapshots()[-5:])
    raise InputError(f"--as-of {as_of}: no snapshot of {given}, expected one that it still has, such as {known}")


def _check_task(task: Any, given: str) -> None:
    if task.delete_files:
        raise InputError(
            f"--input {given}: found delete files, which delete rows that its files still hold, expected none; "
            f"rewrite_data_files rewrites the files, or read it with --table"
        )
    if task.file.file_format.name != "PARQUET":
        raise InputError(f"--input {given}: found {task.file.file_format.name} files, expected Parquet; rewrite them")


def _last_change(metadata: Any, snapshot: Any) -> int:
    """The snapshot that last changed rows: one of the operation ``replace`` has the rows of its parent."""
    while snapshot.summary is not None and snapshot.summary.operation.name == "REPLACE":
        parent = snapshot.parent_snapshot_id
        known = metadata.snapshot_by_id(parent) if parent is not None else None
        if known is None:
            return int(snapshot.snapshot_id if parent is None else parent)
        snapshot = known
    return int(snapshot.snapshot_id)


def _path(name: str) -> str:
    """A file's path as Iceberg has it: on this machine, ``file:`` before the path, without escapes."""
    if name.startswith("file:"):
        return "/" + name.removeprefix("file:").lstrip("/")
    return name


def _by_id(table: Any, numbers: dict[str, int], what: str) -> Finder:
    """Iceberg knows columns by number: a column may have had another name when a file was written."""
    partitions = {field.source_id for spec in table.specs().values() for field in spec.fields}
    mapping = table.name_mapping()

    def finder(column: str) -> Find:
        wanted = numbers[column]

        def find(fields: pa.Schema) -> list[int]:
            ids = [int((field.metadata or {}).get(_FIELD_ID, -1)) for field in fields]
            if max(ids, default=-1) < 0 and mapping is None:
                raise InputError(f"{what}: found a file without field ids, expected ids, or a name mapping; rewrite it")
            if max(ids, default=-1) < 0:
                names = {name for field in mapping or () for name in field.names if field.field_id == wanted}
                found = [place for place, field in enumerate(fields) if field.name in names]
            else:
                found = [place for place, number in enumerate(ids) if number == wanted]
            if not found and wanted in partitions:
                raise InputError(f"{what}: {column} partitions it and is not in all files; expected it there")
            return found

        return find

    return finder
