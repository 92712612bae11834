"""Tables as corpora: DataFrames, Spark's catalog, Delta and Iceberg; and rows of events as sequences."""
