"""Commands: Spark jobs and retraining."""
