"""`vast search`: a campaign of trials, placed by Ray Tune, that any later process can go on with.

Everything that is known of a campaign is its record in the store (see record.py), and who goes on is a function of that
record (see rules.py). So a driver that was killed is continued by the same command: no trial is lost or repeated, and
none trains a step twice but those since its last state.
"""

import contextlib
import csv
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from pipelines import tracking
from pipelines.config import absolute
from pipelines.search.config import SearchConfig, resolve_search, trial_config
from pipelines.search.credentials import keep_credentials_here
from pipelines.search.pictures import campaign_pictures
from pipelines.search.record import (
    BEST_RECIPE,
    CAMPAIGN,
    SPENT,
    TOLD,
    CampaignRecord,
    TrialRecord,
    read_campaign,
    read_trial,
    trial_url,
    write_json,
)
from pipelines.search.rules import StoppingRule, Takeover, replay
from pipelines.search.runs import check_tracking, create_campaign_run, end_trial_run
from pipelines.stopping import Interrupted, StopSignals
from pipelines.terminal import Bar, Terminal
from pipelines.tracking import MlflowTracker
from pipelines.training.launch import connect
from pipelines.training.ray_storage import patiently
from pipelines.training.training_run import NOTE
from vast.data.order import steps_per_epoch
from vast.dataset_format import read_manifest
from vast.errors import ObjectMissing, UserError
from vast.storage import join_url, open_store
from vast.train.config import TrainConfig


@dataclass(frozen=True)
class Campaign:
    """What a search came to."""

    record: CampaignRecord
    budget_spent: str = ""
    """Which limit ended it before its trials did; empty when they are all done."""

    @property
    def best(self) -> TrialRecord:
        """The best trial."""
        return self.record.ranked()[0]


def run_search(
    recipe: str, overrides: list[str], terminal: Terminal, *, output: str, address: str | None = None
) -> Campaign:
    """Run a campaign, or go on with it; one that is done is answered at once, without Ray.

    Raises:
        UserError: a mistake in the recipe, a cluster too small for one trial, or no trial that came to anything.
        Interrupted: SIGINT or SIGTERM came; the same command continues.
    """
    base, search = resolve_search(recipe, overrides)
    url = join_url(absolute(output), f"{base.name}-search-{search.identity(base)}")
    record = _begin(url, base, search)
    driver = _Driver(record, base, search, terminal)
    waiting = driver.waiting()
    if record.trials:
        done = sum(trial.state not in ("waiting", "running") for trial in record.trials)
        terminal.say(f"  continuing: {done} of {driver.size} trials have ended: {url}")
    if not waiting or driver.budget_spent():
        campaign = driver.outcome()
        if not open_store(url).exists(TOLD):  # its last process was killed between the last trial and the telling
            with tracking.ending(record.tracking):
                _publish(campaign, terminal)
        return campaign
    open_store(url).delete(TOLD)
    tracking.reopen(record.tracking)
    with tracking.ending(record.tracking), StopSignals() as signals:
        connect(address)
        try:
            driver.run(signals)
        finally:
            driver.close()
        if signals.signum:
            raise Interrupted(signals.signum)
        campaign = driver.outcome()
        _publish(campaign, terminal)
    return campaign


def _begin(url: str, base: TrainConfig, search: SearchConfig) -> CampaignRecord:
    """The campaign's record, written if this is its first process."""
    try:
        record = read_campaign(url)
    except ObjectMissing:
        record = None
    if record is not None:
        check_tracking(url, record.tracking)
    else:
        run = create_campaign_run(url, base, search)
        record = CampaignRecord(url, base.name, {}, base.model_dump(mode="json"), _steps(base), run)
    # budgets may differ from those it began with
    record = replace(record, search=search.model_dump(mode="json"))
    plain = {
        "name": record.name,
        "search": record.search,
        "config": record.config,
        "steps_per_trial": record.steps_per_trial,
        "tracking": {"tracking_uri": record.tracking.tracking_uri, "run_id": record.tracking.run_id},
    }
    write_json(open_store(url), CAMPAIGN, plain)
    return record


