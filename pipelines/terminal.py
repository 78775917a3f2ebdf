"""What a person sees: progress, tables and one story; everything libraries print goes to a log file.

Ray and MLflow write from threads, C++ and subprocesses, so the file descriptors themselves are redirected; our own
lines go to a duplicate of the real ones.
"""

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LOG_WIDTH = 160


class Terminal:
    """Our lines for a person, on a terminal or in a log."""

    def __init__(self, stream: IO[str]) -> None:
        # in a log there is no edge to wrap at
        width = None if stream.isatty() else LOG_WIDTH
        self.console = Console(file=stream, highlight=False, soft_wrap=True, width=width)
        self.log_path: Path | None = None

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        self.console.print(text, style=style, markup=False)

    def heading(self, text: str) -> None:
        """A step of the story."""
        self.console.print(f"\n{text}", style="bold", markup=False)

    def warn(self, text: str) -> None:
        """Something worth reading."""
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table; only its last column is ever folded."""
        table = Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=any(columns)
        )
        for column in columns[:-1]:
            table.add_column(column, no_wrap=True)
        table.add_column(columns[-1], overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None) -> Iterator["Bar"]:
        """A bar on a terminal, a plain line now and then elsewhere."""
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console, refresh_per_second=5) as progress:
                task = progress.add_task(what, total=total, note="")

                def update(done: int, whole: int | None, note: str) -> None:
                    progress.update(task, completed=done, total=whole, note=note)

                yield Bar(update)
        else:
            begun = last = time.monotonic()
            first: int | None = None

            def line(done: int, whole: int | None, note: str) -> None:
                nonlocal last, first
                first = done if first is None else first  # a continued job does not count what it found done
                now = time.monotonic()
                if now - last >= 10:
                    last = now
                    left = _left(now - begun, done - first, whole - done) if whole is not None else ""
                    self.say(f"  {what}: {done}/{whole} {left} {note}".rstrip())

            yield Bar(line)


def _left(seconds: float, done: int, missing: int) -> str:
    if done <= 0:
        return ""
    return f"{datetime.timedelta(seconds=round(seconds * missing / done))} left"


class Bar:
    """Handle of one progress display."""

    def __init__(self, update) -> None:  # type: ignore[no-untyped-def]
        self._update = update

    def set(self, done: int, total: int | None, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        self._update(done, total, note)


@contextlib.contextmanager
def own_terminal(log_path: Path) -> Iterator[Terminal]:
    """A Terminal on the real stdout while descriptors 1 and 2 of this process, and so of its children, go to a log."""
    sys.stdout.flush()
    sys.stderr.flush()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    real_out, real_err = os.dup(1), os.dup(2)
    with log_path.open("ab") as log, os.fdopen(os.dup(real_out), "w", encoding="utf-8") as stream:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        terminal = Terminal(stream)
        terminal.log_path = log_path
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(real_out, 1)
            os.dup2(real_err, 2)
            os.close(real_out)
            os.close(real_err)
