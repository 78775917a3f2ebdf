"""`vast check`: look at everything, then tell all of it at once."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipelines.config import absolute
from pipelines.kernel_paths import kernel_lines
from pipelines.plan.command import Stated
from pipelines.plan.work import Work, work_of
from pipelines.preflight.data import check_data
from pipelines.preflight.findings import AREAS, Findings, Problem
from pipelines.preflight.links import check_links
from pipelines.preflight.machine import MachineFacts, Wanted, look
from pipelines.preflight.nodes import check_machines, look_at_nodes
from pipelines.preflight.outlook import check_outlook
from pipelines.preflight.recipe import read_in_spite
from pipelines.preflight.tracking_server import check_tracking
from pipelines.terminal import Terminal
from pipelines.training.ranks import Node, Ranks, nodes_of_cluster, one_for_each_gpu, possible_ranks, scaling_for
from vast.dataset_format import Manifest
from vast.errors import UserError
from vast.train.config import TrainConfig


@dataclass(frozen=True)
class CheckRequest:
    """What is to be checked."""

    recipe: str
    overrides: Sequence[str]
    output: str = ""
    """Store of checkpoints; empty: not checked."""
    eval_data: Sequence[str] = field(default_factory=tuple)
    """Further data sets that the model is to be scored on."""
    address: str | None = None
    """A cluster; None: RAY_ADDRESS, or this machine alone."""
    ranks: str = ""
    stated: Stated = field(default_factory=lambda: Stated(gpus=()))
    as_json: bool = False


def check(request: CheckRequest, terminal: Terminal) -> int:
    """Check, tell, and return the exit code: 0 nothing but warnings, 1 problems around the recipe, 2 in it."""
    findings = Findings()
    config, problems = read_in_spite(request.recipe, request.overrides)
    findings.add(problems)
    work = None
    if config is not None:
        work = _look_around(config, request, findings, terminal)
    if request.as_json:
        plain = {"config": config.model_dump(mode="json") if config else None, **findings.to_json()}
        terminal.say(json.dumps(plain, indent=1))
    else:
        _tell(config, work, findings, terminal)
    return findings.exit_code


def _look_around(config: TrainConfig, request: CheckRequest, findings: Findings, terminal: Terminal) -> Work | None:
    say = (lambda text: None) if request.as_json else terminal.say
    say("  looking at the data sets")
    manifest = check_data(config, [absolute(url) for url in request.eval_data], findings)
    split = manifest.splits.get(config.data.train_split) if manifest else None
    work = work_of(config, split.samples) if split else None
    say("  asking the tracking server")
    check_tracking(findings)
    address = request.address or os.environ.get("RAY_ADDRESS")
    say(f"  looking at {'every node of the cluster' if address else 'this machine'}")
    wanted = Wanted(
        config,
        absolute(request.output),
        shard=_a_shard(manifest, config),
        decode=bool(split and split.samples),
    )
    machines, ranks, link = _machines(wanted, work, address, request, findings, say)
    if work is not None and machines and ranks and work.samples * work.repeats >= work.global_batch:
        check_outlook(config, work, machines, ranks, link, request.stated, findings)
    return work


def _a_shard(manifest: Manifest | None, config: TrainConfig) -> str:
    split = manifest.splits.get(config.data.train_split) if manifest else None
    return split.shards[0].name if split and split.shards else ""


def _machines(
    wanted: Wanted, work: Work | None, address: str | None, request: CheckRequest, findings: Findings, say: Any
) -> tuple[list[MachineFacts], int, float]:
    """What the machines have, how many ranks there will be, and the bandwidth between them (0: not measured)."""
    if not address:
        machine = look(wanted, "this machine")
        check_machines([machine], work, wanted, findings)
        here = {"CPU": float(machine.cpus), "GPU": float(len(machine.gpus))}
        ranks, _ = _ranks(wanted.config, request.ranks, [here], findings)
        return [machine], ranks, 0.0
    from pipelines.training.launch import connect

    try:
        connect(address)
    except UserError as error:
        text = (str(error).removeprefix("--address: ").splitlines() or [""])[0]
        advice = "Start it, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
        findings.add([Problem("nodes", "--address", text[:300], advice)])
        return [], 0, 0.0
    machines = look_at_nodes(wanted, findings)
    check_machines(machines, work, wanted, findings)
    ranks, bundle = _ranks(wanted.config, request.ranks, nodes_of_cluster(), findings)
    say(f"  summing over {ranks} ranks")
    link = check_links(ranks, bundle, findings) if ranks else 0.0
    if link:
        findings.measured["all_reduce_bytes_per_s"] = link
    return machines, ranks, link


def _ranks(config: TrainConfig, text: str, nodes: Sequence[Node], findings: Findings) -> tuple[int, dict[str, float]]:
    """Ranks of the run, the most there may be, and what each is given; 0 where they do not fit."""
    try:
        ranks = Ranks.parse(text) if text else one_for_each_gpu(nodes)
        most = possible_ranks(config, ranks)[-1]
        return most, scaling_for(Ranks.of(most), nodes, config.data.num_readers)["resources_per_worker"]
    except UserError as error:
        subject, _, found = str(error).partition(": ")
        findings.add([Problem("nodes", subject, found, "Take a number of ranks that fits")])
        return 0, {}


def _tell(config: TrainConfig | None, work: Work | None, findings: Findings, terminal: Terminal) -> None:
    if config is not None:
        terminal.say(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip())
        if work is not None:
            terminal.say(f"# cost: {work.cost_in_words()}")
        for line in kernel_lines(config.model, config.data.num_frames, config.data.crop_size):
            terminal.say(f"# Affine-Shift: {line}")
    for area, title in AREAS.items():
        facts = [text for where, text in findings.facts if where == area]
        problems = [problem for problem in findings.problems if problem.area == area]
        if facts or problems:
            terminal.heading(title)
        for text in facts:
            terminal.say(f"  {text}")
        for problem in problems:
            terminal.say(f"  {'warning' if problem.warning else 'PROBLEM'}  {problem}",
                         style="yellow" if problem.warning else "red")  # fmt: skip
    count, warnings = len(findings.errors), len(findings.problems) - len(findings.errors)
    more = f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
    if count:
        terminal.heading(f"{count} problem{'s' * (count != 1)}{more}")
    elif config is not None:
        terminal.heading(f"no problems{more}; the run will be called {config.run_name()}")
