import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preprocessing.lock
from preprocessing.lock import LOCK_KEY, PrefixLock, is_alive, process_start
from vast.errors import StoreError, UserError
from vast.storage import LocalStore

LIMIT_S = 60.0
HOLD = """
import sys, time
from preprocessing.lock import PrefixLock
from vast.storage import open_store

with PrefixLock(open_store(sys.argv[1]), "the first job", ttl_s=3600):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "set")


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that puts the lock's clock forward; it stands still otherwise."""
    now = [1000.0]
    monkeypatch.setattr(preprocessing.lock, "_clock", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def change(store: LocalStore, **fields: object) -> None:
    store.put_bytes(LOCK_KEY, json.dumps({**json.loads(store.get_bytes(LOCK_KEY)), **fields}).encode())


def leave(store: LocalStore, **fields: object) -> None:
    """Put a lock as one that was left there; without fields it names this very process."""
    with PrefixLock(store, "an older job"):
        content = store.get_bytes(LOCK_KEY)
    store.put_bytes(LOCK_KEY, content)
    change(store, **fields)


def test_a_second_job_is_refused_and_told_whom_it_met(store: LocalStore) -> None:
    with PrefixLock(store, "vast shard K400") as lock:
        holder = json.loads(store.get_bytes(LOCK_KEY))
        words = rf"set: another process is writing here: vast shard K400 \(process {os.getpid()} on {holder['host']}, "
        for _ in range(2):
            with pytest.raises(UserError, match=words + "since 20.*wait until it is done"), PrefixLock(store, "2"):
                pass
        lock.check()
        assert json.loads(store.get_bytes(LOCK_KEY)) == holder
    assert not store.exists(LOCK_KEY)


def test_the_lock_goes_with_a_block_that_raises(store: LocalStore) -> None:
    with pytest.raises(RuntimeError), PrefixLock(store, "1"):
        raise RuntimeError
    with PrefixLock(store, "2"):
        pass
    assert os.listdir(store.url) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_after_a_sigkill_the_next_job_goes_on_at_once(store: LocalStore, reaped: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        start = process_start(child.pid)
        assert is_alive(child.pid, start)
        with pytest.raises(UserError, match=rf"the first job \(process {child.pid} on "), PrefixLock(store, "2"):
            pass
        child.send_signal(signal.SIGKILL)
        if reaped:
            child.wait(LIMIT_S)
        else:
            # The process stays in the table until its parent, which is us, asks after it.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert process_start(child.pid) == start
        assert not is_alive(child.pid, start)
        told: list[str] = []
        with PrefixLock(store, "2", on_wait=told.append) as lock:
            lock.check()
            assert json.loads(store.get_bytes(LOCK_KEY))["purpose"] == "2"
        assert len(told) == 1
        assert "has ended without removing its lock; taking over" in told[0]
        assert os.listdir(store.url) == []
    finally:
        child.kill()
        child.communicate()


def test_a_number_that_another_process_has_now_is_not_the_holder(store: LocalStore) -> None:
    leave(store, pid=os.getppid(), process_start=process_start(os.getppid()) + 1, expires_s=3600)
    with PrefixLock(store, "2"):
        pass
    leave(store, pid=os.getppid(), process_start=process_start(os.getppid()), expires_s=3600)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), PrefixLock(store, "3"):
        pass


def test_a_lock_that_this_process_left_when_the_store_failed_does_not_keep_it_out(store: LocalStore) -> None:
    leave(store)
    with PrefixLock(store, "2") as lock:
        lock.check()


@pytest.mark.parametrize("elsewhere", ["host", "boot_id", "pid_namespace"])
def test_a_holder_on_another_machine_is_waited_for_as_long_as_its_lock_lasts(
    store: LocalStore, elsewhere: str, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other's time is far longer than ours, and its clock may say anything.
    leave(store, **{elsewhere: "other"}, expires_s=500.0, since="2999-01-01")
    slept = []
    monkeypatch.setattr(preprocessing.lock.time, "sleep", lambda seconds: (slept.append(seconds), pass_time(seconds)))
    told: list[str] = []
    with PrefixLock(store, "2", ttl_s=100.0, on_wait=told.append) as lock:
        assert sum(slept) == pytest.approx(500.0)
        assert ["waiting up to 500 s" in text for text in told] == [True, False]
        assert "taking over" in told[1]
        lock.check()


def test_a_holder_on_another_machine_that_renews_its_lock_is_not_robbed(
    store: LocalStore, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, host="other", expires_s=500.0)
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        pass_time(seconds)
        if len(naps) == 30:
            change(store, num_renewals=1)

    monkeypatch.setattr(preprocessing.lock.time, "sleep", sleep)
    words = r"another process is writing here: an older job \(process \d+ on other"
    with pytest.raises(UserError, match=words), PrefixLock(store, "2", ttl_s=1.0):
        pass
    assert len(naps) == 30
    assert json.loads(store.get_bytes(LOCK_KEY))["num_renewals"] == 1


def test_one_who_waits_goes_on_when_the_lock_is_removed(
    store: LocalStore, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, host="other", expires_s=500.0)
    monkeypatch.setattr(preprocessing.lock.time, "sleep", lambda seconds: store.delete(LOCK_KEY))
    with PrefixLock(store, "2"):
        assert json.loads(store.get_bytes(LOCK_KEY))["purpose"] == "2"


def test_of_two_who_wait_the_second_waits_anew_for_the_first(
    store: LocalStore, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, host="other", expires_s=500.0)
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        pass_time(seconds)
        if len(naps) == 10:
            change(store, host="third", owner="0" * 32, expires_s=200.0)

    monkeypatch.setattr(preprocessing.lock.time, "sleep", sleep)
    with PrefixLock(store, "2"):
        pass
    assert sum(naps) == pytest.approx(sum(naps[:10]) + 200.0)


def test_of_two_who_find_a_dead_holder_the_second_is_refused(tmp_path: Path) -> None:
    class Watched(LocalStore):
        def get_bytes(self, key: str) -> bytes:
            content = super().get_bytes(key)
            if b"older job" in content:
                # Between the look and the replacement another process takes over: one that lives, our parent.
                change(LocalStore(self.url), purpose="2", pid=os.getppid(), process_start=process_start(os.getppid()))
            return content

    leave(LocalStore(tmp_path))
    with pytest.raises(UserError, match=r"writing here: 2 \(process"), PrefixLock(Watched(tmp_path), "3"):
        pass
    assert json.loads(LocalStore(tmp_path).get_bytes(LOCK_KEY))["purpose"] == "2"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff\x00"])
def test_a_lock_that_cannot_be_read_expires_too(
    store: LocalStore, content: bytes, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing.lock.time, "sleep", pass_time)
    store.put_bytes(LOCK_KEY, content)
    told: list[str] = []
    with PrefixLock(store, "2", ttl_s=100.0, on_wait=told.append):
        pass
    assert "lock.json that cannot be read; waiting up to 100 s" in told[0]


def test_a_held_lock_is_renewed(store: LocalStore) -> None:
    with PrefixLock(store, "1", ttl_s=0.4) as lock:
        deadline = time.monotonic() + LIMIT_S
        while json.loads(store.get_bytes(LOCK_KEY))["num_renewals"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.check()
    assert not store.exists(LOCK_KEY)


class _FailingStore(LocalStore):
    """A folder that does not answer while `trouble` says why."""

    trouble = ""

    def stat(self, key: str) -> Any:
        if self.trouble:
            raise StoreError(self.trouble)
        return super().stat(key)


def test_a_store_that_fails_is_borne_until_the_lock_expires(tmp_path: Path, pass_time: Callable[[float], None]) -> None:
    store = _FailingStore(tmp_path)
    with PrefixLock(store, "1", ttl_s=1000.0) as lock:
        store.trouble = "503 Slow Down"
        lock.check()
        pass_time(999)
        lock.check()
        pass_time(1)
        with pytest.raises(StoreError, match=r"could not be renewed for 1000 s, so another .*503 Slow Down"):
            lock.check()
        store.trouble = ""
        lock.check()  # nobody had come
        pass_time(999)
        store.trouble = "again"
        lock.check()
    assert json.loads(store.get_bytes(LOCK_KEY))["num_renewals"] == 1, "it could not be removed"
    store.trouble = ""
    with PrefixLock(store, "2"):
        pass


def test_one_who_lost_the_lock_is_told_and_leaves_the_other_s_alone(
    store: LocalStore, pass_time: Callable[[float], None]
) -> None:
    with PrefixLock(store, "1", ttl_s=1000.0) as lock:
        change(store, owner="0" * 32, purpose="the other job", pid=1)
        pass_time(500)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"set: the lock was taken over by the other job \(process 1 on"):
                lock.check()
    assert json.loads(store.get_bytes(LOCK_KEY))["purpose"] == "the other job"


def test_a_lock_that_was_removed_is_put_back_unless_it_had_expired(
    store: LocalStore, pass_time: Callable[[float], None]
) -> None:
    with PrefixLock(store, "1", ttl_s=1000.0) as lock:
        store.delete(LOCK_KEY)
        pass_time(500)
        lock.check()
        assert store.exists(LOCK_KEY)
        store.delete(LOCK_KEY)
        pass_time(1000)
        with pytest.raises(StoreError, match="the lock expired and is gone"):
            lock.check()
    assert not store.exists(LOCK_KEY)


def test_an_expired_lock_is_not_removed_without_renewing_it(
    store: LocalStore, pass_time: Callable[[float], None]
) -> None:
    with PrefixLock(store, "1", ttl_s=1000.0):
        pass_time(2000)
        renewed: list[int] = []
        delete = store.delete
        store.delete = lambda key: (  # type: ignore[method-assign]
            renewed.append(json.loads(store.get_bytes(key))["num_renewals"]),
            delete(key),
        )
    assert renewed == [1]
    assert not store.exists(LOCK_KEY)


def test_threads_of_one_process_exclude_each_other(store: LocalStore) -> None:
    inside, most, done = [0], [0], []

    def work() -> None:
        while True:
            try:
                with PrefixLock(store, "a thread"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.01)
                    inside[0] -= 1
                    done.append(1)
                    return
            except UserError:
                time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(done) == 6
    assert most == [1]


def _count_under_lock(store: LocalStore, folder: Path) -> None:
    """Add to a number in a file, up to ten times; who makes it a multiple of four is killed with the lock held."""
    for _ in range(10):
        while True:
            try:
                with PrefixLock(store, "counting"):
                    number = int((folder / "number").read_text()) + 1
                    with open(folder / "log", "a") as log:
                        log.write("1\n")
                    time.sleep(0.001)
                    (folder / "number").write_text(str(number))
                    if number % 4 == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                break
            except UserError:
                time.sleep(0.002)


def test_processes_that_are_killed_with_the_lock_let_in_exactly_one_other(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_count_under_lock, args=(store, tmp_path)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(LIMIT_S)
    assert {racer.exitcode for racer in racers} <= {0, -signal.SIGKILL}
    number = int((tmp_path / "number").read_text())
    assert number == len((tmp_path / "log").read_text().split()) >= 10
    assert [racer.exitcode for racer in racers].count(-signal.SIGKILL) == number // 4
    with PrefixLock(store, "the last"):
        pass
    assert os.listdir(store.url) == []
