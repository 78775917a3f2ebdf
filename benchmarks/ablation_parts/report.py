"""From the lines of `ablation.py`'s runs file to means, a Markdown table and a picture of learning curves."""

import json
import math
import platform
import statistics
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

Lines = list[dict[str, Any]]
_CURVES = 8
"""Curves in one panel: more cannot be told apart."""


def summarise(lines: Lines, names: Iterable[str], baseline: str) -> dict[str, Any]:
    """For every set of clips and variant: accuracy in percent over the seeds, and the difference to the default block.

    The difference is paired: of the seeds that both have. `mean` ± `std` is over seeds; one seed has no deviation.
    """
    summary: dict[str, Any] = {}
    for data in sorted({line["data"] for line in lines}, reverse=True):
        by_name: dict[str, dict[int, float]] = {}
        for line in lines:
            if line["data"] == data:
                by_name.setdefault(line["variant"], {})[line["seed"]] = 100 * line["test"]
        default = by_name.get(baseline, {})
        rows = {}
        for name in names:
            if name not in by_name:
                continue
            shared = [value - default[seed] for seed, value in by_name[name].items() if seed in default]
            rows[name] = {**_spread(by_name[name].values()), "difference": _spread(shared) if shared else None}
        summary[data] = rows
    return summary


def _spread(values: Iterable[float]) -> dict[str, Any]:
    values = list(values)
    return {
        "mean": round(statistics.mean(values), 2),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": len(values),
    }


def write(
    report: dict[str, Any],
    lines: Lines,
    sweep: Lines,
    variants: Mapping[str, Any],
    folder: Path,
    settings: dict[str, Any],
) -> None:
    """Write ablation_<hardware>_<date>.md, .json (with every run, those of the sweep too) and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"ablation_{platform.machine()}-cpu_{datetime.now(UTC):%Y-%m-%d}"
    everything = {"settings": settings, "summary": report, "runs": lines, "sweep": sweep}
    (folder / f"{stem}.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    text = markdown(report, lines, sweep, variants, settings, f"{stem}.png")
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    draw_curves(report, lines, variants, folder / f"{stem}.png")


def markdown(
    report: dict[str, Any],
    lines: Lines,
    sweep: Lines,
    variants: Mapping[str, Any],
    settings: dict[str, Any],
    picture: str,
) -> str:
    """The table of each set of clips, mixers first, and how it was made."""
    budget = settings["budget"]
    clip = "x".join(str(length) for length in settings["clip"])
    parts = [
        "# Mixers and switches of the Affine-Shift block at equal multiply-adds",
        f"Made by `benchmarks/ablation.py` from {len(lines)} runs; the JSON beside this file has each of them. "
        f"Skeleton {settings['skeleton']}, clips {clip}, {budget['steps']} steps of {budget['batch']} clips, AdamW, "
        f"torch {settings['torch']} on a {settings['cpu']} CPU. Each mixer has the better of the learning rates "
        f"{', '.join(f'{rate:g}' for rate in settings['learning_rates'])} (on validation clips, with a seed that is "
        "not in the table); switches of Affine-Shift keep Affine-Shift's. The hidden width of the MLPs evens the "
        "multiply-adds out.",
        "Accuracy on test clips, percent, mean ± standard deviation over seeds; `difference` is to the default block, "
        "seed by seed; `shuffled` is the accuracy with each clip's frames in random order.",
    ]
    if len(lines) < settings["planned_runs"]:
        parts.append(
            f"**Not finished:** {len(lines)} of {settings['planned_runs']} runs are done; the column `seeds` says how "
            "many each row has, and a row without a run is missing."
        )
    for data, rows in report.items():
        parts.append(f"## {data}")
        table = ["| | lr | hidden | MMACs | params k | seeds | accuracy | difference | shuffled |", "|---" * 9 + "|"]
        for name, row in rows.items():
            mine = [line for line in lines if line["data"] == data and line["variant"] == name]
            shuffled = statistics.mean(100 * line["test_shuffled"] for line in mine)
            cells = [
                f"**{name}**" if variants[name].group == "mixer" else f"`{name}`",
                f"{mine[0]['learning_rate']:g}",
                str(mine[0]["hidden"]),
                f"{mine[0]['macs'] / 1e6:.2f}",
                f"{mine[0]['params'] / 1e3:.0f}",
                str(row["seeds"]),
                _words(row),
                _words(row["difference"], sign=True) if row["difference"] else "",
                f"{shuffled:.1f}",
            ]
            table.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(table))
    parts += ["## Learning rates", _sweep_table(sweep), f"![learning curves]({picture})"]
    return "\n\n".join(parts) + "\n"


def _sweep_table(sweep: Lines) -> str:
    """Validation accuracy in percent of each mixer at each learning rate, of one seed."""
    rates = sorted({line["learning_rate"] for line in sweep})
    found = {(line["variant"], line["learning_rate"]): f"{100 * line['val']:.1f}" for line in sweep}
    names = list(dict.fromkeys(line["variant"] for line in sweep))
    head = "| validation accuracy, one seed | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    rows = [f"| {name} | " + " | ".join(found.get((name, rate), "") for rate in rates) + " |" for name in names]
    return "\n".join([head, "|---" * (len(rates) + 1) + "|", *rows])


def _words(spread: dict[str, Any], sign: bool = False) -> str:
    mean = f"{spread['mean']:+.1f}" if sign else f"{spread['mean']:.1f}"
    return mean if spread["std"] is None else f"{mean} ± {spread['std']:.1f}"


def draw_curves(report: dict[str, Any], lines: Lines, variants: Mapping[str, Any], path: Path) -> None:
    """Validation accuracy over steps, mean over seeds: mixers on the left, switches on the right, a row a set."""
    figure, axes = plt.subplots(len(report), 2, figsize=(13, 4.5 * len(report)), squeeze=False)
    for row, (data, rows) in zip(axes, report.items(), strict=True):
        default = next(iter(rows))
        for axis, group in zip(row, ("mixer", "switch"), strict=True):
            names = [name for name in rows if variants[name].group == group]
            # of many switches those that matter most
            names.sort(key=lambda name: -abs((rows[name]["difference"] or {"mean": math.inf})["mean"]))
            shown = [default, *(name for name in names if name != default)][:_CURVES]
            for name in shown:
                curves = [line["curve"] for line in lines if line["data"] == data and line["variant"] == name]
                steps = [point[0] for point in curves[0]]
                means = [100 * statistics.mean(curve[i][2] for curve in curves) for i in range(len(steps))]
                axis.plot(steps, means, label=name, linewidth=2.5 if name == default else 1.2)
            axis.set(title=f"{data}: {group}es" if group == "switch" else f"{data}: mixers", xlabel="step")
            axis.set_ylabel("validation accuracy, %")
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
