"""The PyTorch side: streams a dataset's shards and trains word vectors. Never imports pyspark."""
