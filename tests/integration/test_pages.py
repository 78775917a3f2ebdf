"""MLflow's pages over what our code logs, and the reports, in a real browser; screenshots for people to look at.

Screenshots go to VAST_SCREENSHOTS, or build/screenshots.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from pipelines import plots, tracking
from pipelines.report.write import write_report
from pipelines.search.pictures import BEST_SO_FAR, IMPORTANCE, PARALLEL_COORDINATES, campaign_pictures
from tests.unit.pipelines.report.runs import make_evaluation, make_run
from tests.unit.pipelines.search.campaigns import SPACE, campaign, stored, trials

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ROOT = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# MLflow's pages ask who is logged in, also where nobody has to; they take the answer, 404, for "nobody". And where a
# page is laid out twice in one frame, as its charts are on a busy machine, the browser says that the rest comes later.
KNOWN_NOISE = re.compile(
    r"404 \(Not Found\) \(http://127\.0\.0\.1:\d+/ajax-api/2\.0/mlflow/users/current\)"
    r"|ResizeObserver loop completed with undelivered notifications"
)
PATIENCE_MS = 60_000
CLASSES = [f"class {k}" for k in range(8)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)  # its own default is 5 s, which a busy machine needs for a page
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page of the browser, with all that went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"{message.text} ({message.location.get('url', '')})")

    def run_page(self, tracked: "Tracked", run_id: str, tab: str = "") -> str:
        return f"{tracked.uri}/#/experiments/{tracked.experiment_id}/runs/{run_id}" + (f"/{tab}" if tab else "")

    def check(self) -> None:
        """Nothing went wrong in the page but what MLflow itself is known for."""
        assert not [problem for problem in self.problems if not KNOWN_NOISE.search(problem)], self.problems

    def shoot(self, name: str) -> None:
        folder = Path(os.environ.get("VAST_SCREENSHOTS") or ROOT / "build" / "screenshots")
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture
def watched(browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    watched = Watched(page)
    page.on("console", watched.heard)
    page.on("pageerror", lambda error: watched.problems.append(str(error)))
    page.on("request", lambda asked: watched.fetched.append(asked.url))
    yield watched
    page.close()


@dataclass
class Tracked:
    """What the tests look at."""

    uri: str
    experiment_id: str
    run_url: str
    run_id: str
    evaluation: Path
    campaign: Path
    campaign_run_id: str


@pytest.fixture(scope="module")
def tracked(mlflow_server, ssv2_shards, tmp_path_factory) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "pages")
        patch.setenv("VAST_SPOOL", str(folder / "spool"))
        url, ref = make_run(folder / "runs", ssv2_shards, classes=CLASSES, name="finetune_pages")
        pictures = folder / "pictures"
        pictures.mkdir()
        confusion_KK = np.diag(np.full(8, 9)) + 1
        plots.confusion_matrix(pictures / "confusion_matrix.png", confusion_KK, CLASSES, "finetune_pages")
        assert tracking.log_files(ref, pictures) is None
        make_evaluation(folder / "evaluation", ref, url, CLASSES)
        search = tracking.create_run(
            mlflow_server, "search_pages", params={"search.space": SPACE}, tags={"run.kind": "search"}
        )
        record = replace(campaign(trials(20)), tracking=search)
        stored(str(folder / "campaign"), record)
        for trial in record.trials[:4]:
            child = tracking.create_run(
                mlflow_server, f"trial-{trial.id}", params=trial.drawn, tags={"run.kind": "trial"}, parent=search.run_id
            )
            for report in trial.reports:
                tracking.log_figures(child, report.figures, report.step)
        drawn = folder / "drawn"
        drawn.mkdir()
        campaign_pictures(record, drawn)
        assert tracking.log_files(search, drawn) is None
        for run in (ref, search):
            with tracking.ending(run):
                pass
        experiment = MlflowClient(mlflow_server).get_experiment_by_name("pages")
        yield Tracked(
            mlflow_server,
            experiment.experiment_id,
            url,
            ref.run_id,
            folder / "evaluation",
            folder / "campaign",
            search.run_id,
        )


def test_the_experiment_page_lists_the_runs(watched, tracked):
    page = watched.page
    page.goto(f"{tracked.uri}/#/experiments/{tracked.experiment_id}/runs")
    expect(page.get_by_role("link", name="finetune_pages")).to_be_visible()
    expect(page.get_by_role("link", name="search_pages")).to_be_visible()
    expect(page.get_by_text("7 matching runs")).to_be_visible()  # with the evaluation and four trials
    watched.shoot("mlflow-experiment")
    watched.check()


def test_the_run_page_shows_figures_settings_and_where_it_is_kept(watched, tracked):
    page = watched.page
    page.goto(watched.run_page(tracked, tracked.run_id))
    expect(page.get_by_role("heading", name="finetune_pages")).to_be_visible()
    expect(page.get_by_text("Finished")).to_be_visible()
    expect(page.get_by_text("run.kind")).to_be_visible()
    expect(page.get_by_role("link", name="evaluate")).to_be_visible()  # its evaluation, as a child
    expect(page.get_by_text("train/loss", exact=True)).to_be_visible()
    expect(page.get_by_text("optim.lr", exact=True)).to_be_attached()
    watched.shoot("mlflow-run")
    watched.check()


def test_the_run_page_draws_the_curves(watched, tracked):
    page = watched.page
    page.goto(watched.run_page(tracked, tracked.run_id, "model-metrics"))
    for part in ("eval (2)", "train (1)", "stall (5)"):
        name, _, count = part.partition(" ")
        expect(page.get_by_text(count, exact=True).first).to_be_visible()
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    watched.shoot("mlflow-run-curves")
    watched.check()


def test_the_confusion_matrix_of_a_run_is_shown(watched, tracked):
    shows_picture(watched, watched.run_page(tracked, tracked.run_id, "artifacts/confusion_matrix.png"))
    watched.shoot("mlflow-run-confusion-matrix")
    watched.check()


@pytest.mark.parametrize("picture", [PARALLEL_COORDINATES, IMPORTANCE, BEST_SO_FAR])
def test_the_pictures_of_a_campaign_are_shown(watched, tracked, picture):
    shows_picture(watched, watched.run_page(tracked, tracked.campaign_run_id, f"artifacts/{picture}"))
    watched.shoot(f"mlflow-campaign-{picture.removesuffix('.png').replace('_', '-')}")
    watched.check()


def shows_picture(watched, address):
    page = watched.page
    page.goto(address)
    picture = page.locator("img[src^='blob:']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["run", "evaluation", "campaign"])
def test_a_report_needs_nothing_but_itself(watched, tracked, kind, scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    what = {"run": tracked.run_id, "evaluation": str(tracked.evaluation), "campaign": str(tracked.campaign)}[kind]
    out = tmp_path / "report.html"
    assert write_report(what, out) == kind
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    page.goto(out.as_uri())
    told = {
        "run": ["Learning curves", "Where the time went", "top-1", "90.00 %", "4x3", "vast export"],
        "evaluation": ["How it was measured", "77.50 %", "Allowed leak: <script>alert(1)</script>"],
        "campaign": ["The answer", "Best so far", "Which settings were good", "What mattered", "All 20 trials"],
    }[kind]
    for text in told:
        expect(page.get_by_text(text).first).to_be_visible()
    for chart in page.locator("figure > svg").all():
        box = chart.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 40
    for words in page.locator("svg text").all():  # nothing is drawn where no one can see it
        box = words.bounding_box()
        assert 0 <= box["x"] <= 1400
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
    assert watched.fetched == [out.as_uri()]
    watched.shoot(f"report-{kind}-{scheme}")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # wide tables scroll on their own
    watched.check()


def test_a_report_prints(watched, tracked, tmp_path):
    out = tmp_path / "report.html"
    write_report(str(tracked.campaign), out)
    watched.page.goto(out.as_uri())
    watched.page.emulate_media(media="print", color_scheme="dark")
    assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    paper = watched.page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert len(paper) > 20_000
    watched.shoot("report-campaign-print")
    watched.check()
