"""corpus_of(): the corpus that the settings of a command name."""

from pipeline.pipeline_config import Source
from pipeline.shared.errors import InputError
from pipeline.tables.catalog import CatalogTable
from pipeline.tables.delta import delta
from pipeline.tables.event_corpus import EventCorpus
from pipeline.tables.iceberg import iceberg
from pipeline.tables.table_versions import TableCorpus
from pipeline.text.corpus import Corpus, FileCorpus, corpus
from pipeline.text.parquet_files import event_columns


def corpus_of(source: Source) -> Corpus:
    """The corpus of ``source``, as it is now. Files and tables by path are found at once, tables by name when read."""
    found = _rows_of(source)
    if source.group_by is None or source.order_by is None:
        return found
    return EventCorpus(found, str(source.column), source.group_by, source.order_by, source.gap)


def _rows_of(source: Source) -> FileCorpus | TableCorpus | CatalogTable:
    if source.table is not None:
        return CatalogTable(source.table, str(source.column), source.where)
    flags = {"--column": source.column, "--group-by": source.group_by, "--order-by": source.order_by}
    columns = {flag: column for flag, column in flags.items() if column is not None}
    if source.format in ("delta", "iceberg"):
        if len(source.input) != 1:
            raise InputError(f"--input: found {len(source.input)}, expected one {source.format.capitalize()} table")
        return (delta if source.format == "delta" else iceberg)(source.input[0], columns, source.as_of)
    if source.group_by is None or source.order_by is None:
        return corpus(source.input, source.format, source.column)
    wanted = event_columns(str(source.column), source.group_by, source.order_by)
    return corpus(source.input, source.format, source.column, wanted)
