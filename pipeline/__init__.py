"""The Spark side: from a corpus to pre-sampled Parquet shards. Never imports torch."""
