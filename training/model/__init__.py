"""The model, its batch and its step; ``kernels`` hold each way to compute it."""
