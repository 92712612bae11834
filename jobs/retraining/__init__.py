"""What jobs/retrain.py is made of."""
