"""`vast recipes`, `vast models`, `vast check`, `vast plan`."""

import argparse

from pipelines.commands.arguments import Commands, positive, positives, rate, recipe_arguments
from pipelines.terminal import Terminal


def add_to(commands: Commands) -> None:
    """What can be known before a run."""
    _add_recipes(commands)
    _add_models(commands)
    _add_check(commands)
    _add_plan(commands)


def _add_recipes(commands: Commands) -> None:
    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(run=_recipes)


def _add_models(commands: Commands) -> None:
    models = commands.add_parser("models", help="what each model size costs, and what it was matched to")
    models.add_argument("names", nargs="*", metavar="MODEL", help="sizes to list (default: all)")
    models.add_argument(
        "--frames", type=positive, default=0, metavar="N", help="frames of a clip (default: 8; image models have 1)"
    )
    models.add_argument(
        "--crop", type=positive, default=0, metavar="PIXELS", help="side of a clip (default: 224, of micro 64)"
    )
    models.add_argument("--measure", action="store_true", help="also time each on this machine: a minute or more")
    models.add_argument("--json", action="store_true", help="plain numbers, for programs")
    models.set_defaults(run=_models)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser("check", help="list every problem of a run before it starts, on a cluster's own nodes")
    recipe_arguments(check)
    check.add_argument("--output", default="", metavar="URL", help="store of checkpoints, to be written once")
    check.add_argument("--eval-data", action="append", default=[], metavar="URL", help="data set to be scored on later")
    check.add_argument("--address", metavar="ADDRESS", help="Ray cluster whose nodes are looked at (or RAY_ADDRESS)")
    check.add_argument("--ranks", default="", metavar="N", help="ranks, or a range (default: one for each GPU, or one)")
    check.add_argument("--clips-per-second", type=rate, default=0.0, metavar="X", help="of one rank, as it trains")
    check.add_argument("--price-per-gpu-hour", type=rate, default=0.0, metavar="X", help="in any currency")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(run=_check)


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="steps, time, memory and money of a recipe on 8 to 1024 GPUs")
    recipe_arguments(plan)
    plan.add_argument(
        "--gpus",
        type=positives,
        default=(),
        metavar="N,N",
        help="numbers of ranks (default: 1,8,16,...,1024)",
    )
    plan.add_argument("--samples", type=positive, default=0, metavar="N", help="(default: those of data.url)")
    plan.add_argument("--clips-per-second", type=rate, default=0.0, metavar="X", help="of one rank")
    plan.add_argument("--measured", default="", metavar="RUN", help="take the speeds of a training run")
    plan.add_argument("--decode-clips-per-second", type=rate, default=0.0, metavar="X", help="of one reader core")
    plan.add_argument("--reader-cores-per-node", type=positive, default=0, metavar="N", help="(default: enough)")
    plan.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="(default: 8)")
    plan.add_argument("--link-gbit", type=rate, default=0.0, metavar="X", help="of a node's network (default: 100)")
    plan.add_argument("--gpu-memory-gb", type=rate, default=0.0, metavar="X", help="what memory is held against")
    plan.add_argument("--price-per-gpu-hour", type=rate, default=0.0, metavar="X", help="in any currency")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(run=_plan)


def _recipes(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.recipe_table import show_recipes

    show_recipes(terminal)


def _models(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.tables import show_models

    show_models(terminal, args.names, frames=args.frames, crop=args.crop, measure=args.measure, as_json=args.json)


def _check(args: argparse.Namespace, terminal: Terminal) -> int:
    from pipelines.plan.command import Stated
    from pipelines.preflight.command import CheckRequest, check

    stated = Stated(gpus=(), clips_per_second=args.clips_per_second, price_per_gpu_hour=args.price_per_gpu_hour)
    request = CheckRequest(
        recipe=args.recipe,
        overrides=args.overrides,
        output=args.output,
        eval_data=args.eval_data,
        address=args.address,
        ranks=args.ranks,
        stated=stated,
        as_json=args.json,
    )
    return check(request, terminal)


def _plan(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.plan.command import GPUS, Stated, show_plan

    stated = Stated(
        gpus=args.gpus or GPUS,
        samples=args.samples,
        clips_per_second=args.clips_per_second,
        measured=args.measured,
        decode_clips_per_second=args.decode_clips_per_second,
        reader_cores_per_node=args.reader_cores_per_node,
        gpus_per_node=args.gpus_per_node,
        link_gbit=args.link_gbit,
        gpu_memory_gb=args.gpu_memory_gb,
        price_per_gpu_hour=args.price_per_gpu_hour,
    )
    show_plan(args.recipe, args.overrides, stated, terminal, as_json=args.json)
