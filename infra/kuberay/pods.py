"""The pods of a Ray cluster: size, volumes, environment, rights."""

from typing import Any

METRICS_PORT = 8080
# Pods have so long to go; the hook leaves a little of it for Ray to end.
GRACE_S, DRAIN_S = 120, 100
LABELS = {"app.kubernetes.io/part-of": "vast"}
_LOGS_GIB = 10


def pod(values: dict[str, Any], size: dict[str, Any], image: str, name: str) -> dict[str, Any]:
    """The template of a group's pods; `name` is ray-head or ray-worker."""
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)}
    resources: dict[str, Any] = {
        "cpu": str(size["cpus"]),
        "memory": f"{size['memory_gib']}Gi",
        "ephemeral-storage": f"{size['scratch_gib'] + _LOGS_GIB}Gi",
    }
    if size.get("gpus"):
        resources["nvidia.com/gpu"] = str(size["gpus"])
    ports = {"metrics": METRICS_PORT}
    if name == "ray-head":
        ports |= {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    volumes, mounts = _volumes(values, size)
    container = {
        "name": name,
        "image": image,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "env": _environment(values),
        "resources": equal(resources),
        "securityContext": unprivileged(),
        "volumeMounts": mounts,
    }
    if name == "ray-worker":  # ranks save and move before the pod goes
        command = ["/opt/vast/drain-node.sh", str(DRAIN_S)]
        container["lifecycle"] = {"preStop": {"exec": {"command": command}}}
    spec: dict[str, Any] = {
        **_pod_settings(values),
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": volumes,
    }
    if size.get("node_selector"):
        spec["nodeSelector"] = dict(size["node_selector"])
    if size.get("tolerations"):
        spec["tolerations"] = list(size["tolerations"])
    return {"metadata": {"labels": dict(LABELS), "annotations": annotations}, "spec": spec}


def _pod_settings(values: dict[str, Any]) -> dict[str, Any]:
    user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    settings: dict[str, Any] = {"securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}}}
    if values["store"]["service_account"]:
        settings["serviceAccountName"] = values["store"]["service_account"]
    if values["image_pull_secret"]:
        settings["imagePullSecrets"] = [{"name": values["image_pull_secret"]}]
    return settings


def _volumes(values: dict[str, Any], size: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    # Ray's and torch's shared memory; Kubernetes' own /dev/shm has 64 MiB. It counts as memory of the container.
    shared = {"medium": "Memory", "sizeLimit": f"{size['shm_gib']}Gi"}
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": shared},
        {"name": "scratch", "emptyDir": {"sizeLimit": f"{size['scratch_gib']}Gi"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    if values["videos"]["claim"]:
        claim = {"claimName": values["videos"]["claim"], "readOnly": True}
        volumes.append({"name": "videos", "persistentVolumeClaim": claim})
        mounts.append({"name": "videos", "mountPath": "/videos", "readOnly": True})
    return volumes, mounts


def _environment(values: dict[str, Any]) -> list[dict[str, Any]]:
    store, tracking = values["store"], values["tracking"]
    plain = {
        "AWS_REGION": store["region"],
        "AWS_ENDPOINT_URL": store["endpoint"],
        "MLFLOW_TRACKING_URI": tracking["uri"],
        "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S),  # `ray job stop` would kill a driver after three seconds
    }
    environment: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items() if value]
    for secret, names in (
        (store["secret"], ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (tracking["secret"], ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    ):
        if secret:
            environment += [
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in names
            ]
    return environment


def submitter(values: dict[str, Any], image: str) -> dict[str, Any]:
    """The pod that runs `ray job submit` and shows the job's output; KubeRay gives it its command and the token."""
    container = {
        "name": "ray-job-submitter",
        "image": image,
        "resources": equal({"cpu": "500m", "memory": "1Gi"}),
        "securityContext": unprivileged(),
    }
    spec = {**_pod_settings(values), "restartPolicy": "Never", "containers": [container]}
    spec.pop("serviceAccountName", None)  # it speaks to Ray alone
    return {"metadata": {"labels": dict(LABELS)}, "spec": spec}


def equal(resources: dict[str, Any]) -> dict[str, Any]:
    """Requests that are limits."""
    return {"requests": dict(resources), "limits": dict(resources)}


def unprivileged() -> dict[str, Any]:
    """A container's rights: none."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
