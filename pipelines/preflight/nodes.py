"""Every node of the cluster, looked at from inside and compared with the others."""

import time
from typing import Any

from pipelines.plan.work import Work
from pipelines.preflight.findings import Findings, Problem
from pipelines.preflight.machine import MachineFacts, Wanted, look, versions_here
from pipelines.preflight.stores import store_problem

LOOK_LIMIT_S = 120.0
LEAST_SCRATCH_BYTES = 5e9
"""Checkpoints on their way to the store, Ray's own files, logs."""
LEAST_SHM_BYTES = 1e9


def look_at_nodes(wanted: Wanted, findings: Findings) -> list[MachineFacts]:
    """What each node of the connected cluster has; a node that does not answer in time is a problem."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(wanted, node_name(node, nodes)): node_name(node, nodes)
        for node in nodes
    }
    deadline, found = time.monotonic() + LOOK_LIMIT_S, []
    for answer, name in asked.items():
        try:
            found.append(ray.get(answer, timeout=max(0.1, deadline - time.monotonic())))
        except Exception as error:  # whatever keeps a node from answering is the finding
            words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            advice = "Look at that node's Ray log; the package must be installed there with all its dependencies"
            findings.add([Problem("nodes", name, f"does not answer: {words}", advice)])
    return found


def node_name(node: dict[str, Any], nodes: list[dict[str, Any]]) -> str:
    """A node's address; with a part of its id where several have the same."""
    address = str(node["NodeManagerAddress"])
    alone = sum(other["NodeManagerAddress"] == address for other in nodes) == 1
    return address if alone else f"{address} (node {node['NodeID'][:6]})"


def check_machines(machines: list[MachineFacts], work: Work | None, wanted: Wanted, findings: Findings) -> None:
    """Compare the machines with each other and with what the run wants of each."""
    for machine in machines:
        gpus = f", GPUs: {', '.join(machine.gpus)}" if machine.gpus else ""
        findings.say(
            "nodes",
            f"{machine.address}: {machine.cpus} CPUs, {machine.memory_bytes / 2**30:.0f} GiB of memory{gpus}, "
            f"{machine.scratch[1] / 1e9:.0f} GB free in {machine.scratch[0]}",
        )
        findings.add(_room(machine, work, wanted))
        for facts, what in ((machine.data, "data.url"), (machine.output, "--output")):
            if facts is None:
                continue
            findings.add(store_problem(facts, what, machine.address))
            if not facts.error:
                written = f", written at {facts.write_mb_s:.0f} MB/s" if facts.write_mb_s else ""
                findings.say("store", f"{what} from {machine.address}: read at {facts.read_mb_s:.0f} MB/s{written}")
    findings.add(version_problems(machines, versions_here()))


def version_problems(machines: list[MachineFacts], here: dict[str, str]) -> list[Problem]:
    """Nodes whose Python or packages differ from those of this process, whose words they are to understand."""
    advice = "Install the same image or constraints.txt on every node, and here"
    return [
        Problem("nodes", machine.address, f"{name} {there}", advice, f"{name} {here[name]}, as here")
        for machine in machines
        for name, there in machine.versions.items()
        if there != here[name]
    ]


def _room(machine: MachineFacts, work: Work | None, wanted: Wanted) -> list[Problem]:
    """What is too small."""
    data, problems = wanted.config.data, []

    def small(found: str, expected: str, advice: str, warning: bool = False) -> None:
        problems.append(Problem("nodes", machine.address, found, advice, expected, warning))

    folder, free = machine.cache
    if machine.cache_error:
        small(f"data.cache_dir {folder}: {machine.cache_error}", "a folder", "Give one that can be written, or none")
    elif folder and free < data.cache_gb * 1e9:
        found = f"{free / 1e9:.0f} GB of disk for data.cache_dir {folder}"
        small(found, f"{data.cache_gb:g} GB (data.cache_gb)", "Lower data.cache_gb, or give a larger disk")
    folder, free = machine.scratch
    needed = LEAST_SCRATCH_BYTES + (8 * work.state_bytes if work else 0)  # four checkpoints may wait, each copied once
    if free < needed:
        found = f"{free / 1e9:.1f} GB of disk for temporary files in {folder}"
        expected = f"{needed / 1e9:.0f} GB for logs and checkpoints that wait for the store"
        small(found, expected, "Free some, or set TMPDIR to another disk")
    if machine.shm_bytes < LEAST_SHM_BYTES:
        found = f"{machine.shm_bytes / 1e9:.2f} GB free in /dev/shm"
        small(found, "1 GB or more", "Containers: --shm-size, or an emptyDir in memory", warning=True)
    return problems
