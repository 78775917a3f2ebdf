"""The tracking server for a team, started by the shipped script over a real PostgreSQL and the real S3 server."""

import contextlib
import glob
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from mlflow import MlflowClient

from pipelines import tracking
from vast.errors import UserError

ROOT = Path(__file__).parents[2]
SERVE, USERS = ROOT / "infra" / "mlflow" / "serve.sh", ROOT / "infra" / "mlflow" / "users.py"
START_LIMIT_S = 180.0


def postgres_programs() -> Path | None:
    """The folder of initdb and its like, which Debian keeps out of the path."""
    folders = [Path(found) for found in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A fresh PostgreSQL on the loopback that asks for a password; what its clients need in their environment."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server (initdb): apt-get install postgresql")
    port = free_port()
    unprivileged: dict[str, object] = {}
    folder = Path(tmp_path_factory.mktemp("postgres"))
    if os.getuid() == 0:  # which it refuses to run as
        user = pwd.getpwnam("postgres" if "postgres" in {p.pw_name for p in pwd.getpwall()} else "nobody")
        # folders of tests are closed to others
        folder = Path(tempfile.mkdtemp(prefix="vast-postgres-"))
        os.chown(folder, user.pw_uid, user.pw_gid)
        unprivileged = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    os.chmod(folder / "password", 0o644)
    data = folder / "data"
    options = ["--auth=scram-sha-256", "--username=mlflow", f"--pwfile={folder}/password", "--no-sync"]
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, *options],
            cwd=folder, check=True, capture_output=True, timeout=120, **unprivileged,
        )  # fmt: skip
        settings = [f"-cport={port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={folder}"]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *settings, "-cfsync=off", "-cshared_buffers=16MB"],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **unprivileged,
            )  # fmt: skip
        try:
            environment = {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(port),
                "PGUSER": "mlflow",
                "PGPASSWORD": password,
            }
            deadline = time.monotonic() + 60
            while True:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                with contextlib.suppress(psycopg.OperationalError):
                    where = {"host": "127.0.0.1", "port": port, "user": "mlflow", "password": password}
                    with psycopg.connect(**where, dbname="postgres", autocommit=True) as connection:
                        connection.execute("CREATE DATABASE mlflow")
                    break
                time.sleep(0.2)
            yield {**environment, "PGDATABASE": "mlflow"}
        finally:
            server.terminate()  # SIGTERM waits for clients to leave
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=10)
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Profile:
    """A tracking server as serve.sh starts it."""

    environment: dict[str, str]
    bucket: str
    port: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": self.environment["MLFLOW_AUTH_ADMIN_USERNAME"],
            "MLFLOW_TRACKING_PASSWORD": self.environment["MLFLOW_AUTH_ADMIN_PASSWORD"],
        }

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [SERVE], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.log.parent
            )
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            time.sleep(0.3)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)

    def users(self, *words: str, password: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {**self.environment, **self.admin, "MLFLOW_NEW_PASSWORD": password}
        return subprocess.run(
            [sys.executable, USERS, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "PG"))}
    return {**kept, "PYTHON": sys.executable}


@pytest.fixture(scope="module")
def profile(postgres, s3_server, tmp_path_factory) -> Iterator[Profile]:
    """The running server, with a writing user and a reading one."""
    bucket, port = s3_server.make_bucket(), free_port()
    environment = {
        **bare_environment(),
        **postgres,
        **s3_server.environment,
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{bucket}/mlflow",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(10),
        "MLFLOW_PORT": str(port),
    }
    profile = Profile(environment, bucket, port, tmp_path_factory.mktemp("profile") / "log")
    profile.start()
    try:
        for name, words in (("writer", ["--writes", "vast"]), ("reader", [])):
            done = profile.users("add", name, *words, password=f"{name}-password")
            assert done.returncode == 0, done.stderr
        yield profile
    finally:
        profile.stop()


