"""The `vast` command. A user's mistake gives one readable message and exit code 2, never a traceback."""

import argparse
import datetime
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.stopping import Interrupted
from pipelines.terminal import Terminal, own_terminal
from vast import __version__
from vast.errors import StoreError, UserError

Command = Callable[[argparse.Namespace, Terminal], int | None]

EXIT_FAILED, EXIT_MISTAKE = 1, 2


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
    _add_demo(commands)
    _add_synth(commands)
    _add_shard(commands)
    _add_data(commands)
    _add_tables(commands)
    _add_plan(commands)
    for name, what in (("pretrain", "train a recipe from scratch"), ("finetune", "train a recipe from given weights")):
        _add_train(commands, name, what)
    _add_search(commands)
    _add_evaluate(commands)
    _add_register(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_report(commands)
    _add_track(commands)
    _add_ui(commands)
    return parser


def _add_demo(commands) -> None:  # type: ignore[no-untyped-def]
    demo = commands.add_parser("demo", help="the whole path on generated, really encoded clips")
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder for everything it makes (default: demo)")
    demo.add_argument("--quick", action="store_true", help="few clips and steps: shows the path, not the accuracy")
    demo.set_defaults(run=_demo)


def _add_synth(commands) -> None:  # type: ignore[no-untyped-def]
    synth = commands.add_parser("synth", help="generate clips in the published layout of a data set")
    synth.add_argument("dataset", choices=["ssv2", "kinetics"])
    synth.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist or be empty")
    synth.add_argument("--train", type=_positive, default=640, metavar="N", help="training clips")
    synth.add_argument("--val", type=_positive, default=160, metavar="N", help="validation clips")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes")
    synth.set_defaults(run=_synth)


def _add_shard(commands) -> None:  # type: ignore[no-untyped-def]
    shard = commands.add_parser("shard", help="re-encode videos and pack them into WebDataset shards")
    shard.add_argument("dataset", choices=["kinetics400", "kinetics600", "kinetics700", "ssv2", "imagenet", "folder"])
    shard.add_argument(
        "--annotations",
        metavar="PATH",
        help="folder of the published annotation files; for `folder` another toolbox's lists (default: class folders)",
    )
    shard.add_argument("--videos", required=True, metavar="PATH", help="raw files: a folder, archives in it included")
    shard.add_argument("--out", required=True, metavar="URL", help="folder or s3://bucket/prefix of the new data set")
    shard.add_argument("--name", default="", help="name in the manifest and the keys (default: the data set's)")
    shard.add_argument("--splits", default="", metavar="A,B", help="(default: train,val; for `folder` all there are)")
    shard.add_argument("--replacements", metavar="PATH", help="folder or archive of replacements for broken files")
    shard.add_argument("--classes", metavar="FILE", help="class list in label-id order (default: the published one)")
    shard.add_argument(
        "--list-format",
        default="auto",
        metavar="TOOLBOX",
        help="who wrote the lists, for `folder` lists with two numbers a line: mmaction2 or videomae when both are "
        "labels; slowfast, xvit, uniformer or tsm when the first counts frames",
    )
    shard.add_argument(
        "--profile",
        choices=["s256", "s320", "intra", "jpeg32"],
        default="s256",
        help="short side 256 or 320; intra: every frame a key frame; jpeg32: 32 pictures a clip (default: s256)",
    )
    shard.add_argument("--short-side", type=_positive, default=0, metavar="PIXELS", help="overrules the profile's")
    shard.add_argument("--samples-per-shard", type=_positive, default=400, metavar="N")
    shard.add_argument("--seed", type=int, default=0, help="of the shuffle of records over shards")
    shard.add_argument("--workers", type=_positive, default=0, help="clips encoded at once (default: every CPU)")
    shard.add_argument(
        "--max-failures",
        default="50%",
        metavar="SHARE",
        help="stop, with a diagnosis, when more records than this fail, as 5%% (default: 50%%)",
    )
    shard.add_argument("--overwrite", action="store_true", help="replace another data set at --out")
    shard.add_argument("--scratch", metavar="DIR", help="temporary files, on every node (default: the system's)")
    shard.add_argument("--no-tracking", action="store_true", help="no summary run in MLflow")
    shard.add_argument("--address", metavar="HOST:PORT", help="Ray cluster (default: RAY_ADDRESS, else this machine)")
    shard.set_defaults(run=_shard)


def _add_data(commands) -> None:  # type: ignore[no-untyped-def]
    data = commands.add_parser("data", help="look at, verify, compare or export a sharded data set")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB")

    show = verbs.add_parser("show", help="what is in it")
    show.add_argument("url", metavar="URL")
    show.set_defaults(run=_data_show)

    preview = verbs.add_parser("preview", help="a contact sheet: frames of some clips of each class, as a PNG")
    preview.add_argument("url", metavar="URL")
    preview.add_argument("--out", default="preview.png", metavar="FILE")
    preview.add_argument("--split", default="train")
    preview.add_argument("--num-classes", type=_positive, default=12, metavar="N")
    preview.add_argument("--clips-per-class", type=_positive, default=2, metavar="N")
    preview.add_argument("--seed", type=int, default=0, help="of the choice of classes and clips")
    preview.set_defaults(run=_data_preview)

    verify = verbs.add_parser("verify", help="re-read everything and check it against the manifest")
    verify.add_argument("url", metavar="URL")
    verify.add_argument("--decode", type=_natural, default=32, metavar="N", help="clips to decode in each split")
    verify.add_argument("--all", action="store_true", help="decode every clip")
    verify.set_defaults(run=_data_verify)

    leaks = verbs.add_parser("leaks", help="source videos that two data sets, or two splits of one, share")
    leaks.add_argument("url", metavar="A")
    leaks.add_argument("other", metavar="B", nargs="?", default="", help="(default: A's own splits)")
    leaks.set_defaults(run=_data_leaks)

    export = verbs.add_parser("export-list", help="a list for another toolbox, and the clips as files if asked")
    export.add_argument("url", metavar="URL")
    export.add_argument("--split", default="train")
    export.add_argument(
        "--format",
        default="mmaction2",
        metavar="TOOLBOX",
        help="mmaction2, slowfast, xvit, uniformer, videomae or video2dataset (default: mmaction2)",
    )
    export.add_argument("--out", metavar="FILE", help="(default: named after the split and the toolbox)")
    export.add_argument("--extract", metavar="DIR", help="also write the split's clips there, as the list names them")
    export.set_defaults(run=_data_export)


def _add_tables(commands) -> None:  # type: ignore[no-untyped-def]
    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(run=_recipes)
    models = commands.add_parser("models", help="what each model size costs, and what it was matched to")
    models.add_argument("names", nargs="*", metavar="MODEL", help="sizes to list (default: all)")
    models.add_argument(
        "--frames", type=_positive, default=0, metavar="N", help="frames of a clip (default: 8; image models have 1)"
    )
    models.add_argument(
        "--crop", type=_positive, default=0, metavar="PIXELS", help="side of a clip (default: 224, of micro 64)"
    )
    models.add_argument("--measure", action="store_true", help="also time each on this machine: a minute or more")
    models.add_argument("--json", action="store_true", help="plain numbers, for programs")
    models.set_defaults(run=_models)
    check = commands.add_parser("check", help="list every problem of a run before it starts, on a cluster's own nodes")
    _recipe_arguments(check)
    check.add_argument("--output", default="", metavar="URL", help="store of checkpoints, to be written once")
    check.add_argument("--eval-data", action="append", default=[], metavar="URL", help="data set to be scored on later")
    check.add_argument("--address", metavar="ADDRESS", help="Ray cluster whose nodes are looked at (or RAY_ADDRESS)")
    check.add_argument("--ranks", default="", metavar="N", help="ranks, or a range (default: one for each GPU, or one)")
    check.add_argument("--clips-per-second", type=_rate, default=0.0, metavar="X", help="of one rank, as it trains")
    check.add_argument("--price-per-gpu-hour", type=_rate, default=0.0, metavar="X", help="in any currency")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(run=_check)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file's path or URL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings, as optim.lr=3e-4")


def _add_train(commands, name: str, what: str) -> None:  # type: ignore[no-untyped-def]
    train = commands.add_parser(name, help=f"{what}; a known run resumes")
    _recipe_arguments(train)
    train.add_argument(
        "--ranks",
        default="",
        metavar="N|A..B",
        help="training processes; 2..8 takes as many as the cluster has room for (default: one a GPU, or 1)",
    )
    train.add_argument(
        "--output", default="runs", metavar="URL", help="store for checkpoints and models (default: runs)"
    )
    train.add_argument("--address", metavar="HOST:PORT", help="Ray cluster (default: RAY_ADDRESS, else this machine)")
    train.set_defaults(run=_train)


def _add_plan(commands) -> None:  # type: ignore[no-untyped-def]
    plan = commands.add_parser("plan", help="steps, time, memory and money of a recipe on 8 to 1024 GPUs")
    _recipe_arguments(plan)
    plan.add_argument(
        "--gpus",
        type=_positives,
        default=(),
        metavar="N,N",
        help="numbers of ranks (default: 1,8,16,...,1024)",
    )
    plan.add_argument("--samples", type=_positive, default=0, metavar="N", help="(default: those of data.url)")
    plan.add_argument("--clips-per-second", type=_rate, default=0.0, metavar="X", help="of one rank")
    plan.add_argument("--measured", default="", metavar="RUN", help="take the speeds of a training run")
    plan.add_argument("--decode-clips-per-second", type=_rate, default=0.0, metavar="X", help="of one reader core")
    plan.add_argument("--reader-cores-per-node", type=_positive, default=0, metavar="N", help="(default: enough)")
    plan.add_argument("--gpus-per-node", type=_positive, default=8, metavar="N", help="(default: 8)")
    plan.add_argument("--link-gbit", type=_rate, default=0.0, metavar="X", help="of a node's network (default: 100)")
    plan.add_argument("--gpu-memory-gb", type=_rate, default=0.0, metavar="X", help="what memory is held against")
    plan.add_argument("--price-per-gpu-hour", type=_rate, default=0.0, metavar="X", help="in any currency")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(run=_plan)


def _add_search(commands) -> None:  # type: ignore[no-untyped-def]
    search = commands.add_parser("search", help="search over a recipe's settings with Ray Tune")
    _recipe_arguments(search)
    search.add_argument("--output", default="runs", metavar="URL", help="store of the campaign (default: runs)")
    search.add_argument("--address", metavar="HOST:PORT", help="Ray cluster (default: RAY_ADDRESS, else this machine)")
    search.set_defaults(run=_search)


def _add_evaluate(commands) -> None:  # type: ignore[no-untyped-def]
    evaluate = commands.add_parser("evaluate", help="score a trained model, every record accounted for")
    evaluate.add_argument(
        "model", metavar="MODEL", nargs="?", default="", help="URL of a run or checkpoint, or an MLflow run id"
    )
    evaluate.add_argument("--data", default="", metavar="URL", help="data set")
    evaluate.add_argument("--split", default="", help="(default: the recipe's eval_split)")
    evaluate.add_argument(
        "--protocol",
        default="",
        metavar="NAME",
        help="a named one, or temporal clips x spatial crops, as 4x3 (default: the recipe's)",
    )
    evaluate.add_argument("--protocols", action="store_true", help="list the named protocols")
    evaluate.add_argument("--ranks", type=_positive, default=0, metavar="N", help="(default: one a GPU, or 1)")
    evaluate.add_argument("--address", metavar="HOST:PORT", help="Ray cluster (default: RAY_ADDRESS, else here)")
    evaluate.add_argument(
        "--out", default="", metavar="URL", help="results: a folder or s3://bucket/prefix (default: under evaluations)"
    )
    evaluate.add_argument("--allow-leaks", action="store_true", help="score videos that the model was trained on")
    evaluate.add_argument("--save-probabilities", action="store_true", help="keep those of all classes, not of five")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of the story")
    evaluate.set_defaults(run=_evaluate)


def _add_register(commands) -> None:  # type: ignore[no-untyped-def]
    register = commands.add_parser("register", help="a trained model as a version in MLflow's registry, to be served")
    register.add_argument("model", metavar="MODEL", help="URL of a run or checkpoint, or an MLflow run id")
    register.add_argument("--name", default="", help="of the registered model (default: the recipe's)")
    register.add_argument(
        "--evaluation",
        default="",
        metavar="URL|RUN",
        help="of this model, for the champion (default: the latest tracked)",
    )
    register.add_argument(
        "--protocol", default="", metavar="NAME", help="views that it takes of a video (default: the recipe's)"
    )
    register.set_defaults(run=_register)


def _add_predict(commands) -> None:  # type: ignore[no-untyped-def]
    predict = commands.add_parser("predict", help="what a trained model sees in videos, or in a split of a data set")
    predict.add_argument("model", metavar="MODEL", help="URL of a run or checkpoint, an MLflow run id, or models:/NAME")
    predict.add_argument("videos", metavar="VIDEO", nargs="*", help="files, folders, or s3:// objects and prefixes")
    predict.add_argument(
        "--protocol", default="", metavar="NAME", help="views of a video, as 4x3 (default: the recipe's)"
    )
    predict.add_argument(
        "--top", type=_positive, default=5, metavar="N", help="classes told of each video (default: 5)"
    )
    predict.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    predict.add_argument(
        "--picture", default="", metavar="FILE.png", help="frames and bars, or the timeline of windows"
    )
    predict.add_argument(
        "--window", type=float, default=0.0, metavar="S", help="cut each video into windows of S seconds"
    )
    predict.add_argument(
        "--hop", type=float, default=0.0, metavar="S", help="from window to window (default: --window)"
    )
    predict.add_argument(
        "--data", default="", metavar="URL", help="predict a split of a data set instead, labels or not"
    )
    predict.add_argument("--split", default="", help="with --data (default: the recipe's eval_split)")
    predict.add_argument(
        "--out", default="", metavar="FILE.parquet", help="with --data: path or URL of the predictions"
    )
    predict.set_defaults(run=_predict)


def _add_export(commands) -> None:  # type: ignore[no-untyped-def]
    export = commands.add_parser("export", help="a trained model as one file that runs without this code, checked")
    export.add_argument("model", metavar="MODEL", help="URL of a run or a checkpoint, or an MLflow run id")
    export.add_argument("--format", choices=["pt2", "onnx"], required=True, help="torch.export's archive, or ONNX")
    export.add_argument("--out", default="", metavar="FILE", help="path or URL (default: named after the recipe, here)")
    export.set_defaults(run=_export)


def _add_report(commands) -> None:  # type: ignore[no-untyped-def]
    report = commands.add_parser("report", help="the story of a run, an evaluation or a campaign as one web page")
    report.add_argument("what", metavar="RUN|CAMPAIGN", help="URL of its folder, or the id of its MLflow run")
    report.add_argument("--out", default="report.html", metavar="FILE", help="(default: report.html)")
    report.set_defaults(run=_report)


def _add_track(commands) -> None:  # type: ignore[no-untyped-def]
    track = commands.add_parser("track", help="what waits on this machine for the tracking server")
    verbs = track.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("status", help="what waits, for which run and server").set_defaults(run=_track_status)
    flush = verbs.add_parser("flush", help="send what waits; exit code 1 if some still does")
    flush.add_argument("--run", dest="run_id", default="", metavar="ID", help="of this MLflow run (default: of all)")
    flush.set_defaults(run=_track_flush)


def _add_ui(commands) -> None:  # type: ignore[no-untyped-def]
    ui = commands.add_parser("ui", help="open the MLflow UI over the tracking store")
    ui.add_argument(
        "--store", default="", metavar="URI", help="tracking store (default: MLFLOW_TRACKING_URI or ./mlflow.db)"
    )
    ui.add_argument("--port", type=_positive, default=5000)
    ui.set_defaults(run=_ui)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {value:g}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


# Each command imports what it needs, so that `vast --help` and mistakes answer at once.


def _demo(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.demo import FULL, QUICK, run_demo

    run_demo(Path(args.out), terminal, QUICK if args.quick else FULL)


def _synth(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.datasets import synth

    synth(
        args.dataset,
        Path(args.out),
        terminal,
        num_train=args.train,
        num_val=args.val,
        seed=args.seed,
        workers=args.workers,
    )


def _shard(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.shard import ShardRequest, shard
    from preprocessing.diagnosis import parse_limit

    request = ShardRequest(
        kind=args.dataset,
        videos=Path(args.videos),
        out=args.out,
        annotations=_path(args.annotations),
        name=args.name,
        splits=tuple(split for split in args.splits.split(",") if split),
        replacements=_path(args.replacements),
        classes=_path(args.classes),
        list_format=args.list_format,
        profile=args.profile,
        short_side=args.short_side,
        samples_per_shard=args.samples_per_shard,
        seed=args.seed,
        workers=args.workers,
        max_failures=parse_limit(args.max_failures),
        overwrite=args.overwrite,
        scratch=_path(args.scratch),
        track=not args.no_tracking,
    )
    shard(request, terminal, args.address)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _data_show(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.datasets import show

    show(args.url, terminal)


def _data_preview(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.datasets import preview

    preview(
        args.url,
        Path(args.out),
        terminal,
        split=args.split,
        num_classes=args.num_classes,
        clips_per_class=args.clips_per_class,
        seed=args.seed,
    )


def _data_verify(args: argparse.Namespace, terminal: Terminal) -> int:
    from pipelines.datasets import verify

    return EXIT_FAILED if verify(args.url, terminal, decode=args.decode, decode_all=args.all) else 0


def _data_leaks(args: argparse.Namespace, terminal: Terminal) -> int:
    from pipelines.datasets import leaks

    return EXIT_FAILED if leaks(args.url, args.other or args.url, terminal) else 0


def _data_export(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.datasets import export

    export(args.url, _path(args.out), terminal, split=args.split, form=args.format, extract=_path(args.extract))


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


def _train(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.config import resolve

    config = resolve(args.recipe, args.overrides)  # every mistake is found before Ray starts
    from pipelines.launch import train
    from pipelines.ranks import Ranks

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


def _evaluate(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.tables import protocol_rows

    if args.protocols:
        columns = ["protocol", "clips x crops", "short side", "crop", "sampling", "clips and crops of"]
        terminal.table("Protocols, for a model of 224x224 crops", columns, protocol_rows())
        return
    if not args.model or not args.data:
        raise UserError("give MODEL and --data URL, or --protocols")
    from pipelines.evaluate import EvaluateRequest, evaluate

    request = EvaluateRequest(
        model=args.model,
        data=args.data,
        split=args.split,
        protocol=args.protocol,
        ranks=args.ranks,
        address=args.address,
        out=args.out,
        allow_leaks=args.allow_leaks,
        save_probabilities=args.save_probabilities,
    )
    if args.json:
        done = evaluate(request, Terminal(sys.stderr))  # descriptor 2 is the log here
        terminal.say(json.dumps({**done.content, "out": done.out}, ensure_ascii=False))
        return
    done = evaluate(request, terminal)
    done.report.show(terminal)
    terminal.say(f"results  {done.out}")
    terminal.say(f"MLflow run {done.tracking.run_id} in {done.tracking.tracking_uri}")


def _register(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.registry.register import CHAMPION, register

    done = register(args.model, args.name, args.evaluation, args.protocol)
    known = "" if done.is_new else ", which has these weights already"
    terminal.say(f"models:/{done.name}/{done.version}{known}")
    terminal.say(f"{'champion' if done.is_champion else 'not champion'}: {done.why}")
    if done.is_champion:
        terminal.say(f"serve it: mlflow models serve -m models:/{done.name}@{CHAMPION} --env-manager local")


def _predict(args: argparse.Namespace, terminal: Terminal) -> int:
    from pipelines.predict.command import PredictRequest, predict_dataset, predict_videos

    request = PredictRequest(
        model=args.model,
        videos=args.videos,
        protocol=args.protocol,
        top=args.top,
        picture=args.picture,
        window_s=args.window,
        hop_s=args.hop,
        data=args.data,
        split=args.split,
        out=args.out,
    )
    if bool(args.data) == bool(args.videos):
        raise UserError("give videos, or a data set with --data" + (", not both" if args.data else ""))
    if args.data:
        return EXIT_FAILED if predict_dataset(request, terminal) else 0
    return EXIT_FAILED if predict_videos(request, terminal, as_json=args.json) else 0


def _export(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.export import CHECKED_BATCHES, export

    done = export(args.model, args.format, args.out, terminal)
    terminal.say(f"{done.url}: {done.size_bytes / 1e6:.1f} MB")
    batches = " and ".join(map(str, CHECKED_BATCHES))
    terminal.say(f"loaded again and run on {batches} clips: logits within {done.difference:.1e} of the model's")


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


if __name__ == "__main__":
    sys.exit(main())
