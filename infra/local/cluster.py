"""A cluster on this machine, without Docker: an object store, a tracking server and two Ray nodes.

    python infra/local/cluster.py up        start it, or mend what has died (make cluster-up)
    python infra/local/cluster.py status    what runs and where (make cluster-status)
    python infra/local/cluster.py down      stop exactly what was started (make cluster-down); --data: and its data

Ordinary processes that listen on 127.0.0.1 alone and ask for the credentials in FOLDER/env, a file to source. FOLDER is
.vast/cluster; runs, buckets and secrets stay there from one start to the next.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from parts import BUCKETS, HOST, Part, Plan, all_parts, write_secret
from processes import MARK, Started, marked, stop

START_LIMIT_S = float(os.environ.get("VAST_CLUSTER_START_LIMIT_S", "180"))
STOP_PATIENCE_S = 10.0  # a rank that is asked to end saves first
_WEED_PORTS = ("master", "volume", "filer", "s3")  # it opens a second port for each, 10000 higher
_NODE_PORTS = ("manager", "objects", "agent", "agent_grpc", "runtime_env", "metrics")
_NODE_USES = tuple(f"{node}_{use}" for node in ("head", "worker") for use in _NODE_PORTS)
_PORTS = ("mlflow", "gcs", "dashboard", "client", *_NODE_USES)
_UNSET = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN")


class NotStartedError(Exception):
    """A part that did not come up; the message has the end of its log."""


@dataclass
class State:
    """What was started, as FOLDER/state.json keeps it; it holds no secret."""

    mark: str
    ports: dict[str, int]
    ray_folder: str
    started: dict[str, Started]

    def save(self, folder: Path) -> None:
        """Write it down, complete or not at all."""
        write_secret(folder / "state.json", json.dumps(asdict(self), indent=1) + "\n")

    def mark_of(self, part: str) -> str:
        """What the processes of a part have in their environment."""
        return f"{self.mark}:{part}"


def read_state(folder: Path) -> State | None:
    """What was started from this folder, or None."""
    try:
        plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    plain["started"] = {name: Started(**one) for name, one in plain["started"].items()}
    return State(**plain)


def up(folder: Path) -> int:
    """Start what does not run."""
    state = read_state(folder) or State(f"{os.getpid()}-{secrets.token_hex(8)}", free_ports(), "", {})
    if not state.ray_folder:
        # in /tmp and short: the paths of Ray's sockets may have 107 characters
        state.ray_folder = tempfile.mkdtemp(prefix="vast-ray-", dir="/tmp")
    state.save(folder)
    try:
        plan = Plan(folder, state.ports, read_secrets(folder), Path(state.ray_folder))
        write_secret(plan.token_file, plan.secrets["ray_token"])
        running = {name for name, started in state.started.items() if started.alive()}
        begun: list[str] = []
        for part in all_parts(plan):
            if part.name in running and not set(part.needs) & set(begun):
                continue
            if part.name in state.started:
                print(f"{part.name} has died or stands on what has: it is started again", flush=True)
            stop(lambda name=part.name: marked(state.mark_of(name)), STOP_PATIENCE_S)  # type: ignore[misc]
            start_patiently(part, state, folder)
            begun.append(part.name)
        write_secret(folder / "env", user_environment(plan))
    except BaseException as error:
        take_down(folder, state)
        if isinstance(error, NotStartedError | FileNotFoundError):
            print(f"cluster.py: {error}\neverything that was started is stopped again", file=sys.stderr)
            return 1
        raise
    print("the local cluster is up" if begun else "the local cluster is already up")
    tell(plan, state)
    print(f"use it:   source {shlex.quote(str(folder / 'env'))}")
    print(f"stores:   {' '.join(f's3://{bucket}' for bucket in BUCKETS[:1])}")
    return 0


def start_patiently(part: Part, state: State, folder: Path) -> None:
    """Start a part, again if it ends by itself and the part allows for that.

    Raises:
        NotStartedError: it ended each time, or did not answer in time.
    """
    for left in reversed(range(part.attempts)):
        try:
            return start(part, state, folder)
        except NotStartedError:
            stop(lambda: marked(state.mark_of(part.name)), STOP_PATIENCE_S)
            if not left:
                raise
            print(f"{part.name} did not start; once more", flush=True)


def start(part: Part, state: State, folder: Path) -> None:
    """Start a part and wait until it answers.

    Raises:
        NotStartedError: it ended, or did not answer in time.
    """
    log = folder / "logs" / f"{part.name}.log"
    print(f"starting {part.name} ...", flush=True)
    begun = time.monotonic()
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        at = file.tell()
        process = subprocess.Popen(
            part.command,
            env={**part.environment, MARK: state.mark_of(part.name)},
            cwd=folder / "data",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C in this terminal is not for it
        )
    import psutil

    state.started[part.name] = Started(process.pid, psutil.Process(process.pid).create_time())
    state.save(folder)
    while not part.ready():
        code = process.poll()
        if code is not None or time.monotonic() > begun + START_LIMIT_S:
            what = f"ended with exit code {code}" if code is not None else f"did not answer in {START_LIMIT_S:.0f} s"
            with log.open("rb") as file:
                file.seek(at)
                tail = file.read().decode(errors="replace").splitlines()[-20:]
            said = "".join(f"\n  {line}" for line in tail) or "\n  (nothing)"
            raise NotStartedError(f"{part.name} {what}; its log {log} ends:{said}")
        time.sleep(0.3)


def down(folder: Path, *, data: bool) -> int:
    """Stop what was started from this folder."""
    state = read_state(folder)
    if state is None:
        print("no local cluster is up")
    else:
        ended = take_down(folder, state)
        print(f"the local cluster is down ({ended} processes ended)")
    if data:
        for name in ("data", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("secrets.json", "s3_identities.json", "mlflow_auth.ini", "ray_token"):
            (folder / name).unlink(missing_ok=True)
        print(f"its data are removed from {folder}")
    elif state is not None:
        print(f"its data stay in {folder / 'data'}; `make cluster-up` goes on with them")
    return 0


def take_down(folder: Path, state: State) -> int:
    """Stop every process of the cluster and forget it; returns how many there were."""
    ended = 0
    for name in ("ray-worker", "ray-head", "mlflow", "store"):  # ranks that are told to end still need the store
        ended += stop(lambda name=name: marked(state.mark_of(name)), STOP_PATIENCE_S)  # type: ignore[misc]
    ended += stop(lambda: marked(state.mark), STOP_PATIENCE_S)
    if state.ray_folder:
        kept = folder / "logs" / "ray"
        shutil.rmtree(kept, ignore_errors=True)
        for session in Path(state.ray_folder).glob("session_2*/logs"):
            shutil.copytree(session, kept, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(state.ray_folder, ignore_errors=True)
    for name in ("env", "state.json"):
        (folder / name).unlink(missing_ok=True)
    return ended


def status(folder: Path) -> int:
    """Say what runs; 0 when everything does, 1 otherwise."""
    state = read_state(folder)
    if state is None:
        print("no local cluster is up")
        return 1
    tell(Plan(folder, state.ports, {}, Path(state.ray_folder)), state)
    return 0 if len(state.started) == 4 and all(one.alive() for one in state.started.values()) else 1


def tell(plan: Plan, state: State) -> None:
    """One line for each part."""
    addresses = {
        "store": plan.s3_endpoint,
        "mlflow": plan.mlflow_uri,
        "ray-head": f"{plan.ray_address}   dashboard http://{HOST}:{state.ports['dashboard']}",
        "ray-worker": f"{HOST}:{state.ports['worker_manager']}",
    }
    for name, address in addresses.items():
        one = state.started.get(name)
        told = "not started" if one is None else f"runs, pid {one.pid}" if one.alive() else "died"
        print(f"  {name:<11} {told:<18} {address if one else ''}".rstrip())


def user_environment(plan: Plan) -> str:
    """The file to source."""
    values = {"RAY_ADDRESS": plan.ray_address, "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{plan.ports['dashboard']}"}
    values |= plan.variables()
    lines = [f"unset {' '.join(_UNSET)}", *(f"export {name}={shlex.quote(text)}" for name, text in values.items())]
    return "# the local cluster: source this file\n" + "\n".join(lines) + "\n"


def read_secrets(folder: Path) -> dict[str, str]:
    """The cluster's secrets, drawn at the first start; buckets and users remember them."""
    path = folder / "secrets.json"
    if not path.exists():
        drawn = {
            "s3_access_key": secrets.token_hex(10),
            "s3_secret_key": secrets.token_hex(20),
            "mlflow_password": secrets.token_urlsafe(24),
            "mlflow_key": secrets.token_hex(32),
            "ray_token": secrets.token_hex(32),
        }
        write_secret(path, json.dumps(drawn, indent=1) + "\n")
    plain: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return plain


