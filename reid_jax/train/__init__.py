"""Training: one loop that knows no method, devices, checkpoints, metric writers."""
