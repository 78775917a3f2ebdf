"""How long machines take for a run's work, and what each number rests on.

A step of one rank is its passes, then what the backward pass of the last one does not hide of the sum over the ranks,
or the time in which its readers make as many clips, whichever is longer. The global batch is fixed, so more ranks have
less to do each: that is why efficiency falls.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pipelines.plan.work import ASSUMED_FLOPS, Work

Origin = Literal["counted", "measured", "stated", "assumed"]
BUCKET_BYTES = 25 * 2**20
"""DDP sums gradients in buckets of this size, each as soon as it is full."""
BACKWARD_SHARE = 2 / 3
"""Of a pass: two products for each one of the forward pass."""


@dataclass(frozen=True)
class Figure:
    """A number, and where it is from."""

    value: float
    origin: Origin
    words: str
    """What it rests on, for the list of assumptions."""


@dataclass(frozen=True)
class Machine:
    """What a run is placed on."""

    clips_per_s: Figure
    """Of one rank that waits for nobody."""
    ranks_per_node: int
    full_speed_ranks: int
    """Ranks of a node that do not share what they compute on; with more, each is slower in proportion."""
    link_bytes_per_s: Figure
    """Of a node's network, in one direction."""
    inner_bytes_per_s: Figure
    """Between the ranks of one node, in one direction."""
    latency_s: Figure
    """Of one message."""
    decode_clips_per_s: Figure | None = None
    """Of one reader core, each clip decoded once however often it is repeated; None: not known."""
    reader_cores_per_node: int = 0
    """Cores for readers; 0: as many as are needed."""
    memory_bytes: int = 0
    """Of one rank's device; 0: not known."""
    price_per_gpu_hour: float = 0.0

    def assumptions(self) -> list[str]:
        """What the numbers rest on, a line each."""
        known = [self.clips_per_s, self.link_bytes_per_s, self.inner_bytes_per_s, self.latency_s]
        known += [self.decode_clips_per_s] if self.decode_clips_per_s else []
        return [f"{figure.origin}: {figure.words}" for figure in known] + [
            f"assumed: {self.ranks_per_node} ranks a node, {self.full_speed_ranks} of them at full speed",
            "assumed: a rank is as quick a clip however few clips it has a step; a backward pass takes two thirds",
            f"assumed: DDP sums {BUCKET_BYTES >> 20} MiB at a time, and hides all but the last behind the backward "
            "pass of a step's last micro-batch",
            "left out: evaluations, checkpoints, starting, and whatever fails",
        ]


def assumed_clips_per_s(work: Work) -> Figure:
    """The speed of a rank at the assumed floating-point operations a second."""
    return Figure(
        ASSUMED_FLOPS / work.flops_per_clip,
        "assumed",
        f"a rank keeps up {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s, {ASSUMED_FLOPS / work.flops_per_clip:.1f} clips/s; not "
        "measured (--clips-per-second or --measured says better)",
    )


@dataclass(frozen=True)
class Plan:
    """A run on so many ranks."""

    ranks: int
    nodes: int
    micro_batch: int
    accumulation: int
    compute_s: float
    """Of a step: the passes."""
    all_reduce_s: float
    """Of a step: the sum over the ranks, if nothing hid it."""
    exposed_s: float
    """Of that, what the backward pass does not hide."""
    input_s: float
    """Of a step: waiting for readers."""
    hours: float
    efficiency: float
    """Clips a second and rank, of those of a rank that waits for nobody."""
    memory_bytes: int
    """Of one rank; see Work.memory_bytes."""
    reader_cores: float
    """Cores that must decode to keep the ranks busy; 0 where the speed of decoding is not known."""
    money: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.exposed_s + self.input_s

    @property
    def gpu_hours(self) -> float:
        """Hours times ranks."""
        return self.hours * self.ranks


def plan_for(work: Work, machine: Machine, ranks: int) -> Plan:
    """Time, memory and money of a run on so many ranks.

    Raises:
        UserError: they cannot share the global batch equally.
    """
    micro_batch, accumulation = work.split(ranks)
    on_node = min(ranks, machine.ranks_per_node)
    pass_s = micro_batch / machine.clips_per_s.value * max(1.0, on_node / machine.full_speed_ranks)
    compute_s = accumulation * pass_s
    all_reduce_s = all_reduce_seconds(work.gradient_bytes, ranks, machine)
    buckets = math.ceil(work.gradient_bytes / BUCKET_BYTES)
    exposed_s = max(all_reduce_s - BACKWARD_SHARE * pass_s, all_reduce_s / buckets)
    busy_s = compute_s + exposed_s
    input_s, reader_cores = 0.0, 0.0
    if machine.decode_clips_per_s is not None:
        decoded = micro_batch * accumulation / work.repeats
        decode_s = decoded / machine.decode_clips_per_s.value  # of one core, for one rank's step
        reader_cores = ranks * decode_s / busy_s
        if machine.reader_cores_per_node:
            input_s = max(0.0, decode_s * on_node / machine.reader_cores_per_node - busy_s)
    step_s = busy_s + input_s
    hours = work.steps * step_s / 3600
    return Plan(
        ranks=ranks,
        nodes=math.ceil(ranks / machine.ranks_per_node),
        micro_batch=micro_batch,
        accumulation=accumulation,
        compute_s=compute_s,
        all_reduce_s=all_reduce_s,
        exposed_s=exposed_s,
        input_s=input_s,
        hours=hours,
        efficiency=micro_batch * accumulation / machine.clips_per_s.value / step_s,
        memory_bytes=work.memory_bytes(ranks),
        reader_cores=reader_cores,
        money=hours * ranks * machine.price_per_gpu_hour,
    )


def all_reduce_seconds(num_bytes: int, ranks: int, machine: Machine) -> float:
    """Sum over all ranks by rings: each link carries 2 (n - 1) / n of the bytes, the slowest link decides.

    A ring enters and leaves each node once, so a node's network carries what one rank's link does. Each bucket also
    takes some messages one after the other: 2 log2(n), as in a tree, since NCCL takes trees where latency counts.
    """
    if ranks == 1:
        return 0.0
    slowest = machine.inner_bytes_per_s.value
    if ranks > machine.ranks_per_node:
        slowest = min(slowest, machine.link_bytes_per_s.value)
    buckets = math.ceil(num_bytes / BUCKET_BYTES)
    messages = 2 * math.ceil(math.log2(ranks)) * buckets
    return 2 * (ranks - 1) / ranks * num_bytes / slowest + messages * machine.latency_s.value


def readers_in_words(plan: Plan, machine: Machine) -> str:
    """What the readers must do, and what comes of it; empty where the speed of decoding is not known."""
    if machine.decode_clips_per_s is None:
        return ""
    rate = (plan.micro_batch * plan.accumulation) / (plan.compute_s + plan.exposed_s)
    whom = "a rank" if plan.ranks == 1 else f"{plan.ranks} ranks"
    need = f"{'needs' if plan.ranks == 1 else 'need'} {math.ceil(plan.reader_cores)} reader cores"
    said = f"{whom} of {rate:.1f} clips/s {need}"
    if not machine.reader_cores_per_node:
        return said
    have = plan.nodes * machine.reader_cores_per_node
    share = min(1.0, (plan.compute_s + plan.exposed_s) / plan.step_s)
    return f"{said}, the nodes have {have}: expect {100 * share:.0f} % utilisation"
