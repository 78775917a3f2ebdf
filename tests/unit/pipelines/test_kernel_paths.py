"""What `vast check` tells of the kernels agrees with what the model then runs."""

from typing import get_args

import pytest
import torch

from pipelines import cli, kernel_paths
from pipelines.kernel_paths import FUSED_RULE, WORDS, kernel_lines
from vast.models import ModelConfig, create_model
from vast.models import affine_shift as block
from vast.models.kernels import operator
from vast.models.kernels.operator import Path, why_not_fused


def test_every_path_has_words():
    assert set(WORDS) == set(get_args(Path))


@pytest.mark.parametrize(
    "switches",
    [{}, {"affine_input": "s"}, {"shift_border": "replicate"}, {"bias_kernel": "3x3x3"}, {"vertical_shift": False}],
    ids=str,
)
def test_the_cpu_line_names_the_paths_that_run(switches, monkeypatch):
    taken = []

    def note(v_BTHWC, weights, mixing):
        taken.append(operator.choose_path(v_BTHWC, weights, mixing))
        return taken[-1]

    monkeypatch.setattr(block, "choose_path", note)
    config = ModelConfig(name="vast_micro", **switches)
    with torch.no_grad():
        create_model(config, 5)(torch.randn(2, 3, 4, 64, 64))
    _, line = kernel_lines(config, 4, 64)
    assert f"on a CPU with {torch.get_num_threads()} threads: " in line
    for path in get_args(Path):
        assert (WORDS[path] in line) == (path in taken)


def test_stages_that_differ_are_told_apart(monkeypatch):
    paths = iter(["eager"] * 4 + ["folded", "folded", "plain", "eager"])
    monkeypatch.setattr(kernel_paths, "choose_path", lambda *_: next(paths))
    _, line = kernel_lines(ModelConfig(name="vast_ti"), 8, 224)
    parts = [f"{WORDS['folded']} in stages 1 to 2", f"{WORDS['plain']} in stage 3", f"{WORDS['eager']} in stage 4"]
    assert line.endswith(", ".join(parts))


@pytest.mark.parametrize("has_triton", [True, False])
@pytest.mark.parametrize(
    ("switches", "fits"), [({}, True), ({"shift_border": "replicate"}, False), ({"vertical_shift": False}, False)]
)
def test_the_gpu_line_says_why_it_is_not_fused(has_triton, switches, fits, monkeypatch):
    monkeypatch.setattr(operator, "_HAS_TRITON", has_triton)
    line, _ = kernel_lines(ModelConfig(name="vast_ti", **switches), 8, 224)
    assert ("fused Triton kernels" in line.split(";")[0]) == (has_triton and fits)
    assert (FUSED_RULE in line) == (not (has_triton and fits))
    assert ("Triton is not installed" in line) == (not has_triton)
    assert has_triton or why_not_fused() in line


def test_what_has_no_choice_says_so():
    assert kernel_lines(ModelConfig(name="vast_ti", mixer="tsm"), 8, 224) == [
        "not in this model; tsm runs as torch's own operations on every device"
    ]
    (line,) = kernel_lines(ModelConfig(name="vast_ti", scale=False, bias=False), 8, 224)
    assert "the shift alone" in line


def test_check_tells_it(ssv2_shards, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "demo_finetune_ssv2", f"data.url={ssv2_shards}", "optim.global_batch=8"]) == 0
    out, _ = capfd.readouterr()
    assert "# Affine-Shift: on a GPU with what is installed here: " in out
    assert f"# Affine-Shift: on a CPU with {torch.get_num_threads()} threads: " in out
