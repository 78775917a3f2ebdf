"""`vast evaluate`, `vast register`, `vast predict`, `vast export`."""

import argparse
import json
import sys

from pipelines.commands import EXIT_FAILED
from pipelines.commands.arguments import Commands, address_argument, positive
from pipelines.terminal import Terminal
from vast.errors import UserError


def add_to(commands: Commands) -> None:
    """The life of a trained model."""
    _add_evaluate(commands)
    _add_register(commands)
    _add_predict(commands)
    _add_export(commands)


def _add_evaluate(commands: Commands) -> None:
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
    evaluate.add_argument("--ranks", type=positive, default=0, metavar="N", help="(default: one a GPU, or 1)")
    address_argument(evaluate)
    evaluate.add_argument(
        "--out", default="", metavar="URL", help="results: a folder or s3://bucket/prefix (default: under evaluations)"
    )
    evaluate.add_argument("--allow-leaks", action="store_true", help="score videos that the model was trained on")
    evaluate.add_argument("--save-probabilities", action="store_true", help="keep those of all classes, not of five")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of the story")
    evaluate.set_defaults(run=_evaluate)


def _add_register(commands: Commands) -> None:
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


def _add_predict(commands: Commands) -> None:
    predict = commands.add_parser("predict", help="what a trained model sees in videos, or in a split of a data set")
    predict.add_argument("model", metavar="MODEL", help="URL of a run or checkpoint, an MLflow run id, or models:/NAME")
    predict.add_argument("videos", metavar="VIDEO", nargs="*", help="files, folders, or s3:// objects and prefixes")
    predict.add_argument(
        "--protocol", default="", metavar="NAME", help="views of a video, as 4x3 (default: the recipe's)"
    )
    predict.add_argument("--top", type=positive, default=5, metavar="N", help="classes told of each video (default: 5)")
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


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="a trained model as one file that runs without this code, checked")
    export.add_argument("model", metavar="MODEL", help="URL of a run or a checkpoint, or an MLflow run id")
    export.add_argument("--format", choices=["pt2", "onnx"], required=True, help="torch.export's archive, or ONNX")
    export.add_argument("--out", default="", metavar="FILE", help="path or URL (default: named after the recipe, here)")
    export.set_defaults(run=_export)


def _evaluate(args: argparse.Namespace, terminal: Terminal) -> None:
    from pipelines.tables import protocol_rows

    if args.protocols:
        columns = ["protocol", "clips x crops", "short side", "crop", "sampling", "clips and crops of"]
        terminal.table("Protocols, for a model of 224x224 crops", columns, protocol_rows())
        return
    if not args.model or not args.data:
        raise UserError("give MODEL and --data URL, or --protocols")
    from pipelines.evaluation.evaluate import EvaluateRequest, evaluate

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
