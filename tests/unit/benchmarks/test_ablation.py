"""The comparison is fair (equal multiply-adds), its runs repeat, and its table is arithmetic."""

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ablation():
    # A program's neighbours are importable when it runs as a program.
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import ablation

    yield ablation
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_every_variant_costs_what_the_default_block_costs(ablation):
    budget = ablation.macs_of(ablation.build(ablation.VARIANTS[ablation.BASELINE], 8, 256))
    for variant in ablation.VARIANTS.values():
        model = ablation.build(variant, 8, ablation.match_hidden(variant, 8))
        assert ablation.macs_of(model) == pytest.approx(budget, rel=0.005), variant.name


def test_a_run_is_repeatable_and_learns_from_its_clips(ablation, tmp_path, monkeypatch):
    for split, size in {"train": 64, "val": 16, "test": 16}.items():
        monkeypatch.setitem(ablation.SIZES, split, size)
    run = ablation.Run(ablation.BASELINE, "generated", 0, 2e-3, ablation.Budget(steps=12, batch=8, warmup_steps=2))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = (ablation.train(run, tmp_path) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    losses = [point[1] for point in first["curve"]]
    assert losses[-1] < losses[0]


def test_summary_is_paired_by_seed(ablation):
    def line(variant: str, seed: int, accuracy: float) -> dict[str, object]:
        return {"data": "generated", "variant": variant, "seed": seed, "test": accuracy}

    lines = [line("a", 0, 0.5), line("a", 1, 0.7), line("b", 0, 0.4), line("b", 1, 0.5), line("b", 2, 0.9)]
    rows = ablation.ablation_report.summarise(lines, ["a", "b", "never"], "a")["generated"]
    assert list(rows) == ["a", "b"]
    assert rows["b"]["mean"] == pytest.approx(60)
    assert rows["b"]["std"] == pytest.approx(statistics.stdev([40, 50, 90]), abs=0.01)
    assert rows["b"]["difference"] == {"mean": -15.0, "std": 7.07, "seeds": 2}


def test_a_line_that_was_cut_off_is_trained_again(ablation, tmp_path):
    path = tmp_path / "runs.jsonl"
    assert ablation.read_runs(path) == {}
    run = ablation.Run("tsm", "generated", 1, 2e-3)
    path.write_text(json.dumps(asdict(run)) + "\n" + '{"variant": "tsm", "da')
    assert list(ablation.read_runs(path)) == [run.key]


def test_the_table_says_what_is_missing_and_how_many_seeds_a_row_has(ablation, tmp_path):
    def line(variant: str, seed: int, accuracy: float) -> dict[str, object]:
        curve = [[10, 1.0, accuracy / 2], [20, 0.5, accuracy]]
        cost = {"hidden": 256, "macs": 2e6, "params": 2e5}
        run = {"data": "filmed", "variant": variant, "seed": seed, "learning_rate": 2e-3, "curve": curve}
        return {**run, **cost, "val": accuracy, "test": accuracy, "test_shuffled": 0.25}

    lines = [line("affine_shift", 0, 0.5), line("affine_shift", 1, 0.75), line("tsm", 0, 0.25)]
    sweep = [line("tsm", ablation.SWEEP_SEED, 0.375)]
    report = ablation.ablation_report.summarise(lines, list(ablation.VARIANTS), ablation.BASELINE)
    settings = ablation.settings()
    write = ablation.ablation_report.write
    write(report, lines, sweep, ablation.VARIANTS, tmp_path, {**settings, "planned_runs": 4})
    found = {path.suffix: path for path in tmp_path.iterdir()}
    assert set(found) == {".md", ".json", ".png"}
    assert json.loads(found[".json"].read_text())["runs"] == lines
    text = found[".md"].read_text()
    rows = {row.split("|")[1].strip(" *`"): row for row in text.splitlines()[::-1] if row[:1] == "|"}
    assert "62.5 ± 17.7" in rows["affine_shift"]
    assert rows["affine_shift"].split("|")[6].strip() == "2"
    assert "±" not in rows["tsm"]  # one seed has no deviation
    assert "| tsm | 37.5 |" in text
    assert "3 of 4 runs" in text
    write(report, lines, sweep, ablation.VARIANTS, tmp_path, {**settings, "planned_runs": 3})
    assert "Not finished" not in found[".md"].read_text()


@pytest.mark.parametrize("label", range(6))
def test_a_view_over_a_film_moves_as_its_label_says(ablation, label):
    from ablation_parts.clips import move_view

    # On a film of two ramps colour is the place in the film, so that a view's colours say where it looks.
    height, width = 96, 128
    film_TCHW = torch.zeros(ablation.NUM_FRAMES, 3, height, width)
    film_TCHW[:, 0] = torch.arange(width) / width * 255
    film_TCHW[:, 1] = (torch.arange(height) / height * 255)[:, None]
    for seed in range(8):
        view = move_view(film_TCHW, label, np.random.default_rng(seed)).astype(float)
        x, y = (view[-1, axis].mean() - view[0, axis].mean() for axis in (0, 1))
        growth = np.ptp(view[-1, 0].mean(0)) - np.ptp(view[0, 0].mean(0))  # of the part of the film that is seen
        moved = (-x, x, -y, y, -growth, growth)
        assert moved[label] > 0, seed
        if label < 4:
            assert moved[label] > 2 * abs(y if label < 2 else x), seed


def test_the_table_holds_only_rows_at_the_rate_that_the_sweep_chose(ablation, tmp_path, monkeypatch):
    (tmp_path / "runs.jsonl").write_text("")
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--report", "--cache", str(tmp_path), "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="14 runs of the sweep"):
        ablation.main()
    low, high = ablation.LEARNING_RATES
    sweep = [(run, float(run.learning_rate == high)) for run in ablation.sweep_runs(ablation.Budget())]
    rows = [(ablation.Run("tsm", "generated", 0, high), 0.75), (ablation.Run("tsm", "generated", 0, low), 0.25)]
    cost = {"hidden": 256, "macs": 2e6, "params": 2e5, "test_shuffled": 0.25}
    for run, value in (*sweep, *rows):
        line = {**asdict(run), **cost, "val": value, "test": value, "curve": [[30, 1.0, value]]}
        with (tmp_path / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    ablation.main()
    written = json.loads(next(tmp_path.glob("ablation_*.json")).read_text())
    assert [(line["learning_rate"], line["test"]) for line in written["runs"]] == [(high, 0.75)]
