from dataclasses import replace

import pytest

from pipelines.plan.command import Stated
from pipelines.preflight.findings import Findings
from pipelines.preflight.machine import MachineFacts
from pipelines.preflight.outlook import check_outlook
from tests.unit.pipelines.plan.test_timing import WORK
from vast.train.config import TrainConfig

LAPTOP = MachineFacts("here", {}, 72, 64_000_000_000, 1, ("/tmp", 1), decode_clips_per_s=10.0)
NODE = replace(LAPTOP, gpus=["H100"] * 8, gpu_bytes=80_000_000_000)


def outlook(machine, ranks=8, readers=12, **stated):
    data = {"url": "x", "num_readers": readers}
    config = TrainConfig.model_validate({"name": "a", "model": {"name": "vast_micro"}, "data": data})
    findings = Findings()
    check_outlook(config, WORK, [machine], ranks, 0.0, Stated(gpus=(), **stated), findings)
    return findings


def test_readers_that_cannot_feed_the_gpus_say_what_to_expect():
    findings = outlook(NODE, clips_per_second=120.0)
    (problem,) = findings.problems
    assert (problem.area, problem.warning) == ("readers", False)
    # 72 cores less one for each of 8 ranks; 8 GPUs eat 960 clips/s of 10 a core
    assert problem.found == "8 ranks of 119.9 clips/s need 96 reader cores, the nodes have 64: expect 67 % utilisation"
    assert "Take nodes with more cores a rank (here 13)" in problem.advice
    assert findings.exit_code == 1


def test_a_recipe_that_asks_for_too_few_readers_is_told_how_many():
    (problem,) = outlook(NODE, readers=2, clips_per_second=60.0).problems
    assert "Set data.num_readers=6 (cores: 56 with the ranks)" in problem.advice
    assert outlook(NODE, readers=6, clips_per_second=50.0).problems == []


def test_hours_and_money():
    findings = outlook(NODE, clips_per_second=50.0, price_per_gpu_hour=2.0)
    hours = findings.measured["hours"]
    assert hours == pytest.approx(10 * (100_000 // 512) * findings.measured["step_s"] / 3600)
    assert findings.measured["gpu_hours"] == pytest.approx(8 * hours)
    assert f"{16 * hours:.0f} at 2 an hour" in str(findings.facts)


def test_of_cpus_no_hours_are_told_that_nobody_measured():
    findings = outlook(LAPTOP, ranks=2)
    assert "hours" not in findings.measured
    assert "--clips-per-second says" in str(findings.facts)
    assert findings.problems == []


def test_memory_that_is_too_small():
    (problem,) = outlook(replace(NODE, gpu_bytes=1_500_000_000), clips_per_second=50.0).problems
    assert (problem.area, problem.found) == ("nodes", "1.5 GB of GPU memory")
    assert problem.expected == "2.0 GB or more"
    assert "optim.max_micro_batch" in problem.advice
    assert outlook(replace(LAPTOP, memory_bytes=5_000_000_000), ranks=2).problems == []
    (problem,) = outlook(replace(LAPTOP, memory_bytes=3_000_000_000), ranks=2).problems
    assert problem.found == "1.5 GB of memory for each of 2 ranks"
