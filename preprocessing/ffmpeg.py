"""Runs ffmpeg on hostile files: within limits, without a shell, and heard in bounded memory.

Its demuxer, decoder, filters and encoder are threads that speak in any order: of what they say while they run only
counts are used, and sentences only of the time before they start.
"""

import contextlib
import math
import os
import re
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FORMATS = "mov,mp4,matroska,webm,avi,flv,asf,ogg,mpeg"
"""Containers that are opened, by ffmpeg's names. Never playlists, scripts and pictures, which may name other files; not
MPEG-TS, at whose sight the packaged ffmpeg crashes."""
MAX_PIXELS = 8192 * 4320
"""Of a source's picture: 8K cinema."""
MEMORY_LIMIT_BYTES = 8 << 30
"""Address space of ffmpeg; generous, as 8K video needs about a quarter of it."""
OUTPUT_LIMIT_BYTES = 1 << 30
CPU_GRACE_S = 1
"""Seconds of CPU time between the limit at which ffmpeg is asked to end and the one at which the kernel ends it."""
CPU_SHARE = 2
"""CPU seconds allowed for each second of wall time: its threads run at once, and the wall comes first. The limit is
there for an ffmpeg whose parent has died."""

# What is counted in everything that ffmpeg prints, however much that is. Without the prefix that names a speaker: it is
# missing where another thread had not ended its line.
_COUNTED = {
    "corrupt_packets": b"corrupt input packet in stream ",
    "corrupt_frames": b"corrupt decoded frame\n",
    "broken_blocks": b"error y=",  # MJPEG's decoder marks no frame as corrupt
    "partial": b": partial file\n",
    "ended": b"File ended prematurely",
    "lost": b" invalid as first byte of an EBML number\n",
    "lost_page": b"CRC mismatch!\n",
    "lost_tag": b"Packet mismatch ",
    "lost_data": b"ff asf skip ",
    "reconfigured": b"Reconfiguring filter graph because ",
    "no_memory": b"Cannot allocate memory",
    "no_space": b"No space left on device",
}
# Lines that are kept wherever they are: what the filters say of their work.
_NOTED = (b" fmt:", b"Set first pts to ", b" frames duplicated.\n")
_KEPT_BYTES = 128 << 10
_ERROR = re.compile(r"^(?:\[([^\]]+)\] )?\[(?:error|fatal)\] (.*)$", re.MULTILINE)
_NOISE = re.compile(r" @ 0x[0-9a-f]+|file:/dev/fd/\d+")


class ClipError(Exception):
    """A file that cannot become a clip: where it was lost, a reason in a few words, and what exactly was found."""

    def __init__(self, stage: Literal["read", "transcode", "prove"], reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)
        self.stage: Literal["read", "transcode", "prove"] = stage
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass
class Messages:
    """What one run of ffmpeg printed, in bounded memory."""

    head: bytes = b""
    tail: bytes = b""
    noted: bytes = b""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    return_code: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        # Only whole lines, so that nothing is missed at a seam; a line without an end must not grow for ever.
        data = self._rest + data
        cut = data.rfind(b"\n") + 1 or (len(data) if len(data) > _KEPT_BYTES else 0)
        data, self._rest = data[:cut], data[cut:]
        for name, mark in _COUNTED.items():
            self.counts[name] += data.count(mark)
        if len(self.noted) < _KEPT_BYTES and any(mark in data for mark in _NOTED):
            lines = data.splitlines(keepends=True)
            self.noted += b"".join(line for line in lines if any(mark in line for mark in _NOTED))
        room = _KEPT_BYTES - len(self.head)
        self.head += data[:room]
        self.tail = (self.tail + data[room:])[-_KEPT_BYTES:]

    @property
    def text(self) -> str:
        """The first and the last lines; the last are ffmpeg's statistics."""
        return (self.head + self.tail).decode(errors="replace")

    def complaint(self) -> str:
        """Return the first error; meaningful only for a run in which no threads were started."""
        errors = _ERROR.findall(_NOISE.sub("", self.head.decode(errors="replace")))
        component, text = errors[0] if errors else ("", "")
        if text.startswith("Format not on whitelist"):
            return f"its content is {component}, which is not opened"
        return str(text).removeprefix("Error opening input: ")[:200]


