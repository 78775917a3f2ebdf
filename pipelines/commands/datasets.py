"""`vast synth`, `vast shard`, `vast data`."""

import argparse
import os
from pathlib import Path

from pipelines.commands import EXIT_FAILED
from pipelines.commands.arguments import Commands, address_argument, natural, optional_path, positive
from pipelines.terminal import Terminal


def add_to(commands: Commands) -> None:
    """Clips made, packed and looked at."""
    _add_synth(commands)
    _add_shard(commands)
    _add_data(commands)


def _add_synth(commands: Commands) -> None:
    synth = commands.add_parser("synth", help="generate clips in the published layout of a data set")
    synth.add_argument("dataset", choices=["ssv2", "kinetics"])
    synth.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist or be empty")
    synth.add_argument("--train", type=positive, default=640, metavar="N", help="training clips")
    synth.add_argument("--val", type=positive, default=160, metavar="N", help="validation clips")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes")
    synth.set_defaults(run=_synth)


def _add_shard(commands: Commands) -> None:
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
    shard.add_argument("--short-side", type=positive, default=0, metavar="PIXELS", help="overrules the profile's")
    shard.add_argument("--samples-per-shard", type=positive, default=400, metavar="N")
    shard.add_argument("--seed", type=int, default=0, help="of the shuffle of records over shards")
    shard.add_argument("--workers", type=positive, default=0, help="clips encoded at once (default: every CPU)")
    shard.add_argument(
        "--max-failures",
        default="50%",
        metavar="SHARE",
        help="stop, with a diagnosis, when more records than this fail, as 5%% (default: 50%%)",
    )
    shard.add_argument("--overwrite", action="store_true", help="replace another data set at --out")
    shard.add_argument("--scratch", metavar="DIR", help="temporary files, on every node (default: the system's)")
    shard.add_argument("--no-tracking", action="store_true", help="no summary run in MLflow")
    address_argument(shard)
    shard.set_defaults(run=_shard)


def _add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="look at, verify, compare or export a sharded data set")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB")

    show = verbs.add_parser("show", help="what is in it")
    show.add_argument("url", metavar="URL")
    show.set_defaults(run=_data_show)

    preview = verbs.add_parser("preview", help="a contact sheet: frames of some clips of each class, as a PNG")
    preview.add_argument("url", metavar="URL")
    preview.add_argument("--out", default="preview.png", metavar="FILE")
    preview.add_argument("--split", default="train")
    preview.add_argument("--num-classes", type=positive, default=12, metavar="N")
    preview.add_argument("--clips-per-class", type=positive, default=2, metavar="N")
    preview.add_argument("--seed", type=int, default=0, help="of the choice of classes and clips")
    preview.set_defaults(run=_data_preview)

    verify = verbs.add_parser("verify", help="re-read everything and check it against the manifest")
    verify.add_argument("url", metavar="URL")
    verify.add_argument("--decode", type=natural, default=32, metavar="N", help="clips to decode in each split")
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
        annotations=optional_path(args.annotations),
        name=args.name,
        splits=tuple(split for split in args.splits.split(",") if split),
        replacements=optional_path(args.replacements),
        classes=optional_path(args.classes),
        list_format=args.list_format,
        profile=args.profile,
        short_side=args.short_side,
        samples_per_shard=args.samples_per_shard,
        seed=args.seed,
        workers=args.workers,
        max_failures=parse_limit(args.max_failures),
        overwrite=args.overwrite,
        scratch=optional_path(args.scratch),
        track=not args.no_tracking,
    )
    shard(request, terminal, args.address)


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

    export(
        args.url,
        optional_path(args.out),
        terminal,
        split=args.split,
        form=args.format,
        extract=optional_path(args.extract),
    )
