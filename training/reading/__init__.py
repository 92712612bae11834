"""From shards to batches, in a planned order, ahead of training."""
