"""A run's folder: checkpoints, metrics, the report, and where a run goes on from."""
