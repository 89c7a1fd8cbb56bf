"""Training and evaluation: the loop, checkpoints and metrics."""
