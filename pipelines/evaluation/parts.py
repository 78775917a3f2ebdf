"""The parts of an evaluation: fixed ranges of a split's samples, each scored on its own into a small parquet file.

Which samples make a part does not depend on the number of ranks, nor do the batches within it, so any rank may score
any part, an interrupted evaluation continues with the parts that are missing, and the figures are the same on 1 rank or
64. Put together the parts are `predictions.parquet`, one row a sample:

    sample         int64          place in the split's sample index
    key            string         of the sample in the shards
    label          int32          true class
    rank           int32          classes that the model puts before the true one; null without a score or a label
    top_ids        list<int32>    the five best classes, best first; empty where there is no score
    top_probs      list<float32>  their probabilities
    error          string         why a sample could not be read; null where it was
    probs          list<float32>  of all classes; only where asked for

The schema's metadata holds the class list.
"""

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader
from vast.data.reader import EvalBatch
from vast.train.evaluate import ScoredBatch, score_batches
from vast.train.metrics import NO_RANK, TOP, Predictions

CLASSES = b"classes"
PART = "part-"
# Enough parts for many ranks to share evenly and little to be lost, and files of some use.
_PARTS_WANTED = 128
_MOST_IN_PART = 512
# Hardly a value comes twice: a dictionary makes probabilities half as large again.
_PARQUET = {"compression": "zstd", "use_dictionary": False}


@dataclass(frozen=True)
class EvalJob:
    """What every rank is told; picklable and small, and nothing in it depends on the ranks."""

    data_url: str
    split: str
    num_samples: int
    config: DataConfig
    """How the model's clips are drawn."""
    protocol: str
    batch_videos: int
    """Videos in one batch."""
    autocast: torch.dtype | None
    save_probabilities: bool

    @cached_property
    def parts(self) -> list[range]:
        """The samples of each part; all but the last have whole batches."""
        size = min(_MOST_IN_PART, max(1, self.num_samples // _PARTS_WANTED))
        size = -(-size // self.batch_videos) * self.batch_videos
        starts = range(0, self.num_samples, size)
        return [range(start, min(start + size, self.num_samples)) for start in starts]


def part_key(number: int) -> str:
    """Return the name of a part's file in the results."""
    return f"{PART}{number:05d}.parquet"


def score_parts(
    job: EvalJob, model: nn.Module, device: torch.device, numbers: Sequence[int], on_samples: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """Score some parts, given in rising order, and yield each as a parquet file as soon as it is complete.

    One loader serves all of them: its readers start once, and read ahead across the parts.

    Args:
        job: What is scored.
        model: Any module from normalised clips to logits, in evaluation mode, on `device`.
        device: Where it computes.
        numbers: Numbers of the parts.
        on_samples: Told after each batch how many samples it had.
    """
    dataset = ShardDataset(job.data_url, job.split)
    samples = [sample for number in numbers for sample in job.parts[number]]
    loader = EvalLoader(dataset, job.config, job.protocol, batch_size=job.batch_videos, samples=samples)
    batches = _counted(loader, on_samples)
    scored = score_batches(
        model, batches, mean=job.config.mean, std=job.config.std, device=device, autocast=job.autocast
    )
    waiting = deque(numbers)
    collected: list[ScoredBatch] = []
    for batch in scored:
        collected.append(batch)
        part = job.parts[waiting[0]]
        if sum(len(one.sample_B) + len(one.failed) for one in collected) == len(part):
            yield waiting.popleft(), _encoded(_table(job, dataset, part, collected))
            collected = []


def _counted(batches: Iterable[EvalBatch], on_samples: Callable[[int], None]) -> Iterator[EvalBatch]:
    for batch in batches:
        yield batch
        on_samples(len(batch.sample_B) + len(batch.failed))


def _table(job: EvalJob, dataset: ShardDataset, part: range, scored: Sequence[ScoredBatch]) -> pa.Table:
    predictions = Predictions.joined([batch.predictions() for batch in scored])
    where = {int(sample): n for n, sample in enumerate(predictions.sample_N)}
    errors = dict(predictions.unreadable)
    probs = {}
    if job.save_probabilities:
        probs = {int(s): p for batch in scored for s, p in zip(batch.sample_B, batch.probs_BK, strict=True)}
    lines = []
    for sample, row in zip(part, dataset.index.rows(part), strict=True):
        line = {"sample": sample, "key": row.key, "label": row.label, "rank": None, "top_ids": [], "top_probs": []}
        line |= {"error": errors.get(sample), "probs": probs.get(sample)}
        n = where.get(sample)
        if n is not None and predictions.rank_N[n] != NO_RANK:
            kept = predictions.top_NJ[n] >= 0
            line["rank"] = int(predictions.rank_N[n]) if row.label >= 0 else None
            line |= {"top_ids": predictions.top_NJ[n][kept], "top_probs": predictions.prob_NJ[n][kept]}
        lines.append(line)
    return pa.Table.from_pylist(lines, schema=_schema(dataset.classes, job.save_probabilities))


def _schema(classes: Sequence[str], with_probabilities: bool) -> pa.Schema:
    fields = [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("rank", pa.int32()),
        pa.field("top_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("top_probs", pa.list_(pa.float32()), nullable=False),
        pa.field("error", pa.string()),
    ]
    if with_probabilities:
        fields.append(pa.field("probs", pa.list_(pa.float32())))
    return pa.schema(fields, metadata={CLASSES: json.dumps(list(classes), ensure_ascii=False)})


def _encoded(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_PARQUET)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def join_parts(parts: Iterable[bytes], path: Path, num_samples: int) -> None:
    """Write all parts, in order, as one parquet file; memory holds one part.

    Raises:
        RuntimeError: A sample comes twice or not at all, which must never be.
    """
    seen = 0
    with contextlib.ExitStack() as stack:
        writer = None
        for part in parts:
            table = pq.read_table(pa.BufferReader(part))
            if table.column("sample").to_pylist() != list(range(seen, seen + len(table))):
                raise RuntimeError(f"a part that should begin with sample {seen} has other samples, or not each once")
            seen += len(table)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema, **_PARQUET))
            writer.write_table(table)
    if seen != num_samples:
        raise RuntimeError(f"the parts have {seen} samples, and the split has {num_samples}")


def read_predictions(path: Path) -> Predictions:
    """Read the predictions back; the probabilities of all classes are not touched."""
    columns = ["sample", "label", "rank", "top_ids", "top_probs", "error"]
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(number, columns) for number in range(file.num_row_groups))
        return Predictions.joined([_predictions(group) for group in groups])


def _predictions(table: pa.Table) -> Predictions:
    errors = zip(table.column("sample").to_pylist(), table.column("error").to_pylist(), strict=True)
    unreadable = [(sample, why) for sample, why in errors if why is not None]
    read = table.filter(pc.is_null(table.column("error")))
    top_NJ = np.full((len(read), TOP), -1, dtype=np.int64)
    prob_NJ = np.zeros((len(read), TOP), dtype=np.float32)
    for n, (ids, probs) in enumerate(
        zip(read.column("top_ids").to_pylist(), read.column("top_probs").to_pylist(), strict=True)
    ):
        top_NJ[n, : len(ids)], prob_NJ[n, : len(probs)] = ids, probs
    return Predictions(
        sample_N=read.column("sample").to_numpy(),
        label_N=read.column("label").to_numpy().astype(np.int64),
        rank_N=pc.fill_null(read.column("rank"), NO_RANK).to_numpy().astype(np.int64),
        top_NJ=top_NJ,
        prob_NJ=prob_NJ,
        unreadable=unreadable,
    )