def free_ports() -> dict[str, int]:
    """A free port for every use, all different, below those that the system lends to outgoing connections."""
    ports: dict[str, int] = {}
    taken: set[int] = set()
    with contextlib.ExitStack() as stack:
        while len(ports) < len(_WEED_PORTS) + len(_PORTS):
            name = (*_WEED_PORTS, *_PORTS)[len(ports)]
            port = 20_001 + secrets.randbelow(2_000) if name in _WEED_PORTS else 22_001 + secrets.randbelow(7_000)
            wanted = (port, port + 10_000) if name in _WEED_PORTS else (port,)
            with contextlib.suppress(OSError):
                if not taken & set(wanted):
                    for number in wanted:
                        stack.enter_context(socket.socket()).bind((HOST, number))
                    ports[name] = port
                    taken |= set(wanted)
    return ports


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, so that two commands at once do not start two clusters."""
    for part in (folder, folder / "logs", folder / "data"):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another command that holds {folder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Do what is asked; 0 done, 1 it could not be, 2 a mistake."""
    parser = argparse.ArgumentParser(description="A cluster on this machine: object store, MLflow, two Ray nodes.")
    parser.add_argument("--folder", type=Path, default=Path(".vast/cluster"), help="(default: .vast/cluster)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start it, or what of it has died")
    verbs.add_parser("status", help="what runs and where; exit code 1 if not everything does")
    verbs.add_parser("down", help="stop exactly what was started").add_argument(
        "--data", action="store_true", help="remove buckets, runs, logs and secrets too"
    )
    args = parser.parse_args()
    folder = args.folder.absolute()
    with alone(folder):
        if args.verb == "up":
            return up(folder)
        return status(folder) if args.verb == "status" else down(folder, data=args.data)


if __name__ == "__main__":
    sys.exit(main())
