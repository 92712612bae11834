"""The shard format, whole: the manifest, and shards written, read and verified."""
