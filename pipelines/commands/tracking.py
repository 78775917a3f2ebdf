"""`vast report`, `vast track`, `vast ui`."""

import argparse
from pathlib import Path

from pipelines.commands import EXIT_FAILED
from pipelines.commands.arguments import Commands, positive
from pipelines.terminal import Terminal


def add_to(commands: Commands) -> None:
    """What was tracked, told and shown."""
    _add_report(commands)
    _add_track(commands)
    _add_ui(commands)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="the story of a run, an evaluation or a campaign as one web page")
    report.add_argument("what", metavar="RUN|CAMPAIGN", help="URL of its folder, or the id of its MLflow run")
    report.add_argument("--out", default="report.html", metavar="FILE", help="(default: report.html)")
    report.set_defaults(run=_report)


def _add_track(commands: Commands) -> None:
    track = commands.add_parser("track", help="what waits on this machine for the tracking server")
    verbs = track.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("status", help="what waits, for which run and server").set_defaults(run=_track_status)
    flush = verbs.add_parser("flush", help="send what waits; exit code 1 if some still does")
    flush.add_argument("--run", dest="run_id", default="", metavar="ID", help="of this MLflow run (default: of all)")
    flush.set_defaults(run=_track_flush)


def _add_ui(commands: Commands) -> None:
    ui = commands.add_parser("ui", help="open the MLflow UI over the tracking store")
    ui.add_argument(
        "--store", default="", metavar="URI", help="tracking store (default: MLFLOW_TRACKING_URI or ./mlflow.db)"
    )
    ui.add_argument("--port", type=positive, default=5000)
    ui.set_defaults(run=_ui)


def _report(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.report.write import write_report

    out = Path(args.out)
    kind = write_report(args.what, out)
    terminal.say(f"{out}: the story of this {kind}, {out.stat().st_size / 1e3:.0f} kB, needs nothing else")


def _track_status(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.track import show_status

    show_status(terminal)


def _track_flush(args: argparse.Namespace, terminal: Terminal) -> int:
    from pipelines.track import flush_all

    return 0 if flush_all(args.run_id, terminal) else EXIT_FAILED


def _ui(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.tracking import serve_ui

    serve_ui(args.store, args.port, terminal)
