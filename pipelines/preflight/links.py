"""A sum over all ranks, placed as training places them: whether they find each other, and how fast it is."""

import os
import re
import socket
import statistics
import time
from dataclasses import dataclass
from typing import Any

from pipelines.network import VARIABLE, interface_of
from pipelines.preflight.findings import Findings, Problem

SUM_BYTES = 64 * 2**20
REPEATS = 5
PLACE_LIMIT_S = 60.0
JOIN_LIMIT_S = 45.0


@dataclass(frozen=True)
class LinkFacts:
    """What one rank saw; an empty error means that it took part."""

    rank: int
    node: str
    interface: str
    error: str = ""
    seconds: float = 0.0
    """Median of one sum."""


class Link:
    """One rank, as an actor."""

    def __init__(self, rank: int, node: str) -> None:
        import ray.util

        self.rank, self.node = rank, node
        self.address = ray.util.get_node_ip_address()
        self.interface = os.environ.get(VARIABLE) or interface_of(self.address) or ""
        os.environ.setdefault(VARIABLE, self.interface)

    def place(self) -> tuple[str, int]:
        """An address of this rank for the others to meet at."""
        with socket.socket() as free:
            free.bind(("", 0))
            return self.address, int(free.getsockname()[1])

    def sum(self, meeting: str, ranks: int, gpu: bool) -> LinkFacts:
        """Join the others, and sum."""
        import datetime

        import torch
        import torch.distributed as dist

        limit = datetime.timedelta(seconds=JOIN_LIMIT_S / 2)
        try:
            dist.init_process_group(
                "nccl" if gpu else "gloo", init_method=meeting, rank=self.rank, world_size=ranks, timeout=limit
            )
            values = torch.ones(SUM_BYTES // 4, device="cuda" if gpu else "cpu")
            times = []
            for _ in range(REPEATS):
                dist.barrier()
                begun = time.perf_counter()
                dist.all_reduce(values)
                values[0].item()  # a GPU is waited for
                times.append(time.perf_counter() - begun)
                values.fill_(1.0)
        except Exception as error:
            return LinkFacts(self.rank, self.node, self.interface, _readable(error))
        return LinkFacts(self.rank, self.node, self.interface, seconds=statistics.median(times))


def check_links(ranks: int, bundle: dict[str, float], findings: Findings) -> float:
    """Sum over so many ranks with these resources each; returns bytes a second over a link, 0 where it failed."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if ranks < 2:
        return 0.0
    group = placement_group([bundle] * ranks, strategy="PACK")
    try:
        try:
            ray.get(group.ready(), timeout=PLACE_LIMIT_S)
        except ray.exceptions.GetTimeoutError:
            free = {kind: round(ray.available_resources().get(kind, 0), 1) for kind in bundle}
            advice = "Wait for other work to end, add nodes, or take fewer ranks (--ranks)"
            found = f"no room within {PLACE_LIMIT_S:.0f} s for {ranks} ranks with {bundle} each; free now: {free}"
            findings.add([Problem("links", f"{ranks} ranks", found, advice)])
            return 0.0
        actor = ray.remote(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0))(Link)
        names = _nodes_of(group, ranks)
        links = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank)).remote(rank, names[rank])
            for rank in range(ranks)
        ]
        return _sum(links, names, bool(bundle.get("GPU")), findings)
    finally:
        remove_placement_group(group)


def _sum(links: list[Any], names: list[str], gpu: bool, findings: Findings) -> float:
    import ray

    try:
        address, port = ray.get(links[0].place.remote(), timeout=PLACE_LIMIT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        text = (str(error).strip().splitlines() or [""])[-1]
        findings.add([Problem("links", names[0], f"rank 0 does not start: {text}", "Look at that node's Ray log")])
        return 0.0
    waiting = {link.sum.remote(f"tcp://{address}:{port}", len(links), gpu): rank for rank, link in enumerate(links)}
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=JOIN_LIMIT_S)
    facts = []
    for answer in done:
        try:
            facts.append(ray.get(answer))
        except ray.exceptions.RayError as error:
            text = (str(error).strip().splitlines() or [""])[-1]
            facts.append(LinkFacts(waiting[answer], names[waiting[answer]], "", text))
    facts += [
        LinkFacts(waiting[one], names[waiting[one]], "", f"no answer within {JOIN_LIMIT_S:.0f} s") for one in late
    ]
    findings.add(link_problems(facts))
    if any(fact.error for fact in facts):
        return 0.0
    slowest = max(fact.seconds for fact in facts)
    rate: float = 2 * (len(facts) - 1) / len(facts) * SUM_BYTES / slowest
    nodes = len(set(names))
    where = f"{len(facts)} ranks on {nodes} node{'s' * (nodes > 1)}"
    told = (
        f"sum {SUM_BYTES >> 20} MiB over {'NCCL' if gpu else 'gloo'} in {1e3 * slowest:.0f} ms: {rate / 1e9:.2f} GB/s"
    )
    findings.say("links", f"{where} {told}")
    return rate


def _readable(error: Exception) -> str:
    """The first line of an error, without where in torch's sources it was raised."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\[enforce fail at [^]]*\] [^.]*\. |\[[^]]*\.(?:cc|cpp|h):\d+\] ", "", text)[:300]


def link_problems(facts: list[LinkFacts]) -> list[Problem]:
    """One problem, naming each rank that did not take part; those that merely waited for others come last."""
    failed = sorted((fact for fact in facts if fact.error), key=lambda fact: (_waited(fact.error), fact.rank))
    if not failed:
        return []
    told = "; ".join(
        f"rank {fact.rank} on {fact.node}" + (f" (interface {fact.interface})" if fact.interface else "")
        + f": {fact.error.rstrip('.')}" for fact in failed[:4]
    )  # fmt: skip
    more = f"; and {len(failed) - 4} more" if len(failed) > 4 else ""
    advice = (
        f"Open all TCP ports between the nodes for each other, and let {VARIABLE} (NCCL: NCCL_SOCKET_IFNAME) name the "
        "interface of Ray's network, or unset it"
    )
    return [Problem("links", f"{len(facts)} ranks", f"cannot sum over each other: {told}{more}", advice)]


def _waited(error: str) -> bool:
    return any(word in error.lower() for word in ("timed out", "timeout", "no answer", "connection closed", "reset"))


def _nodes_of(group: Any, ranks: int) -> list[str]:
    """The name of the node of each bundle."""
    import ray
    from ray.util.placement_group import placement_group_table

    from pipelines.preflight.nodes import node_name

    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = {node["NodeID"]: node_name(node, nodes) for node in nodes}
    places = placement_group_table(group)["bundles_to_node_id"]
    return [names.get(places[rank], "an unknown node") for rank in range(ranks)]
