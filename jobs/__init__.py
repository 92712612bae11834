"""Entry points of Spark and of retraining."""
