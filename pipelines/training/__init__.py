"""Training runs: the driver, the ranks, their checkpoints, and what is done when any of them dies."""
