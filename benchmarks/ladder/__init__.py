"""What is to be shown on a GPU, rung by rung."""
