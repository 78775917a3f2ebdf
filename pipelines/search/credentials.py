"""What Ray Tune would tell the whole cluster, and must not."""


def keep_credentials_here() -> None:
    """Keep Ray Tune from copying this process's AWS credentials into the runtime environment of every trial.

    Ray writes that into its logs and shows it to whoever may look at the cluster's jobs and actors. Each node has
    credentials of its own in its environment; a trial uses those, as a rank does.
    """
    from ray.tune.execution import class_cache

    for name in [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)
