import pytest

from pipelines.search.config import resolve_search, trial_config
from vast.errors import UserError

OVERRIDES = ["optim.global_batch=8"]


def search_recipe(tmp_path, section, base="demo_finetune_ssv2"):
    recipe = tmp_path / "search.yaml"
    recipe.write_text(f"base: {base}\nsearch: {section}\n")
    return str(recipe)


@pytest.mark.parametrize("recipe", ["demo_search", "demo_search_pbt"])
def test_the_shipped_searches_resolve(ssv2_shards, recipe):
    base, search = resolve_search(recipe, [f"data.url={ssv2_shards}", *OVERRIDES])
    assert set(search.distributions) <= set(base.flat())
    assert search.size(base) >= 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{space: {}}", r"search\.space"),
        ("{space: {optim.lr: {normal: [0, 1]}}}", "choice, uniform, loguniform"),
        ("{space: {optim.lr: {uniform: [1, 0]}}}", r"needs \[low, high\]"),
        ("{space: {optim.lr: {uniform: [1e-3, 1e-2]}}}", r"1\.0e-4, not 1e-4"),
        ("{space: {optim.lr: {loguniform: [0.0, 1.0]}}}", "above 0"),
        ("{space: {optim.lr: {choice: []}}}", "at least one"),
        ("{space: {optim.lr: {quniform: [0.1, 1.0]}}}", r"needs \[low, high, step\]"),
        ("{space: {optim.lr: {quniform: [0.1, 1.0, 0.0]}}}", "a step above 0"),
        ("{space: {seed: {randint: [0, 1.5]}}}", "whole numbers"),
        ("{space: {optim.rate: {choice: [1]}}}", r"no such setting: optim\.rate"),
        ("{space: {optim.lr: {choice: [0.1], when: {optim.nam: sgd}}}}", r"no such setting: optim\.nam"),
        (
            "{space: {optim.momentum: {choice: [0.9], when: {optim.name: sgd}}, optim.name: {choice: [sgd]}}}",
            r"optim\.momentum: its condition speaks of optim\.name, which must come before",
        ),
        ("{space: {optim.lr: {uniform: [0.1, 20.0]}}}", r"optim\.lr: got 20\.0; input should be less than"),
        ("{space: {optim.name: {choice: [adamw, adam]}}}", r"optim\.name: got 'adam'"),
        ("{space: {optim.epochs: {choice: [1, 2]}}}", r"optim\.epochs cannot be searched"),
        ("{space: {name: {choice: [a]}}}", "name cannot be searched"),
        ("{algorithm: grid, space: {optim.lr: {uniform: [0.1, 1.0]}}}", "no steps for a grid"),
        ("{scheduler: pbt, space: {model.name: {choice: [vast_micro]}}}", r"model\.name cannot change in the middle"),
        ("{scheduler: pbt, algorithm: tpe, space: {optim.lr: {uniform: [0.1, 1.0]}}}", "begins at random points"),
        ("{scheduler: pbt, perturb_epochs: 12, space: {optim.lr: {uniform: [0.1, 1.0]}}}", "none would ever take over"),
        ("{scheduler: pbt, perturb_epochs: 4, space: {optim.lr: {uniform: [0.1, 1.0]}}}", "a multiple of eval.every"),
        ("{trials: 3, space: {optim.lr: {choice: [1]}}}", r"search\.trials: unknown key; did you mean 'num_trials'"),
        ("{metric: eval/top9, space: {optim.lr: {choice: [1]}}}", "eval/top1"),
    ],
)
def test_a_wrong_search_section_is_explained(tmp_path, ssv2_shards, section, message):
    with pytest.raises(UserError, match=message):
        resolve_search(search_recipe(tmp_path, section), [f"data.url={ssv2_shards}", *OVERRIDES])


def test_a_recipe_without_a_search_section_is_refused(ssv2_shards):
    with pytest.raises(UserError, match="no `search:` section"):
        resolve_search("demo_finetune_ssv2", [f"data.url={ssv2_shards}", *OVERRIDES])


def test_a_space_replaces_the_one_of_its_base(tmp_path, ssv2_shards):
    recipe = search_recipe(tmp_path, "{space: {optim.weight_decay: {loguniform: [0.01, 0.2]}}}", base="demo_search")
    _, search = resolve_search(recipe, [f"data.url={ssv2_shards}", *OVERRIDES])
    assert list(search.space) == ["optim.weight_decay"]
    assert search.num_trials == 12


def test_more_budget_is_the_same_campaign_and_another_question_is_not(ssv2_shards):
    def identity(*overrides, recipe="demo_search"):
        base, search = resolve_search(recipe, [f"data.url={ssv2_shards}", *OVERRIDES, *overrides])
        return search.identity(base)

    assert identity() == identity("search.num_trials=40", "search.max_hours=2", "search.ranks_per_trial=2")
    assert identity() != identity("optim.beta2=0.99")
    assert identity() != identity("search.reduction_factor=4")
    assert identity(recipe="demo_search_pbt") != identity("search.num_trials=9", recipe="demo_search_pbt")


def test_a_trial_changes_only_what_was_drawn(ssv2_shards):
    base, _ = resolve_search("demo_search", [f"data.url={ssv2_shards}", *OVERRIDES])
    config = trial_config(base, {"optim.lr": 0.25}, "demo_search-0003")
    differing = {path for path, value in config.flat().items() if base.flat()[path] != value}
    assert differing == {"name", "optim.lr", "checkpoint.every_epochs"}


def test_the_size_of_a_grid_is_its_points(tmp_path, ssv2_shards):
    section = "{algorithm: grid, space: {optim.lr: {choice: [0.1, 0.2]}, seed: {randint: [0, 2]}}}"
    base, search = resolve_search(search_recipe(tmp_path, section), [f"data.url={ssv2_shards}", *OVERRIDES])
    assert search.size(base) == 6
