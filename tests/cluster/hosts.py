"""Several hosts on one machine: Linux network namespaces joined by a bridge, each with a Ray node of its own.

The hosts share this machine's disk, as hosts share NFS, and nothing else that Ray or torch use: every byte between them
goes over a link that can be cut. Needs root and iproute2.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PORT = 6379
START_LIMIT_S = 120.0


def ip(*words: str) -> str:
    """Run the `ip` program."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Why there can be no hosts here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"vast-probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


@dataclass
class Host:
    """One namespace with one Ray node."""

    name: str
    address: str
    cpus: int
    started: subprocess.Popen[bytes] | None = None

    def pids(self) -> list[int]:
        """Every process of this host."""
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """SIGKILL every process of this host, and nothing else; returns how many there were."""
        killed: set[int] = set()
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(pids)
            if self.started is not None:
                self.started.wait()
            time.sleep(0.1)
        return len(killed)

    def has_rank(self) -> bool:
        """Whether a training rank runs here."""
        return any(_name(pid).startswith("ray::RayTrainWo") for pid in self.pids())


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return ""


@dataclass
class Cluster:
    """Hosts on a bridge, and one token that all of them share."""

    folder: Path
    prefix: str = field(default_factory=lambda: f"v{secrets.token_hex(2)}")
    hosts: list[Host] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def head_address(self) -> str:
        """Where the cluster is joined."""
        return f"{self.hosts[0].address}:{PORT}"

    def environment(self) -> dict[str, str]:
        """What every process of the cluster is given."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # a node that does not answer is lost after three seconds of silence, not after a quarter of a minute
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "3",
            "PYTHONUNBUFFERED": "1",
        }

    def add_link(self, number: int, cpus: int) -> Host:
        """A new host on the bridge."""
        host = Host(f"{self.prefix}-{number}", f"10.213.{int(self.prefix[1:3], 16)}.{number + 1}", cpus)
        ip("netns", "add", host.name)
        self.hosts.append(host)
        ip("link", "add", f"{host.name}u", "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("link", "set", f"{host.name}u", "master", f"{self.prefix}br", "up")
        for words in (["address", "add", f"{host.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            ip("-n", host.name, *words)
        ip("-n", host.name, "link", "set", "lo", "up")
        return host

    def cut(self, host: Host) -> None:
        """Pull the host's cable."""
        ip("link", "set", f"{host.name}u", "down")

    def heal(self, host: Host) -> None:
        """Put it back."""
        ip("link", "set", f"{host.name}u", "up")

    def close_ports(self, host: Host) -> None:
        """A firewall that lets in no new connection to a port chosen by the system; needs nftables."""
        rule = 'iifname "eth0" tcp dport >= 32768 ct state new drop'
        rules = f"table inet firewall {{ chain input {{ type filter hook input priority 0; {rule}; }}; }}"
        subprocess.run(["ip", "netns", "exec", host.name, "nft", rules], check=True, timeout=30)

    def open_ports(self, host: Host) -> None:
        """Take it away."""
        subprocess.run(["ip", "netns", "exec", host.name, "nft", "flush ruleset"], check=True, timeout=30)

    def drain(self, host: Host) -> None:
        """Tell Ray that the host will be taken away, as an autoscaler does for a spot machine."""
        ray = str(Path(sys.executable).parent / "ray")
        words = [ray, "drain-node", f"--address={self.head_address}", f"--node-id={self.alive()[host.address]}"]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot machine is taken back"]
        words += ["--deadline-remaining-seconds=120"]
        done = subprocess.run(
            ["ip", "netns", "exec", self.hosts[0].name, *words],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def popen(self, host: Host, words: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program on a host."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", host.name, *words],
                env={**self.environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.folder,
            )

    def start_ray(self, host: Host) -> None:
        """Start the host's Ray node, and wait until the cluster knows it."""
        ray = str(Path(sys.executable).parent / "ray")
        words = [ray, "start", "--block", f"--node-ip-address={host.address}", f"--num-cpus={host.cpus}"]
        words += [f"--object-store-memory={80 << 20}", "--disable-usage-stats"]
        # below what the system hands out, as where a firewall stands between hosts; Ray chooses the others there itself
        words += ["--node-manager-port=6380", "--object-manager-port=6381"]
        if host is self.hosts[0]:
            words += ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir=/tmp/{self.prefix}"]
        else:
            words += [f"--address={self.head_address}"]
        host.started = self.popen(host, words, self.folder / f"{host.name}.log")
        deadline = time.monotonic() + START_LIMIT_S
        while host.address not in self.alive():
            log = (self.folder / f"{host.name}.log").read_text(errors="replace")
            assert host.started.poll() is None, f"Ray did not start on {host.name}: {log[-3000:]}"
            assert time.monotonic() < deadline, f"{host.name} did not join: {log[-3000:]}"
            time.sleep(0.5)

    def alive(self) -> dict[str, str]:
        """Address and id of the nodes that Ray's head takes for alive."""
        program = (
            "from ray._raylet import GcsClient\n"
            f"nodes = GcsClient(address={self.head_address!r}).get_all_node_info(timeout=5)\n"
            "for node in nodes.values():\n"
            "    if node.state == 0: print(node.node_manager_address, node.node_id.hex())"
        )
        words = ["ip", "netns", "exec", self.hosts[0].name, sys.executable, "-c", program]
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        return dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else {}


@contextlib.contextmanager
def cluster(folder: Path, cpus: list[int]) -> Iterator[Cluster]:
    """A cluster with a Ray node for each entry of `cpus`, the head first; nothing of it is left afterwards."""
    made = Cluster(folder)
    try:
        ip("link", "add", f"{made.prefix}br", "type", "bridge")
        ip("link", "set", f"{made.prefix}br", "up")
        for number, count in enumerate(cpus):
            made.add_link(number, count)
        for host in made.hosts:
            made.start_ray(host)
        yield made
    finally:
        for host in reversed(made.hosts):
            host.kill()
            ip("netns", "delete", host.name)  # its cable goes with it
        with contextlib.suppress(OSError):
            ip("link", "delete", f"{made.prefix}br")
        subprocess.run(["rm", "-rf", f"/tmp/{made.prefix}"], check=False)
