import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines import cli
from preprocessing.synth import synth_kinetics
from preprocessing.transcode import PROFILES
from vast.errors import StoreError, UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capfd, *words):
    code = cli.main(list(words))
    out, err = capfd.readouterr()
    return code, out, err


def test_three_faults_one_message_exit_code_2_no_traceback_no_ray(tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(
        "name: wrong\nmodel: {name: vast_micro}\ndata: {url: /nowhere}\noptim: {learning_rate: 1, beta2: 7}\n"
    )
    # a process of its own, so that what it loads can be seen
    code = (
        "import sys; from pipelines.cli import main; code = main(sys.argv[1:]);"
        "print('ray' in sys.modules, 'torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "pretrain", str(recipe)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == "False False\n"
    assert "Traceback" not in done.stderr
    for part in ("3 problems", "optim.learning_rate", "optim.beta2: got 7", "data.url"):
        assert part in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("mend me"), 2), (StoreError("store is down"), 1), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(monkeypatch, capfd, error, code):
    def fail(args, terminal):
        raise error

    monkeypatch.setattr("pipelines.commands.planning._recipes", fail)
    found, _, err = run(capfd, "recipes")
    assert found == code
    assert str(error) in err
    assert "Traceback" not in err


def in_a_process(tmp_path, body):
    """Run `vast recipes` with another body, as a process whose descriptors are nobody else's."""
    log = tmp_path / "story.log"
    code = f"""
import subprocess, sys
from pipelines import cli
from pipelines.commands import planning
def body(args, terminal):
{textwrap.indent(textwrap.dedent(body), "    ")}
planning._recipes = body
sys.exit(cli.main(["--log", {str(log)!r}, "recipes"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done, log


def test_a_crash_is_one_line_and_its_traceback_is_in_the_log(tmp_path):
    done, log = in_a_process(tmp_path, r'raise RuntimeError("the inside of it\nmore")')
    assert done.returncode == 1
    assert done.stderr == f"vast recipes: failed: RuntimeError: the inside of it\nfull story: {log}\n"
    assert "Traceback" in log.read_text()


def test_what_libraries_print_goes_to_the_log(tmp_path):
    body = """
    print("library on stdout")
    subprocess.run(["sh", "-c", "echo child on stderr >&2"], check=True)
    terminal.say("ours")
    """
    done, log = in_a_process(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\n", "")
    assert "library on stdout" in log.read_text()
    assert "child on stderr" in log.read_text()


def test_tables(capfd):
    code, out, _ = run(capfd, "recipes")
    assert code == 0
    assert "demo_finetune_ssv2" in out
    code, out, _ = run(capfd, "models", "vast_ti")
    assert code == 0
    assert "vast_ti" in out


def test_check_prints_the_resolved_recipe(capfd, ssv2_shards):
    words = [f"data.url={ssv2_shards}", "optim.global_batch=8", "optim.lr=0.125"]
    code, out, _ = run(capfd, "check", "demo_finetune_ssv2", *words)
    assert code == 0
    assert "lr: 0.125" in out
    assert "no problems; the run will be called demo_finetune_ssv2-" in out


def test_overrides_may_stand_anywhere():
    words = ["pretrain", "recipe", "a=1", "--ranks", "2", "b=2", "--output", "out", "c=3"]
    assert cli.parse(words).overrides == ["a=1", "b=2", "c=3"]
    for wrong in (["pretrain", "recipe", "--rank-count", "2"], ["recipes", "a=1"]):
        with pytest.raises(SystemExit) as caught:
            cli.parse(wrong)
        assert caught.value.code == 2


def test_synth_refuses_a_full_folder(capfd, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, err = run(capfd, "synth", "ssv2", "--out", "full", "--train", "8", "--val", "8")
    assert code == 2
    assert "full" in err


def test_data_show_and_verify(capfd, ssv2_shards, tmp_path):
    code, out, err = run(capfd, "data", "show", ssv2_shards)
    assert (code, err) == (0, "")
    assert "train" in out
    code, out, _ = run(capfd, "data", "verify", ssv2_shards, "--decode", "2")
    assert code == 0
    assert "no problems" in out
    torn = tmp_path / "torn"
    shutil.copytree(ssv2_shards, torn)
    shard = next(torn.glob("train-*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(damaged)
    code, out, _ = run(capfd, "data", "verify", str(torn), "--decode", "0")
    assert code == 1
    assert shard.name in out


def test_nothing_at_a_url_is_a_mistake(capfd):
    for words in (
        ("data", "show", "nowhere"),
        ("evaluate", "nowhere", "--data", "nowhere"),
        ("ui", "--store", "sqlite:///no.db"),
    ):
        code, _, err = run(capfd, *words)
        assert code == 2, words
        assert "Traceback" not in err


def test_logs_land_under_the_current_folder(capfd):
    run(capfd, "recipes")
    assert len(list(Path(".vast/logs").glob("*-recipes-*.log"))) == 1


def test_a_wrong_folder_of_videos_is_told_with_a_diagnosis_before_ray_starts(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    made = synth_kinetics(tmp_path / "raw", num_train=4, num_val=4, seed=0, num_workers=1)
    other = tmp_path / "other" / "some_class"
    other.mkdir(parents=True)
    (other / "zzzzzzzzzzz_000000_000010.mp4").write_bytes(b"x")
    words = ["--annotations", str(made.annotations), "--videos", str(other.parent), "--out", str(tmp_path / "out")]
    code, _, err = run(capfd, "shard", "kinetics400", *words, "--max-failures", "5%")
    assert code == 2
    assert "no record has a file" in err
    assert "14 of 14 records have no file; 0 names match" in err
    assert "1 files are asked for by no record" in err
    assert "Traceback" not in err


def test_a_limit_that_is_none_is_a_mistake(capfd, tmp_path):
    words = ["--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--max-failures", "many"]
    code, _, err = run(capfd, "shard", "folder", *words)
    assert code == 2
    assert "'many' is no limit of failures; expected a share as 5%" in err


def test_the_profiles_offered_are_those_there_are():
    words = ["shard", "ssv2", "--videos", "x", "--out", "y", "--profile"]
    assert {cli.parse([*words, profile]).profile for profile in PROFILES} == set(PROFILES)
    with pytest.raises(SystemExit):
        cli.parse([*words, "another"])
