"""The story of a training run."""

from collections.abc import Iterable
from typing import Any

from pipelines.report.charts.bars import share_bar
from pipelines.report.charts.lines import Line, legend, line_chart
from pipelines.report.evaluation import ClassScores, class_section, unreadable_table
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
from pipelines.report.run_facts import RunFacts
from pipelines.report.settings import flat_settings, settings_section, tracked_settings
from pipelines.report.words import count, counted, moment, percent, span
from vast.dataset_format import Manifest
from vast.storage import join_url
from vast.train.stall import PARTS
from vast.train.step import READER_PARTS

_PART_WORDS = {
    "wait": "waiting for data",
    "to_device": "copying to the device",
    "compute": "computing",
    "all_reduce": "waiting for other ranks",
}


def run_name(run: RunFacts) -> str:
    """What the run is called."""
    return run.url.rstrip("/").rpartition("/")[2]


def run_lede(run: RunFacts) -> str:
    """The story in two sentences."""
    what, data = "A model", ""
    if run.config:
        what = f"{run.config.model.name}, {run.config.data.num_frames} frames of {run.config.data.crop_size} pixels"
        data = f" on {run.manifest.name if run.manifest else run.config.data.url}"
        start = f", started from {_start(run)}" if run.lineage else ", from scratch"
        data += f" for {counted(run.config.optim.epochs, 'epoch')}{start}"
    if run.finished:
        outcome = f"It reached {percent(run.finished.score.top1)} top-1 ({run.finished.score.denominator()})."
    elif run.card:
        outcome = f"It has not finished; the newest state is of step {count(run.card.step)}."
    else:
        outcome = "It has not finished, and there is no checkpoint yet."
    return f"{what}, trained{data}. {outcome}"


def _start(run: RunFacts) -> str:
    nearest = run.lineage[0]
    return str(nearest.card.config.get("name", nearest.url)) if nearest.card else nearest.url


def run_sections(run: RunFacts) -> list[Html]:
    """All parts of the story that there is something to tell in."""
    parts = [_result(run), _curves(run), _time(run), _data(run)]
    if run.finished and run.card:
        confusion_KK = run.finished.score.confusion_KK
        scores = ClassScores(run.card.classes, confusion_KK.sum(axis=1), confusion_KK)
        parts.append(class_section(scores, of="of the samples that could be scored"))
    parts += [_evaluations(run), _trouble(run), _model(run), _use(run), _lineage(run)]
    if run.card:
        parts.append(settings_section(flat_settings(run.card.config)))
    elif run.tracked:
        parts.append(settings_section(tracked_settings(run.tracked.params)))
    parts.append(_environment(run))
    if run.gaps:
        parts.append(section("What could not be read", tag("ul", *(tag("li", gap) for gap in run.gaps))))
    return parts


def _result(run: RunFacts) -> Html:
    if run.finished is None:
        status = run.tracked.status.lower() if run.tracked else "unknown to MLflow"
        last = run.card.figures if run.card else {}
        told: list[Content] = [note(f"The run has not finished (MLflow: {status}). There is no final score yet.")]
        if last:
            told.append(key_figures((name, f"{value:.2f}") for name, value in last.items() if name != "eval/samples"))
            told.append(paragraph("At the newest checkpoint."))
        return section("Result", *told)
    score = run.finished.score
    return section(
        "Result",
        key_figures(
            [
                ("top-1", percent(score.top1)),
                ("top-5", percent(score.top5)),
                ("mean class", percent(score.mean_class)),
                ("steps", count(run.finished.step)),
            ]
        ),
        paragraph(
            f"Measured on {score.denominator()}. Protocol "
            f"{run.config.eval.protocol if run.config else 'unknown'}, at the last step."
        ),
    )


def _curves(run: RunFacts) -> Html:
    series = run.figures.series
    charts: list[Html] = []
    if loss := series.get("train/loss"):
        line = Line("training loss", loss)
        charts.append(figure(line_chart([line], x="step", y="loss"), "Training loss, means between logs."))
    scores = [
        Line(name, series[key], kind, dots=True)
        for key, name, kind in (
            ("eval/top1", "top-1", "main"),
            ("eval/top5", "top-5", "other"),
            ("eval/mean_class", "mean class", "third"),
        )
        if key in series
    ]
    if scores:
        # an early curve that is drawn later would hide the one that matters most
        drawing = line_chart(scores[::-1], x="step", y="%", bounds=(0, 100))
        charts.append(figure(drawing, joined(["Evaluations: ", legend(scores)])))
    if rate := series.get("optim/lr"):
        drawing = line_chart([Line("learning rate", rate)], x="step", y="learning rate", bounds=(0, 0))
        charts.append(figure(drawing, "Learning rate."))
    if norm := series.get("train/grad_norm"):
        drawing = line_chart([Line("gradient norm", norm)], x="step", y="gradient norm", log_y=True)
        charts.append(figure(drawing, "Norm of the gradient before clipping."))
    if not charts:
        return section("Learning curves", note("No figures can be read: ", _why(run, "they were not logged yet")))
    return section("Learning curves", grid(*charts))


