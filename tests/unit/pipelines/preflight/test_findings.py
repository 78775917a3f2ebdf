from dataclasses import replace

import pytest

from pipelines.plan.work import Work
from pipelines.preflight.findings import Findings, Problem
from pipelines.preflight.links import LinkFacts, link_problems
from pipelines.preflight.machine import MachineFacts, Wanted, look, versions_here
from pipelines.preflight.nodes import check_machines, version_problems
from pipelines.preflight.stores import StoreFacts, store_problem, try_reading, try_writing
from pipelines.recipe_table import shipped_config

CONFIG = shipped_config("demo_finetune_ssv2")
WORK = Work(
    macs=10**9,
    samples=1000,
    repeats=1,
    epochs=2,
    global_batch=64,
    max_micro_batch=16,
    clips_together=1,
    parameters=10**6,
    kept_bytes_per_clip=10**9,
    state_bytes=16 * 10**6,
)
NODE = MachineFacts(
    address="10.0.0.1",
    versions=versions_here(),
    cpus=8,
    memory_bytes=64 * 10**9,
    shm_bytes=10**10,
    scratch=("/tmp", 10**12),
)


@pytest.mark.parametrize(
    ("problems", "code"),
    [
        ([], 0),
        ([Problem("nodes", "a", "slow", "wait", warning=True)], 0),
        ([Problem("store", "a", "gone", "look")], 1),
        ([Problem("store", "a", "gone", "look"), Problem("recipe", "b", "wrong", "mend")], 2),
    ],
)
def test_the_exit_code_says_where_the_fault_is(problems, code):
    assert Findings(problems).exit_code == code
    assert Findings(problems).to_json()["exit_code"] == code


def test_a_node_of_another_version_is_named():
    other = replace(NODE, address="10.0.0.2", versions={**versions_here(), "torch": "1.0"})
    (problem,) = version_problems([NODE, other], versions_here())
    assert (problem.subject, problem.found) == ("10.0.0.2", "torch 1.0")


def test_what_is_too_small_is_told_of_the_node_that_has_it(tmp_path):
    config = CONFIG.model_copy(
        update={"data": CONFIG.data.model_copy(update={"cache_dir": "/cache", "cache_gb": 500.0})}
    )
    small = replace(NODE, address="10.0.0.3", scratch=("/tmp", 10**9), shm_bytes=10**7, cache=("/cache", 10**11))
    findings = Findings()
    large = replace(NODE, cache=("/cache", 10**12))
    check_machines([large, small], WORK, Wanted(config, "", "", decode=False), findings)
    assert {problem.subject for problem in findings.problems} == {"10.0.0.3"}
    told = " ".join(map(str, findings.problems))
    for part in (
        "100 GB of disk for data.cache_dir /cache; expected 500 GB",
        "1.0 GB of disk for temporary",
        "/dev/shm",
    ):
        assert part in told
    assert [problem.warning for problem in findings.problems] == [False, False, True]


def test_who_was_at_fault_stands_before_who_waited():
    facts = [
        LinkFacts(0, "10.0.0.1", "eth0", "Timed out waiting for clients"),
        LinkFacts(1, "10.0.0.2", "eth9", "Unable to find address for: eth9"),
        LinkFacts(2, "10.0.0.3", "eth0"),
    ]
    (problem,) = link_problems(facts)
    assert problem.found.index("eth9") < problem.found.index("Timed out")
    assert link_problems(facts[2:]) == []


def test_stores_are_read_and_written_and_left_as_they_were(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(1000))
    assert try_reading(str(tmp_path), "a.tar").read_mb_s > 0
    assert try_reading(str(tmp_path), "gone.tar").error == ""  # the check of the data set tells that
    written = try_writing(str(tmp_path / "runs"))
    assert written.write_mb_s > 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar"]
    (tmp_path / "file").touch()
    facts = try_writing(str(tmp_path / "file"))
    (problem,) = store_problem(facts, "--output", "10.0.0.1")
    assert problem.subject == f"--output {tmp_path}/file from 10.0.0.1"
    assert store_problem(StoreFacts("x"), "data.url") == []


def test_a_machine_is_looked_at_from_inside(ssv2_shards, tmp_path):
    data = CONFIG.data.model_copy(update={"url": ssv2_shards, "num_frames": 4, "crop_size": 32, "train_split": "train"})
    config = CONFIG.model_copy(update={"data": data})
    found = look(Wanted(config, str(tmp_path / "runs"), "train-000000.tar", decode=True), "here")
    assert found.versions == versions_here()
    assert found.decode_clips_per_s > 1
    assert found.decode_error == ""
    assert found.data.read_mb_s > 0
    assert found.output.write_mb_s > 0
    assert found.scratch[1] > 0
