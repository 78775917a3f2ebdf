"""The `ray` command for nodes that listen on the loopback alone; its arguments are those of `ray`.

`ray start --node-ip-address=127.0.0.1` takes the machine's outer address instead, on purpose, and then its GCS, raylet
and agents listen on every interface. Ray's switch for desktop systems keeps them on 127.0.0.1, but lets no second node
join: so the switch stays on for every process, and the one that joins is told that it may.
"""

import os
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before Ray is imported, and for all that it starts

from ray._private import ray_constants, services
from ray.scripts import scripts


def _loopback(address: str | None = None) -> str:
    return "127.0.0.1"


if "--head" not in sys.argv:
    services.get_node_ip_address = _loopback
    ray_constants.ENABLE_RAY_CLUSTER = True

if __name__ == "__main__":
    sys.exit(scripts.main())
