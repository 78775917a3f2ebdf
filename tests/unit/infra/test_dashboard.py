"""The Grafana dashboard: its expressions are PromQL, and ask for metrics that there are."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from pipelines.training import live_figures

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
DASHBOARD = json.loads((INFRA / "grafana" / "training.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def ours() -> set[str]:
    """Names under which Prometheus sees what a run shows."""
    gauges = {name for name, _ in live_figures.GAUGES.values()}
    gauges |= {live_figures.LAST_STEP, live_figures.TOTAL_STEPS, live_figures.RANKS, live_figures.RESTARTS}
    gauges |= {live_figures.STEP_PART, live_figures.READER_PART, live_figures.CHECKPOINT_SECONDS}
    return {f"ray_{name}" for name in gauges} | {f"ray_{live_figures.CHECKPOINTS}_total"}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_is_promql_and_asks_for_metrics_that_there_are(expression):
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    promql_parser.parse(expression.replace("$run", ".*"))
    known = ours() | {f"ray_{name}" for name in METRICS_GAUGES}
    assert asked(expression)
    assert asked(expression) <= known


def test_the_parser_refuses_what_is_no_promql():
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse('sum by (run (ray_vast_loss{run=~".*"})')


def test_nothing_that_a_run_shows_is_left_out():
    drawn = set().union(*map(asked, EXPRESSIONS))
    assert ours() <= drawn


def test_the_choice_of_runs_asks_for_a_metric_that_every_run_has():
    (variable,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "run"]
    assert variable["query"]["query"] == f"label_values(ray_{live_figures.LAST_STEP}, run)"


def test_panels_have_ids_titles_and_places_of_their_own():
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in PANELS} | {"Clips a second"}) >= len(PANELS) - 1
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_prometheus_scrapes_the_nodes_of_the_compose_file_at_their_port():
    config = yaml.safe_load((INFRA / "prometheus.yml").read_text())
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in services[name]["command"]


def test_grafana_finds_its_source_and_the_dashboard_where_compose_mounts_them():
    source = yaml.safe_load((INFRA / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((INFRA / "grafana/provisioning/dashboards/training.yml").read_text())["providers"][0]
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/training.json"].startswith(provider["options"]["path"] + "/")
    for mount in mounts:
        assert (INFRA / mount).exists()
