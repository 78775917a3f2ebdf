"""What infra/ promises, on real servers: rendered jobs on a Ray cluster, the rules of a bucket on an S3 server."""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from pipelines import cli
from tests.integration.ray_nodes import RayNodes
from vast.errors import UserError
from vast.storage import open_store

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
SMALL = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32", "data.num_readers=0"]
SMALL += ["optim.global_batch=8", "log_every_steps=5"]
JOB_LIMIT_S = 300.0


# --- rendered jobs on a cluster ---------------------------------------------------------------------------------------


@dataclass
class Cluster(RayNodes):
    """A head without CPUs, as in the manifests, and workers with one each."""

    with_dashboard: bool = True
    seen: set[str] = field(default_factory=set)
    """Names of metrics that some scrape has found."""
    values: dict[str, float] = field(default_factory=dict)

    def ray(self, *words: str, timeout_s: float = JOB_LIMIT_S) -> "subprocess.CompletedProcess[str]":
        address = ["--address", f"http://127.0.0.1:{self.dashboard}"]
        words = (*words[:2], *address, *words[2:])
        command = [str(BIN / "ray"), *words]
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, job: str, entrypoint: str, *options: str) -> "subprocess.CompletedProcess[str]":
        """What KubeRay's submitter does with a job's entrypoint."""
        return self.ray("job", "submit", "--submission-id", job, *options, "--", *shlex.split(entrypoint))

    def wait_for(self, job: str, text: str) -> str:
        """The job's output so far, once the text is in it."""
        deadline = time.monotonic() + JOB_LIMIT_S
        url = f"http://127.0.0.1:{self.dashboard}/api/jobs/{job}/logs"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"})
        while True:
            said = json.loads(urllib.request.urlopen(request, timeout=10).read())["logs"]
            if text in said:
                return said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)

    def stop_job(self, job: str) -> int:
        """Stop a job as an operator does; the step at which its run saved."""
        time.sleep(1)
        stopped = self.ray("job", "stop", job)
        assert stopped.returncode == 0, stopped.stderr
        return int(re.search(r"saved at step (\d+)", self.wait_for(job, "saved at step"))[1])

    def watch(self, done: threading.Event) -> None:
        """Scrape as Prometheus would."""
        while not done.wait(2.0):
            for port in self.metrics:
                with contextlib.suppress(OSError):
                    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
                    lines = re.findall(r"^(ray_\w+)(?:\{.*\})? (\S+)$", text, flags=re.M)
                    self.seen |= {name for name, _ in lines}
                    self.values |= {name: max(float(value), self.values.get(name, 0.0)) for name, value in lines}


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    temporary = tempfile.mkdtemp(prefix="vast-")  # short, for Ray's sockets
    environment = {
        **s3_server.environment,
        **s3_server.others["writer"],  # who may do what the bucket's policy gives, and no more
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "VAST_SPOOL": str(folder / "spool"),
        # where a job looks for its cluster: not among other clusters of this machine
        "RAY_TMPDIR": str(temporary),
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    environment |= head_environment()
    made = Cluster(folder, environment)
    done = threading.Event()
    watcher = threading.Thread(target=made.watch, args=[done])
    try:
        for cpus in (0, 1, 1):
            made.start(cpus)
        watcher.start()
        yield made
    finally:
        done.set()
        if watcher.ident:
            watcher.join()
        made.stop()
        shutil.rmtree(temporary, ignore_errors=True)


def render(*command: str) -> dict:
    words = [sys.executable, str(INFRA / "kuberay" / "render.py"), "--", *command]
    return yaml.safe_load(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)


def head_environment() -> dict[str, str]:
    """Plain variables of the head's container that shape how jobs end, as the manifests have them."""
    head = render("vast", "search", "x")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    found = {entry["name"]: entry["value"] for entry in head["containers"][0]["env"] if "value" in entry}
    return {name: value for name, value in found.items() if name.startswith("RAY_")}


@pytest.mark.stack
def test_rendered_jobs_run_stop_continue_and_leave_a_draining_node(cluster, s3_server, tmp_path):
    bucket = f"jobs-{secrets.token_hex(4)}"
    rights = ["--allow-http", "--writer", "arn:aws:iam::000000000000:user/writer"]
    assert apply(s3_server.environment, bucket, *rights).returncode == 0
    data, runs = f"s3://{bucket}/ssv2", f"s3://{bucket}/runs"
    assert (
        cli.main(["synth", "ssv2", "--out", str(tmp_path / "raw"), "--train", "24", "--val", "8", "--workers", "1"])
        == 0
    )
    raw = tmp_path / "raw"

    def entrypoint(*command: str) -> str:
        return render("vast", *command)["spec"]["entrypoint"]

    # shard
    words = ["--annotations", str(raw / "labels"), "--videos", str(raw / "20bn-something-something-v2"), "--out", data]
    done = cluster.submit("shard", entrypoint("shard", "ssv2", *words, "--short-side", "64"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "27 records = 24 samples + 3 failures" in done.stdout

    # pretrain, which would take long: stopped by an operator, continued by the same command, moved away from a node
    # that goes, stopped again
    recipe = ["demo_pretrain_kinetics", f"data.url={data}", "data.flip=label_aware", *SMALL, "optim.epochs=2000"]
    recipe += ["eval.every_epochs=10", "checkpoint.every_epochs=10", "--output", runs, "--ranks", "1..2"]
    pretrain = entrypoint("pretrain", *recipe)
    assert cluster.submit("first", pretrain, "--no-wait").returncode == 0
    cluster.wait_for("first", "from scratch on 2 rank(s)")
    first = cluster.stop_job("first")
    assert cluster.submit("second", pretrain, "--no-wait").returncode == 0
    cluster.wait_for("second", f"resumed at step {first} from this run's last checkpoint on 2 rank(s)")
    drain(cluster)
    said = cluster.wait_for("second", "on 1 rank(s)")
    assert "the ranks were told to go and have saved" in said
    second = cluster.stop_job("second")
    assert first < second < 6000
    with s3_server.in_environment():
        (run,) = {key.split("/")[0] for key in open_store(runs).list()}

    # the others, with what that one left
    finetune = ["demo_finetune_ssv2", f"data.url={data}", f"init_from={runs}/{run}/step-{second:08d}", *SMALL]
    done = cluster.submit("finetune", entrypoint("finetune", *finetune, "optim.epochs=1", "--output", runs))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"weights of vast_micro from {runs}/{run}" in done.stdout
    run_url = re.search(rf"model +({runs}/\S+)/model", done.stdout)[1]
    search = ["demo_search", f"data.url={data}", *SMALL, "optim.epochs=1", "search.num_trials=1", "--output", runs]
    done = cluster.submit("search", entrypoint("search", *search))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best trial" in done.stdout
    evaluate = [run_url, "--data", data, "--allow-leaks", "--out", f"s3://{bucket}/evaluations"]
    done = cluster.submit("evaluate", entrypoint("evaluate", *evaluate))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 11 rows" in done.stdout

    # a mistake is told in the job's output, and the job has failed
    done = cluster.submit("mistake", entrypoint("pretrain", "demo_pretrain_kinetics", "optim.lrr=1"))
    assert done.returncode != 0
    assert "optim.lrr" in done.stdout

    check_metrics(cluster)


def drain(cluster: Cluster) -> None:
    """Run the manifests' hook for the last worker, and see Ray take it."""
    program = (
        "from ray._raylet import GcsClient\n"
        f"nodes = GcsClient(address='127.0.0.1:{cluster.port}').get_all_node_info(timeout=5)\n"
        "print(*[(node.metrics_export_port, node_id.hex()) for node_id, node in nodes.items()], sep='\\n')"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], env=cluster.environment, capture_output=True, text=True, check=True, timeout=60
    )
    node_id = dict(re.findall(r"\((\d+), '(\w+)'\)", said.stdout))[str(cluster.metrics[-1])]
    environment = {**cluster.environment, "RAY_ADDRESS": f"127.0.0.1:{cluster.port}"}
    # it waits for ranks on this machine to go, of which there are some on other nodes here: not longer than it is told
    words = [str(INFRA / "docker" / "drain-node.sh"), "10", node_id]
    began_s = time.monotonic()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "did not take it" not in done.stderr
    assert time.monotonic() - began_s < 20


def check_metrics(cluster: Cluster) -> None:
    """Prometheus has seen everything that the dashboard draws, but for GPUs and the autoscaler, which are not here."""
    dashboard = json.loads((INFRA / "grafana" / "training.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"\bray_\w+", target["expr"])
    }
    elsewhere = {name for name in asked if name.startswith(("ray_node_gpu", "ray_node_gram", "ray_cluster_"))}
    assert len(asked - elsewhere) >= 20
    assert asked - elsewhere <= cluster.seen
    assert cluster.values["ray_vast_steps_planned"] == 6000
    assert 0 < cluster.values["ray_vast_last_step"] < 6000
    assert cluster.values["ray_vast_ranks"] == 2
    assert cluster.values["ray_vast_restarts"] == 1
    assert cluster.values["ray_vast_checkpoints_stored_total"] >= 1
    assert 0 < cluster.values["ray_vast_learning_rate"] < 1


# --- the bucket -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_people(s3_server) -> dict[str, dict[str, str]]:
    """Environments of a reader and a writer, whom the server knows and who may do nothing yet."""
    return {name: {**s3_server.environment, **keys} for name, keys in s3_server.others.items()}


def apply(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, str(INFRA / "s3" / "apply.py"), *words]
    return subprocess.run(program, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_a_bucket_is_made_with_its_rules_and_readers_and_writers_may_do_theirs(s3_server, two_people, monkeypatch):
    bucket = f"rules-{secrets.token_hex(4)}"
    arns = {name: f"arn:aws:iam::000000000000:user/{name}" for name in two_people}
    words = [bucket, "--allow-http", "--reader", arns["reader"], "--writer", arns["writer"]]
    for _ in range(2):  # as often as you like
        done = apply(s3_server.environment, *words)
        assert done.returncode == 0, done.stderr
    rules = s3_server.client().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    shipped = json.loads((INFRA / "s3" / "lifecycle.json").read_text())["Rules"]
    assert {rule["ID"] for rule in rules} == {rule["ID"] for rule in shipped}
    assert [r["AbortIncompleteMultipartUpload"] for r in rules if "AbortIncompleteMultipartUpload" in r] == [
        {"DaysAfterInitiation": 3}
    ]

    def as_(name: str):
        for variable, value in two_people[name].items():
            monkeypatch.setenv(variable, value)
        return open_store(f"s3://{bucket}/runs")

    store = as_("writer")
    store.put_bytes("a", b"1")
    big = b"x" * (20 << 20)  # in parts
    store.put_bytes("big", big)
    assert sorted(store.list()) == ["a", "big"]
    assert store.get_bytes("big") == big
    store.delete("a")
    store = as_("reader")
    assert list(store.list()) == ["big"]
    assert store.get_bytes("big") == big
    for forbidden in (lambda: store.put_bytes("b", b"2"), lambda: store.delete("big")):
        with pytest.raises(UserError, match="AccessDenied"):
            forbidden()


def test_a_server_that_refuses_is_told_in_one_line(s3_server, two_people):
    done = apply(two_people["reader"], "somebody-elses")
    assert done.returncode == 1
    assert done.stderr.startswith("apply.py: somebody-elses: ")
    assert len(done.stderr.splitlines()) == 1
