"""The story of a campaign: what was asked, what came out, and what it cost."""

import json
import math
import shlex
from typing import Any

from pydantic import ValidationError

from pipelines.config import merge, read_recipe, shipped_recipes
from pipelines.report.charts.bars import bars
from pipelines.report.charts.lines import Line, legend, line_chart
from pipelines.report.charts.parallel import Thread, parallel_chart
from pipelines.report.page import (
    Content,
    Html,
    command,
    facts,
    figure,
    grid,
    joined,
    key_figures,
    note,
    paragraph,
    section,
    table,
    tag,
)
from pipelines.report.settings import flat_settings, settings_section
from pipelines.report.words import count, counted, setting, span
from pipelines.search.axes import Axis, setting_axes
from pipelines.search.importance import importance
from pipelines.search.progress import moments
from pipelines.search.record import BEST_RECIPE, CampaignRecord, TrialRecord, trial_url
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig

_STATE_LABELS = {
    "finished": "ran to the end",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "not ended yet",
}
_RULE_SETTINGS = {
    "grace_epochs": ("asha", "median"),
    "reduction_factor": ("asha",),
    **dict.fromkeys(("perturb_epochs", "quantile", "resample_probability", "perturb_factors"), ("pbt",)),
}
"""Settings of the search that only some schedulers read."""
_MOST_THREADS = 200
_MOST_DOTTED = 60


def campaign_lede(record: CampaignRecord) -> str:
    """The story in two sentences."""
    size = f"{counted(len(record.trials), 'trial')} over {counted(len(record.search['space']), 'setting')}"
    best = next(iter(_finite(record)), None)
    if best is None:
        return f"{size}. No trial has a value of {record.metric} yet."
    aim = "highest" if record.maximise else "lowest"
    value = best.value(record.metric)
    return f"{size}. The {aim} {record.metric} is {value:.4g}, of trial {best.id}: {best.settings}."


def campaign_sections(record: CampaignRecord) -> list[Html]:
    """All parts of the story."""
    parts = [_answer(record), _question(record), _progress(record), _settings_drawn(record), _importance(record)]
    parts += [_curves(record), _budget(record), _trials(record), _failures(record)]
    flat = flat_settings(record.config)
    fixed = {path: value for path, value in flat.items() if path not in record.search["space"]}
    parts.append(settings_section(fixed, "Settings that all trials share"))
    kept = [("Folder", record.url), ("MLflow run", f"{record.tracking.run_id} in {record.tracking.tracking_uri}")]
    parts.append(section("Where it is kept", facts(kept)))
    return parts


def _finite(record: CampaignRecord) -> list[TrialRecord]:
    """Trials with a value that is a number, best first."""
    return [trial for trial in record.ranked() if math.isfinite(trial.value(record.metric) or 0.0)]


def _answer(record: CampaignRecord) -> Html:
    ranked = _finite(record)
    if not ranked:
        return section("The answer", note("There is none yet: no trial was evaluated."))
    best = ranked[0]
    told: list[Content] = [
        key_figures(
            [
                (record.metric, f"{best.value(record.metric):.4g}"),
                ("trial", best.id),
                ("epochs", count(best.reports[-1].epoch)),
                ("steps of one trial", count(best.reports[-1].step)),
            ]
        ),
        facts((path, setting(value)) for path, value in best.changes.items()),
    ]
    if best.exploits:
        told.append(note("The settings changed while this trial ran; these are its last ones. Its others are below."))
    if best.state != "finished":
        told.append(note(f"The best trial did not run to the end: {_STATE_LABELS.get(best.state, best.state)}."))
    else:
        told.append(paragraph("Its model: ", tag("code", f"{trial_url(record.url, best.id)}/model")))
    told += [tag("h3", "Train with these settings"), command(best_command(record, best))]
    open_trials = sum(trial.state in ("waiting", "running") for trial in record.trials)
    if open_trials:
        told.append(note(f"The campaign has not ended: {counted(open_trials, 'trial')} may still go on."))
    return section("The answer", *told)