def _why(run: RunFacts, otherwise: str) -> str:
    return "; ".join(run.gaps) if run.tracked is None and run.gaps else otherwise + "."


def _time(run: RunFacts) -> Html:
    shares = {part: run.figures.mean(f"stall/{part}_share") for part in PARTS}
    known = {_PART_WORDS[part]: share for part, share in shares.items() if share is not None}
    total = sum(known.values())
    parts: list[Content] = []
    if run.tracked:
        end = run.tracked.end_s
        parts.append(
            facts(
                [
                    ("Started", moment(run.tracked.start_s)),
                    ("Ended", f"{moment(end)}, after {span(end - run.tracked.start_s)}" if end else "not yet"),
                ]
            )
        )
    if not total:
        return section("Where the time went", *parts, note("The parts of a step are not known."))
    label = "Shares of a training step"
    bar = share_bar({name: share / total for name, share in known.items()}, label)
    step_s, pace = run.figures.mean("time/step_s"), run.figures.mean("time/clips_per_s")
    words = "A training step on rank 0; means over all logs."
    if step_s and pace:
        words = (
            f"A training step on rank 0: {step_s:.3f} s, {pace:.1f} clips a second on all ranks; means over all logs."
        )
    rows = [
        (_PART_WORDS.get(part, f"reader: {part}"), f"{1e3 * seconds:.1f}")
        for part in (*PARTS, *READER_PARTS)
        if (seconds := run.figures.mean(f"stall/{part}")) is not None
    ]
    parts += [figure(bar, words), table("Milliseconds of a step", ["part", "#ms"], rows)]
    parts.append(paragraph("Readers work beside the step: their time counts only where it becomes waiting for data."))
    return section("Where the time went", *parts)


def _data(run: RunFacts) -> Html:
    if run.config is None:
        return section("Data", note("The settings cannot be read, so the data set is not known."))
    data = run.config.data
    told: list[Content] = []
    used = (
        ("Training", data.url, data.train_split, run.manifest),
        ("Evaluation", data.resolved_eval_url, data.eval_split, run.eval_manifest),
    )
    rows = []
    for purpose, url, split, manifest in used:
        if manifest is None or split not in manifest.splits:
            rows.append((purpose, split, "?", "?", "?", url))
            continue
        info = manifest.splits[split]
        rows.append((purpose, split, count(info.records), count(info.samples), count(info.failures), url))
    columns = ["for", "split", "#records", "#samples", "#failures", "data set"]
    told.append(table("Records = samples in the shards + failures", columns, rows))
    if run.manifest is not None:
        told.append(facts(_dataset_facts(run.manifest)))
        if run.card and run.card.dataset_digest != run.manifest.digest:
            told.append(
                note(f"The data set at this place is another one now: training was on {run.card.dataset_digest}.")
            )
    return section("Data", *told)


def _dataset_facts(manifest: Manifest) -> Iterable[tuple[str, Content]]:
    size = sum(split.size_bytes for split in manifest.splits.values())
    return [
        ("Name", manifest.name),
        ("Digest", manifest.digest),
        ("Classes", count(len(manifest.classes))),
        ("Size of all shards", f"{size / 1e9:.2f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"),
    ]


def _evaluations(run: RunFacts) -> Html:
    if not run.evaluations:
        model = join_url(run.url, "model")
        data = run.config.data.resolved_eval_url if run.config else "URL"
        told = note("The model has not been evaluated on its own yet. The score above is the training run's. To do so:")
        return section("Evaluations", told, command(f"vast evaluate {model} --data {data}"))
    rows = [
        (
            found.content["protocol"]["name"],
            found.content["identity"]["split"],
            f"{found.content['top1']:.2f}",
            f"{found.content['top5']:.2f}",
            f"{found.content['mean_class']:.2f}",
            found.content["denominator"],
            found.url,
        )
        for found in run.evaluations
    ]
    columns = ["protocol", "split", "#top-1 %", "#top-5 %", "#mean class %", "of", "results"]
    unreadable = [part for found in run.evaluations[:1] for part in unreadable_table(found)]
    return section("Evaluations", table("By vast evaluate, the newest first", columns, rows), *unreadable)


