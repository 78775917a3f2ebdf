import json

import pytest

from pipelines import cli

WORDS = ["plan", "pretrain_k400_vast_ti_8f", "--samples", "240436"]


def test_every_number_says_what_it_rests_on(capfd):
    words = ["--gpus", "8,24,64", "--clips-per-second", "150", "--decode-clips-per-second", "50"]
    words += ["--reader-cores-per-node", "4", "--price-per-gpu-hour", "2", "--gpu-memory-gb", "5"]
    assert cli.main([*WORDS, *words]) == 0
    said = " ".join(capfd.readouterr().out.split())
    for part in (
        "112680 steps of 256 clips",
        "stated: a rank takes 150 clips/s (--clips-per-second)",
        "assumed: a node's network takes 100 Gbit/s",
        "cannot share optim.global_batch=256: 24 ranks",
        "need 86 reader cores, the nodes have 32: expect 37 % utilisation",
        "lower optim.max_micro_batch",
        "money",
    ):
        assert part in said, part


def test_for_programs_everything_is_one_object(capfd):
    assert cli.main([*WORDS, "--json", "--gpus", "8,1024"]) == 0
    plain = json.loads(capfd.readouterr().out)
    (plan,) = plain["plans"]
    assert plan["ranks"] == 8
    assert plan["hours"] == pytest.approx(plain["work"]["steps"] * plan["step_s"] / 3600)
    assert plain["impossible_ranks"] == [1024]
    assert plain["machine"]["clips_per_s"]["origin"] == "assumed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "24"], "none of 24 can share optim.global_batch=256"),
        (["optim.lrr=1"], "optim.lrr: unknown key"),
        (["--measured", "nowhere"], "no model at"),
    ],
)
def test_a_mistake_is_one_message(capfd, words, message):
    assert cli.main([*WORDS, *words]) == 2
    assert message in capfd.readouterr().err