def best_command(record: CampaignRecord, trial: TrialRecord) -> str:
    """The command that trains with a trial's settings; RECIPE stands for a file that only its author knows."""
    recipe = str(record.config["name"])
    changes: dict[str, Any] = {}
    config = _config(record)
    if recipe not in shipped_recipes() and open_store(record.url).exists(BEST_RECIPE):
        return shlex.join(["vast", "finetune", join_url(record.url, BEST_RECIPE)])
    if config is not None and recipe in shipped_recipes():
        tree = read_recipe(recipe)
        tree.pop("search", None)
        before = TrainConfig.model_validate(merge(tree, {"data": {"url": config.data.url}})).flat()
        changes = {path: value for path, value in config.flat().items() if before.get(path) != value}
        changes["data.url"] = config.data.url
    else:
        recipe = "RECIPE"
    words = [shlex.quote(f"{path}={_word(value)}") for path, value in {**changes, **trial.changes}.items()]
    return " ".join(["vast finetune", recipe, *words])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _config(record: CampaignRecord) -> TrainConfig | None:
    try:
        return TrainConfig.model_validate(record.config)
    except ValidationError:  # written by another version of this program
        return None


def _question(record: CampaignRecord) -> Html:
    search = record.search
    rows = []
    for path, plain in search["space"].items():
        kind, values = next((key, value) for key, value in plain.items() if key != "when")
        when = ", ".join(f"{other} = {setting(value)}" for other, value in plain.get("when", {}).items())
        listed = ", ".join(setting(value) for value in values) if isinstance(values, list) else setting(values)
        rows.append((path, kind, listed, when))
    if not any(row[3] for row in rows):
        rows = [row[:3] for row in rows]  # type: ignore[misc]
    columns = ["setting", "distribution", "values", "only when"][: len(rows[0])]
    limits = [
        f"{counted(search['num_trials'], 'trial')}" if search.get("num_trials") else "",
        f"{count(search['max_steps'])} steps" if search.get("max_steps") else "",
        f"{search['max_hours']:g} hours" if search.get("max_hours") else "",
    ]
    known = {"metric", "mode", "algorithm", "scheduler", "num_trials", "max_steps", "max_hours", "space"}
    known |= {key for key, users in _RULE_SETTINGS.items() if search.get("scheduler") not in users}
    return section(
        "The question",
        facts(
            [
                ("Wanted", f"the {'highest' if record.maximise else 'lowest'} {record.metric}"),
                ("Points are drawn by", search.get("algorithm", "random")),
                ("Trials are stopped by", search.get("scheduler", "not recorded")),
                ("Limits", ", ".join(limit for limit in limits if limit) or "none recorded"),
                ("A whole trial", f"{count(record.steps_per_trial)} steps"),
                *((f"search.{key}", setting(value)) for key, value in search.items() if key not in known),
            ]
        ),
        table("Space", columns, rows),
    )


def _progress(record: CampaignRecord) -> Html:
    found = [moment for moment in moments(record) if math.isfinite(moment.value)]
    if not found:
        return section("Best so far", note("No trial was evaluated yet."))
    long = found[-1].hours > 3
    unit, scale = ("hours", 1.0) if long else ("minutes", 60.0)
    charts = []
    over = (
        ([scale * moment.hours for moment in found], f"{unit} since the first evaluation"),
        ([float(moment.steps) for moment in found], "steps of all trials"),
    )
    for places, x in over:
        points = zip(places, (moment.value for moment in found), strict=True)
        best = zip(places, (moment.best for moment in found), strict=True)
        lines = [
            Line("one evaluation", list(points), "pale", joined=False),
            Line("best so far", list(best), "best", step=True),
        ]
        charts.append(
            figure(line_chart(lines, x=x, y=record.metric), joined([record.metric, " over ", x, ": ", legend(lines)]))
        )
    return section("Best so far", grid(*charts))