def _steps(base: TrainConfig) -> int:
    samples = read_manifest(base.data.url).splits[base.data.train_split].samples
    return base.optim.epochs * steps_per_epoch(samples, base.optim.global_batch, base.data.repeats)


class _Driver:
    """Hands trials to Ray Tune and decides, after each evaluation, who goes on."""

    def __init__(self, record: CampaignRecord, base: TrainConfig, search: SearchConfig, terminal: Terminal) -> None:
        self.record, self.base, self.search, self.terminal = record, base, search, terminal
        self.size = search.size(base)
        self.trials = {trial.id: trial for trial in record.trials}
        self.begun_s = time.monotonic()
        self.rule: StoppingRule = search.rule(base.optim.epochs)
        self.tracker: MlflowTracker | None = None
        self.bar: Bar | None = None
        # A driver may have been killed between an evaluation and what should have followed.
        evaluations = [
            (report.time_s, trial.id, report.epoch, self._worth(report.figures))
            for trial in record.trials
            for report in trial.reports
        ]
        for trial in replay(self.rule, evaluations):
            if self.trials[trial].state == "running":
                self._end(trial, "stopped")

    def waiting(self) -> list[str]:
        """Ids of the trials that have not ended, those not drawn yet included."""
        ids = [f"{number:04d}" for number in range(self.size)]
        return [
            trial for trial in ids if trial not in self.trials or self.trials[trial].state in ("waiting", "running")
        ]

    def budget_spent(self) -> str:
        """Which limit is reached, in words; empty while none is."""
        steps = sum(trial.steps_trained for trial in self.trials.values())
        if self.search.max_steps is not None and steps >= self.search.max_steps:
            return f"search.max_steps: {steps} of {self.search.max_steps} updates are made"
        hours = self._spent_s() / 3600
        if self.search.max_hours is not None and hours >= self.search.max_hours:
            return f"search.max_hours: {hours:.2f} of {self.search.max_hours} hours are spent"
        return ""

    def run(self, signals: StopSignals) -> None:
        """Run what is left, a leg at a time; only a population has more than one."""
        every = self.search.perturb_epochs if self.search.scheduler == "pbt" else self.base.optim.epochs
        last = self.base.optim.epochs
        at_once = self._at_once()
        self.terminal.say(f"  {self.size} trials, {at_once} at a time, up to {last} epochs each: {self.record.url}")
        self.tracker = MlflowTracker(self.record.tracking)
        with self.terminal.progress("epochs", self.size * last) as self.bar:
            self._show()
            for begin in range(0, last, every):
                takeovers = self._takeovers(begin) if begin else {}
                self._leg(begin, min(begin + every, last), takeovers, at_once, signals)
                if signals.signum or self.budget_spent():
                    return

    def close(self) -> None:
        """Keep what must not be lost."""
        self._note_time()
        for trial in self.trials.values():
            if trial.state == "running":  # a limit or a signal ended it; going on opens its run again
                end_trial_run(self.record, trial)
        if self.tracker is not None:
            self.tracker.close()

    def outcome(self) -> Campaign:
        """What it came to so far.

        Raises:
            UserError: no trial was evaluated.
        """
        trials = [self.trials[trial] for trial in sorted(self.trials)]
        campaign = Campaign(
            replace(self.record, trials=trials, spent_s=self._spent_s()), self.budget_spent() if self.waiting() else ""
        )
        if not campaign.record.ranked():
            errors = [trial.error for trial in trials if trial.error]
            raise UserError(
                f"search: no trial reached an evaluation; the first said: {errors[0] if errors else 'nothing'}"
            )
        return campaign

    def _at_once(self) -> int:
        """How many trials the cluster has room for.

        Raises:
            UserError: not even one.
        """
        import ray

        have, search = ray.cluster_resources(), self.search
        wanted: dict[str, float] = {"CPU": search.cpus_per_rank * search.ranks_per_trial}
        if search.gpus_per_rank:
            wanted["GPU"] = search.gpus_per_rank * search.ranks_per_trial
        room = min(int(have.get(kind, 0) / amount) for kind, amount in wanted.items())
        if room < 1:
            raise UserError(
                f"search: a trial wants {wanted} (search.ranks_per_trial, cpus_per_rank, gpus_per_rank); the cluster "
                f"has { {kind: have.get(kind, 0) for kind in wanted} }"
            )
        return room

    def _takeovers(self, epoch: int) -> dict[str, Takeover]:
        """Who takes over from whom at this boundary: a function of what all came to there."""
        values, settings = {}, {}
        for trial in self.trials.values():
            found = [self._worth(report.figures) for report in trial.reports if report.epoch == epoch]
            if found and trial.state != "failed":
                values[trial.id] = found[0]
                earlier = [exploit.changes for exploit in trial.exploits if exploit.epoch < epoch]
                settings[trial.id] = earlier[-1] if earlier else trial.drawn
        return self.search.population(self.base).takeovers(epoch, values, settings)

    def _leg(self, begin: int, end: int, takeovers: Mapping[str, Takeover], at_once: int, signals: StopSignals) -> None:
        """Have Ray Tune run the trials that have not ended up to epoch `end`."""
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        from pipelines.search.trial import Leg, run_trial
        from pipelines.search.tune_side import AsTheDriverSays, StopEverything
        from pipelines.training.ray_storage import storage_for

        left = [trial for trial in self.waiting() if self._epochs(trial) < end or end == self.base.optim.epochs]
        if not left:
            return
        search, storage = self.search, storage_for(join_url(self.record.url, "tune"))
        legs = {trial: Leg(self.record.url, trial, begin, end, takeovers.get(trial)) for trial in left}
        bundle = {"CPU": search.cpus_per_rank, **({"GPU": search.gpus_per_rank} if search.gpus_per_rank else {})}
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, legs=legs),
                tune.PlacementGroupFactory([bundle] * search.ranks_per_trial),
            ),
            param_space={"trial": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                search_alg=BasicVariantGenerator(max_concurrent=at_once),
                scheduler=AsTheDriverSays(self.goes_on),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"leg-{begin}",
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=search.max_failures),
                stop=StopEverything(lambda: bool(signals.signum or self.budget_spent())),
                **storage,  # nobody needs it afterwards
            ),
        )
        for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
            os.environ.setdefault(name, "1")  # no files of its own beside each trial; Ctrl-C has our handler
        keep_credentials_here()
        results = tuner.fit()
        stopped_all = bool(signals.signum or self.budget_spent())
        failures = {result.config["trial"]: result.error for result in results if result.error and not stopped_all}
        for trial in left:
            known = self._learn(trial)
            if known.state == "failed":
                self.terminal.warn(f"trial {trial} failed: {known.error}")
            elif trial in failures:
                last = str(failures[trial]).strip().splitlines()[-1][:2000]
                self._end(trial, "failed", f"after {search.max_failures} new starts: {last}")
                self.terminal.warn(f"trial {trial} was given up: {self.trials[trial].error}")
            if self.trials[trial].state != "running":
                end_trial_run(self.record, self.trials[trial])
        storage["storage_filesystem"].delete_dir(storage["storage_path"])

    def goes_on(self, trial: str) -> bool:
        """Whether a trial that has just been evaluated goes on."""
        known = self._learn(trial)
        report = known.reports[-1]
        value = report.figures[self.search.metric]
        self._note_time()
        best = Campaign(replace(self.record, trials=[self.trials[each] for each in sorted(self.trials)])).best
        best_value = best.value(self.search.metric)
        if self.tracker is not None and best_value is not None:
            made = sum(each.steps_trained for each in self.trials.values())
            self.tracker.log(made, {f"best/{self.search.metric}": best_value})
        stops = self.rule.stops(trial, report.epoch, self._worth(report.figures))
        self.terminal.say(
            f"  trial {trial}  epoch {report.epoch:>3}  {self.search.metric} {value:.1f}  "
            f"(best {best_value:.1f}, trial {best.id})" + ("  stopped" if stops else "")
        )
        if stops:
            self._end(trial, "stopped")
        self._show()
        return not stops

    def _learn(self, trial: str) -> TrialRecord:
        """Take over what the record says of a trial now."""
        with contextlib.suppress(ObjectMissing):  # lost before it was drawn
            self.trials[trial] = patiently(lambda: read_trial(self.record.url, trial))
        return self.trials.setdefault(trial, TrialRecord(trial, {}))

    def _end(self, trial: str, state: str, error: str = "") -> None:
        from pipelines.search.trial import write_ended

        patiently(partial(write_ended, self.record.url, trial, state, error))
        end_trial_run(self.record, self._learn(trial))

    def _worth(self, figures: Mapping[str, float]) -> float:
        value = figures[self.search.metric]
        return value if self.search.mode == "max" else -value

    def _epochs(self, trial: str) -> int:
        known = self.trials.get(trial)
        return known.reports[-1].epoch if known is not None and known.reports else 0

    def _show(self) -> None:
        if self.bar is not None:
            ended = [trial for trial in self.trials.values() if trial.state not in ("waiting", "running")]
            epochs = sum(map(self._epochs, self.trials))
            self.bar.set(epochs, self.size * self.base.optim.epochs, f"{len(ended)} of {self.size} trials ended")

    def _spent_s(self) -> float:
        return self.record.spent_s + time.monotonic() - self.begun_s

    def _note_time(self) -> None:
        with contextlib.suppress(Exception):  # seconds are no reason to end
            write_json(open_store(self.record.url), SPENT, {"seconds": round(self._spent_s(), 1)})


