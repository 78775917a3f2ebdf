"""Ray nodes as `ray start` makes them: processes of this machine on the loopback, with token authentication."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_LIMIT_S = 150.0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class RayNodes:
    """A cluster; its first node is the head."""

    folder: Path
    environment: dict[str, str]
    """Of every node, and of whoever uses them."""
    with_dashboard: bool = False
    """Whether the head takes jobs, which its dashboard does."""
    port: int = 0
    dashboard: int = 0
    """Its port, if there is one."""
    metrics: list[int] = field(default_factory=list)
    """Ports at which Prometheus would ask each node."""
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        token["RAY_raylet_start_wait_time_s"] = str(int(START_LIMIT_S))  # the machine may have other work
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {**inherited, **token, **self.environment}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, cpus: int, *words: str, **environment: str) -> None:
        """Start a node and wait until it is there."""
        metrics, agent, grpc, runtime = free_ports(4)
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"]
        command += [f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={runtime}"]
        first = 30000 + 700 * len(self.nodes)  # two nodes share an address, so each has ports of its own for workers
        command += [f"--min-worker-port={first}", f"--max-worker-port={first + 699}", *words]
        if self.nodes:
            command += [f"--address={self.address}"]
        else:
            self.port, dashboard, client = free_ports(3)
            command += ["--head", f"--port={self.port}", f"--ray-client-server-port={client}"]
            if self.with_dashboard:
                self.dashboard = dashboard
                command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
            else:
                command += ["--include-dashboard=false"]
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as file:
            # not in a folder of the sources: a node finds the package where it is installed
            node = subprocess.Popen(
                command, env={**self.environment, **environment}, cwd=self.folder, stdout=file, stderr=file
            )
        self.nodes.append(node)
        self.metrics.append(metrics)
        deadline = time.monotonic() + START_LIMIT_S
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """End all; asked politely, a head node takes half a minute to go."""
        for node in reversed(self.nodes):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            node.wait(timeout=30)
