import shlex
from dataclasses import replace

import pytest

from pipelines import cli
from pipelines.config import parse_overrides, resolve
from pipelines.report.campaign_page import best_command
from pipelines.report.write import write_report
from pipelines.search.campaign import resolve_search
from pipelines.search.record import Exploit, TrialRecord
from tests.unit.pipelines.report.read_page import EVIL, Page
from tests.unit.pipelines.search.campaigns import SEARCH, SPACE, campaign, stored, trials


def report_on(folder, record):
    stored(str(folder / "campaign"), record)
    out = folder / "pages" / "report.html"
    assert write_report(str(folder / "campaign"), out) == "campaign"
    page = Page(out.read_text(encoding="utf-8"))
    page.check()
    return page


@pytest.mark.slow
def test_the_story_of_a_campaign(tmp_path):
    some = [
        *trials(20),
        TrialRecord("0020", trials(1)[0].drawn, steps_trained=3, state="failed", error="out of memory"),
    ]
    record = campaign(some)
    best = record.ranked()[0]
    text = report_on(tmp_path, record).text
    assert f"The highest eval/top1 is {best.value('eval/top1'):.4g}, of trial {best.id}" in text
    assert "Points are drawn by random" in text
    assert "Trials are stopped by asha" in text
    assert "optim.lr loguniform 0.0001, 0.01" in text
    assert "compared after epoch 2, the last that all of them reached" in text
    assert f"steps made {record.steps_trained}" in text
    assert f"had all run to the end {record.steps_to_the_end}" in text
    assert "1 trial of 21 failed" in text
    assert "out of memory" in text
    for trial in some:
        assert f"{trial.id} {trial.state}" in text


def test_every_trial_is_drawn_and_told_by_its_state(tmp_path):
    page = report_on(tmp_path, campaign(trials(20)))
    looks = [attributes.get("class") for name, attributes in page.elements if name == "path"]
    assert looks.count("line stopped") >= 2 * 10  # in the curves and the coordinates
    assert looks.count("line best") >= 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_campaign_of_few_trials_says_what_is_missing(tmp_path, count):
    text = report_on(tmp_path, campaign(trials(count))).text
    assert "importance needs 8" in text
    assert ("There is none yet" in text) == (count == 0)


def test_a_campaign_that_goes_on_says_so(tmp_path):
    some = [*trials(3), replace(trials(4)[3], state="running"), TrialRecord("0004", trials(1)[0].drawn)]
    text = report_on(tmp_path, campaign(some)).text
    assert "The campaign has not ended: 2 trials may still go on." in text
    assert "0004 waiting" in text


def test_settings_that_changed_on_the_way_are_told(tmp_path):
    first, second = trials(2)
    taken = Exploit("0000", 1, 10, {**second.drawn, "optim.lr": 0.5}, second.reports[0].time_s + 1, "somewhere")
    text = report_on(tmp_path, campaign([first, replace(second, exploits=[taken])], scheduler="pbt")).text
    assert "went on from 0000 at epoch 1" in text
    assert "optim.lr=0.5" in text


def test_conditions_of_the_space_are_told(tmp_path):
    space = {**SPACE, "model.drop_path": {"uniform": [0.0, 0.3], "when": {"model.mixer": "attention"}}}
    text = report_on(tmp_path, campaign(trials(3), space=space)).text
    assert "model.mixer = attention" in text


def test_names_and_errors_of_others_do_no_harm(tmp_path):
    bad = replace(trials(1)[0], drawn={**trials(1)[0].drawn, "model.mixer": EVIL}, state="failed", error=EVIL)
    record = replace(campaign([bad, *trials(4)[1:]]), name=EVIL)
    page = report_on(tmp_path, record)  # its check finds elements that are not ours
    assert "<script>alert(1)</script>" in page.text


def test_the_command_trains_what_the_best_trial_trained(ssv2_shards):
    base, _ = resolve_search("demo_search", [f"data.url={ssv2_shards}", "optim.global_batch=8"])
    drawn = {"optim.lr": 0.00123456789, "optim.weight_decay": 1e-05, "data.sampling": "uniform"}
    trial = replace(trials(1)[0], drawn=drawn)
    record = replace(campaign([trial]), config=base.model_dump(mode="json"), search=SEARCH)
    program, verb, recipe, *words = shlex.split(best_command(record, trial))
    assert (program, verb, recipe) == ("vast", "finetune", "demo_search")
    expected = {**base.flat(), **drawn}
    assert resolve(recipe, words).flat() == expected
    parse_overrides(words)


def test_a_recipe_of_ones_own_is_left_to_its_author_until_the_campaign_has_written_one(tmp_path):
    record = replace(campaign(trials(1)), url=str(tmp_path))
    record.config["name"] = "my_own"
    assert best_command(record, record.trials[0]).startswith("vast finetune RECIPE optim.lr=")
    (tmp_path / "best_recipe.yaml").write_text("name: best")
    assert best_command(record, record.trials[0]) == f"vast finetune {tmp_path}/best_recipe.yaml"


def test_a_trial_is_no_campaign(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored(str(tmp_path / "campaign"), campaign(trials(1)))
    assert cli.main(["report", "campaign/trials/0000"]) == 2
    assert "give the folder of its campaign" in capsys.readouterr().err
