"""`vast models`: numbers that are counted or measured, never typed, and what they were counted for."""

import json

import pytest
import torch

from pipelines import cli, tables
from vast.models import SIZES, create_model
from vast.models.cost import count_kept_bytes, count_macs, count_params
from vast.models.speed import Speed


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capfd, *words):
    code = cli.main(["models", *words])
    out, err = capfd.readouterr()
    return code, out, err


def test_json_holds_what_the_library_counts_for_the_asked_clip(capfd):
    code, out, _ = run(capfd, "vast_micro", "ast_micro", "--frames", "4", "--crop", "32", "--json")
    assert code == 0
    video, image = json.loads(out)["models"]
    model = create_model("vast_micro", 400)
    assert (video["frames"], video["crop"], image["frames"], image["crop"]) == (4, 32, 1, 32)
    assert video["params"] == count_params(model)
    assert video["macs_per_view"] == count_macs(model, (1, 3, 4, 32, 32))
    assert video["macs_per_frame"] == video["macs_per_view"] // 4
    assert video["flops_per_view"] == 2 * video["macs_per_view"]
    assert video["kept_bytes_per_clip"] == count_kept_bytes(model, (1, 3, 4, 32, 32))
    assert "speed" not in video
    assert "measured" not in json.loads(out)


@pytest.mark.slow
def test_the_table_lists_every_size_with_its_clip_and_source(capfd):
    code, out, _ = run(capfd)
    assert code == 0
    rows = [words for line in out.splitlines() if (words := line.split()) and words[0] in SIZES]
    assert [row[0] for row in rows] == list(SIZES)
    assert {row[0]: row[1] for row in rows}["vast_ti"] == "8x224x224"
    assert {row[0]: row[1] for row in rows}["ast_micro"] == "1x64x64"
    assert "clips/s" not in out  # nothing was measured
    for size in SIZES.values():
        assert size.source in out
        assert "matched to" in size.source


def test_measured_speeds_say_where_and_how(capfd, monkeypatch):
    asked = []

    def measure(model, clip_shape, num_classes, device, autocast):
        asked.append((clip_shape, num_classes))
        return Speed(forward=1234.56, training=345.67, batch=clip_shape[0])

    monkeypatch.setattr(tables, "measure_speed", measure)
    code, out, _ = run(capfd, "vast_micro", "ast_micro", "--measure", "--crop", "32")
    assert code == 0
    assert "forward clips/s" in out
    assert "1234.56" in out
    assert "measured just now on this machine: " in out
    assert f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32" in out
    assert "load average before" in out
    assert asked == [((1, 3, 8, 32, 32), 400), ((8, 3, 1, 32, 32), 1000)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vast_tii"], "Did you mean 'vast_ti'?"),
        (["vast_ti", "--crop", "50"], "multiples of 32 pixels"),
    ],
)
def test_mistakes_are_explained(capfd, words, message):
    code, _, err = run(capfd, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
