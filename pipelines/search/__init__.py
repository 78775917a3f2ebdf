"""`vast search`: campaigns of trials over a recipe's settings."""
