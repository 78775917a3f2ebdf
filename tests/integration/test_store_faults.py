"""vast.storage and the lock through a proxy that damages requests and answers on their way to a real S3 server."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vast.storage_s3
import vast.storage_s3_requests
from preprocessing.build import build_dataset
from preprocessing.kinetics import read_kinetics
from preprocessing.lock import LOCK_KEY, PrefixLock
from preprocessing.transcode import TranscodeSettings
from tests.integration import faulty_proxy
from tests.integration.faulty_proxy import ALL_FAULTS, FaultyProxy, Request, seeded
from vast.errors import ObjectMissing, StoreError
from vast.storage import Store, open_store

pytestmark = pytest.mark.campaign

LARGE_BYTES = 21_000_000
LIMIT_S = 60.0


@pytest.fixture
def proxy(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy, with the AWS variables pointing at it; parts are as small as S3 allows, pauses hardly there."""
    monkeypatch.setattr(vast.storage_s3, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(vast.storage_s3_requests, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(vast.storage_s3_requests, "LONGEST_PAUSE_S", 0.05)
    # The least piece that a socket gives is more than this, however busy the machine is; the proxy's trickle is less.
    monkeypatch.setattr(vast.storage_s3_requests, "SLOW_WINDOW_S", 0.2)
    monkeypatch.setattr(vast.storage_s3_requests, "SLOW_BYTES", 100)
    with FaultyProxy(s3_server.endpoint) as proxy, s3_server.in_environment():
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="module")
def bucket(s3_server: Any) -> str:
    """One for all tests: the server has room for few."""
    return s3_server.make_bucket()


@pytest.fixture
def url(bucket: str, request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses; the same in every run, as the schedules depend on the keys."""
    return f"s3://{bucket}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}/set"


@pytest.fixture
def stored(s3_server: Any, bucket: str, url: str) -> Callable[[], dict[str, bytes]]:
    """Return a function that reads all that is at the URL past the proxy, uploads that have not ended as well."""

    def read() -> dict[str, bytes]:
        client, place = s3_server.client(), {"Bucket": bucket, "Prefix": url.removeprefix(f"s3://{bucket}/")}
        keys = [entry["Key"] for entry in client.list_objects_v2(**place).get("Contents", [])]
        uploads = client.list_multipart_uploads(**place).get("Uploads", [])
        found = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        found |= {f"{upload['Key']} has not ended": b"" for upload in uploads}
        return {key.removeprefix(place["Prefix"] + "/"): data for key, data in found.items()}

    return read


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(random.Random(0).randbytes(LARGE_BYTES))
    return path


def use(store: Store, large: Path, folder: Path) -> None:
    """Do everything that a store can do, and see that it is right."""
    content = large.read_bytes()
    assert store.put_file("large.tar", large) == store.stat("large.tar")
    assert store.size("large.tar") == LARGE_BYTES
    store.get_file("large.tar", folder / "copy")
    assert (folder / "copy").read_bytes() == content
    assert store.get_bytes("large.tar") == content
    for offset, size_bytes in ((0, 1), (4_999_999, 300_000), (LARGE_BYTES - 7, 7)):
        assert store.get_range("large.tar", offset, size_bytes) == content[offset : offset + size_bytes]
    small = {f"small/{number}": content[: 100 * number] for number in range(4)}
    for key, data in small.items():
        assert store.put_bytes(key, data).size_bytes == len(data)
    assert list(store.list()) == ["large.tar", *small]
    assert list(store.list("small/")) == list(small)
    assert {key: store.get_bytes(key) for key in small} == small
    store.delete("small/3")
    assert not store.exists("small/3")
    with pytest.raises(ObjectMissing):
        store.get_bytes("small/3")
    assert store.conditional_puts()
    assert store.create("small/4", b"mine")
    assert not store.create("small/4", b"yours")
    version = store.stat("small/4").version
    assert store.replace("small/4", b"mine again", version)
    assert not store.replace("small/4", b"yours", version)
    assert store.get_bytes("small/4") == b"mine again"


@pytest.mark.parametrize("fault", ALL_FAULTS)
def test_a_request_that_fails_twice_is_made_good(
    fault: str, proxy: FaultyProxy, url: str, stored: Callable[[], dict[str, bytes]], large: Path, tmp_path: Path
) -> None:
    proxy.schedule = lambda request, number: fault if number < 2 and faulty_proxy.fits(fault, request) else None
    store = open_store(url)
    use(store, large, tmp_path)
    assert proxy.injected[fault] > 5
    assert set(proxy.injected) == {fault}
    proxy.schedule = lambda request, number: None
    store.sweep()
    assert stored() == {key: store.get_bytes(key) for key in store.list()}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_seed_nothing_is_lost_or_damaged(
    seed: int, proxy: FaultyProxy, url: str, stored: Callable[[], dict[str, bytes]], large: Path, tmp_path: Path
) -> None:
    proxy.schedule = seeded(seed, rate=0.4)
    store = open_store(url)
    use(store, large, tmp_path)
    assert proxy.injected.total() > 10
    store.sweep()
    proxy.schedule = lambda request, number: None
    assert stored() == {key: store.get_bytes(key) for key in store.list()}
    assert stored()["large.tar"] == large.read_bytes()


@pytest.mark.parametrize("fault", [faulty_proxy.CORRUPT_REQUEST, faulty_proxy.CUT_REQUEST])
@pytest.mark.parametrize("size_bytes", [1000, LARGE_BYTES])
def test_an_upload_that_is_always_damaged_is_never_seen(
    fault: str,
    size_bytes: int,
    proxy: FaultyProxy,
    url: str,
    stored: Callable[[], dict[str, bytes]],
    large: Path,
    tmp_path: Path,
) -> None:
    store = open_store(url)
    (tmp_path / "file").write_bytes(large.read_bytes()[:size_bytes])
    store.put_bytes("replaced", b"older")
    proxy.schedule = lambda request, number: fault if request.method == "PUT" else None
    for key in ("new", "replaced"):
        with pytest.raises(StoreError, match=rf"{key}.*\({vast.storage_s3_requests.TRIES} tries\)"):
            store.put_file(key, tmp_path / "file")
    # The parts that did arrive are thrown away with the upload.
    assert stored() == {"replaced": b"older"}
    assert proxy.injected[fault] >= 2 * vast.storage_s3_requests.TRIES


def test_a_body_that_trickles_for_ever_is_given_up(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url)
    store.put_bytes("k", bytes(2000))
    proxy.schedule = lambda request, number: faulty_proxy.SLOW_BODY if request.method == "GET" else None
    with pytest.raises(StoreError, match=r"the body of k broke off 5 times, with \d+ of 2000 bytes read: only \d+"):
        store.get_bytes("k")
    assert proxy.injected[faulty_proxy.SLOW_BODY] == vast.storage_s3.BODY_TRIES


def test_a_server_that_always_fails_is_given_up(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url)
    store.put_bytes("k", b"")
    proxy.schedule = lambda request, number: faulty_proxy.SLOW_DOWN
    calls: list[Callable[[], object]] = [
        lambda: store.put_bytes("k", b"1"),
        lambda: store.get_bytes("k"),
        lambda: store.exists("k"),
        lambda: list(store.list()),
        lambda: store.delete("k"),
    ]
    for call in calls:
        before = proxy.injected.total()
        with pytest.raises(StoreError, match=r"(SlowDown|503).*8 tries"):
            call()
        assert proxy.injected.total() == before + vast.storage_s3_requests.TRIES


@pytest.mark.parametrize("fault", [faulty_proxy.LOST_RESPONSE, faulty_proxy.RESET_IN_HEAD])
def test_create_and_replace_tell_the_truth_when_the_answer_was_lost(fault: str, proxy: FaultyProxy, url: str) -> None:
    store, rival = open_store(url), open_store(url)
    assert store.conditional_puts()

    def first_put(request: Request, number: int) -> str | None:
        return fault if request.method == "PUT" and number == 0 else None

    proxy.schedule = first_put
    assert store.create("mine", b"mine")
    assert proxy.injected.total() == 1
    assert store.get_bytes("mine") == b"mine"
    proxy.schedule = lambda request, number: None
    for key in ("theirs", "swapped"):
        rival.put_bytes(key, b"theirs")
    version = rival.stat("swapped").version
    proxy.schedule = _next_put(fault)
    assert not store.create("theirs", b"mine")
    proxy.schedule = _next_put(fault)
    assert store.replace("swapped", b"mine", version)
    proxy.schedule = _next_put(fault)
    assert not store.replace("swapped", b"mine too", version)
    assert proxy.injected.total() == 4
    assert (store.get_bytes("theirs"), store.get_bytes("swapped")) == (b"theirs", b"mine")


def _next_put(fault: str) -> Callable[[Request, int], str | None]:
    """Return a schedule that damages the next PUT alone."""
    faults = [fault]
    return lambda request, number: faults.pop() if request.method == "PUT" and faults else None


@pytest.mark.parametrize("seed", range(4))
def test_of_several_that_create_and_replace_through_faults_one_wins(
    seed: int, proxy: FaultyProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of them may meet the faults of all.
    monkeypatch.setattr(vast.storage_s3_requests, "TRIES", 50)
    stores = [open_store(url) for _ in range(4)]
    assert all(store.conditional_puts() for store in stores)
    proxy.schedule = seeded(seed, rate=0.5)
    for number in range(3):
        key = f"key-{number}"
        _race(key, lambda store, data, key=key: store.create(key, data), stores)
        version = stores[0].stat(key).version
        _race(key, lambda store, data, key=key, version=version: store.replace(key, data, version), stores)


def _race(key: str, attempt: Callable[[Store, bytes], bool], stores: list[Store]) -> None:
    won: list[bytes] = []
    barrier = threading.Barrier(len(stores))

    def run(store: Store) -> None:
        data = os.urandom(100)
        barrier.wait(LIMIT_S)
        if attempt(store, data):
            won.append(data)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert won == [stores[0].get_bytes(key)]


@pytest.mark.parametrize("seed", range(3))
def test_the_lock_holds_through_faults(seed: int, proxy: FaultyProxy, url: str) -> None:
    store, other = open_store(url), open_store(url)
    proxy.schedule = seeded(seed, rate=0.4)
    for number in range(3):
        with PrefixLock(store, f"job {number}", ttl_s=3600) as lock:
            lock._try_to_renew()
            lock.check()
            held = json.loads(store.get_bytes(LOCK_KEY))
            assert (held["purpose"], held["pid"], held["num_renewals"]) == (f"job {number}", os.getpid(), 1)
            assert not other.create(LOCK_KEY, b"")
        assert not store.exists(LOCK_KEY)
    assert proxy.injected.total() > 5


HOLD = """
import sys
from preprocessing.lock import PrefixLock
from vast.storage import open_store

print("ready", flush=True)
sys.stdin.readline()
while True:
    with PrefixLock(open_store(sys.argv[1]), "to be killed", ttl_s=3600) as lock:
        print("held", flush=True)
        lock.check()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_killed_at_any_moment_of_locking_the_next_job_goes_on_at_once(
    number: int, s3_server: Any, proxy: FaultyProxy, url: str, stored: Callable[[], dict[str, bytes]]
) -> None:
    with FaultyProxy(s3_server.endpoint) as between:
        environment = {**os.environ, "AWS_ENDPOINT_URL": between.endpoint}
        command = [sys.executable, "-c", HOLD, url]
        child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        child.stdin.write(b"\n")
        child.stdin.flush()
        if number % 2:
            child.stdout.readline()
        time.sleep(random.Random(number).uniform(0, 0.3))
        child.kill()
        child.communicate()
        # What it had sent may still be on its way, and the lock that follows is not held for long here.
        between.drain(LIMIT_S)
    told: list[str] = []
    store = open_store(url)
    with PrefixLock(store, "next", on_wait=told.append) as lock:
        store.sweep()
        lock.check()
    assert [text for text in told if "taking over" not in text] == []
    assert stored() == {}


def test_a_server_that_is_away_for_a_while_is_waited_for(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url)
    store.put_bytes("k", b"content")
    away = [5]

    def schedule(request: Request, number: int) -> str | None:
        away[0] -= 1
        return faulty_proxy.RESET_BEFORE if away[0] >= 0 else None

    proxy.schedule = schedule
    assert store.get_bytes("k") == b"content"
    assert proxy.injected.total() == 5


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_build_through_faults_is_the_same_to_the_last_byte(
    seed: int,
    proxy: FaultyProxy,
    url: str,
    stored: Callable[[], dict[str, bytes]],
    make_clip: Callable[..., Path],
    tmp_path: Path,
) -> None:
    rows = ["label,youtube_id,time_start,time_end,split,is_cc"]
    for number in range(8):
        rows.append(f"air drumming,video-{number:05d},0,10,train,0")
        if number:
            make_clip(tmp_path / "videos" / f"video-{number:05d}_000000_000010.mp4", num_frames=8, seed=number)
    (tmp_path / "train.csv").write_text("\n".join(rows))
    whole = str(tmp_path / "whole")
    for destination, schedule in ((whole, None), (url, seeded(seed, rate=0.4))):
        proxy.schedule = schedule or proxy.schedule
        annotations = read_kinetics(tmp_path, tmp_path / "videos", splits=("train",))
        build_dataset(destination, annotations, TranscodeSettings(short_side=32), samples_per_shard=2, num_workers=0)
    assert proxy.injected.total() > 20
    expected = {path.name: path.read_bytes() for path in Path(whole).iterdir()}
    assert len(expected) == 4 + 4, "four shards, the index, failures, unlisted files and the manifest"
    assert stored() == expected
    assert build_dataset(
        url, annotations, TranscodeSettings(short_side=32), samples_per_shard=2, num_workers=0
    ).was_complete


PUT_AND_MEASURE = """
import json, re, sys
from vast.storage import open_store

def peak_bytes():
    # Not getrusage: it counts what the parent had when it started this process.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) << 10

store = open_store(sys.argv[1])
store.put_bytes("warm", b"1")
before = peak_bytes()
written = store.put_file("large", sys.argv[2])
print(json.dumps([written.size_bytes, peak_bytes() - before]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file_that_is_put(s3_server: Any, url: str, tmp_path: Path) -> None:
    grown = []
    with s3_server.in_environment():
        for size_bytes in (64 << 20, 256 << 20):
            with open(tmp_path / "file", "wb") as file:
                for number in range(size_bytes >> 20):
                    file.write(bytes([number]) * (1 << 20))
            command = [sys.executable, "-c", PUT_AND_MEASURE, url, str(tmp_path / "file")]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            written, growth_bytes = json.loads(done.stdout)
            assert written == size_bytes
            grown.append(growth_bytes)
        open_store(url).get_file("large", tmp_path / "copy")
    in_flight = vast.storage_s3.NUM_STREAMS * vast.storage_s3.PART_BYTES
    assert max(grown) < in_flight + (32 << 20), grown
    print(f"grown by {[growth >> 20 for growth in grown]} MiB")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("file", "copy")}
    assert len(digests) == 1
