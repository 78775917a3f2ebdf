"""How many ranks a run gets: a fixed number, or as many as the cluster has within bounds.

The global batch never changes, so only numbers of ranks that share it equally are possible.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vast.data.order import split_global_batch
from vast.errors import UserError
from vast.train.config import TrainConfig


@dataclass(frozen=True)
class Ranks:
    """Between `least` and `most` training processes; 0 for both: one for each GPU of the cluster, or one."""

    least: int = 0
    most: int = 0

    @classmethod
    def of(cls, number: int) -> "Ranks":
        """Exactly so many."""
        return cls(number, number)

    @classmethod
    def parse(cls, text: str) -> "Ranks":
        """Read `4` or `2..8`.

        Raises:
            UserError: it is neither.
        """
        match = re.fullmatch(r"([1-9]\d*)(?:\.\.([1-9]\d*))?", text.strip())
        if match is None:
            raise UserError(f"--ranks: {text!r} is neither a number of ranks, as 4, nor a range, as 2..8")
        least = int(match[1])
        most = int(match[2] or least)
        if most < least:
            raise UserError(f"--ranks: {text!r}: the range must go upwards, as {most}..{least}")
        return cls(least, most)

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least}..{self.most}"


def shares_equally(config: TrainConfig, ranks: int) -> bool:
    """Whether so many ranks can share the global batch."""
    try:
        split_global_batch(config.optim.global_batch, ranks, config.optim.max_micro_batch, config.data.clips_together)
    except UserError:
        return False
    return True


def possible_ranks(config: TrainConfig, ranks: Ranks) -> list[int]:
    """The numbers of ranks within the bounds that can share the global batch.

    Raises:
        UserError: there is none.
    """
    found = [number for number in range(ranks.least, ranks.most + 1) if shares_equally(config, number)]
    if found:
        return found
    batch = config.optim.global_batch
    near = [number for number in range(1, batch + 1) if shares_equally(config, number)]
    near.sort(key=lambda number: (abs(number - ranks.most), number))
    raise UserError(
        f"--ranks: {ranks} ranks cannot share optim.global_batch={batch} equally; use --ranks {near[0]}"
        + (f" or {near[1]}" if len(near) > 1 else "")
    )


Node = Mapping[str, float]
"""What one node offers, as Ray names it: CPU, GPU, ..."""


def nodes_of_cluster() -> list[Node]:
    """What each node of the connected cluster offers."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def one_for_each_gpu(nodes: Sequence[Node]) -> Ranks:
    """What is taken where nobody said a number: one rank for each GPU of the cluster, or one."""
    return Ranks.of(max(1, sum(int(node.get("GPU", 0)) for node in nodes)))


def scaling_for(ranks: Ranks, nodes: Sequence[Node], num_readers: int) -> dict[str, Any]:
    """Ray Train's scaling arguments for a cluster of these nodes.

    Without GPUs the ranks share the CPUs, as evenly as the nodes allow: a rank lies on one node.

    Raises:
        UserError: more ranks than the cluster can ever place.
    """
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
    if not ranks.most:
        ranks = one_for_each_gpu(nodes)
    wanted: dict[str, float] = {"GPU": 1, "CPU": 1 + num_readers} if gpus else {"CPU": 1}
    if not gpus:
        shares = range(max(1, cpus // ranks.most), 0, -1)
        wanted["CPU"] = next((share for share in shares if _room(nodes, {"CPU": share}) >= ranks.most), 1)
    room = _room(nodes, wanted)
    if ranks.least > room:
        raise UserError(
            f"--ranks: {ranks} ranks with {wanted} each do not fit the cluster's {cpus} CPUs and {gpus} GPUs; "
            f"use --ranks {max(1, room)} (the global batch stays the same)"
        )
    return {
        "num_workers": ranks.most if ranks.least == ranks.most else (ranks.least, ranks.most),
        "use_gpu": gpus > 0,
        "resources_per_worker": wanted,
    }


def _room(nodes: Sequence[Node], wanted: Node) -> int:
    """How many ranks find room, each on one node."""
    return sum(min(int(node.get(kind, 0) // amount) for kind, amount in wanted.items()) for node in nodes)
