"""`vast track`: what waits on this machine for a tracking server, and sending it."""

from pipelines import tracking
from pipelines.terminal import Terminal
from pipelines.tracking import RunRef, Waiting
from pipelines.tracking.spool import spool_folder, spools
from vast.errors import UserError


def show_status(terminal: Terminal) -> None:
    """List what waits on this machine, by run."""
    waiting = tracking.waiting_runs()
    for run, what in waiting:
        terminal.say(_line(run, what))
    if not waiting:
        terminal.say(f"nothing waits on this machine, in {spool_folder()}")


def flush_all(run_id: str, terminal: Terminal) -> bool:
    """Send what waits, for one run or for all; whether nothing is left.

    Raises:
        UserError: `run_id` is not empty, and nothing waits for that run.
    """
    runs = [spool.run for spool in spools() if run_id in ("", spool.run.run_id)]
    if run_id and not runs:
        raise UserError(f"--run: nothing waits for run {run_id} in {spool_folder()}; see `vast track status`")
    all_sent, found = True, False
    for run in runs:
        done = tracking.flush(run)
        found = found or bool(done.before)
        if done.left:
            all_sent = False
            terminal.warn(f"{_line(run, done.left)}: {done.trouble}")
        elif done.before:
            terminal.say(f"run {run.run_id}: sent {done.before} to {run.tracking_uri}")
        if done.left.damaged:
            terminal.warn(_line(run, Waiting(0, 0, 0, 0, "", done.left.damaged)))
    if not found:
        terminal.say(f"nothing waits on this machine, in {spool_folder()}")
    return all_sent


def _line(run: RunRef, what: Waiting) -> str:
    parts = [f"{what} still to be sent to {run.tracking_uri}"] if what else []
    if what.damaged:
        folder = spool_folder() / run.run_id
        parts.append(f"{what.damaged} lines of {folder} could not be read and are no figures any more")
    return f"run {run.run_id}: {'; '.join(parts)}"