def _trouble(run: RunFacts) -> Html:
    """What was skipped, and how often work was made again."""
    names = (
        ("data/skipped", "samples skipped because they could not be decoded"),
        ("train/nonfinite", "steps skipped for a loss or gradient that is not finite"),
        ("train/overflow", "steps skipped because the scaled gradient overflowed (fp16)"),
    )
    rows = [(what, count(value)) for name, what in names if (value := run.figures.last(name)) is not None]
    if run.figures.restarts is not None:
        rows.append(("restarts that came as far as a save", count(run.figures.restarts)))
    if run.finished:
        rows.append(("unreadable samples in the last evaluation", count(run.finished.score.unreadable)))
    if not rows:
        return section("Skipped and restarted", note("Not known: ", _why(run, "nothing was logged yet")))
    quiet = all(value == "0" for _, value in rows)
    words = "Nothing was skipped." if quiet else "Skipped is counted, never replaced."
    return section("Skipped and restarted", paragraph(words), table("Counts", ["what", "#count"], rows))


def _model(run: RunFacts) -> Html:
    if run.config is None or run.cost is None or run.card is None:
        return section("Model", note("There is no checkpoint to read the model from yet."))
    config, cost = run.config, run.cost
    side = config.data.crop_size
    return section(
        "Model",
        facts(
            [
                ("Size", config.model.name),
                ("Mixer", config.model.mixer),
                ("Parameters", f"{count(cost.params)} ({cost.params / 1e6:.2f} M)"),
                ("Multiply-adds", f"{cost.macs / 1e9:.3f} G for a view of {config.data.num_frames}×{side}×{side}"),
                ("Classes", count(len(run.card.classes))),
                ("State", f"step {count(run.card.step)}"),
            ]
        ),
    )


def _use(run: RunFacts) -> Html:
    if not run.finished:
        return section("Using the model", note("The model is published when the run finishes."))
    model = run.finished.model_url
    data = run.config.data.resolved_eval_url if run.config else "URL"
    return section(
        "Using the model",
        facts([("Weights", model)]),
        tag("h3", "Score it"),
        command(f"vast evaluate {run.url} --data {data}"),
        tag("h3", "One file that runs without this code"),
        command(f"vast export {run.url} --format pt2"),
        tag("h3", "Start another training from it"),
        command(f"vast finetune RECIPE init_from={run.url} data.url=URL"),
    )


def _lineage(run: RunFacts) -> Html:
    if not run.lineage:
        return section("Lineage", paragraph("The weights were started from scratch."))
    rows = []
    for ancestor in run.lineage:
        card = ancestor.card
        if card is None:
            rows.append((ancestor.url, "cannot be read any more", "?", "?"))
            continue
        top1 = card.figures.get("eval/top1")
        rows.append(
            (ancestor.url, str(card.config.get("name", "?")), count(card.step), "?" if top1 is None else f"{top1:.2f}")
        )
    last = run.lineage[-1].card
    end = "The last of these was started from scratch." if last and not last.config.get("init_from") else ""
    return section(
        "Lineage",
        table("Weights were started from, the nearest first", ["weights", "run", "#steps", "#top-1 %"], rows),
        *([paragraph(end)] if end else []),
    )


def _environment(run: RunFacts) -> Html:
    if run.tracked is None:
        return section(
            "Environment", note("MLflow's record of the run cannot be read, so the environment is not known.")
        )
    tags = run.tracked.tags
    commit = tags.get("mlflow.source.git.commit", "unknown")
    dirty = {"true": ", with changes that were not committed", "false": ""}.get(tags.get("git.dirty", ""), "")
    shown = {"mlflow.source.git.commit", "git.dirty", "mlflow.runName"}
    return section(
        "Environment",
        facts(
            [
                ("Git commit", commit + dirty),
                *_software_and_hardware(run.tracked.environment),
                ("Run's folder", run.url),
                ("MLflow run", f"{run.tracked.ref.run_id} in {run.tracked.ref.tracking_uri}"),
                *((name, value) for name, value in sorted(tags.items()) if name not in shown),
            ]
        ),
    )


def _software_and_hardware(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found:
        return [("Software and hardware", "not known: environment/environment.json of the MLflow run cannot be read")]
    packages = {"Python": found["python"], **found["packages"]}
    gpus = [f"{gpu['name']} ({gpu['memory.total']}, driver {gpu['driver_version']})" for gpu in found["gpus"]]
    machine = f"{found['platform']}, {found['usable_cpus']} of {found['cpus']} CPUs usable"
    return [
        ("Software", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
        ("Machine of the driver", f"{machine}, {found['memory_bytes'] / 2**30:.0f} GiB of memory"),
        ("GPUs of that machine", ", ".join(gpus) or "none"),
        ("Nodes", str(found["nodes"])),
    ]
