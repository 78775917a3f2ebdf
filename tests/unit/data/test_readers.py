"""Readers that are killed, hang, or outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.fetch import SampleSource
from vast.data.loader import TrainLoader
from vast.data.reader import Crop, Filled, Job, Request
from vast.data.readers import ReaderPool, answers
from vast.errors import DecodeError, ReaderError, StoreError

pytestmark = pytest.mark.slow  # dozens of processes are started, killed and waited for

LIMIT_S = 60.0


class Marking:
    """Fills a place with the number of its sample; does what `deeds` says to the samples it names, so many times."""

    unusable: tuple[type[Exception], ...] = (DecodeError,)
    place_shape = (1000,)

    def __init__(self, source: SampleSource, folder: Path, deeds: dict[int, str] | None = None) -> None:
        self.source = source
        self._folder = folder
        self._deeds = deeds or {}

    def decode(self, job: Job, data: bytes) -> Crop:
        deed, _, times = self._deeds.get(job.sample, "").partition(" ")
        done = self._folder / str(job.sample)
        if deed and (not times or done.stat().st_size < int(times) if done.exists() else True):
            with open(done, "ab") as file:
                file.write(b".")
            self._do(deed)

        def crop(places: Sequence[Tensor]) -> Filled:
            for place in places:
                place.fill_(job.sample)
            return Filled((os.getpid(),))

        return crop

    def _do(self, deed: str) -> None:
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif deed == "hang":
            time.sleep(10 * LIMIT_S)
        elif deed == "raise":
            raise KeyError("a mistake")
        elif deed == "refuse":
            raise StoreError("no answer")


@pytest.fixture
def train_set(data_url: str) -> ShardDataset:
    return ShardDataset(data_url, "train")


def requests(dataset: ShardDataset, num_requests: int, num_places: int = 4) -> list[Request]:
    """Consecutive samples, round and round."""
    result = []
    for number in range(num_requests):
        samples = [(number * num_places + place) % len(dataset) for place in range(num_places)]
        jobs = [Job(sample, dataset.index.row(sample), (place,)) for place, sample in enumerate(samples)]
        result.append(Request(jobs, num_places, step=number))
    return result


def run(reader: Marking, wanted: list[Request], num_readers: int = 2, timeout_s: float = LIMIT_S) -> dict[int, str]:
    """Check all pixels and the order; return the samples that are damaged."""
    damaged: dict[int, str] = {}
    found = answers(reader, wanted, num_readers=num_readers, max_places=4, held=2, timeout_s=timeout_s)
    for request, answer in zip(wanted, found, strict=True):
        assert answer.request == request
        for job, filled in zip(request.jobs, answer.filled, strict=True):
            if filled.damage:
                damaged[job.sample] = filled.damage
            else:
                assert (answer.pixels[job.places[0]] == job.sample).all()
    return damaged


@pytest.mark.parametrize(
    ("num_readers", "deed", "word"),
    [(1, "die", "exit code -9"), (3, "die", "exit code -9"), (1, "stop", "hung"), (3, "hang", "hung")],
)
def test_a_sample_over_which_two_readers_are_lost_is_damaged(
    train_set: ShardDataset, tmp_path: Path, num_readers: int, deed: str, word: str
) -> None:
    bad = {9} if num_readers == 1 else {2, 9}
    reader = Marking(train_set.source, tmp_path, dict.fromkeys(bad, deed))
    # The limit is short, as the readers do next to nothing else; a busy machine must not cross it, though.
    damaged = run(reader, requests(train_set, 4), num_readers, LIMIT_S if deed == "die" else 1.0)
    assert set(damaged) == bad
    assert all(word in reason and "for the second time" in reason for reason in damaged.values())
    assert "train_009 in train-000001.tar" in damaged[9]
    assert all((tmp_path / str(sample)).stat().st_size == 2 for sample in bad)


@pytest.mark.parametrize("deed", ["die 1", "stop 1"])
def test_a_sample_over_which_one_reader_is_lost_is_used(train_set: ShardDataset, tmp_path: Path, deed: str) -> None:
    deeds = dict.fromkeys((0, 3, 9), deed)
    assert run(Marking(train_set.source, tmp_path, deeds), requests(train_set, 3), timeout_s=1.0) == {}
    assert len(list(tmp_path.iterdir())) == 3


def test_readers_killed_from_outside_change_nothing(train_set: ShardDataset, tmp_path: Path) -> None:
    wanted = requests(train_set, 60)
    pool = ReaderPool(Marking(train_set.source, tmp_path), 2, 4, 2, LIMIT_S)
    for number, answer in enumerate(pool.answers(iter(wanted))):
        assert answer.request is wanted[number]
        for job, filled in zip(answer.request.jobs, answer.filled, strict=True):
            assert not filled.damage
            assert (answer.pixels[job.places[0]] == job.sample).all()
        if number % 15 == 0:
            psutil.Process(filled.labels[0]).kill()


@pytest.mark.parametrize(
    ("deed", "kind", "text"), [("raise", ReaderError, "a mistake"), ("refuse", StoreError, "no answer")]
)
def test_what_is_no_samples_fault_ends_the_iteration(
    train_set: ShardDataset, tmp_path: Path, deed: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        run(Marking(train_set.source, tmp_path, {5: deed}), requests(train_set, 3))
    assert readers_of(os.getpid()) == []


class DiesAtOnce(Marking):
    def __setstate__(self, state: object) -> None:
        os._exit(7)


def test_readers_that_never_begin_end_the_iteration(train_set: ShardDataset, tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"5 reader processes in a row .*exit code 7.*lower data\.num_readers"):
        run(DiesAtOnce(train_set.source, tmp_path), requests(train_set, 1))


def test_an_iteration_that_is_dropped_ends_its_readers(train_set: ShardDataset, tmp_path: Path) -> None:
    found = answers(
        Marking(train_set.source, tmp_path), requests(train_set, 9), num_readers=2, max_places=4, held=2, timeout_s=60
    )
    answer = next(found)
    found.close()
    assert not any(psutil.pid_exists(filled.labels[0]) for filled in answer.filled)
    assert (answer.pixels[3] == answer.request.jobs[3].sample).all()


def readers_of(pid: int) -> list[psutil.Process]:
    """Return the reader processes of a process: children of its fork server."""
    servers = [child for child in psutil.Process(pid).children() if "forkserver" in " ".join(child.cmdline())]
    return [reader for server in servers for reader in server.children()]


PARENT = """
import sys
from vast.data.config import DataConfig
from vast.data.dataset import ShardDataset
from vast.data.loader import TrainLoader

