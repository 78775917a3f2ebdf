"""`vast register`: trained models as versions in MLflow's registry, the best one under the alias champion."""