@pytest.fixture
def as_user(profile, monkeypatch, tmp_path):
    """Become a user of the server, with no way to the store but through it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_EXPERIMENT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", profile.uri)
    monkeypatch.setenv("VAST_SPOOL", str(tmp_path / "spool"))

    def become(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return become


@pytest.mark.slow
@pytest.mark.servers
def test_nobody_gets_in_without_a_password(profile):
    asked = urllib.request.Request(
        f"{profile.uri}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(profile.uri, timeout=30)
    assert refused.value.code == 401


@pytest.mark.slow
@pytest.mark.servers
def test_a_writer_tracks_a_run_into_the_database_and_the_bucket(profile, as_user, s3_server, tmp_path):
    as_user("writer", "writer-password")
    run = tracking.create_run(profile.uri, "a run", params={"optim.lr": 0.1}, tags={"run.kind": "finetune"})
    tracking.log_figures(run, {"eval/top1": 55.5}, step=7)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: x\n")
    assert tracking.log_files(run, folder) is None
    with tracking.ending(run):
        pass
    client = MlflowClient(profile.uri)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"optim.lr": "0.1"}
    assert [(point.value, point.step) for point in client.get_metric_history(run.run_id, "eval/top1")] == [(55.5, 7)]
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["recipe.yaml"]
    (stored,) = s3_server.client().list_objects_v2(Bucket=profile.bucket)["Contents"]
    assert stored["Key"].startswith("mlflow/")
    assert stored["Key"].endswith(f"/{run.run_id}/artifacts/recipe.yaml")
    body = s3_server.client().get_object(Bucket=profile.bucket, Key=stored["Key"])["Body"].read()
    assert body == b"name: x\n"


@pytest.mark.slow
@pytest.mark.servers
def test_a_reader_reads_and_cannot_write(profile, as_user):
    as_user("writer", "writer-password")
    run = tracking.create_run(profile.uri, "a run to read", params={}, tags={"run.kind": "finetune"})
    as_user("reader", "reader-password")
    assert tracking.tags(run)["run.kind"] == "finetune"
    with pytest.raises(UserError, match="'reader' may not write"):
        tracking.create_run(profile.uri, "not mine", params={}, tags={})
    with pytest.raises(UserError, match="'reader' may not write"):
        tracking.reopen(run)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize(("name", "password"), [("writer", "wrong-password"), ("nobody-known", "some-password")])
def test_a_wrong_password_is_a_mistake_and_no_outage(profile, as_user, name, password):
    as_user(name, password)
    run = tracking.RunRef(profile.uri, "0" * 32)
    for ask in (
        lambda: tracking.create_run(profile.uri, "x", params={}, tags={}),
        lambda: tracking.reopen(run),
        lambda: tracking.tags(run),
    ):
        with pytest.raises(UserError, match=f"MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD: .*'{name}'"):
            ask()


@pytest.mark.slow
@pytest.mark.servers
def test_a_restart_keeps_runs_and_users(profile, as_user):
    as_user("writer", "writer-password")
    run = tracking.create_run(profile.uri, "before", params={"a": 1}, tags={})
    tracking.log_figures(run, {"x": 1.0})
    profile.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{profile.uri}/health", timeout=5)
    profile.start()
    assert tracking.reopen(run)
    tracking.log_figures(run, {"x": 2.0}, step=1)
    history = MlflowClient(profile.uri).get_metric_history(run.run_id, "x")
    assert [point.value for point in history] == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.servers
def test_a_removed_user_is_out_and_short_passwords_are_refused(profile):
    assert profile.users("add", "guest", password="guest-password").returncode == 0
    assert profile.users("add", "guest", "--writes", "other").returncode == 0  # no password: there is such a user
    assert profile.users("remove", "guest").returncode == 0
    assert profile.users("remove", "guest").returncode == 1
    done = profile.users("add", "hasty", password="short")
    assert done.returncode == 2
    assert "5 characters; expected 12 or more" in done.stderr


@pytest.mark.slow
@pytest.mark.servers
def test_no_secret_shows_in_the_list_of_processes_or_the_log(profile):
    main = psutil.Process(profile.process.pid)
    shown = [" ".join(process.cmdline()) for process in (main, *main.children(recursive=True))]
    assert any("mlflow" in line for line in shown)
    shown.append(profile.log.read_text(errors="replace"))
    for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        assert not [line for line in shown if profile.environment[name] in line], name


def serve(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SERVE], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_all_that_is_missing_is_named_at_once():
    done = serve(bare_environment())
    assert done.returncode == 2
    for name in (
        "PGHOST",
        "PGDATABASE",
        "PGUSER",
        "PGPASSWORD",
        "MLFLOW_ARTIFACTS_DESTINATION",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_AUTH_ADMIN_USERNAME",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
    ):
        assert f"{name} is not set" in done.stderr


def test_what_is_wrong_is_named_without_being_shown():
    given = {
        "PGSERVICE": "tracking",
        "MLFLOW_ARTIFACTS_DESTINATION": "/somewhere",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "tooshort",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "hushhush",
        "PYTHON": "/no/such/python",
    }
    done = serve({**bare_environment(), **given})
    assert done.returncode == 2
    assert "PGHOST" not in done.stderr
    assert "expected s3://bucket/prefix" in done.stderr
    assert done.stderr.count("has 8 characters") == 2
    assert "/no/such/python" in done.stderr
    assert "tooshort" not in done.stderr
    assert "hushhush" not in done.stderr


def test_the_script_is_clean_shell():
    subprocess.run([Path(sys.executable).with_name("shellcheck"), SERVE], check=True, timeout=60)
