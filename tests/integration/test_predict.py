"""`vast predict`, the registry and a served model: all of them say what `vast evaluate` says."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from pipelines import cli
from pipelines.config import resolve
from pipelines.evaluation.report import EVALUATION
from pipelines.find_model import find_model
from pipelines.predict.predictor import Predictor
from pipelines.registry.register import register
from vast.data.dataset import ShardDataset
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.models.variants import create_model
from vast.train.checkpoint import ModelCard, load_model, save_model, weights_digest

SMALL = ["data.num_frames=4", "data.crop_size=32", "data.eval_short_side=36", "optim.global_batch=8"]


def make_model(folder: Path, shards: str, seed: int) -> str:
    """A model with random weights: what it answers is nobody's business here, but that all answer alike."""
    config = resolve("demo_finetune_ssv2", [f"data.url={shards}", f"seed={seed}", *SMALL])
    manifest = read_manifest(shards)
    torch.manual_seed(seed)
    model = create_model(config.model, num_classes=len(manifest.classes))
    torch.nn.init.normal_(model.get_classifier().weight, std=2.0)  # or it says nearly the same of every clip
    card = ModelCard(config.model_dump(mode="json"), list(manifest.classes), manifest.digest, step=3)
    save_model(folder, model, card)
    return str(folder)


