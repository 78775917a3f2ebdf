"""The shipped recipes: each resolves, and what the head of its file says is true of it."""

import re
import shlex

import pytest
import yaml

from pipelines import cli
from pipelines.config import resolve, shipped_recipes
from pipelines.plan.work import work_of
from pipelines.recipe_table import COLUMNS, HEAD_WORDS, read_head, recipe_rows, shipped_config
from preprocessing import imagenet, kinetics, ssv2
from vast.train.config import TrainConfig

HEADS = {name: read_head(path) for name, path in shipped_recipes().items()}
REAL = [name for name in HEADS if not name.startswith("demo_")]


# Which training split a shipped recipe is for, by the word for it in the recipe's name.
SPLITS = {
    "in1k": ("ImageNet-1k", imagenet.PUBLISHED["train"]),
    "k400": ("Kinetics-400", min(num for num, _ in kinetics.PUBLISHED["kinetics400"]["train"])),
    "ssv2": ("Something-Something v2", ssv2.PUBLISHED["train"]),
}
"""Name and published training samples; of Kinetics-400 the files that can still be had."""


def shipped_split(name: str) -> tuple[str, int] | None:
    """Return the published training split that a shipped recipe is for; none for the demo's, which are generated."""
    words = name.split("_")
    return None if words[0] == "demo" else next(SPLITS[word] for word in words if word in SPLITS)


def test_the_recipes_of_the_paper_s_path_are_there():
    sizes = ("ti", "s")
    assert set(REAL) == {
        *(f"pretrain_in1k_ast_{size}" for size in sizes),
        *(f"{kind}_vast_{size}_{T}f" for kind in ("pretrain_k400", "finetune_ssv2") for size in sizes for T in (8, 16)),
        *(f"finetune_k400_vast_{size}_16f" for size in sizes),
    }


@pytest.mark.parametrize("name", HEADS)
def test_every_recipe_resolves_against_a_data_set_and_survives_being_written(name, ssv2_shards, picture_shards):
    url = picture_shards if "_in1k_" in name else ssv2_shards
    config = resolve(name, [f"data.url={url}", "optim.global_batch=8"])
    assert config.name == name
    again = TrainConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config
    assert again.digest() == config.digest()


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_its_five_parts_in_order(name):
    assert list(HEADS[name]) == ["", *HEAD_WORDS]
    assert all(len(text) > 5 for text in HEADS[name].values())


@pytest.mark.parametrize("name", REAL)
def test_the_name_says_what_the_recipe_trains(name):
    config = shipped_config(name)
    found = re.search(r"_((?:ast|vast)_(?:ti|s))(?:_(\d+)f)?$", name)
    assert config.model.name == found[1]
    assert config.data.num_frames == int(found[2] or 1)
    assert config.data.sampling == ("uniform" if "ssv2" in name else "dense")
    side = f"{config.data.num_frames} frames" if "k400" in name else ""
    assert side in HEADS[name][""] or "8-frame" in HEADS[name][""]


@pytest.mark.parametrize("name", REAL)
def test_the_cost_in_a_head_is_computed_from_the_recipe(name):
    assert HEADS[name]["Cost"] == f"{work_of(shipped_config(name), shipped_split(name)[1]).cost_in_words()}."


@pytest.mark.parametrize("name", REAL)
def test_the_command_in_a_head_is_one_that_the_program_takes(name):
    program, *words = shlex.split(HEADS[name]["Command"])
    args = cli.parse(words)
    assert program == "vast"
    assert (args.command, args.recipe) == (name.split("_")[0], name)
    assert any(word.startswith("data.url=s3://") for word in args.overrides)


@pytest.mark.parametrize("name", [name for name in REAL if "_in1k_" not in name])
def test_the_weights_to_start_from_are_those_of_another_recipe_of_the_same_size(name):
    (donor,) = re.findall(r"init_from=\S+/(\w+)-DIGEST", HEADS[name]["Command"])
    ours, theirs = shipped_config(name), shipped_config(donor)
    assert theirs.model.size == ours.model.size
    assert theirs.model.is_image_model == name.startswith("pretrain")
    switches = ours.model.model_dump(exclude={"name", "drop_path", "head_dropout"})
    assert theirs.model.model_dump(exclude={"name", "drop_path", "head_dropout"}) == switches
    assert (theirs.data.mean, theirs.data.std) == (ours.data.mean, ours.data.std)


@pytest.mark.parametrize("name", REAL)
def test_every_micro_batch_can_hold_whole_groups_of_repeats_and_pairs(name):
    config = shipped_config(name)
    group = 2 * config.data.repeats
    assert config.optim.global_batch % group == config.optim.max_micro_batch % group == 0
    assert f"{config.optim.global_batch}" in HEADS[name]["Hardware"]


def test_the_table_has_every_recipe():
    rows = recipe_rows()
    assert [row[0] for row in rows] == list(shipped_recipes())
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert [row[0] for row in rows if row[4] == "-"] == [name for name in HEADS if name not in REAL]
