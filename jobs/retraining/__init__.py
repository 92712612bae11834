"""One retraining cycle, the steps of jobs/retrain.py: plan, prepare, train, evaluate, publish."""
