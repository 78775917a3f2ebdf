"""`vast plan`: steps, time, memory and money of a recipe on 8 to 1024 GPUs, with what each number rests on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config import resolve
from pipelines.plan.timing import Figure, Machine, Plan, assumed_clips_per_s, plan_for, readers_in_words
from pipelines.plan.work import Work, work_of
from pipelines.terminal import Terminal
from pipelines.training.ranks import shares_equally
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.train.config import TrainConfig

GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
_COLUMNS = [
    "ranks",
    "nodes",
    "clips",
    "passes",
    "compute",
    "all-reduce",
    "readers",
    "step ms",
    "eff. %",
    "hours",
    "GPU-hours",
]
_NVLINK = (
    "GPUs of a node exchange 200 GB/s in each direction, under half of the 450 GB/s that NVIDIA states for an H100"
)


@dataclass(frozen=True)
class Stated:
    """What the user says of the machines; 0 or empty: not said."""

    gpus: tuple[int, ...]
    samples: int = 0
    clips_per_second: float = 0.0
    measured: str = ""
    decode_clips_per_second: float = 0.0
    reader_cores_per_node: int = 0
    gpus_per_node: int = 8
    link_gbit: float = 0.0
    gpu_memory_gb: float = 0.0
    price_per_gpu_hour: float = 0.0


def machine_of(work: Work, stated: Stated) -> Machine:
    """The machines as far as they are stated or measured, the rest assumed.

    Raises:
        UserError: the run to measure by does not tell.
    """
    speed, decode = assumed_clips_per_s(work), None
    if stated.measured:
        from pipelines.plan.measured import speeds_of

        speed, decode = speeds_of(stated.measured, work)
    if stated.clips_per_second:
        rate = stated.clips_per_second
        speed = Figure(rate, "stated", f"a rank takes {rate:g} clips/s (--clips-per-second)")
    if stated.decode_clips_per_second:
        rate = stated.decode_clips_per_second
        decode = Figure(rate, "stated", f"a reader core decodes {rate:g} clips/s (--decode-clips-per-second)")
    if stated.link_gbit:
        link = Figure(stated.link_gbit / 8 * 1e9, "stated", f"a node's network takes {stated.link_gbit:g} Gbit/s")
    else:
        link = Figure(12.5e9, "assumed", "a node's network takes 100 Gbit/s (--link-gbit says better)")
    return Machine(
        clips_per_s=speed,
        ranks_per_node=stated.gpus_per_node,
        full_speed_ranks=stated.gpus_per_node,
        link_bytes_per_s=link,
        inner_bytes_per_s=Figure(200e9, "assumed", _NVLINK),
        latency_s=Figure(20e-6, "assumed", "a message between ranks takes 20 us besides its bytes"),
        decode_clips_per_s=decode,
        reader_cores_per_node=stated.reader_cores_per_node,
        memory_bytes=round(stated.gpu_memory_gb * 1e9),
        price_per_gpu_hour=stated.price_per_gpu_hour,
    )


def show_plan(
    recipe: str, overrides: Sequence[str], stated: Stated, terminal: Terminal, *, as_json: bool = False
) -> None:
    """Print the plan of a recipe.

    Raises:
        UserError: a mistake in the recipe or in what is stated, or no number of ranks that can share the global batch.
    """
    config, samples, source = _recipe(recipe, overrides, stated.samples)
    work = work_of(config, samples)
    machine = machine_of(work, stated)
    plans = [plan_for(work, machine, ranks) for ranks in stated.gpus if shares_equally(config, ranks)]
    impossible = [ranks for ranks in stated.gpus if not shares_equally(config, ranks)]
    if not plans:
        raise UserError(
            f"--gpus: none of {', '.join(map(str, stated.gpus))} can share optim.global_batch="
            f"{config.optim.global_batch} equally; give divisors of it, or another global batch"
        )
    if as_json:
        terminal.say(json.dumps(_plain(work, machine, plans, impossible), indent=1))
        return
    _say_work(work, source, terminal)
    columns = list(_COLUMNS)
    columns += ["money"] * bool(machine.price_per_gpu_hour) + ["reader cores"] * bool(machine.decode_clips_per_s)
    terminal.table(config.name, columns, [_row(plan, machine) for plan in plans])
    for line in _below(plans, machine, impossible, config):
        terminal.say(line)


def _recipe(recipe: str, overrides: Sequence[str], samples: int) -> tuple[TrainConfig, int, str]:
    """The config, the samples of its training split, and where their number is from."""
    if not samples:
        config = resolve(recipe, overrides)
        found = read_manifest(config.data.url).splits[config.data.train_split].samples
        return config, found, f"counted in {config.data.url}"
    given = any(word.startswith("data.url=") for word in overrides)
    words = [*overrides] if given else [*overrides, "data.url=not-needed"]
    return resolve(recipe, words, data_sets=False), samples, "stated"


def _say_work(work: Work, source: str, terminal: Terminal) -> None:
    terminal.say(f"samples: {source}; {work.cost_in_words()}")
    terminal.say(
        f"{work.steps} steps of {work.global_batch} clips; counted: {work.parameters / 1e6:.2f} M parameters, "
        f"{work.state_bytes / 1e9:.2f} GB of state a rank, {work.kept_bytes_per_clip / 1e6:.0f} MB of activations a "
        f"clip, {work.gradient_bytes / 1e6:.0f} MB summed over the ranks each step"
    )


def _row(plan: Plan, machine: Machine) -> list[str]:
    times = [plan.compute_s, plan.exposed_s, plan.input_s, plan.step_s]
    row = [str(plan.ranks), str(plan.nodes), str(plan.micro_batch * plan.accumulation), str(plan.accumulation)]
    row += [f"{1e3 * seconds:.1f}" for seconds in times]
    row += [
        f"{100 * plan.efficiency:.0f}",
        f"{plan.memory_bytes / 1e9:.1f}",
        _hours(plan.hours),
        _hours(plan.gpu_hours),
    ]
    row += [f"{plan.money:.0f}"] if machine.price_per_gpu_hour else []
    row += [f"{plan.reader_cores:.0f}"] if machine.decode_clips_per_s else []
    return row


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.3g}"


def _below(plans: list[Plan], machine: Machine, impossible: list[int], config: TrainConfig) -> list[str]:
    """What stands below the table."""
    lines = [
        "clips: of a rank and step, in so many passes; ms a step: compute, the sum of gradients that the backward pass "
        "does not hide, waiting for readers; eff.: of ranks that wait for nobody; GB: memory of a rank"
    ]
    if impossible:
        batch = config.optim.global_batch
        lines.append(
            f"cannot share optim.global_batch={batch}: {', '.join(map(str, impossible))} ranks; a larger batch (with "
            "another optim.lr) can be shared by more"
        )
    for plan in dict.fromkeys((plans[0], plans[-1])):
        have = f" of {machine.memory_bytes / 1e9:.0f}" if machine.memory_bytes else ""
        short = plan.memory_bytes > machine.memory_bytes > 0
        lines.append(
            f"memory of a rank, one of {plan.ranks}: {plan.memory_bytes / 1e9:.1f}{have} GB with passes of "
            f"{plan.micro_batch} clips, besides the device's context and scratch"
            + ("; lower optim.max_micro_batch or set model.recompute=true" if short else "")
        )
    if readers := readers_in_words(plans[-1], machine):
        lines.append(readers)
    return lines + machine.assumptions()


def _plain(work: Work, machine: Machine, plans: list[Plan], impossible: list[int]) -> dict[str, Any]:
    return {
        "work": {**asdict(work), "steps": work.steps, "clips": work.clips, "gradient_bytes": work.gradient_bytes},
        "machine": asdict(machine),
        "plans": [{**asdict(plan), "step_s": plan.step_s, "gpu_hours": plan.gpu_hours} for plan in plans],
        "impossible_ranks": impossible,
        "assumptions": machine.assumptions(),
    }
