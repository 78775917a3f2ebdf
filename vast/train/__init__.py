"""Training: the frozen config, the loop, checkpoints, metrics and evaluation. Knows nothing of Ray or MLflow."""
