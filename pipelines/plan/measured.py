"""What a finished run says of the machines that it ran on."""

import json

import numpy as np

from pipelines.find_model import find_model
from pipelines.plan.timing import Figure
from pipelines.plan.work import Work, work_of
from pipelines.training.history import History, read_history
from vast.errors import UserError
from vast.storage import open_store
from vast.train.checkpoint import CARD, ModelCard
from vast.train.config import TrainConfig

_READER_PARTS = ("stall/store", "stall/decode", "stall/crop")


def speeds_of(run: str, work: Work) -> tuple[Figure, Figure | None]:
    """Clips a second of one rank that waits for nobody, and of one reader core, for clips of the size of `work`.

    Args:
        run: what MODEL may be, of a training run.
        work: what is planned; clips that cost more or fewer multiply-adds are computed in proportion.

    Raises:
        UserError: there is no such run, or it kept too little to tell.
    """
    place = find_model(run).url
    card = ModelCard(**json.loads(open_store(place).get_bytes(CARD)))
    config = TrainConfig.model_validate(card.config)
    history = read_history(place.rpartition("/")[0])
    compute_s = _median(history, "stall/compute")
    if not history.ranks or compute_s is None:
        raise UserError(
            f"--measured: {run} does not say on how many ranks it ran, or how long its steps took; give a run of this "
            "version, or --clips-per-second"
        )
    clips = config.optim.global_batch / history.ranks
    then = work_of(config, samples=config.optim.global_batch)
    scale = then.macs / work.macs
    words = (
        f"a rank takes {clips / compute_s * scale:.1f} clips/s, from the median step of {run} on {history.ranks} ranks"
    )
    if scale != 1.0:
        words += f", whose clips cost {then.macs / 1e9:.2f} GMACs instead of {work.macs / 1e9:.2f}"
    speed = Figure(clips / compute_s * scale, "measured", words)
    reading_s = sum(_median(history, name) or 0.0 for name in _READER_PARTS)
    if not reading_s:
        return speed, None
    rate = clips / config.data.repeats / reading_s
    return speed, Figure(rate, "measured", f"a reader core decodes {rate:.1f} clips/s, from the same run")


def _median(history: History, name: str) -> float | None:
    """The median of a figure after the first tenth of the logs, in which things warm up."""
    values = history.series(name)[1]
    return float(np.median(values[len(values) // 10 :])) if len(values) else None
