"""Exported files of a model that was really trained, and of every mixer and switch, in the runtimes that take them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import cli, export
from pipelines.export import (
    INPUT,
    OUTPUT,
    ServedModel,
    describe,
    largest_difference,
    load_onnx,
    load_pt2,
    trace,
    write_onnx,
    write_pt2,
)
from vast.data.augment import normalise
from vast.models import ModelConfig, create_model
from vast.storage import open_store
from vast.train.checkpoint import load_model, save_model
from vast.train.config import TrainConfig
from vast.train.job import Place
from vast.train.loop import Run

MIXERS = get_args(ModelConfig.model_fields["mixer"].annotation)
SWITCHES: list[dict[str, Any]] = [
    *({"mixer": mixer} for mixer in MIXERS if mixer != "window_attention"),
    {"mixer": "window_attention", "window_size": (2, 4, 4)},
    {
        "bias_kernel": "3x3x3",
        "affine_input": "s",
        "scale_pool": "frame",
        "shift_border": "replicate",
        "layer_scale": 0.1,
        "position_encoding": True,
    },
    {"scale": False, "bias": False, "output_projection": False, "drop_path": 0.2, "head_dropout": 0.2},
]


class Silent:
    """Tracker and observer of a run that nobody watches."""

    def log(self, step, figures):
        pass

    def started(self, message, step, total_steps):
        pass

    def stepped(self, step, total_steps, figures):
        pass

    def saved(self, step, figures, write):
        pass

    def evaluated(self, epoch, step, result):
        return False

    def noted(self, text):
        pass

    def wants_stop(self):
        return False


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(ssv2_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published model of six steps on real clips."""
    tree = {
        "name": "trained",
        "model": {"name": "vast_micro", "drop_path": 0.1},
        "data": {"url": ssv2_shards, "num_frames": 4, "sampling": "uniform", "crop_size": 48, "eval_short_side": 64},
        "optim": {"epochs": 2, "global_batch": 8, "max_micro_batch": 8, "lr": 3.0e-3},
    }
    tree["data"]["num_readers"] = 0
    run = Run(TrainConfig.model_validate(tree), Place(), Silent(), Silent())
    outcome = run.fit()
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(folder, run.state.published, outcome.card)
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained model as model.pt2 and model.onnx, made by the command."""
    folder = tmp_path_factory.mktemp("exported")
    for form in ("pt2", "onnx"):
        words = ["--log", str(folder.parent / "log"), "export", str(trained), "--format", form]
        assert cli.main([*words, "--out", str(folder / f"model.{form}")]) == 0
    return folder


def some_clips(num_clips: int, shape: tuple[int, ...] = (3, 4, 48, 48)) -> Tensor:
    return torch.randint(0, 256, (num_clips, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def wanted_logits(folder: Path, clip_BCTHW: Tensor) -> Tensor:
    model, card = load_model(str(folder))
    config = card.train_config()
    with torch.no_grad():
        logits_BK: Tensor = model(normalise(clip_BCTHW, config.data.mean, config.data.std))
    return logits_BK


def vast(capfd, *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


def test_only_whole_files_are_left(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["model.onnx", "model.pt2"]  # no weights beside them


def test_a_trained_model_as_pt2_runs_where_nothing_of_ours_is(trained, exported, tmp_path):
    torch.save(some_clips(5), tmp_path / "clips.pt")
    code = """
