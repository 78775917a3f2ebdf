"""The command line and the orchestration: the only place that knows Ray and MLflow."""
