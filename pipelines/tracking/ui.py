"""MLflow's own server over a store, for `vast ui`."""

import os
import sys
from pathlib import Path

from pipelines.terminal import Terminal
from pipelines.tracking.runs import tracking_uri
from vast.errors import UserError


def serve_ui(store: str, port: int, terminal: Terminal) -> None:
    """Become MLflow's server over `store`, on loopback; for a tracking server, say where its own UI is."""
    uri = store or tracking_uri()
    if uri.startswith(("http://", "https://")):
        terminal.say(f"the tracking server has its own UI: {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"--store: no tracking database at {uri}; train something first, or name another store")
    terminal.say(f"MLflow UI over {uri}")
    terminal.say(f"open http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a third of the memory
    os.execv(sys.executable, command)  # no process of ours between a person's signals and the server
