"""Names of a finished run's files."""

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
REPORT = "report.html"
BOARD = "tensorboard"
