import pytest

from pipelines.search.campaign import resolve_search
from vast.errors import UserError

OVERRIDES = ["optim.global_batch=8"]


def test_the_shipped_search_resolves(ssv2_shards):
    base, search = resolve_search("demo_search", [f"data.url={ssv2_shards}", *OVERRIDES])
    assert set(search.space) <= set(base.flat())
    assert search.num_trials >= 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{space: {}}", r"search\.space"),
        ("{space: {optim.lr: {normal: [0, 1]}}}", "choice, uniform, loguniform"),
        ("{space: {optim.lr: {uniform: [1, 0]}}}", r"needs \[low, high\]"),
        ("{space: {optim.lr: {uniform: [1e-3, 1e-2]}}}", r"1\.0e-4, not 1e-4"),
        ("{space: {optim.lr: {loguniform: [0.0, 1.0]}}}", "above 0"),
        ("{space: {optim.lr: {choice: []}}}", "at least one"),
        ("{space: {optim.rate: {choice: [1]}}}", r"no such setting: optim\.rate"),
        ("{trials: 3, space: {optim.lr: {choice: [1]}}}", r"search\.trials: unknown key; did you mean 'num_trials'"),
    ],
)
def test_a_wrong_search_section_is_explained(tmp_path, ssv2_shards, section, message):
    recipe = tmp_path / "search.yaml"
    recipe.write_text(f"base: demo_finetune_ssv2\nsearch: {section}\n")
    with pytest.raises(UserError, match=message):
        resolve_search(str(recipe), [f"data.url={ssv2_shards}", *OVERRIDES])


def test_a_recipe_without_a_search_section_is_refused(ssv2_shards):
    with pytest.raises(UserError, match="no `search:` section"):
        resolve_search("demo_finetune_ssv2", [f"data.url={ssv2_shards}", *OVERRIDES])
