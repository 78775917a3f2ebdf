"""Videos and their annotations to a shard data set. Knows nothing of torch."""
