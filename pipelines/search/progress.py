"""How good a campaign's best trial was at every moment, by the clock and by the work done."""

from dataclasses import dataclass

from pipelines.search.record import CampaignRecord, TrialRecord


@dataclass(frozen=True)
class Moment:
    """One evaluation of one trial, in the order of time over the whole campaign."""

    hours: float
    """Since the campaign's first evaluation, pauses between sessions included."""
    steps: int
    """Updates that all trials had reported by then."""
    trial: str
    value: float
    best: float
    """The best value by then, this one included."""


def moments(record: CampaignRecord) -> list[Moment]:
    """Every evaluation that has the campaign's figure."""
    events = sorted(
        (report.time_s, trial.id, made, report.figures[record.metric])
        for trial in record.trials
        for report, made in zip(trial.reports, _steps_made(trial), strict=True)
        if record.metric in report.figures
    )
    found: list[Moment] = []
    made_by: dict[str, int] = {}
    for time_s, trial_id, made, value in events:
        made_by[trial_id] = made
        best = value
        if found:
            best = max(value, found[-1].best) if record.maximise else min(value, found[-1].best)
        found.append(Moment((time_s - events[0][0]) / 3600, sum(made_by.values()), trial_id, value, best))
    return found


def _steps_made(trial: TrialRecord) -> list[int]:
    """Updates that the trial itself had made at each report; what it took over from another trial is not its own."""
    made, at, total = [], 0, 0
    exploits = sorted(trial.exploits, key=lambda exploit: exploit.time_s)
    for report in trial.reports:
        while exploits and exploits[0].time_s <= report.time_s:
            at = exploits.pop(0).step
        total += max(0, report.step - at)
        at = report.step
        made.append(total)
    return made
