"""A SeaweedFS on the loopback behind a proxy, a process of its own, that hands every request on a little later."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from vast.errors import StoreError, UserError
from vast.storage import join_url, open_store

BUCKET = "speed"
START_LIMIT_S = 60.0


@contextlib.contextmanager
def slow_s3(folder: Path, latency_s: float) -> Iterator[bool]:
    """Yield whether the server runs, which it does not without a `weed` program; sets the variables that lead to it."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        yield False
        return
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    identity = {"name": "speed", "credentials": [{"accessKey": key, "secretKey": secret}]}
    identity["actions"] = ["Admin", "Read", "Write", "List"]
    folder.mkdir()
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(4)
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-s3.config={folder}/identities.json", "-volume.max=20", "-master.volumeSizeLimitMB=256"]
    command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    proxy = context.Process(target=_forward, args=(theirs, ports[3], latency_s), daemon=True)
    proxy.start()
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        _make_bucket(folder / "log")
        yield True
    finally:
        proxy.kill()
        proxy.join()
        server.terminate()
        server.wait()


def upload(folder: str) -> str:
    """Put a data set into the bucket, its manifest last; return its URL."""
    url = join_url(f"s3://{BUCKET}", "set")
    store = open_store(url)
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "manifest.json"):
        store.put_file(path.name, path)
    return url


def _make_bucket(log: Path) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
            client.create_bucket(Bucket=BUCKET)
            open_store(f"s3://{BUCKET}").put_bytes("ready", b"yes")
            return
        except (BotoCoreError, ClientError, StoreError, UserError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no S3 server: {error}; its log: {log.read_text()[-1000:]}") from error
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free together with their gRPC twins, 10000 higher."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(11_000, 21_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            ports += [port] * (port not in ports)
    return ports


def _forward(pipe: Connection, upstream: int, latency_s: float) -> None:
    asyncio.run(_serve(pipe, upstream, latency_s))


async def _serve(pipe: Connection, upstream: int, latency_s: float) -> None:
    async def handle(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the server may not be up yet, and either side may close
            server, to_server = await asyncio.open_connection("127.0.0.1", upstream)
            await asyncio.gather(_copy(client, to_server, latency_s), _copy(server, to_client, 0.0))

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 20)
    pipe.send(listener.sockets[0].getsockname()[1])
    await listener.serve_forever()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, latency_s: float) -> None:
    """Hand on what comes, so much later; a request to read comes in one piece."""
    while data := await source.read(1 << 20):
        await asyncio.sleep(latency_s)
        target.write(data)
        await target.drain()
    target.close()
