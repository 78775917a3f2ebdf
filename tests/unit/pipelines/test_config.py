import shutil
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import merge, nested, parse_overrides, read_recipe, resolve
from vast.dataset_format import read_manifest, write_manifest
from vast.errors import UserError
from vast.sample_index import read_index, write_index
from vast.train.config import TrainConfig


def write(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_every_problem_comes_in_one_message_before_anything_heavy_is_loaded(tmp_path):
    recipe = write(
        tmp_path,
        "name: wrong\nmodel: {name: vast_micro}\ndata: {url: /nowhere/at/all}\n"
        "optim: {learning_rate: 0.1, label_smoothing: 2.0}\n",
    )
    before = "ray" in sys.modules
    with pytest.raises(UserError) as caught:
        resolve(recipe)
    message = str(caught.value)
    assert "3 problems" in message
    assert "optim.learning_rate: unknown key" in message
    assert "valid here: beta2, clip_norm, compile" in message
    assert "optim.label_smoothing: got 2.0; input should be less than 1" in message
    assert "data.url: " in message
    assert "/nowhere/at/all" in message
    assert ("ray" in sys.modules) == before


def test_overrides_change_leaves_and_keep_the_rest(ssv2_shards):
    config = resolve("demo_finetune_ssv2", [f"data.url={ssv2_shards}", "optim.lr=3e-4", "optim.global_batch=8"])
    assert config.optim.lr == 3e-4
    assert config.optim.global_batch == 8
    assert config.model.name == "vast_micro"


def test_local_paths_become_absolute_since_ranks_stand_elsewhere(ssv2_shards, monkeypatch, tmp_path):
    (tmp_path / "here").symlink_to(ssv2_shards)
    monkeypatch.chdir(tmp_path)
    config = resolve("demo_finetune_ssv2", ["data.url=here", "init_from=runs/x", "optim.global_batch=8"])
    assert config.data.url == ssv2_shards
    assert config.init_from == str(tmp_path / "runs" / "x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("optim..lr=3", "expected section.key=value"),
        ("optim.lr=[", "not YAML"),
        ("optim.lr=yes", r"optim\.lr: got True .*expected a number"),
        ("optim.epochs=1e3", r"optim\.epochs: got '1e3'"),
        ("model.name=vast_tiny", "vast_ti"),
        ("eval.protocol=4y3", r"eval\.protocol: got '4y3'|eval: .*4y3"),
        ("data.train_split=training", r"data\.train_split: no split 'training'"),
        ("optim.global_batch=4096", r"optim\.global_batch: "),
        ("modle.name=x", r"modle: unknown key; did you mean 'model'\?"),
        ("data.augment.mixup_alhpa=0.8", r"data\.augment\.mixup_alhpa: unknown key; did you mean 'mixup_alpha'\?"),
        ("optim.mixup_alpha=0.8", r"optim\.mixup_alpha: unknown key; did you mean 'data\.augment\.mixup_alpha'\?"),
        ("data.augment.mixup_alpha=-1", r"data\.augment\.mixup_alpha: got -1; input should be greater than or equal"),
        ("data.augment.erase_prob=on", r"data\.augment\.erase_prob: got True .*expected a number"),
        ("data.augment.erase_area=[off, 0.5]", r"data\.augment\.erase_area: got \[False, 0\.5\] .*expected a number"),
        ("data.augment.erase_area=[0.5, 0.2]", r"data\.augment: .*erase_area: 0\.5 is above 0\.2"),
        ("data.augment.rand_ops=[Rotate, Flip]", r"data\.augment\.rand_ops\.1: got 'Flip'; input should be 'AutoContr"),
        ("data.augment=on", r"data\.augment: got True; expected a section, of: rand_num_layers, "),
    ],
)
def test_a_wrong_override_says_what_to_do(ssv2_shards, override, message):
    with pytest.raises(UserError, match=message):
        resolve("demo_finetune_ssv2", [f"data.url={ssv2_shards}", "optim.global_batch=8", override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: the key 'a' stands twice"),
        ("- 1\n", "must be a mapping"),
        ("a: [\n", "while parsing"),
        ("base: recipe\n", "circle"),
        ("base: nothing_like_it\n", "no such file"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    ],
)
def test_a_broken_recipe_file_is_explained(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_recipe(write(tmp_path, text))


def test_a_recipe_may_lie_in_a_store(ssv2_shards, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("base: demo_finetune_ssv2\nname: own\noptim: {lr: 0.007}\n")
    config = resolve(f"file://{path}", [f"data.url={ssv2_shards}"])
    assert (config.name, config.optim.lr) == ("own", 0.007)
    with pytest.raises(UserError, match=r"recipe file:///.*gone\.yaml: "):
        resolve(f"file://{tmp_path}/gone.yaml", [])


def test_a_misspelt_recipe_name_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'demo_search'"):
        read_recipe("demo_serch")


trees = st.recursive(st.integers(), lambda leaf: st.dictionaries(st.sampled_from("abc"), leaf), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_merge_lays_changes_over_and_touches_nothing_else(base, changes):
    merged = merge(base, changes)
    assert set(merged) == set(base) | set(changes)
    assert merge(merged, changes) == merged
    for key in set(base) - set(changes):
        assert merged[key] == base[key]


def test_a_dotted_path_nests():
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert parse_overrides(["a.b=1", "a.c=[2, 3]", "d="]) == {"a": {"b": 1, "c": [2, 3]}, "d": ""}


def test_every_leaf_of_the_config_is_described():
    def walk(model, prefix=""):
        for name, field in model.model_fields.items():
            assert field.description, f"{prefix}{name} has no description"
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation, f"{prefix}{name}.")

    walk(TrainConfig)


def test_world_size_is_nowhere_in_the_config(ssv2_shards):
    config = resolve("demo_finetune_ssv2", [f"data.url={ssv2_shards}", "optim.global_batch=8"])
    banned = {"world_size", "num_ranks", "ranks", "num_nodes", "num_gpus", "device", "hosts"}
    assert not banned & {path.split(".")[-1] for path in config.flat()}


def test_the_same_config_has_the_same_run_name_and_another_never(ssv2_shards):
    words = [f"data.url={ssv2_shards}", "optim.global_batch=8"]
    one, same = resolve("demo_finetune_ssv2", words), resolve("demo_finetune_ssv2", words)
    other = resolve("demo_finetune_ssv2", [*words, "optim.lr=0.5"])
    assert one.run_name() == same.run_name() != other.run_name()


def leaking(folder, ssv2_shards):
    """A copy of the data set whose val split has two source videos of its train split."""
    shutil.copytree(ssv2_shards, folder)
    manifest = read_manifest(str(folder))
    train, val = read_index(str(folder), "train"), read_index(str(folder), "val")
    rows = val.rows(range(len(val)))
    for i in (0, 3):
        rows[i] = replace(rows[i], source_id=train.row(i).source_id)
    digest = write_index(str(folder), "val", rows)
    splits = {**manifest.splits, "val": manifest.splits["val"].model_copy(update={"index_sha256": digest})}
    write_manifest(str(folder), manifest.model_copy(update={"splits": splits}))
    return str(folder)


def test_a_split_that_was_trained_on_is_not_scored_unless_that_is_wanted(ssv2_shards, tmp_path):
    overrides = [f"data.url={leaking(tmp_path / 'leaking', ssv2_shards)}", "optim.global_batch=8"]
    with pytest.raises(UserError, match=r"data\.eval_split: train and val share 2 sources.*data\.allow_leaks=true"):
        resolve("demo_finetune_ssv2", overrides)
    assert resolve("demo_finetune_ssv2", [*overrides, "data.allow_leaks=true"]).data.allow_leaks
    resolve("demo_finetune_ssv2", [f"data.url={ssv2_shards}", "optim.global_batch=8"])


@pytest.mark.parametrize(
    ("media", "overrides", "problem"),
    [
        (
            "picture",
            ["model.name=vast_micro"],
            r"data\.url: the data set holds pictures, but vast_micro takes clips.*ast_micro",
        ),
        (
            "picture",
            ["model.name=ast_micro"],
            r"data\.num_frames: got 8, but ast_micro takes single frames.*vast_micro",
        ),
        ("video", ["model.name=ast_micro"], r"data\.num_frames: got 8, but ast_micro takes single frames"),
        (
            "picture",
            ["model.name=ast_micro", "data.num_frames=1", "eval.protocol=4x3"],
            r"eval\.protocol: got 4x3, but a picture has one moment, not 4: set eval\.protocol=1x3",
        ),
        ("picture", ["model.name=ast_micro", "data.num_frames=1"], None),
        ("video", ["model.name=ast_micro", "data.num_frames=1"], None),
    ],
)
def test_pictures_clips_and_models_that_do_not_go_together_are_told(
    media, overrides, problem, picture_shards, ssv2_shards
):
    url = picture_shards if media == "picture" else ssv2_shards
    words = [f"data.url={url}", "data.flip=none", *overrides]
    if problem is None:
        assert resolve("demo_pretrain_kinetics", words).data.num_frames == 1
    else:
        with pytest.raises(UserError, match=rf": 1 problem\n  1\. {problem}"):
            resolve("demo_pretrain_kinetics", words)


def test_training_on_pictures_and_scoring_on_videos_is_refused(picture_shards, ssv2_shards):
    words = [f"data.url={picture_shards}", f"data.eval_url={ssv2_shards}", "model.name=ast_micro", "data.num_frames=1"]
    with pytest.raises(UserError, match=r"data\.eval_url: data\.url holds images, data\.eval_url holds videos"):
        resolve("demo_pretrain_kinetics", words)
