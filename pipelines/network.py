"""Which network interface gloo uses between hosts.

Left alone it takes the one that the machine's own name resolves to: often loopback, which no other host reaches, or
another network than Ray's. So each rank names the interface that holds its node's Ray address.
"""

import fcntl
import os
import socket
import struct

import ray.util
from ray.train.v2._internal.execution.callback import WorkerCallback

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
VARIABLE = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """The interface of this host that holds the IPv4 address; None when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


class GlooOnRaysInterface(WorkerCallback):  # type: ignore[misc]
    """Ray Train's hook in each rank, before the process group is made."""

    def after_init_train_context(self) -> None:
        """Name the interface, unless somebody has."""
        name = interface_of(ray.util.get_node_ip_address())
        if name is not None:
            os.environ.setdefault(VARIABLE, name)
