import multiprocessing
import os
import signal
import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipelines import tracking
from pipelines.tracking import RunRef
from pipelines.tracking.delivery import Delivery, Steps
from pipelines.tracking.spool import SEGMENT_BYTES, Spool, read_segment
from tests.unit.pipelines.tracking.test_sender import history


@pytest.fixture
def run(uri):
    return tracking.create_run(uri, "delivery", params={}, tags={})


def test_steps_that_a_resumed_run_does_again_are_there_once_and_the_first_wins(run):
    for steps, step_s in ((range(1, 16), 0.5), (range(11, 21), 0.7)):  # resumed from a checkpoint of step 10
        points = [("train/loss", float(step), step) for step in steps] + [
            ("time/step_s", step_s, step) for step in steps
        ]
        Spool(run).add([(name, value, time.time_ns() // 10**6, step) for name, value, step in points])
        assert not tracking.flush(run).left
    assert history(run, "train/loss") == [(step, float(step)) for step in range(1, 21)]
    assert history(run, "time/step_s") == [(step, 0.5 if step <= 15 else 0.7) for step in range(1, 21)]


def test_what_another_machine_kept_of_the_same_steps_fills_the_gaps_alone(run):
    client = MlflowClient(run.tracking_uri)
    there = [Metric("a", 1.0, 1, 1), *(Metric("a", 10.0 + step, 2, step) for step in (5, 6, 7))]
    client.log_batch(run.run_id, metrics=there)
    Spool(run).add([("a", float(step), 1000 + step, step) for step in range(1, 7)])
    assert tracking.flush(run).left.points == 0
    assert history(run, "a") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 15.0), (6, 16.0), (7, 17.0)]


def test_a_point_that_was_sent_and_not_forgotten_is_not_sent_again(run):
    Spool(run).add([("a", float(step), 1000 + step, step) for step in range(1000)])
    client = MlflowClient(run.tracking_uri)
    client.log_batch(run.run_id, metrics=[Metric("a", float(step), 1000 + step, step) for step in range(600)])
    assert str(tracking.flush(run).before) == "1000 figures"
    assert history(run, "a") == [(step, float(step)) for step in range(1000)]


def test_a_request_that_failed_after_it_was_applied_is_asked_about(run, monkeypatch):
    Spool(run).add([("a", 1.0, 1, 1), ("b", 1.0, 1, 1)])
    whole, sent = MlflowClient.log_batch, []

    def applied_but_lost(self, run_id, metrics=(), **more):
        sent.append([metric.key for metric in metrics])
        whole(self, run_id, metrics=metrics, **more)
        if len(sent) == 1:
            raise ConnectionResetError("the answer never came\nsecond line")

    monkeypatch.setattr(MlflowClient, "log_batch", applied_but_lost)
    spool = Spool(run)
    delivery = Delivery(spool)
    assert not delivery.send()
    assert delivery.trouble == "the answer never came"
    spool.add([("a", 2.0, 2, 2)])
    spool.close()
    assert delivery.send()
    delivery.close()
    assert sent == [["a", "b"], ["a"]]
    assert history(run, "a") == [(1, 1.0), (2, 2.0)]


def test_lines_that_cannot_be_read_are_kept_aside_and_counted(run, spool):
    Spool(run).add([("a", 1.0, 1, 1), ("a", 2.0, 2, 2)])
    (segment,) = (spool / run.run_id).glob("*.points")
    with segment.open("a") as file:
        file.write('["a", 3.0, 3')  # cut off by a full disk
    done = tracking.flush(run)
    assert (done.left.points, done.left.damaged) == (0, 1)
    assert (spool / run.run_id / "damaged.txt").read_text() == '["a", 3.0, 3\n'
    assert history(run, "a") == [(1, 1.0), (2, 2.0)]
    assert tracking.waiting_runs() == [(run, done.left)]


def test_a_segment_that_is_still_written_to_and_a_run_that_is_being_sent_are_left_alone(run, monkeypatch):
    monkeypatch.setattr("pipelines.tracking.delivery.OTHERS_S", 0.3)
    writer, reader = Spool(run), Spool(run)
    writer.add([("a", 1.0, 1, 1)])
    assert reader.segments() == []
    delivery = Delivery(reader)
    assert delivery.send()  # nothing it may take
    done = tracking.flush(run)
    assert "another process" in done.trouble
    assert done.left.points == 1
    delivery.close()
    writer.offer()
    assert tracking.flush(run).left.points == 0


def test_a_flush_waits_a_moment_for_another_process_that_is_sending(run, spool):
    delivery = Delivery(Spool(run))
    assert delivery.send()
    Spool(run).add_end("FAILED", 1)
    done = threading.Timer(0.5, delivery.close)
    done.start()
    assert not tracking.flush(run).left
    done.join()
    assert MlflowClient(run.tracking_uri).get_run(run.run_id).info.status == "FAILED"
    assert list(spool.iterdir()) == []


def test_points_are_offered_as_soon_as_nothing_else_waits(run):
    writer = Spool(run)
    writer.add([("a", 1.0, 1, 1)])
    writer.offer()
    (offered,) = writer.segments()
    for step in range(2, 10):  # the server is away
        writer.add([("a", 1.0, 1, step)])
        writer.offer()
    assert writer.segments() == [offered]
    assert writer.is_written_by(os.getpid())
    writer.forget(offered)
    writer.offer()
    (rest,) = writer.segments()
    assert len(read_segment(rest)[0]) == 8
    assert not writer.is_written_by(os.getpid())


def test_long_outages_fill_segments_of_bounded_size(run, spool):
    writer = Spool(run)
    for start in range(0, 20_000, 100):
        writer.add([("a", float(step), step, step) for step in range(start, start + 100)])
    sizes = [path.stat().st_size for path in (spool / run.run_id).glob("*.points")]
    assert len(sizes) > 1
    assert max(sizes) < 1.1 * SEGMENT_BYTES
    assert writer.waiting().points == 20_000


def killed_between_sending_and_forgetting(run: RunRef) -> None:
    Spool.forget = lambda self, segment: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    tracking.flush(run)


@pytest.mark.slow
def test_a_process_killed_between_sending_and_forgetting_doubles_nothing(run, spool):
    Spool(run).add([("a", float(step), 1000 + step, step) for step in range(20)])
    process = multiprocessing.get_context("spawn").Process(target=killed_between_sending_and_forgetting, args=(run,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(history(run, "a")) == 20
    assert Spool(run).waiting().points == 20
    assert tracking.flush(run).left.points == 0
    assert history(run, "a") == [(step, float(step)) for step in range(20)]
    assert list(spool.iterdir()) == []


def test_steps_are_known_from_a_point_on():
    steps = Steps(10, [5, 30, 20, 20])
    assert not steps.add(20)
    assert steps.add(25)
    assert list(steps.sorted) == [20, 25, 30]