# No `if __name__ == "__main__"`: readers do not run the program.
config = DataConfig(url=sys.argv[1], num_frames=4, crop_size=32, eval_short_side=32, num_readers=2)
for _ in TrainLoader(ShardDataset(sys.argv[1], "train"), config, seed=0, global_batch=8, stop_step=10**9):
    print("step", flush=True)
"""


def test_nothing_is_left_of_a_killed_parent(data_url: str, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(program), data_url], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "step\n"
            readers = readers_of(parent.pid)
            assert len(readers) == 2
            # What they share has no name that could stay behind.
            mapped = {entry.path for reader in readers for entry in reader.memory_maps()}
            assert any("memfd:vast-batches" in path for path in mapped)
            assert not any(path.startswith("/dev/shm") for path in mapped)
        finally:
            parent.kill()
    psutil.wait_procs(readers, timeout=LIMIT_S)
    assert not any(reader.is_running() for reader in readers)


def test_a_reader_killed_in_mid_epoch_changes_no_batch(train_set: ShardDataset, data_url: str) -> None:
    config = DataConfig(url=data_url, num_frames=4, crop_size=32, eval_short_side=32)

    def clips(num_readers: int) -> list[Tensor]:
        changed = config.model_copy(update={"num_readers": num_readers})
        result = []
        for step, (batch,) in TrainLoader(train_set, changed, seed=0, global_batch=8, stop_step=20):
            if num_readers and step % 5 == 0:
                readers_of(os.getpid())[0].kill()
            assert batch.skipped == []
            result.append(batch.clip_BCTHW.clone())
        return result

    assert all(torch.equal(a, b) for a, b in zip(clips(2), clips(0), strict=True))
