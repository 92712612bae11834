"""Scheduled retraining: what jobs/retrain.py is made of."""
