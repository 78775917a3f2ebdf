import time

from pipelines.training import live_figures
from pipelines.training.live_figures import LiveFigures
from pipelines.training.worker import NoTracker


class Shown:
    """Stands for Ray's metrics; every process of a cluster has its own, and they are read over HTTP (test_infra.py)."""

    def __init__(self):
        self.sets = []

    def gauge(self, name, words, tag_keys):
        shown = self

        class Gauge:
            def set_default_tags(self, tags):
                self.tags = tags
                return self

            def set(self, value, tags=None):
                merged = {**self.tags, **(tags or {})}
                assert set(merged) == set(tag_keys)
                shown.sets.append((name, merged.get("part", ""), value))

        return Gauge()

    def counter(self, name, words, tag_keys):
        return type("Counter", (), {"inc": lambda _, tags: self.sets.append((name, "", 1))})()


class Heard(NoTracker):
    def __init__(self):
        self.calls = []

    def log(self, step, figures):
        self.calls.append((step, dict(figures)))


def make(monkeypatch):
    shown, heard = Shown(), Heard()
    monkeypatch.setattr(live_figures, "Gauge", shown.gauge)
    monkeypatch.setattr(live_figures, "Counter", shown.counter)
    monkeypatch.setattr(live_figures, "AGAIN_S", 0.05)
    return shown, heard, LiveFigures("run-1", heard)


def test_figures_are_shown_and_passed_on(monkeypatch):
    shown, heard, live = make(monkeypatch)
    live.started(0, 40, 2)
    figures = {"train/loss": 2.5, "stall/wait": 0.1, "stall/decode": 0.2, "stall/wait_share": 0.5, "eval/top5": 90.0}
    live.log(10, figures)
    live.checkpoint_stored(3.5)
    live.close()
    assert heard.calls == [(10, figures)]
    assert {
        ("vast_steps_planned", "", 40.0),
        ("vast_ranks", "", 2.0),
        ("vast_last_step", "", 10.0),
        ("vast_loss", "", 2.5),
        ("vast_step_part_seconds", "wait", 0.1),
        ("vast_reader_part_seconds", "decode", 0.2),
        ("vast_checkpoints_stored", "", 1),
        ("vast_checkpoint_upload_seconds", "", 3.5),
    } <= set(shown.sets)
    assert {name for name, _, _ in shown.sets} == {
        "vast_steps_planned", "vast_ranks", "vast_last_step", "vast_loss", "vast_step_part_seconds",
        "vast_reader_part_seconds", "vast_checkpoints_stored", "vast_checkpoint_upload_seconds",
    }  # fmt: skip


def test_the_last_figures_are_shown_again_until_it_is_closed(monkeypatch):
    shown, _, live = make(monkeypatch)
    live.log(1, {"train/loss": 2.0})
    live.log(2, {"train/loss": 1.0})
    deadline = time.monotonic() + 10
    while shown.sets.count(("vast_loss", "", 1.0)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert shown.sets.count(("vast_loss", "", 1.0)) >= 4
    assert shown.sets.count(("vast_loss", "", 2.0)) == 1
    live.close()
    assert not live.thread.is_alive()
    count = len(shown.sets)
    time.sleep(0.2)
    assert len(shown.sets) == count
