"""The data sets of a run: complete, with the same classes, and none scored on what was trained on."""

import json
from collections.abc import Iterable

from pipelines.config import data_problems
from pipelines.find_model import place_of_model
from pipelines.preflight.findings import Findings, Problem
from preprocessing.leaks import find_leaks
from vast.dataset_format import Manifest, class_difference, read_manifest
from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import open_store
from vast.train.checkpoint import CARD, ModelCard
from vast.train.config import TrainConfig

_MISSING = "Make it with `vast shard`, or give the URL of one that is there"


def check_data(config: TrainConfig, others: Iterable[str], findings: Findings) -> Manifest | None:
    """Check the recipe's data sets and others to be scored on later; returns the training set's manifest."""
    data = config.data
    train = _manifest("data.url", data.url, findings)
    evaluated = {"data.eval_url": data.eval_url} if data.eval_url else {}
    evaluated |= {f"--eval-data {url}": url for url in others}
    found = {name: _manifest(name, url, findings) for name, url in evaluated.items()}
    manifests = {"data.url": (data.url, train)} | {name: (evaluated[name], found[name]) for name in evaluated}
    for name, (url, manifest) in manifests.items():
        if manifest is not None:
            findings.add(_shards(name, url, manifest))
    if train is not None:
        known = {"url": train} | ({"eval_url": m} if (m := found.get("data.eval_url")) else {})
        findings.add(
            Problem("data", subject, words, "Correct the recipe, or give another data set")
            for subject, _, words in (text.partition(": ") for text in data_problems(config, known))
        )
        for name, (url, manifest) in manifests.items():
            if manifest is not None and name != "data.url":
                findings.add(_against_training(config, train, name, url, manifest))
    findings.add(_start(config, train))
    return train


def _manifest(name: str, url: str, findings: Findings) -> Manifest | None:
    subject = name if url in name else f"{name} {url}"
    try:
        manifest = read_manifest(url)
    except (UserError, StoreError) as error:
        text = (str(error).strip().splitlines() or [""])[0].removeprefix(f"{url}: ").rstrip(".")
        text, _, known = text.partition("; ")  # some messages say what to do themselves
        findings.add([Problem("data", subject, text, f"{known[:1].upper()}{known[1:]}" if known else _MISSING)])
        return None
    counts = ", ".join(f"{split} {info.samples}" for split, info in manifest.splits.items())
    findings.say("data", f"{subject}: {manifest.name}, {len(manifest.classes)} classes, samples: {counts}")
    return manifest


def _shards(name: str, url: str, manifest: Manifest) -> list[Problem]:
    """Every shard and index is there with its size."""
    store, wrong = open_store(url), []
    try:
        for split, info in manifest.splits.items():
            for key, size in [*((shard.name, shard.size_bytes) for shard in info.shards), (f"{split}.parquet", None)]:
                try:
                    there = store.size(key)
                except ObjectMissing:
                    wrong.append(f"{key} is not there")
                    continue
                if size is not None and there != size:
                    wrong.append(f"{key} has {there} bytes instead of {size}")
    except StoreError as error:
        wrong.append(str(error))
    if not wrong:
        return []
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    advice = f"The same `vast shard` command makes what is missing; `vast data verify {url}` reads every byte"
    return [Problem("data", name if url in name else f"{name} {url}", f"{'; '.join(wrong[:3])}{more}", advice)]


def _against_training(config: TrainConfig, train: Manifest, name: str, url: str, manifest: Manifest) -> list[Problem]:
    subject, problems = name if url in name else f"{name} {url}", []
    if difference := class_difference(train.classes, manifest.classes, "in the training set"):
        advice = "Label ids would mean other things: shard it again with the training set's class list (--classes)"
        problems.append(Problem("data", subject, f"other classes than the training set: {difference}", advice))
    if name == "data.eval_url" or config.data.allow_leaks:  # the recipe's own are compared by data_problems
        return problems
    split = config.data.eval_split
    if split not in manifest.splits:
        found = f"no split {split!r}; it has {', '.join(manifest.splits)}"
        return [*problems, Problem("data", subject, found, "Set data.eval_split to one of them")]
    try:
        leaks = find_leaks(config.data.url, url, config.data.train_split, split).leaks
    except (UserError, StoreError) as error:
        return [*problems, Problem("data", subject, f"cannot be compared with the training set: {error}", _MISSING)]
    advice = "A score on videos that were trained on means nothing: leave them out of one of the two"
    return problems + [Problem("data", subject, str(leak), advice) for leak in leaks]


def _start(config: TrainConfig, train: Manifest | None) -> list[Problem]:
    """The weights that the run begins from."""
    field, url = ("resume_from", config.resume_from) if config.resume_from else ("init_from", config.init_from)
    if not url:
        return []
    try:
        place = place_of_model(url)
        if place is None:
            advice = "Give a run's folder or a checkpoint"
            return [Problem("data", f"{field} {url}", f"no model: neither {CARD} nor model/{CARD} is there", advice)]
        card = ModelCard(**json.loads(open_store(place).get_bytes(CARD)))
    except (UserError, StoreError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        return [Problem("data", f"{field} {url}", f"cannot be read: {first}", "Give a run's folder or a checkpoint")]
    if train is None or field == "init_from":  # other classes are what fine-tuning is for: the head is made anew
        return []
    difference = class_difference(card.classes, train.classes, "in the checkpoint")
    advice = "Use init_from to begin with fresh labels"
    return [Problem("data", f"{field} {url}", f"other classes: {difference}", advice)] if difference else []
