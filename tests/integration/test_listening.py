"""What a run without a cluster starts listens on the loopback alone, Ray's own processes included."""

import contextlib
import os

import psutil

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening(pid: int) -> set[tuple[str, str, int]]:
    """Name, address and port of every listening socket of a process and its children."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((process.name(), one.laddr.ip, one.laddr.port))
    return found


def test_a_local_ray_listens_on_the_loopback_alone(ray_local):
    import ray

    @ray.remote
    def address() -> str:
        return str(ray.util.get_node_ip_address())

    assert ray.get(address.remote()) == "127.0.0.1"
    found = listening(os.getpid())
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in found}
    assert {one for one in found if one[1] not in LOOPBACK} == set()