import json, sys, torch
extra = {"vast.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
logits = program.module()(torch.load("clips.pt"))
ours = [name for name in sys.modules if name.split(".")[0] in ("vast", "pipelines", "preprocessing")]
operators = sorted({str(node.target) for node in program.graph.nodes if node.op == "call_function"})
print(json.dumps([logits.tolist(), json.loads(extra["vast.json"]), ours, operators]))
"""
    command = [sys.executable, "-c", code, str(exported / "model.pt2")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    logits, about, ours, operators = json.loads(done.stdout)
    assert ours == []
    assert {name.split(".")[0] for name in operators} <= {"aten", "<built-in function getitem>"}
    torch.testing.assert_close(torch.tensor(logits), wanted_logits(trained, some_clips(5)), rtol=1e-5, atol=1e-5)
    _, card = load_model(str(trained))
    assert about == describe(card)
    loaded, _ = load_pt2(exported / "model.pt2")
    for wrong in (some_clips(1).float(), some_clips(1, (3, 5, 48, 48))):  # refused instead of misread
        with pytest.raises((RuntimeError, AssertionError)):
            loaded(wrong)


def test_a_trained_model_as_onnx_agrees_and_describes_itself(trained, exported):
    import onnx
    import onnxruntime

    path = exported / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}  # ONNX's own operators only
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num_clips in (1, 2, 5):
        (logits,) = session.run([OUTPUT], {INPUT: some_clips(num_clips).numpy()})
        np.testing.assert_allclose(logits, wanted_logits(trained, some_clips(num_clips)).numpy(), atol=1e-4)
    _, card = load_model(str(trained))
    told = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told == describe(card)
    assert told["classes"] == card.classes
    assert told["dataset_digest"] == card.dataset_digest
    assert told["input"]["shape"] == ["B", *some_clips(1).shape[1:]]
    # A clip that is normalised already, or in 0..1, or of another shape, is refused instead of misread.
    for wrong in (some_clips(1).float(), some_clips(1, (3, 5, 48, 48))):
        with pytest.raises(Exception, match=r"Unexpected input data type|Got invalid dimensions"):
            session.run([OUTPUT], {INPUT: wrong.numpy()})


def test_the_readmes_lines_run(exported, monkeypatch):
    monkeypatch.chdir(exported)
    text = (Path(cli.__file__).parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 2
    for lines in blocks:
        told: dict[str, Any] = {}
        exec(lines, told)
        assert told["logits_BK"].shape == (1, len(told["about"]["classes"]))


def test_every_mixer_and_switch_can_be_exported(tmp_path):
    """One block of each in one model: a block alone takes most of the time that all of them take."""
    torch.manual_seed(0)
    model = create_model("vast_micro", 5, recompute=True)
    # windows move in every second block of a stage
    blocks = [create_model("vast_micro", 5, **switches).stages[1].blocks[1] for switches in SWITCHES]
    for stage, chosen in zip(model.stages, ([], blocks, []), strict=True):
        stage.blocks = torch.nn.ModuleList(chosen)
    torch.nn.init.normal_(model.head.weight)  # fresh logits are near zero, and so would be any difference
    served, shape = ServedModel(model.eval(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), (3, 3, 80, 64)
    program = trace(served, shape)
    assert largest_difference(program.module(), served, shape) < 1e-4
    write_onnx(program, {"classes": ["ä", "b"]}, tmp_path / "m.onnx")
    loaded, about = load_onnx(tmp_path / "m.onnx")
    assert about == {"classes": ["ä", "b"]}
    assert largest_difference(loaded, served, shape) < 1e-4


def test_an_image_model_can_be_exported(tmp_path):
    model = create_model("ast_micro", 5).eval()
    for stage in model.stages:
        stage.blocks = stage.blocks[:1]
    served, shape = ServedModel(model, (0.5,) * 3, (0.5,) * 3), (3, 1, 32, 32)
    write_onnx(trace(served, shape), {}, tmp_path / "m.onnx")
    assert largest_difference(load_onnx(tmp_path / "m.onnx")[0], served, shape) < 1e-4


def test_a_file_that_disagrees_is_not_left_and_the_old_one_stays(trained, tmp_path, monkeypatch, capfd):
    def write_another(program, about, path):
        other = program.state_dict["model.head.bias"] + 0.01  # a new tensor: the model keeps its own
        program.state_dict["model.head.bias"] = torch.nn.Parameter(other)
        write_pt2(program, about, path)

    old = tmp_path / "model.pt2"
    old.write_bytes(b"the model of yesterday")
    monkeypatch.setattr(export, "write_pt2", write_another)
    code, _, err = vast(capfd, "--log", tmp_path / "log", "export", trained, "--format", "pt2", "--out", old)
    assert code == 1
    assert "the exported file disagrees with the model for 1 clip(s): logits differ by 1.0e-02" in err
    assert old.read_bytes() == b"the model of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "model.pt2"]


def test_without_a_name_the_file_is_named_after_the_recipe(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code, out, err = vast(capfd, "export", trained.parent, "--format", "pt2")
    assert (code, err) == (0, "")
    assert f"trained.pt2: {Path('trained.pt2').stat().st_size / 1e6:.1f} MB" in out
    assert "loaded again and run on 1 and 3 clips: logits within" in out


def test_exports_to_a_store(trained, s3_url, capfd):
    code, out, err = vast(capfd, "export", trained, "--format", "pt2", "--out", f"{s3_url}/models/ti.pt2")
    assert (code, err) == (0, "")
    assert f"{s3_url}/models/ti.pt2: " in out
    assert list(open_store(s3_url).list()) == ["models/ti.pt2"]
