"""What the tracking server has not got yet waits on this machine's disk until it does; a dead process loses nothing.

A folder a run:

run.json             the server's address and the run's id
<time>-<pid>.points  points, one JSON line each; its writer holds a lock on it until it is closed
<time>-tags.json     tags to set
<time>-files/        artifacts, at their paths in the run
<time>-model.json    the model that the run has made is there
<time>-end.json      the state the run ended in, and when
damaged.txt          lines of points that could not be read
sending              locked by the one process that sends
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.tracking.runs import RunRef

Point = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""

SEGMENT_BYTES = 256 * 1024  # of points that are read into memory at once


def spool_folder() -> Path:
    """VAST_SPOOL, or a folder of this user's among the temporary files."""
    return Path(os.environ.get("VAST_SPOOL") or Path(tempfile.gettempdir()) / f"vast-spool-{os.getuid()}")


def spools() -> "list[Spool]":
    """Of every run that something waits for on this machine."""
    found = []
    for path in sorted(spool_folder().glob("*/run.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Spool(RunRef(**json.loads(path.read_text(encoding="utf-8")))))
    return found


@dataclass(frozen=True)
class Waiting:
    """How much of a run waits on this machine."""

    points: int
    tags: int
    files: int
    models: int
    """Models that are ready, and not yet recorded as such."""
    end: str
    """The state that the run ended in; empty when that does not wait."""
    damaged: int
    """Lines that could not be read and are kept in damaged.txt; they are not sent."""

    def __bool__(self) -> bool:
        """Whether anything is still to be sent."""
        return bool(self.points or self.tags or self.files or self.models or self.end)

    def __str__(self) -> str:
        counts = {"figure": self.points, "tag": self.tags, "file": self.files, "ready model": self.models}
        parts = [f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items() if count]
        parts += [f"that it is {self.end}"] if self.end else []
        return ", ".join(parts) or "nothing"


class Spool:
    """What waits for one run. Any number of processes may add to it; whoever holds `sending` takes from it."""

    def __init__(self, run: RunRef) -> None:
        self.run, self.folder = run, spool_folder() / run.run_id
        self._segment: IO[str] | None = None
        self._mutex = threading.Lock()

    def add(self, points: Sequence[Point]) -> None:
        """Append points; once this returns they survive this process."""
        with self._mutex:
            if self._segment is None:
                self._segment = self._new_segment()
            self._segment.writelines(json.dumps(point) + "\n" for point in points)
            self._segment.flush()
            if self._segment.tell() >= SEGMENT_BYTES:
                self._close()

    def _new_segment(self) -> IO[str]:
        self._ensure_folder()
        scratch = self.folder / f"{os.getpid()}-{threading.get_ident()}.new"
        file = scratch.open("w", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)  # before anyone can see it: a sender takes no segment that is being written
        scratch.rename(self.folder / f"{time.time_ns():020d}-{os.getpid()}.points")
        return file

    def _close(self) -> None:
        if self._segment is not None:
            fcntl.flock(self._segment, fcntl.LOCK_UN)  # though a process that is just being started has it open too
            self._segment.close()
            self._segment = None

    def close(self) -> None:
        """Let others have what this process has added."""
        with self._mutex:
            self._close()

    def offer(self) -> None:
        """Let others have what this process has added, once nothing else waits; so an outage makes few segments."""
        if self._segment is not None and not self.segments():
            self.close()

    def segments(self) -> list[Path]:
        """Segments that nobody writes to any more, oldest first."""
        return [path for path in sorted(self.folder.glob("*.points")) if _is_closed(path)]

    def is_written_by(self, pid: int) -> bool:
        """Whether a process still holds a segment."""
        return not all(_is_closed(path) for path in self.folder.glob(f"*-{pid}.points"))

    def forget(self, segment: Path) -> None:
        """Remove a segment that is delivered, keeping aside what could not be read of it."""
        if damaged := read_segment(segment)[1]:
            with (self.folder / "damaged.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in damaged)
        segment.unlink(missing_ok=True)

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Keep tags to be set."""
        self._add_json("tags", dict(tags))

    def add_end(self, status: str, at_ms: int) -> None:
        """Keep the state that the run ended in."""
        self._add_json("end", {"status": status, "at_ms": at_ms})

    def add_ready_model(self, model_id: str) -> None:
        """Keep that the run's model is there."""
        self._add_json("model", {"model_id": model_id})

    def add_files(self, files: Mapping[str, Path]) -> None:
        """Keep copies of files, by their artifact paths."""
        self._ensure_folder()
        scratch = Path(tempfile.mkdtemp(prefix="copying-", dir=self.folder))
        for name, path in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, scratch / name)
        scratch.rename(self.folder / f"{time.time_ns():020d}-files")

    def deferred(self) -> list[Path]:
        """Tags, files and ends that wait, oldest first."""
        return sorted(
            path for kind in ("tags.json", "files", "model.json", "end.json") for path in self.folder.glob(f"*-{kind}")
        )

    def drop_ends(self) -> None:
        """Forget that the run ended: it goes on."""
        for path in self.folder.glob("*-end.json"):
            path.unlink(missing_ok=True)

    def waiting(self) -> Waiting:
        """Count what waits."""
        points, damaged, tags, files, models, end = 0, 0, 0, 0, 0, ""
        for path in self.folder.glob("*.points"):
            with contextlib.suppress(FileNotFoundError):  # delivered meanwhile
                read = read_segment(path)
                points, damaged = points + len(read[0]), damaged + len(read[1])
        for path in self.deferred():
            with contextlib.suppress(FileNotFoundError):
                if path.name.endswith("-tags.json"):
                    tags += len(json.loads(path.read_text(encoding="utf-8")))
                elif path.name.endswith("-files"):
                    files += sum(one.is_file() for one in path.rglob("*"))
                elif path.name.endswith("-model.json"):
                    models += 1
                else:
                    end = json.loads(path.read_text(encoding="utf-8"))["status"]
        with contextlib.suppress(FileNotFoundError):
            damaged += len((self.folder / "damaged.txt").read_text(encoding="utf-8").splitlines())
        return Waiting(points, tags, files, models, end, damaged)

    def lock(self) -> IO[str] | None:
        """Become the process that sends; None while another one is. The lock ends with the file that is returned."""
        self._ensure_folder()
        path = self.folder / "sending"
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # else it was removed between the two
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        return None

    def tidy(self) -> None:
        """Remove the folder if nothing is in it; only for the one that holds the lock, when it is done."""
        if not {path.name for path in self.folder.iterdir()} <= {"run.json", "sending"}:
            return
        (self.folder / "run.json").unlink(missing_ok=True)
        (self.folder / "sending").unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:  # something was added meanwhile
            self._ensure_folder()

    def _add_json(self, kind: str, content: dict[str, Any]) -> None:
        self._ensure_folder()
        _write_whole(self.folder / f"{time.time_ns():020d}-{kind}.json", content)

    def _ensure_folder(self) -> None:
        spool_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        while not (self.folder / "run.json").is_file():
            with contextlib.suppress(FileNotFoundError):  # tidied away between the two
                self.folder.mkdir(exist_ok=True)
                _write_whole(self.folder / "run.json", asdict(self.run))


def read_segment(path: Path) -> tuple[list[Point], list[str]]:
    """Points of a segment, and the lines that are none: a kill or a full disk may have cut one off."""
    points: list[Point] = []
    damaged = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            name, value, at_ms, step = json.loads(line)
            points.append((str(name), float(value), int(at_ms), int(step)))
        except (ValueError, TypeError):
            damaged.append(line)
    return points, damaged


def _is_closed(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    scratch.write_text(json.dumps(content), encoding="utf-8")
    scratch.rename(path)
