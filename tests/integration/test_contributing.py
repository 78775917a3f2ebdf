"""What CONTRIBUTING.md shows is really added and run: a recipe, a mixer, a reader; its commands and paths exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipelines import cli
from pipelines.config import resolve
from preprocessing.build import build_dataset
from preprocessing.transcode import TranscodeSettings
from preprocessing.verify import verify
from vast.dataset_format import read_manifest
from vast.errors import UserError
from vast.models import mixers
from vast.models.variants import create_model

ROOT = Path(__file__).parents[2]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md")}
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXTS["CONTRIBUTING.md"], flags=re.S)


def block(kind: str, word: str) -> str:
    (found,) = [text for one, text in BLOCKS if one == kind and word in text]
    return found


def test_its_make_targets_exist():
    lines = block("bash", "make install").split("\n")
    lines += re.findall(r"`(make [a-z-]+)`", "".join(TEXTS.values()))
    for line in filter(None, lines):
        done = subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.parametrize("name", TEXTS)
def test_the_paths_it_names_exist(name):
    paths = re.findall(r"`((?:vast|preprocessing|pipelines|infra|tests|benchmarks)/[\w/.]*)`", TEXTS[name])
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_recipe_is_checked_and_differs_as_it_says(ssv2_shards, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("my_attention_ti.yaml").write_text(block("yaml", "my_attention_ti"))
    assert yaml.safe_load(block("yaml", "my_attention_ti"))["base"] == "pretrain_k400_vast_ti_8f"
    assert cli.main(["check", "my_attention_ti.yaml", f"data.url={ssv2_shards}", "optim.global_batch=8"]) == 0
    capfd.readouterr()
    config = resolve("my_attention_ti.yaml", [f"data.url={ssv2_shards}", "optim.global_batch=8"])
    base = resolve("pretrain_k400_vast_ti_8f", [f"data.url={ssv2_shards}", "optim.global_batch=8"])
    here, there = config.flat(), base.flat()
    assert {key for key in here if here[key] != there[key]} == {"name", "model.mixer"}


def test_the_mixer_stands_in_the_blocks_place(monkeypatch):
    made: dict[str, type[torch.nn.Module]] = {}
    exec(
        compile("from __future__ import annotations\n" + block("python", "FrameMean"), "CONTRIBUTING.md", "exec"), made
    )
    monkeypatch.setattr(mixers, "make_mixer", lambda dim, config, index: made["FrameMean"](dim))
    monkeypatch.setattr("vast.models.blocks.make_mixer", mixers.make_mixer)
    model = create_model("vast_micro", num_classes=3)
    assert any(type(module).__name__ == "FrameMean" for module in model.modules())
    logits_BK = model(torch.randn(2, 3, 4, 32, 32))
    assert logits_BK.shape == (2, 3)
    logits_BK.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_reader_makes_a_data_set(make_clip, tmp_path):
    made: dict[str, object] = {}
    exec(compile(block("python", "read_named_clips"), "CONTRIBUTING.md", "exec"), made)
    read = made["read_named_clips"]
    for number in range(3):
        make_clip(tmp_path / "raw" / f"jump_{number}.mp4", seed=number)
        make_clip(tmp_path / "raw" / f"run_{number}.mp4", seed=10 + number)
    annotations = read(str(tmp_path / "raw"), ["jump", "run"])  # type: ignore[operator]
    url = str(tmp_path / "shards")
    build_dataset(url, annotations, TranscodeSettings(short_side=48), samples_per_shard=4, num_workers=0)
    manifest = read_manifest(url)
    assert (manifest.splits["train"].samples, manifest.splits["train"].failures) == (6, 0)
    assert list(manifest.classes) == ["jump", "run"]
    assert verify(url) == []
    make_clip(tmp_path / "raw" / "swim_1.mp4")
    with pytest.raises(UserError, match="swim_1"):
        read(str(tmp_path / "raw"), ["jump", "run"])  # type: ignore[operator]


def test_its_benchmark_command_is_known():
    done = subprocess.run(
        [sys.executable, "benchmarks/ablation.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "python benchmarks/ablation.py --quick" in TEXTS["CONTRIBUTING.md"]
    assert "--quick" in done.stdout
