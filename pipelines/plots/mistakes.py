"""The worst mistakes of an evaluation as a contact sheet: clips that the model is surest of, and wrong."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing.preview import NUM_THREADS, clip_strip, picture_strip
from preprocessing.sheet import Group, cell_size, draw_sheet
from vast.dataset_format import read_manifest
from vast.sample_index import read_index
from vast.storage import open_store
from vast.train.metrics import NO_RANK, Predictions

MOST_MISTAKES = 12
NUM_FRAMES = 6


def worst_mistakes(
    path: Path, data_url: str, split: str, predictions: Predictions, classes: Sequence[str], title: str
) -> bool:
    """Write the sheet as a PNG; False, and no file, where nothing was mistaken.

    Raises:
        StoreError: the shards cannot be read.
    """
    wrong_N = np.flatnonzero((predictions.rank_N > 0) & (predictions.rank_N != NO_RANK) & (predictions.label_N >= 0))
    if not len(wrong_N):
        return False
    # by sample where equally sure, so that the picture is the same each time
    chosen = wrong_N[np.lexsort((predictions.sample_N[wrong_N], -predictions.prob_NJ[wrong_N, 0]))][:MOST_MISTAKES]
    rows = read_index(data_url, split).rows([int(sample) for sample in predictions.sample_N[chosen]])
    is_image = read_manifest(data_url).media == "image"
    size = cell_size(NUM_FRAMES)
    draw = partial(picture_strip if is_image else clip_strip, open_store(data_url), size=size, num_frames=NUM_FRAMES)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        strips = list(pool.map(draw, rows))
    groups = []
    for n, strip, row in zip(chosen, strips, rows, strict=True):
        label, taken = int(predictions.label_N[n]), int(predictions.top_NJ[n, 0])
        group = Group(
            f"{classes[label]} → {classes[taken]}",
            f"taken for the latter with {100 * predictions.prob_NJ[n, 0]:.0f} %",
            [replace(strip, caption=(_of_the_true(predictions, int(n)), row.key))],
        )
        groups.append(group)
    subtitle = f"the {len(chosen)} wrong ones that the model is surest of, of {len(wrong_N):,}"
    draw_sheet(title, subtitle, groups, size).save(path)
    return True


def _of_the_true(predictions: Predictions, n: int) -> str:
    rank = int(predictions.rank_N[n])
    if rank < predictions.top_NJ.shape[1]:
        return f"the true class has {100 * predictions.prob_NJ[n, rank]:.0f} %, at place {rank + 1}"
    return f"the true class comes at place {rank + 1}"
