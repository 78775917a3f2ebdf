"""Secrets are planted in the environment of a whole run; afterwards they stand nowhere, in no form.

Every object of the bucket is fetched through S3: the server packs texts, and in its own files nothing would be found.
"""

import base64
import contextlib
import gzip
import io
import os
import re
import secrets
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
SMALL = "model.name=vast_micro data.num_frames=4 data.crop_size=32 data.eval_short_side=32 data.num_readers=0 "
SMALL += "optim.global_batch=8 optim.epochs=1 optim.precision=fp32"
ADMIN = "planted-admin"


def forms(secret: str, *, user: str = "") -> set[bytes]:
    """How a secret may stand somewhere: as it is, quoted for a URL, in base64 at any offset, in hex."""
    found = {secret.encode(), urllib.parse.quote(secret, safe="").encode(), secret.encode().hex().encode()}
    for before in range(3):
        coded = base64.b64encode(b"x" * before + secret.encode())
        found.add(coded[(0, 2, 3)[before] : len(coded) // 4 * 4 - 4])
    if user:
        found.add(base64.b64encode(f"{user}:{secret}".encode()))
    return found


def unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, and what is packed in it, however deep."""
    yield name, data
    inner: list[tuple[str, bytes]] = []
    with contextlib.suppress(tarfile.TarError, OSError, EOFError, zlib.error, zipfile.BadZipFile):
        if data[:2] == b"\x1f\x8b":
            inner.append((f"{name} gunzipped", gzip.decompress(data)))
        elif zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inner += [(f"{name}:{one}", archive.read(one)) for one in archive.namelist()]
        elif data[257:262] == b"ustar":
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for one in archive:
                    if (file := archive.extractfile(one)) is not None:
                        inner.append((f"{name}:{one.name}", file.read()))
    for what, content in inner:
        yield from unpacked(what, content)


def places(planted: dict[str, set[bytes]], files: Iterator[tuple[str, bytes]]) -> list[str]:
    """Where a planted secret stands."""
    return [
        f"{secret} in {what}"
        for name, data in files
        for what, content in unpacked(name, data)
        for secret, written in planted.items()
        if any(form in content for form in written)
    ]


def files_under(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def objects(client, bucket: str) -> Iterator[tuple[str, bytes]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for one in page.get("Contents", []):
            answer = client.get_object(Bucket=bucket, Key=one["Key"])
            yield f"s3://{bucket}/{one['Key']}", answer["Body"].read() + repr(answer["Metadata"]).encode()


@pytest.fixture
def mlflow_with_password(tmp_path, free_port, s3_server) -> Iterator[tuple[str, str, str]]:
    """An MLflow server that asks for a password, its artifacts in a bucket: its address, the password, the bucket."""
    folder, password = tmp_path / "mlflow", secrets.token_urlsafe(24)
    folder.mkdir()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        "grant_default_workspace_access = false\nauthorization_function = "
        "mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    bucket = s3_server.make_bucket()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(free_port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"s3://{bucket}/artifacts"]
    environment = {**os.environ, **s3_server.environment, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    environment |= {"MLFLOW_AUTH_ADMIN_USERNAME": ADMIN, "MLFLOW_AUTH_ADMIN_PASSWORD": password}
    environment |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{free_port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, (folder / "log").read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, "the MLflow server did not start"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            time.sleep(0.3)
        yield address, password, bucket
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(timeout=30)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray, whose sockets' paths must be short."""
    with tempfile.TemporaryDirectory(prefix="vr-", dir="/tmp") as folder:
        yield Path(folder)


def test_the_search_finds_what_is_packed():
    secret = "s/e+c r3t-planted-0123456789"
    packed, plain = io.BytesIO(), f"key={secret}".encode()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        head = tarfile.TarInfo("inner.gz")
        inner = gzip.compress(plain)
        head.size = len(inner)
        archive.addfile(head, io.BytesIO(inner))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", plain * 20)
    for data in (packed.getvalue(), zipped.getvalue(), plain, urllib.parse.quote(plain, safe="").encode()):
        assert places({"it": forms(secret)}, iter([("file", data)]))
    for before in range(3):
        coded = base64.b64encode(b"u" * before + secret.encode() + b"tail")
        assert places({"it": forms(secret)}, iter([("file", coded)])), before
    assert places({"it": forms(secret)}, iter([("file", b"nothing" * 100)])) == []


def test_no_secret_is_left_anywhere(s3_server, mlflow_with_password, short_folder, tmp_path):
    address, password, artifacts = mlflow_with_password
    bucket, work = s3_server.make_bucket(), tmp_path / "work"
    (work / "home").mkdir(parents=True)
    token = secrets.token_hex(32)
    given = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    given |= {**s3_server.environment, "PYTHONPATH": str(ROOT), "HOME": str(work / "home")}
    given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": str(short_folder)}
    given |= {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": password}
    given |= {"MLFLOW_EXPERIMENT_NAME": "planted", "VAST_SPOOL": str(work / "spool")}

    def vast(line: str, codes: tuple[int, ...] = (0,), **other: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *shlex.split(line)],
            env={**given, **other}, cwd=work, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        (work / f"said-{len(list(work.glob('said-*')))}.txt").write_text(said)
        assert done.returncode in codes, f"vast {line}: {said[-4000:]}"
        if 0 not in codes:
            assert "Traceback" not in said, said[-4000:]
        return done.stdout

    train = f"finetune demo_finetune_ssv2 data.url=s3://{bucket}/ssv2 --output s3://{bucket}/runs {SMALL}"
    vast("synth ssv2 --out raw --train 16 --val 8 --workers 1")
    vast(
        "shard ssv2 --annotations raw/labels --videos raw/20bn-something-something-v2 "
        f"--out s3://{bucket}/ssv2 --short-side 64 --samples-per-shard 8"
    )
    out = vast(f"{train} --ranks 1")
    (run,) = re.findall(r"^model +(s3://\S+)/model$", out, flags=re.M)
    vast(f"search demo_search data.url=s3://{bucket}/ssv2 --output s3://{bucket}/runs {SMALL} search.num_trials=2")
    vast(f"evaluate {run} --data s3://{bucket}/ssv2")
    vast(f"register {run} --name planted")
    vast(f"report {run} --out report.html")
    # what goes wrong talks most: no such data; a store, then a tracker, that refuse; a tracker that is away
    vast(train.replace("/ssv2 ", "/absent ", 1), (2,))
    wrong = f"planted-wrong-{secrets.token_hex(12)}"
    vast(f"{train} seed=2", (2,), MLFLOW_TRACKING_PASSWORD=wrong)
    vast(f"evaluate {run} --data s3://{bucket}/ssv2 --out refused", (1, 2), AWS_SECRET_ACCESS_KEY=wrong)
    vast(f"{train} seed=3", (1, 2), MLFLOW_TRACKING_URI="http://127.0.0.1:9")

    planted = {
        "S3 secret key": forms(s3_server.secret_key),
        "MLflow password": forms(password, user=ADMIN),
        "Ray token": forms(token),
        "wrong secret": forms(wrong, user=ADMIN),
    }
    client = s3_server.client()
    seen = [*objects(client, bucket), *objects(client, artifacts)]
    names = [name for name, _ in seen]
    for part in (
        "manifest.json",
        "run.json",
        "model.safetensors",
        "campaign.json",
        "predictions.parquet",
        "recipe.yaml",
    ):
        assert any(name.endswith(part) for name in names), (part, names)
    everything = [*seen, *files_under(work), *files_under(short_folder)]
    # the server's own users are in auth.db, hashed; the configuration of this test's own server is not looked at
    everything += [(name, data) for name, data in files_under(tmp_path / "mlflow") if not name.endswith(".ini")]
    assert any("session_" in name and name.endswith(".log") for name, _ in everything), "Ray's own logs were looked at"
    assert any(name.endswith("mlflow.db") for name, _ in everything)
    assert places(planted, iter(everything)) == []