@pytest.fixture
def tracked(tmp_path, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return MlflowClient(uri, registry_uri=uri)


def evaluated(model: str, shards: str, protocol: str) -> np.ndarray:
    """probs_NK of `vast evaluate`, in the order of the sample index."""
    words = ["evaluate", model, "--data", shards, "--protocol", protocol, "--out", "evaluation", "--allow-leaks"]
    assert cli.main([*words, "--save-probabilities"]) == 0
    return np.array(pq.read_table("evaluation/predictions.parquet", columns=["probs"]).column("probs").to_pylist())


def test_predictions_and_the_served_model_agree_with_the_evaluation(tracked, ssv2_shards, free_port, tmp_path, capfd):
    model = make_model(tmp_path / "model", ssv2_shards, seed=1)
    probs_NK = evaluated(model, ssv2_shards, "2x3")
    assert probs_NK.std(axis=0).max() > 1e-2
    dataset = ShardDataset(ssv2_shards, "val")
    clips = {f"{number}.mp4": dataset.read(number) for number in range(len(dataset))}
    (tmp_path / "clips").mkdir()
    for name, data in clips.items():
        (tmp_path / "clips" / name).write_bytes(data)

    # the library
    predictor = Predictor(*load_model(model), protocol="2x3")
    own_NK = np.array([predictor.probabilities(predictor.prepare(data)) for data in clips.values()])
    np.testing.assert_allclose(own_NK, probs_NK, atol=1e-5)

    # the command
    capfd.readouterr()
    words = ["predict", model, "clips", "--protocol", "2x3", "--json", "--top", "3", "--picture", "out.png"]
    assert cli.main(words) == 0
    told = json.loads(capfd.readouterr().out)
    for video, probs_K in zip(told["videos"], probs_NK, strict=True):
        for guess in video["top"]:
            assert guess["probability"] == pytest.approx(probs_K[guess["id"]], abs=1e-5)
            assert guess["class"] == dataset.classes[guess["id"]]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    words = ["predict", model, "--data", ssv2_shards, "--split", "val", "--protocol", "2x3", "--out", "all.parquet"]
    assert cli.main(words) == 0
    again_NK = np.array(pq.read_table("all.parquet", columns=["probs"]).column("probs").to_pylist())
    np.testing.assert_allclose(again_NK, probs_NK, atol=1e-5)

    # the server
    done = register(model, "ssv2", "evaluation", "2x3")
    assert (done.version, done.is_new, done.is_champion) == ("1", True, True)
    assert find_model("models:/ssv2@champion").url == find_model("models:/ssv2/1").url == model
    as_bytes = [{"video": base64.b64encode(data).decode()} for data in clips.values()]
    requests = [as_bytes, [{"path": "/etc/passwd"}]]
    bodies = [{"dataframe_records": rows, "params": {"top_k": 3}} for rows in requests]
    answers, (refused,) = served("models:/ssv2@champion", bodies, tmp_path, free_port)
    assert "reads no such place" in refused["error"]
    for answer, probs_K in zip(answers, probs_NK, strict=True):
        assert answer["error"] is None
        assert [dataset.classes.index(label) for label in answer["labels"]] == np.argsort(-probs_K)[:3].tolist()
        np.testing.assert_allclose(answer["probabilities"], np.sort(probs_K)[::-1][:3], atol=1e-5)


def served(model: str, bodies: list[dict], folder: Path, port: int) -> list[list[dict]]:
    """What a real `mlflow models serve` answers to real requests."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow starts uvicorn by its name
    environment = {**os.environ, "PATH": found}
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                said = (folder / "serve.log").read_text()[-3000:]
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.5)
        return [ask(f"http://127.0.0.1:{port}/invocations", body) for body in bodies]
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def ask(url: str, body: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error


def ffmpeg(*words: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_videos_of_any_shape_are_seen_upright_and_bad_ones_are_told(tracked, ssv2_shards, tmp_path, capfd):
    model = make_model(tmp_path / "model", ssv2_shards, seed=1)
    source = "testsrc2=size=159x121:rate=24:duration=2"
    (folder := tmp_path / "odd").mkdir()
    ffmpeg(
        "-f", "lavfi", "-i", source, "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv444p", str(folder / "upright.mkv")
    )
    turn = ["-vf", "transpose=1", "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv444p"]
    ffmpeg("-i", str(folder / "upright.mkv"), *turn, str(tmp_path / "lying.mp4"))
    ffmpeg("-display_rotation", "90", "-i", str(tmp_path / "lying.mp4"), "-c", "copy", str(folder / "turned.mp4"))
    ffmpeg("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=duration=2", str(folder / "sound.mov"))
    (folder / "no.mp4").write_bytes(b"hello")
    (folder / "torn.mp4").write_bytes((folder / "turned.mp4").read_bytes()[:2000])
    assert cli.main(["predict", model, "odd", "--json"]) == 1
    found = {video["video"]: video for video in json.loads(capfd.readouterr().out)["videos"]}
    assert {name for name, video in found.items() if video["error"]} == {"odd/no.mp4", "odd/torn.mp4"}
    upright, turned = (
        {g["id"]: g["probability"] for g in found[f"odd/{n}"]["top"]} for n in ("upright.mkv", "turned.mp4")
    )
    assert upright == pytest.approx(turned, abs=0.05)

    with pytest.raises(SystemExit):
        cli.main(["predict", model, "odd", "--top", "0"])
    assert cli.main(["predict", model, "nothing.mp4"]) == 2
    assert cli.main(["predict", model]) == 2
    assert cli.main(["predict", model, "odd", "--hop", "1"]) == 2


def test_a_long_video_is_looked_at_in_windows(tracked, ssv2_shards, tmp_path, capfd):
    model = make_model(tmp_path / "model", ssv2_shards, seed=1)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=7.4", "long.mp4")
    assert (
        cli.main(["predict", model, "long.mp4", "--window", "2", "--hop", "1.5", "--json", "--picture", "t.png"]) == 0
    )
    (video,) = json.loads(capfd.readouterr().out)["videos"]
    assert [window["start_s"] for window in video["windows"]] == pytest.approx([0, 1.5, 3, 4.5, 5.4], abs=0.05)
    assert video["windows"][-1]["end_s"] == pytest.approx(7.4, abs=0.05)
    assert all(window["error"] is None and len(window["top"]) == 5 for window in video["windows"])
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_champion_changes_only_for_a_better_score_on_the_same_thing(tracked, ssv2_shards, tmp_path):
    models = [make_model(tmp_path / f"model-{n}", ssv2_shards, seed=n) for n in range(4)]

    def judged(number: int, top1: float, **other: object) -> str:
        """What `vast evaluate` would have left."""
        folder = tmp_path / f"evaluation-{number}-{top1}-{len(other)}"
        folder.mkdir()
        identity = {"dataset": "sha256:1", "split": "val", "temporal_clips": 1, "spatial_crops": 3, "short_side": 36}
        identity |= {"crop_size": 32, "weights_sha256": weights_digest(load_model(models[number])[0]), **other}
        content = {"identity": identity, "top1": top1, "protocol": {"name": "1x3"}, "tracking": {"run_id": "0" * 32}}
        (folder / EVALUATION).write_text(json.dumps({**content, "model": {"url": models[number]}}))
        return str(folder)

    def champion() -> str:
        return str(tracked.get_model_version_by_alias("m", "champion").version)

    assert not register(models[0], "m", "", "").is_champion  # never evaluated
    assert register(models[1], "m", judged(1, 40.0), "").is_champion
    assert champion() == "2"
    worse = register(models[2], "m", judged(2, 40.0), "")
    assert not worse.is_champion
    assert re.search(r"40\.00 %.* is not more than the 40\.00 % of version 2", worse.why)
    other = register(models[3], "m", judged(3, 90.0, spatial_crops=1), "")
    assert not other.is_champion
    assert "cannot be compared with that of version 2: spatial_crops 1 against 3" in other.why
    assert champion() == "2"
    again = register(models[3], "m", judged(3, 41.0), "")  # the same weights, evaluated alike
    assert (again.version, again.is_new, again.is_champion) == ("4", False, True)
    assert champion() == "4"
    register(models[3], "m", judged(3, 95.0, spatial_crops=1), "")  # of another thing: what it is compared by stays
    assert tracked.get_model_version("m", "4").tags["evaluation.spatial_crops"] == "3"
    with pytest.raises(UserError, match="is of other weights"):
        register(models[2], "m", judged(1, 99.0), "")
    version = tracked.get_model_version("m", "4")
    assert version.tags["dataset.digest"] == read_manifest(ssv2_shards).digest
