"""What the files of a finished run are called."""

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
REPORT = "report.html"
BOARD = "tensorboard"
