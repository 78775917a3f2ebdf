"""A contact sheet: some clips of each class as rows of frames, so that a person sees what a data set holds."""

import contextlib
import hashlib
import io
import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.sheet import CellSize, Group, Picture, Strip, cell_size, draw_sheet
from vast.dataset_format import UNLABELLED, Manifest, SampleRow, read_manifest
from vast.errors import UserError
from vast.sample_index import read_index
from vast.storage import Store, open_store

MAX_FRAMES = 24
"""More columns than this would be too narrow to show anything."""
MAX_ROWS = 300
"""A taller picture is shown by few programs."""
NUM_THREADS = 8
"""Clips fetched and decoded at a time."""


def contact_sheet(
    url: str,
    *,
    split: str,
    num_classes: int = 12,
    clips_per_class: int = 2,
    frames_per_clip: int = 6,
    seed: int = 0,
) -> Image.Image:
    """Draw clips of some classes of a split, frames from each clip's first to its last.

    The same arguments show the same clips. Only their byte ranges are read. A split without labels is one group of as
    many clips. Of a data set of pictures each row shows `frames_per_clip` different ones. A sample that cannot be
    decoded shows as an empty cell that says so.

    Args:
        url: The data set.
        split: The split.
        num_classes: Classes to show, drawn by the seed; all when there are fewer.
        clips_per_class: Rows of each class.
        frames_per_clip: Columns, at most `MAX_FRAMES`.
        seed: Of the choice.

    Raises:
        UserError: There is no such data set or split, it is empty, or a number is out of range.
        StoreError: The store failed.
    """
    if num_classes < 1 or clips_per_class < 1 or not 1 <= frames_per_clip <= MAX_FRAMES:
        raise UserError(
            f"cannot preview {num_classes} classes, {clips_per_class} clips of each and {frames_per_clip} frames of "
            f"each clip: expected at least 1 of each, and at most {MAX_FRAMES} frames"
        )
    manifest = read_manifest(url)
    if split not in manifest.splits:
        raise UserError(f"{url} has no split {split!r}; it has: {', '.join(sorted(manifest.splits))}")
    index = read_index(url, split)
    if len(index) == 0:
        raise UserError(f"{url}: there is nothing to see in {split}, it has no samples")
    is_image = manifest.media == "image"
    label_N: NDArray[np.int32] = index.column("label")
    size = cell_size(frames_per_clip)
    chosen = list(_choose(label_N, num_classes, clips_per_class * (frames_per_clip if is_image else 1), seed))
    num_rows = sum(-(-len(positions) // (frames_per_clip if is_image else 1)) for _, positions in chosen)
    if num_rows > MAX_ROWS:
        raise UserError(
            f"the contact sheet would have {num_rows} rows, expected at most {MAX_ROWS}; show fewer classes"
        )
    # All rows and then all samples at once: the store's round trips overlap.
    rows = index.rows([i for _, positions in chosen for i in positions])
    load = partial(picture_strip if is_image else clip_strip, open_store(url), size=size, num_frames=frames_per_clip)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        loaded = iter(list(pool.map(load, rows)))
    groups = []
    for label, positions in chosen:
        strips = list(itertools.islice(loaded, len(positions)))
        strips = _side_by_side(strips, frames_per_clip) if is_image else strips
        groups.append(Group(_title(manifest, label), _count(int((label_N == label).sum()), is_image), strips))
    subtitle = f"{len(rows):,} of {_count(len(label_N), is_image)}"
    if any(label != UNLABELLED for label, _ in chosen):
        subtitle += f"   ·   {len(chosen):,} of {len(np.unique(label_N)):,} classes"
    return draw_sheet(f"{manifest.name} · {split}", f"{subtitle}   ·   seed {seed}", groups, size)


def _choose(label_N: NDArray[np.int32], num_classes: int, per_class: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield labels in order, each with the positions of its samples to show."""
    labels = [int(label) for label in np.unique(label_N)]
    if labels == [UNLABELLED]:
        per_class *= num_classes
    # By a hash, so that adding a class or asking for more leaves the others as they were.
    labels.sort(key=lambda label: hashlib.sha256(f"{seed}:{label}".encode()).digest())
    for label in sorted(labels[:num_classes]):
        positions = np.flatnonzero(label_N == label)
        dealt = random.Random(f"{seed}:{label}").sample(range(len(positions)), min(per_class, len(positions)))
        yield label, [int(positions[i]) for i in sorted(dealt)]


def _title(manifest: Manifest, label: int) -> str:
    if label == UNLABELLED:
        return "without a label"
    return manifest.classes[label] if 0 <= label < len(manifest.classes) else f"label {label}"


def _count(number: int, is_image: bool) -> str:
    return f"{number:,} {'picture' if is_image else 'clip'}{'' if number == 1 else 's'}"


def _side_by_side(strips: Sequence[Strip], per_strip: int) -> list[Strip]:
    """Put strips of one picture together."""
    pictures = [picture for strip in strips for picture in strip.pictures]
    return [Strip((), pictures[start : start + per_strip]) for start in range(0, len(pictures), per_strip)]


def clip_strip(store: Store, row: SampleRow, *, size: CellSize, num_frames: int) -> Strip:
    """Frames of one clip, from its first to its last; those that cannot be decoded are empty."""
    caption = (row.key, f"{row.duration_s:.1f} s   {row.width}×{row.height}   {row.video_fps:.5g} fps")
    media = store.get_range(row.shard, row.offset, row.size_bytes)
    wanted = sorted({round(i) for i in np.linspace(0, row.num_frames - 1, min(num_frames, row.num_frames))})
    frames = dict(_decode(media, wanted, size))
    shown = [Picture(frames.get(i), f"{i / row.video_fps:.1f} s" if row.video_fps > 0 else str(i)) for i in wanted]
    return Strip(caption, shown)


def _decode(media: bytes, wanted: Sequence[int], size: CellSize) -> Iterator[tuple[int, Image.Image]]:
    """Yield the wanted frames, of a damaged clip those that can be had."""
    with contextlib.suppress(av.FFmpegError, ValueError, IndexError), av.open(io.BytesIO(media), mode="r") as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                yield i, size.fit(Image.fromarray(frame.to_ndarray(format="rgb24")))
            if i >= wanted[-1]:
                break


def picture_strip(store: Store, row: SampleRow, *, size: CellSize, num_frames: int) -> Strip:
    """One picture, which has no more frames to show."""
    media = store.get_range(row.shard, row.offset, row.size_bytes)
    try:
        with Image.open(io.BytesIO(media), formats=["JPEG"]) as image:
            return Strip((), [Picture(size.fit(image.convert("RGB")), row.key)])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Strip((), [Picture(None, row.key)])
