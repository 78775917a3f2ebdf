"""Mistakes that `vast export` explains, and what the file's description says. Files are in the integration tests."""

import importlib.util

import pytest
import torch

from pipelines import cli, export
from pipelines.export import describe
from vast.models import create_model
from vast.train.checkpoint import ModelCard, save_model
from vast.train.config import TrainConfig


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_card(**data: object) -> ModelCard:
    tree = {"name": "x", "model": {"name": "vast_micro"}, "data": {"url": "somewhere", **data}}
    return ModelCard(TrainConfig.model_validate(tree).model_dump(mode="json"), ["a", "b"], "sha256:1", step=7)


def run(capfd, *words):
    code = cli.main(list(words))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_missing_packages_are_named_with_the_way_out_before_anything_is_read(monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name.startswith("onnx") else find(name))
    code, _, err = run(capfd, "export", "nowhere", "--format", "onnx")
    assert code == 2
    assert "--format onnx: not installed: onnx, onnxscript, onnxruntime; pip install 'vast-video[export]'" in err


def test_no_model_is_a_mistake(capfd):
    code, _, err = run(capfd, "export", "nowhere", "--format", "pt2")
    assert code == 2
    assert "no model at" in err
    assert "nowhere" in err


def test_an_unknown_format_lists_the_known_ones(capfd):
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", "nowhere", "--format", "tensorrt"])
    assert caught.value.code == 2
    assert "'pt2', 'onnx'" in capfd.readouterr().err


@pytest.mark.parametrize("out", ["folder", "folder/", "s3://bucket/prefix/"])
def test_a_folder_is_no_file(tmp_path, capfd, out):
    (tmp_path / "folder").mkdir()
    save_model(tmp_path / "model", create_model("vast_micro", 2), make_card())
    code, _, err = run(capfd, "export", "model", "--format", "pt2", "--out", out)
    assert code == 2
    assert f"--out: {out!r} is a folder" in err


@pytest.mark.parametrize(
    ("out", "parts"),
    [
        ("m.onnx", (".", "m.onnx")),
        ("/m.onnx", ("/", "m.onnx")),
        ("a/b/m.onnx", ("a/b", "m.onnx")),
        ("s3://bucket/m.onnx", ("s3://bucket", "m.onnx")),
    ],
)
def test_where_the_file_goes(out, parts):
    assert export._split(out) == parts


def test_the_description_says_what_the_caller_has_to_do():
    about = describe(make_card(num_frames=8, sampling="dense", frame_stride=4, mean=(0.5, 0.4, 0.3)))
    assert about["classes"] == ["a", "b"]
    assert about["dataset_digest"] == "sha256:1"
    assert about["input"]["shape"] == ["B", 3, 8, 224, 224]
    assert about["output"]["shape"] == ["B", 2]
    assert about["preprocessing"]["frame_stride"] == 4
    assert about["normalisation_inside"]["mean"] == [0.5, 0.4, 0.3]
    assert describe(make_card(sampling="uniform"))["preprocessing"]["frame_stride"] is None


def test_the_description_follows_the_protocol_that_the_model_is_scored_with():
    card = make_card(sampling="uniform")
    card.config["eval"]["protocol"] = "ssv2-2x3-fullres"
    about = describe(card)
    assert about["input"]["shape"][-1] == about["preprocessing"]["crop_size"] == 256


def test_a_shape_that_differs_is_a_disagreement():
    served = export.ServedModel(create_model("vast_micro", 2).eval(), (0.5,) * 3, (0.5,) * 3)
    for wrong in (lambda clip: torch.zeros(len(clip), 3), lambda clip: torch.full((len(clip), 2), torch.nan)):
        with pytest.raises(RuntimeError, match="nothing was exported"):
            export.largest_difference(wrong, served, (3, 2, 16, 16))
