"""From pictures to a video model: ImageNet shards, an AST trained and scored on them, a VAST that starts from it."""

import re

import pytest

from pipelines import cli
from vast.dataset_format import read_manifest

RECIPE = """
base: pretrain_in1k_ast_ti
name: pictures
model: {name: ast_micro}
data: {crop_size: 32, eval_short_side: 36, num_readers: 1}
optim: {epochs: 2, warmup_epochs: 0.5, global_batch: 16, max_micro_batch: 8}
"""


def run(capfd, *words):
    code = cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out


@pytest.mark.campaign
def test_pictures_are_sharded_trained_on_and_scored_and_start_a_video_model(
    ray_local, mlflow_server, picture_folder, ssv2_shards, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pictures")
    classes = ["--classes", picture_folder / "classes.txt", "--short-side", "64", "--workers", "1"]

    out = run(capfd, "shard", "imagenet", "--videos", picture_folder, "--out", "in1k", *classes)

    assert "64 records = 64 samples + 0 failures" in out
    assert read_manifest("in1k").media == "image"

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = run(capfd, "pretrain", "recipe.yaml", "data.url=in1k", "--ranks", "1")
    assert "8 steps to go" in out
    image_run = re.search(r"^model +(\S+)/model$", out, flags=re.M)[1]

    out = run(capfd, "evaluate", image_run, "--data", "in1k")
    assert re.search(r"\b16\b", out)

    settings = [f"data.url={ssv2_shards}", "data.num_frames=4", "data.crop_size=32", "data.eval_short_side=32"]
    settings += ["optim.epochs=1", f"init_from={image_run}"]
    out = run(capfd, "finetune", "demo_finetune_ssv2", *settings, "--ranks", "1")
    assert f"weights of ast_micro from {image_run}" in out
    assert "2 reinitialised (head.weight, head.bias)" in out
    assert "missing" not in out
