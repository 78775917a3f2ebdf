"""The `vast` command. A user's mistake gives one readable message and exit code 2, never a traceback."""

import argparse
import datetime
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipelines.commands import EXIT_FAILED, EXIT_MISTAKE, datasets, models, planning, tracking, training
from pipelines.stopping import Interrupted
from pipelines.terminal import own_terminal
from vast import __version__
from vast.errors import StoreError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 a mistake in what was asked, 130 after Ctrl-C, 143 after SIGTERM.
    """
    args = parse(argv)
    log_path = Path(args.log) if args.log else _log_path(args)
    try:
        with own_terminal(log_path) as terminal:
            try:
                return args.run(args, terminal) or 0
            except (UserError, StoreError, KeyboardInterrupt):
                raise
            except Exception:
                traceback.print_exc()  # descriptor 2 is the log here
                raise
    except UserError as error:
        print(f"vast {args.command}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except StoreError as error:
        print(f"vast {args.command}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt as error:
        print(f"\nvast {args.command}: interrupted; the same command continues where it stood", file=sys.stderr)
        return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        print(f"vast {args.command}: failed: {type(error).__name__}: {first}\nfull story: {log_path}", file=sys.stderr)
        return EXIT_FAILED


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; key=value words may stand before, between and after options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse gives a `nargs="*"` positional only the first stretch of words
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _log_path(args: argparse.Namespace) -> Path:
    if args.command == "demo":
        return Path(args.out) / "demo.log"
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(".vast") / "logs" / f"{now}-{args.command}-{os.getpid()}.log"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="vast",
        description="Raw action-recognition video to a trained, tracked model: WebDataset shards, VAST, Ray, MLflow.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--log", metavar="FILE", help="where the libraries' own output goes (default: under .vast/logs)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training.add_demo(commands)
    for group in (datasets, planning, training, models, tracking):
        group.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
