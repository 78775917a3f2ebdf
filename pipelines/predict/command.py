"""`vast predict`: videos in, likeliest classes out, as a table, JSON, a picture, or parquet for a whole data set."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.config import absolute
from pipelines.evaluation.checks import check_data
from pipelines.evaluation.parts import EvalJob, join_parts
from pipelines.evaluation.ranks import score_here
from pipelines.find_model import FoundModel, find_model
from pipelines.predict import pictures
from pipelines.predict.inputs import Video, find_videos
from pipelines.predict.predictor import Guess, Predictor
from pipelines.predict.prepare import Prepared
from pipelines.predict.windows import Window, windows
from pipelines.terminal import Terminal
from vast.dataset_format import read_manifest
from vast.errors import DecodeError, StoreError, UserError
from vast.storage import open_store
from vast.train.checkpoint import load_model
from vast.train.evaluate import MAX_CLIPS

_MOST_IN_PICTURE = 12
_AHEAD = 2  # clips prepared for each core before they are asked for


@dataclass(frozen=True)
class PredictRequest:
    """What is asked for."""

    model: str
    videos: Sequence[str] = ()
    protocol: str = ""
    """Empty: the recipe's."""
    top: int = 5
    """Classes told of each video."""
    picture: str = ""
    """File of the picture; empty: none."""
    window_s: float = 0.0
    """Length of the windows; 0: a video is one clip."""
    hop_s: float = 0.0
    """From one window to the next; 0: as long as a window."""
    data: str = ""
    """Data set instead of videos."""
    split: str = ""
    out: str = ""
    """Parquet file for a data set."""


@dataclass(frozen=True)
class Answer:
    """What came of one video."""

    video: Video
    clip: Prepared | None = None
    guesses: Sequence[Guess] = ()
    windows: Sequence[Window] = ()
    error: str = ""


def predict_videos(request: PredictRequest, terminal: Terminal, *, as_json: bool) -> int:
    """Look at videos, tell what is in them, and return how many could not be read.

    Raises:
        UserError: no such model, video or protocol, or a window that is none.
    """
    _check(request)
    predictor, found = load_predictor(request.model, request.protocol)
    videos = find_videos(request.videos)
    if not as_json:
        terminal.say(f"{found.url}, {len(videos)} video{'s' * (len(videos) != 1)}: {predictor.protocol}")
    answers = []
    for answer in _answers(request, predictor, videos):
        answers.append(answer)
        if not as_json:
            _tell(answer, predictor, request.top, terminal)
    if request.picture:
        _draw(request, predictor, answers)
    if as_json:
        plain = {
            "model": found.url,
            "protocol": predictor.protocol.name,
            "videos": [_plain(answer, predictor, request.top) for answer in answers],
        }
        terminal.say(json.dumps(plain, indent=1, ensure_ascii=False))
    elif request.picture:
        terminal.say(f"picture: {request.picture}")
    return sum(bool(answer.error) for answer in answers)


def _check(request: PredictRequest) -> None:
    if request.top < 1:
        raise UserError(f"--top: {request.top}, must be at least 1")
    if request.window_s < 0 or request.hop_s < 0:
        raise UserError("--window and --hop: seconds above 0")
    if request.hop_s and not request.window_s:
        raise UserError("--hop: only with --window")
    if request.picture and Path(request.picture).suffix.lower() != ".png":
        raise UserError(f"--picture: {request.picture}: must end in .png")
    if request.picture and request.window_s and len(request.videos) > 1:
        raise UserError("--picture with --window: a timeline shows one video; give one")


def load_predictor(model: str, protocol: str) -> tuple[Predictor, FoundModel]:
    """The model that a person named, ready to answer.

    Raises:
        UserError: no such model or protocol, or one of pictures.
    """
    found = find_model(model)
    network, card = load_model(found.url)
    return Predictor(network, card, protocol), found


def _answers(request: PredictRequest, predictor: Predictor, videos: Sequence[Video]) -> Iterator[Answer]:
    if request.window_s:
        for video in videos:
            try:
                yield Answer(video, windows=list(windows(predictor, video, request.window_s, _hop(request))))
            except (DecodeError, StoreError) as error:
                yield Answer(video, error=str(error))
        return
    for video, coming in _prepared(predictor, videos):
        try:
            clip = coming.result()
            yield Answer(video, clip, predictor.best(predictor.probabilities(clip), request.top))
        except (DecodeError, StoreError) as error:
            yield Answer(video, error=str(error))


def _hop(request: PredictRequest) -> float:
    return request.hop_s or request.window_s


