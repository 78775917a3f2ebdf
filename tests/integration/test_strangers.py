"""Folders made by strangers: nothing in them runs, nothing is written outside, and nobody they name gets a password."""

import json
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch

from pipelines import cli
from pipelines.config import resolve
from tests.integration.test_predict import SMALL, make_model
from vast.train.checkpoint import CARD, STATE, WEIGHTS


@pytest.fixture
def here(tmp_path, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (self.path.touch, ())


def test_no_command_runs_what_a_model_folder_brings(here, ssv2_shards, make_clip, capfd):
    clip, ran = make_clip(here / "clip.mp4"), here / "ran"
    pickle.loads(pickle.dumps(Evil(ran)))
    assert ran.exists(), "the trap works"
    ran.unlink()
    model = make_model(here / "model", ssv2_shards, seed=1)
    traps = {"pickle": pickle.dumps(Evil(ran), protocol=2)}
    torch.save({"weight": Evil(ran)}, here / "trap.pt")
    traps["torch"] = (here / "trap.pt").read_bytes()
    commands = [
        ["predict", model, str(clip)],
        ["evaluate", model, "--data", ssv2_shards, "--allow-leaks"],
        ["export", model, "--format", "pt2", "--out", "out.pt2"],
        ["report", model],
        ["register", model, "--name", "trap"],
    ]
    for trap in traps.values():
        for name in (WEIGHTS, STATE):
            (here / "model" / name).write_bytes(trap)
        for command in commands:
            code = cli.main(command)
            said = capfd.readouterr()
            assert code in ((0, 2) if command[0] in ("report", "register") else (2,)), (command, said)
            assert "Traceback" not in said.err
            assert not ran.exists(), command


@pytest.mark.stack
def test_a_run_that_starts_from_a_strangers_model_runs_nothing_of_it(here, ssv2_shards, ray_local, capfd):
    model, ran = make_model(here / "model", ssv2_shards, seed=1), here / "ran"
    for name in (WEIGHTS, STATE):
        (here / "model" / name).write_bytes(pickle.dumps(Evil(ran), protocol=2))
    for how in ("init_from", "resume_from"):
        words = [
            "finetune",
            "demo_finetune_ssv2",
            f"data.url={ssv2_shards}",
            "optim.epochs=1",
            f"{how}={model}",
            *SMALL,
        ]
        assert cli.main([*words, "data.num_readers=0", "--ranks", "1", "--output", str(here / how)]) == 2
        assert "safetensors" in capfd.readouterr().err or how == "resume_from"
        assert not ran.exists(), how


def test_a_damaged_card_is_a_mistake_and_not_a_crash(here, ssv2_shards, make_clip, capfd):
    model = make_model(here / "model", ssv2_shards, seed=1)
    for text in ("[]", "{", '{"__class__": "os.system"}'):
        (here / "model" / CARD).write_text(text)
        assert cli.main(["predict", model, str(make_clip(here / "clip.mp4"))]) == 2
        assert CARD in capfd.readouterr().err


@pytest.mark.parametrize("key", ["../escaped", "/tmp/escaped-vast", "a/../../escaped"])
def test_a_manifest_cannot_name_files_outside_its_folder(here, ssv2_shards, key, capfd):
    shutil.copytree(ssv2_shards, here / "shards")
    manifest = json.loads((here / "shards" / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["key"] = key
    if "name" in manifest["splits"]["train"]["shards"][0]:
        manifest["splits"]["train"]["shards"][0]["name"] = key
    (here / "shards" / "manifest.json").write_text(json.dumps(manifest))
    before = sorted(here.rglob("*"))
    assert cli.main(["data", "verify", "shards"]) in (1, 2)
    assert "Traceback" not in capfd.readouterr().err
    left = [path for path in sorted(here.rglob("*")) if path not in before and ".vast" not in path.parts]
    assert left == []


def test_the_server_that_a_strangers_run_names_is_not_asked(here, ssv2_shards, monkeypatch):
    """MLflow's client would send it the user and password of the person who looks."""
    model = here / "run" / "model"
    make_model(model, ssv2_shards, seed=1)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        stranger.settimeout(0.5)
        uri = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        (here / "run" / "run.json").write_text(json.dumps({"tracking_uri": uri, "run_id": "a" * 32}))
        assert cli.main(["report", str(here / "run"), "--out", "report.html"]) == 0
        assert cli.main(["evaluate", str(here / "run"), "--data", ssv2_shards, "--allow-leaks"]) == 0
        with pytest.raises(TimeoutError):
            stranger.accept()
    assert "which is not asked" in (here / "report.html").read_text()


def test_a_recipe_in_yaml_makes_no_objects(here, capfd):
    (here / "evil.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {here}/ran']\n")
    assert cli.main(["check", "evil.yaml"]) == 2
    assert not (here / "ran").exists()
    with pytest.raises(Exception, match="constructor"):
        resolve("evil.yaml", [])
