"""`vast predict`: what a trained model sees in videos that are no data set."""