def _prepared(predictor: Predictor, videos: Sequence[Video]) -> Iterator[tuple[Video, "Future[Prepared]"]]:
    """Each video with its clip, some of which are encoded ahead."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores, thread_name_prefix="prepare") as pool:
        coming: list[Future[Prepared]] = []
        for number, video in enumerate(videos):
            while len(coming) < min(number + 1 + _AHEAD * cores, len(videos)):
                later = videos[len(coming)]
                coming.append(pool.submit(lambda video=later: predictor.prepare(video.read())))  # type: ignore[misc]
            yield video, coming[number]
            coming[number] = Future()  # its bytes may go


def _tell(answer: Answer, predictor: Predictor, top: int, terminal: Terminal) -> None:
    if answer.error:
        terminal.warn(f"{answer.video.name}: {answer.error}")
        return
    if answer.windows:
        rows = [
            [f"{window.start_s:.1f}", f"{window.end_s:.1f}", *_leading(window, predictor, top)]
            for window in answer.windows
        ]
        terminal.table(answer.video.name, ["from, s", "to, s", "%", "class", "then"], rows)
        return
    rows = [[f"{100 * guess.probability:.1f}", guess.name] for guess in answer.guesses]
    terminal.table(answer.video.name, ["%", "class"], rows)


def _leading(window: Window, predictor: Predictor, top: int) -> list[str]:
    if window.probs_K is None:
        return ["", f"not readable: {window.error}", ""]
    first, *rest = predictor.best(window.probs_K, min(top, 3))
    then = ", ".join(f"{guess.name} {100 * guess.probability:.0f} %" for guess in rest)
    return [f"{100 * first.probability:.1f}", first.name, then]


def _plain(answer: Answer, predictor: Predictor, top: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"video": answer.video.name, "error": answer.error or None}
    if answer.clip is not None:
        plain |= {"seconds": answer.clip.duration_s, "frames": answer.clip.num_frames}
        plain["top"] = [guess.to_json() for guess in answer.guesses]
    if answer.windows:
        plain["windows"] = [
            {
                **window.span(),
                "error": window.error or None,
                "top": [guess.to_json() for guess in predictor.best(window.probs_K, top)]
                if window.probs_K is not None
                else [],
            }
            for window in answer.windows
        ]
    return plain


def _draw(request: PredictRequest, predictor: Predictor, answers: Sequence[Answer]) -> None:
    path = Path(request.picture)
    readable = [answer for answer in answers if not answer.error]
    if not readable:
        raise UserError(f"--picture: none of the videos can be read, so there is nothing to draw; {answers[0].error}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if request.window_s:
        (answer,) = readable
        title = f"{answer.video.name}: windows of {request.window_s:g} s every {_hop(request):g} s"
        pictures.timeline(path, answer.windows, predictor.classes, title)
        return
    shown = [
        (answer.video.name, predictor.views(answer.clip)[0], list(answer.guesses))
        for answer in readable[:_MOST_IN_PICTURE]
        if answer.clip is not None
    ]
    left = f"; the first {len(shown)} of {len(readable)} videos" if len(readable) > len(shown) else ""
    pictures.strips_and_bars(path, shown, f"{predictor.protocol.name}, frames of the first view{left}")


def predict_dataset(request: PredictRequest, terminal: Terminal) -> int:
    """Write what a model sees in each sample of a split as parquet, and return how many could not be read.

    Labels are not needed, so the unlabelled test split of Something-Something v2 can be predicted; columns are those of
    an evaluation's predictions, with the probabilities of all classes.

    Raises:
        UserError: no such model, data set or split, or classes that are not the model's.
    """
    if not request.out.endswith(".parquet"):
        raise UserError(f"--out: {request.out or 'missing'}: give a file that ends in .parquet")
    found = find_model(request.model)
    model, card = load_model(found.url)
    config = card.train_config()
    url = absolute(request.data)
    manifest = read_manifest(url)
    split = request.split or config.data.eval_split
    check_data(card, manifest, url, split)
    predictor = Predictor(model, card, request.protocol)
    job = EvalJob(
        data_url=url,
        split=split,
        num_samples=manifest.splits[split].samples,
        config=config.data,
        protocol=predictor.protocol.name,
        batch_videos=predictor.protocol.batch_videos(config.eval.batch_videos, MAX_CLIPS),
        autocast=predictor.autocast,
        save_probabilities=True,
    )
    terminal.say(f"{found.url} on {split} of {manifest.name}: {predictor.protocol}")
    done = 0
    with terminal.progress(split, job.num_samples) as bar, TemporaryDirectory(prefix="vast-predict-") as scratch:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.set(done, job.num_samples)

        path = Path(scratch) / "predictions.parquet"
        parts = score_here(job, model, list(range(len(job.parts))), advance)
        join_parts((table for _, table in parts), path, job.num_samples)
        unreadable = _count_unreadable(path)
        folder, _, name = absolute(request.out).rpartition("/")
        open_store(folder).put_file(name, path)
    terminal.say(f"{job.num_samples} samples, {unreadable} unreadable: {request.out}")
    return unreadable


def _count_unreadable(path: Path) -> int:
    import pyarrow.parquet as pq

    errors = pq.read_table(path, columns=["error"]).column("error").to_numpy(zero_copy_only=False)
    return int(np.sum([error is not None for error in errors]))