def best_model_url(record: CampaignRecord) -> str:
    """Where the weights of the best trial lie: its published model, or its newest state if it was stopped early."""
    best = record.ranked()[0]
    return join_url(trial_url(record.url, best.id), "model") if best.state == "finished" else best.checkpoint


def cost_in_words(record: CampaignRecord) -> str:
    """How many updates were made, and what share that is."""
    share = 100 * record.steps_trained / max(1, record.steps_to_the_end)
    return f"{record.steps_trained} updates, {share:.0f} % of what these trials would have made had each run to the end"


def trial_rows(record: CampaignRecord) -> list[list[str]]:
    """A table row a trial, best first."""
    return [
        [
            trial.id,
            f"{trial.value(record.metric):.1f}",
            str(trial.reports[-1].epoch),
            trial.state,
            trial.settings,
        ]
        for trial in record.ranked()
    ]


def _publish(campaign: Campaign, terminal: Terminal) -> None:
    """Leave in MLflow what a person wants to see of a campaign."""
    record = campaign.record
    tracking.set_tags(record.tracking, {NOTE: _in_words(campaign), "best.trial": campaign.best.id})
    best = trial_config(TrainConfig.model_validate(record.config), campaign.best.changes, f"{record.name}-best")
    recipe = yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False)
    open_store(record.url).put_bytes(BEST_RECIPE, recipe.encode())
    with TemporaryDirectory(prefix="vast-search-") as scratch:
        folder = Path(scratch)
        (folder / BEST_RECIPE).write_text(recipe, encoding="utf-8")
        with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["trial", record.metric, "epochs", "state", "settings"])
            table.writerows(trial_rows(record))
        campaign_pictures(record, folder)
        problem = tracking.log_files(record.tracking, folder)
    if problem:
        terminal.warn(problem)
    write_json(open_store(record.url), TOLD, {"trials": len(record.trials)})


def _in_words(campaign: Campaign) -> str:
    """One paragraph in Markdown: what was searched, what came out, what it cost."""
    record, best = campaign.record, campaign.best
    space = ", ".join(f"`{path}`" for path in record.search["space"])
    failed = sum(trial.state == "failed" for trial in record.trials)
    told = [
        f"{len(record.trials)} trials of `{record.name}` over {space} "
        f"({record.search['algorithm']}, {record.search['scheduler']}): the best, {best.id}, came to "
        f"**{record.metric} {best.value(record.metric):.1f}** with {best.settings}.",
        f"{cost_in_words(record)}, in {record.spent_s / 60:.0f} minutes.",
        f"{failed} trials failed." if failed else "",
        f"Ended by {campaign.budget_spent}." if campaign.budget_spent else "",
        f"The best model is at `{best_model_url(record)}`; the whole story: `vast report {record.url}`.",
    ]
    return " ".join(part for part in told if part)
