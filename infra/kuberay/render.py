"""Kubernetes manifests for KubeRay: a command that runs on a laptop becomes a RayJob, with a cluster of its own.

    render.py -- vast pretrain RECIPE data.url=s3://... --output s3://... | kubectl apply -f -
    render.py --values mine.yaml -- vast shard ssv2 --annotations /videos/labels --videos /videos/ssv2 --out s3://...
    render.py --values mine.yaml cluster       a RayCluster that stays
    render.py --values mine.yaml monitoring    a PodMonitor, for the Prometheus operator
    render.py --values mine.yaml network       a NetworkPolicy: who may speak to Ray's ports

The words after -- are the job's entrypoint; its log goes to the job's output. One program rather than a file for each
job, since the jobs differ in a few numbers (values.yaml) and would drift apart as copies. It writes YAML to stdout and
touches no cluster; exit code 2 after a mistake. Needs PyYAML alone.
"""

import argparse
import hashlib
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from pods import LABELS, METRICS_PORT, equal, pod, submitter, unprivileged

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GIB = 2**30


class Mistake(ValueError):  # noqa: N818 - says what it is
    """Something in the values or the command that a person has to mend."""


def main(argv: list[str] | None = None) -> int:
    """Print what is asked for."""
    words = sys.argv[1:] if argv is None else argv
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description="Manifests for KubeRay.", usage="%(prog)s [options] [-- vast ...]")
    parser.add_argument("what", nargs="?", choices=["cluster", "monitoring", "network"])
    parser.add_argument("--values", type=Path, metavar="FILE", help="changes to values.yaml")
    args = parser.parse_args(own)
    try:
        if bool(args.what) == bool(command):
            raise Mistake("give one of cluster, monitoring and network, or a command after --")
        values = read_values(args.values)
        manifest = ray_job(values, command) if command else {
            "cluster": ray_cluster, "monitoring": pod_monitor, "network": network_policy,
        }[args.what](values)  # fmt: skip
    except (Mistake, OSError, yaml.YAMLError) as error:
        print(f"render.py: {error}", file=sys.stderr)
        return 2
    yaml.dump(manifest, sys.stdout, Dumper=_Plain, sort_keys=False, explicit_start=True, width=120)
    return 0


class _Plain(yaml.SafeDumper):
    """Without anchors, which people who read a manifest should not have to resolve."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_values(path: Path | None) -> dict[str, Any]:
    """values.yaml with the changes of a file; a name that values.yaml does not have is a mistake."""
    values: dict[str, Any] = yaml.safe_load((HERE / "values.yaml").read_text(encoding="utf-8"))
    if path is not None:
        with path.open(encoding="utf-8") as file:
            changes = yaml.safe_load(file) or {}
        if not isinstance(changes, dict):
            raise Mistake(f"{path}: expected names and values, as in {HERE / 'values.yaml'}")
        _merge(values, changes, str(path))
    return values


# Mappings whose names are the user's own.
_OPEN = re.compile(r"groups|groups\.[^.]+\.node_selector|commands\.[^.]+\.pods")


def _merge(values: dict[str, Any], changes: dict[str, Any], file: str, path: str = "") -> None:
    for name, value in changes.items():
        dotted = f"{path}.{name}" if path else str(name)
        if name not in values and not _OPEN.fullmatch(path):
            raise Mistake(f"{file}: {dotted} is not known; {path or 'the file'} has {', '.join(values)}")
        if isinstance(values.get(name), dict):
            if not isinstance(value, dict):
                raise Mistake(f"{file}: {dotted} is {value!r}: expected a mapping")
            if _OPEN.fullmatch(dotted) and dotted != "groups":
                values[name] = value  # what is chosen there replaces the default altogether
            else:
                _merge(values[name], value, file, dotted)
        else:
            values[name] = value


def versions() -> dict[str, str]:
    """versions.env, with Ray's version from constraints.txt."""
    lines = (ROOT / "infra" / "versions.env").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    match = re.search(r"^ray==(\S+)$", pins, flags=re.MULTILINE)
    if match is None:
        raise Mistake("constraints.txt has no line ray==VERSION")
    return {**found, "RAY_VERSION": match[1]}


# --- the two kinds ---------------------------------------------------------------------------------------------------


def ray_job(values: dict[str, Any], command: list[str]) -> dict[str, Any]:
    """A RayJob that runs a command on a cluster of its own, which goes when the command has ended."""
    verbs = [name for name in values["commands"] if name != "cluster"]
    if len(command) < 2 or command[0] != "vast" or command[1] not in verbs:
        raise Mistake(f"{shlex.join(command)!r} is no job for a cluster: expected vast and one of {', '.join(verbs)}")
    profile = values["commands"][command[1]]
    return {
        **_kind("ray.io/v1", "RayJob", job_name(command), values),
        "spec": {
            "entrypoint": shlex.join(_with_log(command)),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter(values, _image(values, profile)),
            # The same command continues: a fresh cluster loses what came after the last checkpoint, and nothing else.
            "backoffLimit": profile["retries"],
            "activeDeadlineSeconds": profile["hours"] * 3600,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,  # to look at the pods' logs
            "rayClusterSpec": _cluster_spec(values, profile),
        },
    }


