"""`vast evaluate`: a trained model scored on a data set by any number of ranks, every record accounted for."""