def read_arguments() -> list[str]:
    """Return what stands before every input: one thread, the white lists, and nothing but the streams' own pictures."""
    return [
        *("-hide_banner", "-nostdin", "-nostats", "-v", "level+repeat+verbose"),
        *("-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(MAX_PIXELS), "-threads", "1"),
    ]


def descriptor_url(descriptor: int) -> str:
    """Return the name under which ffmpeg opens a descriptor that it inherits."""
    return f"file:/dev/fd/{descriptor}"


def run_ffmpeg(arguments: Sequence[str], descriptor: int, time_limit_s: float) -> Messages:
    """Run ffmpeg to its end, within limits of wall time, CPU time, memory and output size.

    Args:
        arguments: The command with its program.
        descriptor: A file that it inherits.
        time_limit_s: Wall time after which it is killed.

    Raises:
        ClipError: With reason timeout, too large, or unreadable when it crashed.
        InterruptedError: Somebody else asked it to end, which is not the video's fault.
    """
    messages = _run_once(arguments, descriptor, time_limit_s)
    if messages.return_code == -signal.SIGKILL:
        # The system's last resort when memory runs out; another process may have taken it.
        messages = _run_once(arguments, descriptor, time_limit_s)
    _check_end(messages, time_limit_s)
    return messages


def _run_once(arguments: Sequence[str], descriptor: int, time_limit_s: float) -> Messages:
    clean = {name: value for name, value in os.environ.items() if name != "FFREPORT" and not name.startswith("AV_LOG_")}
    deadline = time.monotonic() + time_limit_s
    messages = Messages()
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(descriptor,),
        env=clean,
    ) as process:
        try:
            _limit(process.pid, time_limit_s)
            _listen(process, messages, deadline)
            messages.return_code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ClipError("transcode", "timeout", f"ffmpeg took longer than {time_limit_s:g} s") from None
        finally:
            process.kill()
    return messages


def _limit(pid: int, time_limit_s: float) -> None:
    # From outside and not by preexec_fn, which is unsafe in a process with threads and slow in a large one. So an
    # ffmpeg whose parent dies within its first milliseconds is without limits, and ends with its file.
    if not hasattr(resource, "prlimit"):
        return
    cpu_s = math.ceil(CPU_SHARE * time_limit_s)
    limits = {
        resource.RLIMIT_AS: (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES),
        resource.RLIMIT_CPU: (cpu_s, cpu_s + CPU_GRACE_S),
        resource.RLIMIT_FSIZE: (OUTPUT_LIMIT_BYTES, OUTPUT_LIMIT_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    with contextlib.suppress(ProcessLookupError):
        for kind, limit in limits.items():
            resource.prlimit(pid, kind, limit)


def _listen(process: subprocess.Popen[bytes], messages: Messages, deadline: float) -> None:
    if process.stderr is None:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                data = os.read(process.stderr.fileno(), 1 << 16)
                messages.feed(data or b"\n")
                if not data:
                    return
    raise subprocess.TimeoutExpired(process.args, 0)


def _check_end(messages: Messages, time_limit_s: float) -> None:
    code = messages.return_code
    # A signal makes it end by itself, with a file that looks whole.
    asked = re.search(r"received signal (\d+)\.\s*$", messages.text) if code == 255 else None
    stop = int(asked[1]) if asked else -code
    if stop == signal.SIGXCPU:
        raise ClipError("transcode", "timeout", f"ffmpeg took longer than {time_limit_s:g} s")
    if asked or stop in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        raise InterruptedError(f"ffmpeg was ended from outside by signal {stop}")
    if messages.counts["no_memory"] or stop == signal.SIGKILL:
        raise ClipError("transcode", "too large", f"decoding takes more than {MEMORY_LIMIT_BYTES >> 30} GiB of memory")
    if stop == signal.SIGXFSZ:
        raise ClipError("transcode", "too large", f"the clip takes more than {OUTPUT_LIMIT_BYTES >> 30} GiB")
    if code < 0:
        raise ClipError("transcode", "unreadable", f"ffmpeg crashed ({signal.Signals(stop).name})")