def _with_log(command: list[str]) -> list[str]:
    """The command, with the libraries' own output in the job's: a file would be lost with the pod."""
    return command if "--log" in command else [command[0], "--log", "/dev/stderr", *command[1:]]


def job_name(command: list[str]) -> str:
    """A name that says what runs; the same command has the same one, so that it is never there twice."""
    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]
    subject = command[2] if len(command) > 2 and "=" not in command[2] else ""
    words = re.sub(r"[^a-z0-9]+", "-", f"{command[1]}-{Path(subject).stem}".lower()).strip("-")
    return f"{words[:36].rstrip('-')}-{digest}"  # KubeRay adds to it, and 63 characters are all there may be


def ray_cluster(values: dict[str, Any]) -> dict[str, Any]:
    """A RayCluster that stays; groups shrink to their least when nothing runs."""
    kind = _kind("ray.io/v1", "RayCluster", "vast", values)
    return {**kind, "spec": _cluster_spec(values, values["commands"]["cluster"])}


def _kind(api: str, kind: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": values["namespace"], "labels": dict(LABELS)}
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def _cluster_spec(values: dict[str, Any], profile: dict[str, Any]) -> dict[str, Any]:
    auth = {"mode": "token"}
    if values["ray_token_secret"]:
        auth["secretName"] = values["ray_token_secret"]
    image = _image(values, profile)
    # No gcsFaultToleranceOptions: a job's driver lives on the head, so a head that comes back without it would keep
    # nothing alive; and Redis would be one more thing to run and to lose. Runs continue from their checkpoints instead.
    return {
        "rayVersion": versions()["RAY_VERSION"],
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "resources": equal({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": unprivileged(),
        },
        "headGroupSpec": {
            # no CPUs: ranks and tasks go to the workers, drivers and Ray's own processes have the head for themselves
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_ray_params()},
            "template": pod(values, values["head"], image, "ray-head"),
        },
        "workerGroupSpecs": [_group(values, name, pods, image) for name, pods in profile["pods"].items()],
    }


def _ray_params() -> dict[str, str]:
    # Clips do not go through Ray's object store; by default it would take a third of the memory.
    return {"metrics-export-port": str(METRICS_PORT), "object-store-memory": str(GIB)}


def _group(values: dict[str, Any], name: str, pods: Any, image: str) -> dict[str, Any]:
    least, most = pods if isinstance(pods, list) and len(pods) == 2 else (pods, pods)
    if not (isinstance(least, int) and isinstance(most, int) and 0 <= least <= most and most > 0):
        raise Mistake(f"pods of {name}: {pods!r} is neither a number of pods, as 2, nor [least, most], as [0, 4]")
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": _ray_params(),
        "template": pod(values, values["groups"][name], image, "ray-worker"),
    }


def _image(values: dict[str, Any], profile: dict[str, Any]) -> str:
    """One image for all pods of a cluster, so that no two nodes differ in a version."""
    missing = [name for name in profile["pods"] if name not in values["groups"]]
    if missing:
        raise Mistake(f"groups.{missing[0]} is not there; groups has {', '.join(values['groups'])}")
    variant = "cuda" if any(values["groups"][name].get("gpus") for name in profile["pods"]) else "cpu"
    return f"{values['image']}:{versions()['VAST_VERSION']}-{variant}"


# --- around the cluster ----------------------------------------------------------------------------------------------


def pod_monitor(values: dict[str, Any]) -> dict[str, Any]:
    """Has the Prometheus operator scrape every Ray pod; `run` and the like come from Ray's own labels."""
    return {
        **_kind("monitoring.coreos.com/v1", "PodMonitor", "vast-ray", values),
        "spec": {
            "selector": {"matchLabels": {"ray.io/is-ray-node": "yes", **LABELS}},
            "podMetricsEndpoints": [
                {
                    "port": "metrics",
                    "interval": "15s",
                    "relabelings": [
                        {
                            "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
                            "targetLabel": "ray_io_cluster",
                        }
                    ],
                }
            ],
        },
    }


def network_policy(values: dict[str, Any]) -> dict[str, Any]:
    """Ray runs what it is told, so only its own pods, KubeRay's operator and Prometheus may speak to it."""
    anywhere: dict[str, Any] = {"namespaceSelector": {}}
    operator = {**anywhere, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    prometheus = {**anywhere, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    return {
        **_kind("networking.k8s.io/v1", "NetworkPolicy", "vast-ray", values),
        "spec": {
            "podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes", **LABELS}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": dict(LABELS)}}]},
                {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]},
                {"from": [prometheus], "ports": [{"port": METRICS_PORT, "protocol": "TCP"}]},
            ],
        },
    }


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no failure
    sys.exit(main())
