"""From a recipe and overrides to one frozen config, with every problem reported at once.

A recipe is a YAML file, shipped (by name) or the user's own (by path, or at an s3:// URL, as each run keeps its own).
`base: other_recipe` starts from another one.
Everything is checked before Ray or a GPU is touched.
"""

import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import BaseModel, ValidationError

from vast.data.order import steps_per_epoch
from vast.data.protocols import resolve_protocol
from vast.dataset_format import Manifest, read_manifest
from vast.errors import StoreError, UserError
from vast.storage import open_store
from vast.train.config import TrainConfig

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with unique keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def shipped_recipes() -> dict[str, Path]:
    """Recipes in the package, by name."""
    folder = Path(str(resources.files("pipelines") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(recipe: str) -> Tree:
    """The recipe as a tree, its bases merged in.

    Raises:
        UserError: unknown name, unreadable file, or YAML that is not a mapping.
    """
    return _read(recipe, chain=())


def _read(recipe: str, chain: tuple[str, ...]) -> Tree:
    if recipe in chain:
        raise UserError(f"recipe {recipe}: `base` goes in a circle: {' -> '.join([*chain, recipe])}")
    shipped = shipped_recipes()
    path = shipped.get(recipe, Path(recipe))
    remote = "://" in recipe
    if not remote and not path.is_file():
        near = difflib.get_close_matches(recipe, shipped, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"recipe {recipe!r}: no such file, and no shipped recipe of that name{hint} (`vast recipes`)")
    where = recipe if remote else path
    try:
        folder, _, name = recipe.rpartition("/")
        content = open_store(folder).get_bytes(name) if remote else path.read_bytes()
        tree = yaml.load(content.decode("utf-8"), _Loader)
    except (yaml.YAMLError, UserError, StoreError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {where}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {where}: must be a mapping of sections, found {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = path.parent / f"{base}.yaml"
    start = _read(str(beside) if base not in shipped and beside.is_file() else str(base), (*chain, recipe))
    merged = merge(start, tree)
    search = tree.get("search")
    if isinstance(search, dict) and "space" in search:
        merged["search"]["space"] = search["space"]  # another question, not more of the base's
    return merged


def merge(base: Tree, changes: Mapping[str, Any]) -> Tree:
    """`base` with `changes` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str]) -> Tree:
    """`optim.lr=3e-4` words as a tree; values are YAML.

    Raises:
        UserError: a word without `=` or with an empty key.
    """
    tree: Tree = {}
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not path or any(not part for part in path.split(".")):
            raise UserError(f"override {word!r}: expected section.key=value, as optim.lr=3e-4")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise UserError(f"override {word!r}: the value is not YAML: {error}") from error
        tree = merge(tree, nested(path, value))
    return tree


def nested(path: str, value: Any) -> Tree:
    """`a.b` and a value as {a: {b: value}}."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return typing.cast(Tree, value)


def resolve(
    recipe: str, overrides: Sequence[str] = (), *, ignore: Sequence[str] = ("search",), data_sets: bool = True
) -> TrainConfig:
    """The full config of a recipe with overrides, checked against its data sets.

    Args:
        recipe: shipped name or path of a YAML file.
        overrides: `section.key=value` words.
        ignore: top-level sections that are not the training config's.
        data_sets: whether the data sets it names are looked at.

    Raises:
        UserError: one message that lists every problem found.
    """
    tree = merge(read_recipe(recipe), parse_overrides(overrides))
    for section in ignore:
        tree.pop(section, None)
    return validate(tree, f"recipe {recipe}", data_sets=data_sets)


def absolute(url: str) -> str:
    """Local paths made absolute, since Ray's processes stand in folders of their own; other URLs unchanged."""
    return url if "://" in url or not url else str(Path(url).resolve())


def with_absolute_urls(tree: Tree) -> Tree:
    """A tree of settings with its local paths made absolute."""
    changes: Tree = {}
    for section, keys in (("", ("init_from", "resume_from")), ("data", ("url", "eval_url"))):
        found = tree.get(section) if section else tree
        if isinstance(found, dict):
            urls = {key: absolute(found[key]) for key in keys if isinstance(found.get(key), str)}
            changes = merge(changes, {section: urls} if section else urls)
    return merge(tree, changes)


def validate(tree: Tree, what: str, *, data_sets: bool = True) -> TrainConfig:
    """Validate a tree and, if wanted, the data sets it names; one UserError lists every problem."""
    tree = with_absolute_urls(tree)
    problems = wrong_booleans(tree, TrainConfig)
    config: TrainConfig | None = None
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        problems += [explain(detail, TrainConfig) for detail in error.errors()]
    if data_sets:
        problems += _data_problems(tree, config)
    if problems or config is None:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{what}: {count}\n{lines}")
    return config


def explain(detail: Any, model: type[BaseModel], prefix: str = "") -> str:
    """One pydantic finding for a person: dotted path, what was found, what is expected, the nearest valid key."""
    path = prefix + ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        *section, key = detail["loc"]
        valid = sorted(_fields_at(model, section))
        near = difflib.get_close_matches(key, valid, n=1) or sorted(_places_of(key, model, prefix))
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{path}: unknown key; {hint}valid here: {', '.join(valid)}"
    if detail["type"] == "model_type":
        inside = ", ".join(_fields_at(model, detail["loc"]))
        return f"{path}: got {detail['input']!r}; expected a section, of: {inside}"
    if detail["type"] == "missing":
        return f"{path}: missing; every recipe must give it"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict):  # of a whole section, whose own words say what is wrong in it
        return f"{path}: {message}"
    return f"{path}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _fields_at(model: Any, section: Sequence[str]) -> Iterable[str]:
    for part in section:
        model = model.model_fields[part].annotation
    fields: Iterable[str] = model.model_fields
    return fields


def _places_of(key: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted paths of the fields of that name in any section."""
    for name, field in model.model_fields.items():
        if name == key:
            yield prefix + name
        if _is_section(field.annotation):
            yield from _places_of(key, field.annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def wrong_booleans(tree: Tree, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Numbers for which a boolean is given."""
    # YAML reads `on`, `yes` and `no` as booleans, and pydantic would turn a boolean into 1.0 without a word.
    problems = []
    for key, value in tree.items():
        field = model.model_fields.get(str(key))
        if field is None:
            continue
        if isinstance(value, dict) and _is_section(field.annotation):
            problems += wrong_booleans(value, field.annotation, f"{prefix}{key}.")
        values = value if isinstance(value, list) else [value]
        kinds = _leaf_types(field.annotation)
        if any(isinstance(part, bool) for part in values) and bool not in kinds and kinds & {int, float}:
            problems.append(f"{prefix}{key}: got {value} (YAML reads yes/no/on/off as true/false); expected a number")
    return problems


def _leaf_types(annotation: Any) -> set[Any]:
    """The types that a value, or a part of it, may have: {float} of a pair of bounded floats."""
    parts = typing.get_args(annotation)
    if parts:
        return {kind for part in parts for kind in _leaf_types(part)}
    return {annotation} if isinstance(annotation, type) else set()  # the others are choices and bounds


def _data_problems(tree: Tree, config: TrainConfig | None) -> list[str]:
    """What is wrong with the data sets named, even when other parts of the tree are wrong too."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return []
    problems: list[str] = []
    manifests: dict[str, Manifest] = {}
    for key in ("url", "eval_url"):
        url = data.get(key)
        if not isinstance(url, str) or not url:
            continue  # a missing data.url is the validator's finding; an empty eval_url means the training set
        try:
            manifests[key] = read_manifest(url)
        except (UserError, StoreError) as error:
            problems.append(f"data.{key}: {error}")
    if data.get("url") == "":
        problems.append(
            "data.url: empty; give the URL of a data set made by `vast shard`, as data.url=s3://bucket/k400"
        )
    if config is None or "url" not in manifests:
        return problems
    return problems + data_problems(config, manifests)


def data_problems(config: TrainConfig, manifests: Mapping[str, Manifest]) -> list[str]:
    """What does not go together of a config and its data sets, `url` and, where it is another one, `eval_url`."""
    problems = []
    train = manifests["url"]
    evaluation = manifests.get("eval_url", train)
    for field, manifest, split in (
        ("data.train_split", train, config.data.train_split),
        ("data.eval_split", evaluation, config.data.eval_split),
    ):
        if split not in manifest.splits:
            problems.append(f"{field}: no split {split!r} in {manifest.name!r}; it has {', '.join(manifest.splits)}")
    problems += media_problems(config, {f"data.{key}": manifest.media for key, manifest in manifests.items()})
    if config.data.train_split in train.splits:
        try:
            steps_per_epoch(
                train.splits[config.data.train_split].samples, config.optim.global_batch, config.data.repeats
            )
        except UserError as error:
            problems.append(f"optim.global_batch: {error}")
    if not problems and not config.data.allow_leaks:
        problems += _leak_problems(config)
    return problems


def media_problems(config: TrainConfig, media: Mapping[str, str]) -> list[str]:
    """What does not go together of the model (pictures or clips), the clips drawn and the data sets.

    Args:
        config: the model and how clips are drawn.
        media: what each data set holds, "image" or "video", by the field that names it.
    """
    model, data = config.model, config.data
    problems = []
    if model.is_image_model and data.num_frames != 1:
        problems.append(
            f"data.num_frames: got {data.num_frames}, but {model.name} takes single frames: set data.num_frames=1, "
            f"or model.name={model.name.replace('ast_', 'vast_')} for clips"
        )
    for field, kind in media.items():
        if kind == "image" and not model.is_image_model:
            problems.append(
                f"{field}: the data set holds pictures, but {model.name} takes clips: "
                f"set model.name={model.name.replace('vast_', 'ast_')} data.num_frames=1, or give a data set of videos"
            )
    if len(set(media.values())) > 1:
        found = ", ".join(f"{field} holds {kind}s" for field, kind in media.items())
        problems.append(f"data.eval_url: {found}; train and evaluate on the same")
    try:
        scored = resolve_protocol(config.eval.protocol, data).views
    except UserError as error:
        return [*problems, f"eval.protocol: {error}"]
    if "image" in media.values() and scored.temporal > 1:
        problems.append(
            f"eval.protocol: got {config.eval.protocol}, but a picture has one moment, not {scored.temporal}: "
            f"set eval.protocol=1x{scored.spatial}"
        )
    return problems


def _leak_problems(config: TrainConfig) -> list[str]:

    from preprocessing.leaks import find_leaks  # reads parquet: only once everything else is in order

    data = config.data
    try:
        found = find_leaks(data.url, data.resolved_eval_url, data.train_split, data.eval_split)
    except (UserError, StoreError) as error:
        return [f"data.eval_split: cannot be compared with the training split: {error}"]
    return [
        f"data.eval_split: {leak}; a score on videos that were trained on means nothing. "
        "Give another data set, or data.allow_leaks=true to train all the same"
        for leak in found.leaks
    ]
