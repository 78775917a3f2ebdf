from pipelines.preflight.recipe import read_in_spite


def test_what_is_wrong_is_left_out_and_the_rest_read(ssv2_shards):
    words = [f"data.url={ssv2_shards}", "optim.lrr=1", "optim.epochs=nine", "optim.lr=0.02", "nonsense", "model=[1]"]
    config, problems = read_in_spite("demo_finetune_ssv2", words)
    assert config is None  # without a model there is nothing to check
    told = [f"{problem.subject}: {problem.found}" for problem in problems]
    assert len(told) == len(set(told))
    for part in ("optim.lrr: unknown key", "optim.epochs: got 'nine'", "override 'nonsense'", "model: got [1]"):
        assert any(part in line for line in told), (part, told)
    config, problems = read_in_spite("demo_finetune_ssv2", [*words[:5]])
    assert config is not None
    assert config.optim.lr == 0.02
    assert len(problems) == 3


def test_an_unknown_recipe_is_one_problem():
    config, (problem,) = read_in_spite("demo_finetune_ssv3", [])
    assert config is None
    assert "demo_finetune_ssv2" in problem.found


def test_what_goes_wrong_between_settings_is_told(ssv2_shards):
    words = [f"data.url={ssv2_shards}", "optim.global_batch=3", "data.augment.mixup_alpha=0.8"]
    _, problems = read_in_spite("demo_finetune_ssv2", words)
    assert any("must be a multiple of 2" in problem.found for problem in problems)
