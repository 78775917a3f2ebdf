import pytest
from ray.tune.execution import class_cache

from pipelines.search.credentials import keep_credentials_here

SECRET = "planted-0123456789"


class Trainable:
    """Stands for a trial."""


def test_a_trials_runtime_environment_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
    for name in names:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {*class_cache.ENV_VARS_TO_PROPAGATE, *names})
    made = class_cache._ActorClassCache().get(Trainable)
    assert SECRET in str(made._default_options["runtime_env"]), "what Ray does when left to itself"
    keep_credentials_here()
    made = class_cache._ActorClassCache().get(Trainable)
    assert "PL_DISABLE_FORK" in str(made._default_options["runtime_env"])
    assert SECRET not in str(made._default_options["runtime_env"])
