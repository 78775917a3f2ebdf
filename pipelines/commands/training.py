"""`vast demo`, `vast pretrain`, `vast finetune`, `vast search`."""

import argparse
from pathlib import Path

from pipelines.commands.arguments import Commands, address_argument, recipe_arguments
from pipelines.terminal import Terminal


def add_demo(commands: Commands) -> None:
    """The whole path in one command."""
    demo = commands.add_parser("demo", help="the whole path on generated, really encoded clips")
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder for everything it makes (default: demo)")
    demo.add_argument("--quick", action="store_true", help="few clips and steps: shows the path, not the accuracy")
    demo.set_defaults(run=_demo)


def add_to(commands: Commands) -> None:
    """Runs and campaigns."""
    for name, what in (("pretrain", "train a recipe from scratch"), ("finetune", "train a recipe from given weights")):
        _add_train(commands, name, what)
    _add_search(commands)


def _add_train(commands: Commands, name: str, what: str) -> None:
    train = commands.add_parser(name, help=f"{what}; a known run resumes")
    recipe_arguments(train)
    train.add_argument(
        "--ranks",
        default="",
        metavar="N|A..B",
        help="training processes; 2..8 takes as many as the cluster has room for (default: one a GPU, or 1)",
    )
    train.add_argument(
        "--output", default="runs", metavar="URL", help="store for checkpoints and models (default: runs)"
    )
    address_argument(train)
    train.set_defaults(run=_train)


def _add_search(commands: Commands) -> None:
    search = commands.add_parser("search", help="search over a recipe's settings with Ray Tune")
    recipe_arguments(search)
    search.add_argument("--output", default="runs", metavar="URL", help="store of the campaign (default: runs)")
    address_argument(search)
    search.set_defaults(run=_search)


def _demo(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.demo import FULL, QUICK, run_demo

    run_demo(Path(args.out), terminal, QUICK if args.quick else FULL)


def _train(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.config import resolve

    config = resolve(args.recipe, args.overrides)  # every mistake is found before Ray starts
    from pipelines.training.launch import train
    from pipelines.training.ranks import Ranks

    ranks = Ranks.parse(args.ranks) if args.ranks else Ranks()
    terminal.say(f"library output goes to {terminal.log_path}")
    done = train(config, terminal, ranks=ranks, output=args.output, kind=args.command, address=args.address)
    terminal.say(
        f"top-1 {done.score.top1:.1f} %  top-5 {done.score.top5:.1f} %  mean class {done.score.mean_class:.1f} %"
    )
    terminal.say(done.score.denominator())
    terminal.say(f"model  {done.model_url}")
    terminal.say(f"MLflow run {done.tracking.run_id} in {done.tracking.tracking_uri}")


def _search(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.search.campaign import best_model_url, cost_in_words, run_search, trial_rows

    terminal.say(f"library output goes to {terminal.log_path}")
    campaign = run_search(args.recipe, args.overrides, terminal, output=args.output, address=args.address)
    record = campaign.record
    terminal.table("Trials, best first", ["trial", record.metric, "epochs", "state", "settings"], trial_rows(record))
    terminal.say(cost_in_words(record))
    if campaign.budget_spent:
        terminal.say(f"ended by {campaign.budget_spent}; the same command with more continues")
    changes = " ".join(f"{path}={value}" for path, value in campaign.best.changes.items())
    terminal.say(f"best trial {campaign.best.id}: {changes}")
    terminal.say(f"its model: {best_model_url(record)}")
    terminal.say(f"MLflow run {record.tracking.run_id} in {record.tracking.tracking_uri}")