def _settings_drawn(record: CampaignRecord) -> Html:
    ranked = _finite(record)
    if not ranked:
        return section("Which settings were good", note("No trial was evaluated yet."))
    shown = ranked[:_MOST_THREADS]
    values = [trial.value(record.metric) or 0.0 for trial in shown]
    axes = [*setting_axes(record, shown), Axis.of_numbers(record.metric, values)]
    threads = [
        Thread(
            f"trial {trial.id}, {record.metric} {value:.4g}: {trial.settings}",
            {**trial.changes, record.metric: value},
            "best" if trial is shown[0] else _kind(trial),
            strength=place / len(shown),
        )
        for place, (trial, value) in enumerate(zip(reversed(shown), reversed(values), strict=True), 1)
    ]
    label = f"Settings and {record.metric} of {len(shown)} trials"
    looks = [Line("best", (), "best"), *_looks(shown[1:])]
    more = f" The best {len(shown)} of {len(ranked)} are drawn." if len(shown) < len(ranked) else ""
    caption = joined(
        [f"A line a trial, the stronger the better; its numbers are under the pointer.{more} ", legend(looks)]
    )
    return section("Which settings were good", figure(parallel_chart(axes, threads, label), caption))


def _kind(trial: TrialRecord) -> str:
    return trial.state if trial.state in ("stopped", "failed") else "finished"


def _looks(trials: list[TrialRecord]) -> list[Line]:
    """What the lines of these trials look like, for a legend."""
    kinds = dict.fromkeys(_kind(trial) for trial in trials)
    labels = {**_STATE_LABELS}
    if any(trial.state in ("running", "waiting") for trial in trials):
        labels["finished"] += " or not ended yet"
    return [Line(labels[kind], (), kind) for kind in kinds]


def _importance(record: CampaignRecord) -> Html:
    found = importance(record)
    if found.missing:
        return section("What mattered", note(found.missing))
    percents = {name: 100 * share for name, share in found.shares.items()}
    return section("What mattered", figure(bars(percents, "Importance of each setting"), found.caveat()))


def _curves(record: CampaignRecord) -> Html:
    ranked = _finite(record)
    lines = []
    for place, trial in enumerate(reversed(ranked), 1):
        points = [
            (float(report.epoch), report.figures[record.metric])
            for report in trial.reports
            if record.metric in report.figures
        ]
        kind = "best" if trial is ranked[0] else _kind(trial)
        lines.append(
            Line(f"trial {trial.id}", points, kind, dots=len(ranked) <= _MOST_DOTTED, strength=place / len(ranked))
        )
    if not lines:
        return section("Learning curves", note("No trial was evaluated yet."))
    drawing = line_chart(lines, x="epoch", y=record.metric)
    looks = [Line("best", (), "best"), *_looks(ranked[1:])]
    return section("Learning curves", figure(drawing, joined([record.metric, " of every trial: ", legend(looks)])))


def _budget(record: CampaignRecord) -> Html:
    spent, whole = record.steps_trained, record.steps_to_the_end
    told: list[Content] = [
        key_figures(
            [
                ("steps made", count(spent)),
                ("had all run to the end", count(whole)),
                ("share", f"{100 * spent / whole:.0f} %" if whole else "none"),
                ("wall clock", span(record.spent_s)),
            ]
        )
    ]
    return section("What it cost", *told)


def _trials(record: CampaignRecord) -> Html:
    ranked = record.ranked()
    rest = [trial for trial in record.trials if trial not in ranked]
    rows = []
    for trial in [*ranked, *rest]:
        value = trial.value(record.metric)
        taken = "; ".join(f"from {exploit.source} at epoch {exploit.epoch}" for exploit in trial.exploits)
        rows.append(
            (
                trial.id,
                trial.state,
                count(trial.reports[-1].epoch) if trial.reports else "0",
                count(trial.steps_trained),
                "none" if value is None else f"{value:.4g}",
                trial.settings + (f" (went on {taken})" if taken else ""),
            )
        )
    columns = ["trial", "state", "#epochs", "#steps", f"#{record.metric}", "settings"]
    told = table(f"All {len(rows)} trials, best first", columns, rows, marked=[0] if ranked else [])
    return section("Trials", told)


def _failures(record: CampaignRecord) -> Html:
    failed = [trial for trial in record.trials if trial.state == "failed"]
    if not failed:
        return section("Failures", paragraph("No trial failed."))
    rows = [(trial.id, trial.settings, trial.error or "no reason was recorded") for trial in failed]
    title = f"{counted(len(failed), 'trial')} of {len(record.trials)} failed"
    return section("Failures", table(title, ["trial", "settings", "error"], rows))
