"""What the run will take on these machines: memory, readers, hours and money."""

import math

from pipelines.plan.command import Stated, machine_of
from pipelines.plan.timing import Figure, Machine, Plan, plan_for, readers_in_words
from pipelines.plan.work import Work
from pipelines.preflight.findings import Findings, Problem
from pipelines.preflight.machine import MachineFacts
from vast.train.config import TrainConfig

WORTH_WARNING = 0.999
WORTH_STOPPING = 0.9
"""Ranks that wait for readers a tenth of the time are paid for in vain."""


def check_outlook(
    config: TrainConfig,
    work: Work,
    machines: list[MachineFacts],
    ranks: int,
    link_bytes_per_s: float,
    stated: Stated,
    findings: Findings,
) -> Plan:
    """Hold what the run needs against what there is."""
    machine, readers = _machine(config, work, machines, ranks, link_bytes_per_s, stated)
    plan = plan_for(work, machine, ranks)
    findings.add(memory_problems(work, machines, ranks))
    findings.measured["memory_bytes_rank"] = plan.memory_bytes
    if machine.clips_per_s.origin == "assumed" and not any(machine.gpus for machine in machines):
        findings.say("readers", f"{work.steps} steps; how long they take on CPUs is not known: --clips-per-second says")
        return plan
    findings.measured |= {
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "step_s": plan.step_s,
        "clips_per_s_rank": machine.clips_per_s.value,
    }
    price = f", {plan.money:.0f} at {machine.price_per_gpu_hour:g} an hour" if machine.price_per_gpu_hour else ""
    findings.say(
        "readers",
        f"{work.steps} steps on {ranks} rank{'s' * (ranks > 1)}: {plan.hours:.3g} hours, {plan.gpu_hours:.3g} of ranks"
        f"{price} ({machine.clips_per_s.origin}: {machine.clips_per_s.words})",
    )
    if machine.decode_clips_per_s is None:
        return plan
    findings.measured |= {"decode_clips_per_s_core": machine.decode_clips_per_s.value, "reader_cores": readers}
    problems = reader_problems(config, plan, machine, readers)
    findings.add(problems)
    if not problems:
        findings.say("readers", readers_in_words(plan, machine))
    return plan


def _machine(
    config: TrainConfig,
    work: Work,
    machines: list[MachineFacts],
    ranks: int,
    link_bytes_per_s: float,
    stated: Stated,
) -> tuple[Machine, int]:
    """The machines as they were measured, and how many reader cores the ranks have together."""
    base = machine_of(work, stated)
    on_node = math.ceil(ranks / max(1, len(machines)))
    link = Figure(link_bytes_per_s, "measured", "the sum over the ranks") if link_bytes_per_s else base.link_bytes_per_s
    rates = [machine.decode_clips_per_s for machine in machines if machine.decode_clips_per_s]
    decode = Figure(min(rates), "measured", "the slowest node's core on clips of this data set") if rates else None
    wanted = config.data.num_readers or 1  # without readers each rank decodes by itself
    readers = min(ranks * wanted, max(ranks, sum(machine.cpus for machine in machines) - ranks))
    return Machine(
        clips_per_s=base.clips_per_s,
        ranks_per_node=on_node,
        full_speed_ranks=on_node,
        link_bytes_per_s=link,
        inner_bytes_per_s=link if link_bytes_per_s else base.inner_bytes_per_s,
        latency_s=base.latency_s,
        decode_clips_per_s=decode or base.decode_clips_per_s,
        reader_cores_per_node=max(1, readers // math.ceil(ranks / on_node)),
        price_per_gpu_hour=base.price_per_gpu_hour,
    ), readers


def reader_problems(config: TrainConfig, plan: Plan, machine: Machine, readers: int) -> list[Problem]:
    """Readers that cannot feed the ranks."""
    busy = (plan.compute_s + plan.exposed_s) / plan.step_s
    if busy > WORTH_WARNING:
        return []
    each = math.ceil(plan.reader_cores / plan.ranks)
    if readers >= plan.ranks * max(1, config.data.num_readers):  # the recipe asks for no more
        advice = f"Set data.num_readers={each} (cores: {plan.ranks * (each + 1)} with the ranks)"
    else:
        advice = (
            f"Take nodes with more cores a rank (here {each + 1}), fewer ranks, or clips that decode faster "
            "(`vast shard --profile`)"
        )
    found = readers_in_words(plan, machine)
    return [Problem("readers", "data.num_readers", found, advice, warning=busy >= WORTH_STOPPING)]


def memory_problems(work: Work, machines: list[MachineFacts], ranks: int) -> list[Problem]:
    """Nodes whose ranks would not fit."""
    needed, problems = work.memory_bytes(ranks), []
    on_node = math.ceil(ranks / max(1, len(machines)))
    for machine in machines:
        have = machine.gpu_bytes or machine.memory_bytes // on_node
        if needed > have:
            what = "of GPU memory" if machine.gpu_bytes else f"of memory for each of {on_node} ranks"
            advice = "Lower optim.max_micro_batch (the global batch stays), or set model.recompute=true"
            found = f"{have / 1e9:.1f} GB {what}"
            problems.append(Problem("nodes", machine.address, found, advice, f"{needed / 1e9:.1f} GB or more"))
    return problems
