"""vast.storage against a real S3 server, and against one whose bodies break off."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import vast.storage_s3
import vast.storage_s3_requests
from tests.integration.loopback import serving_s3
from vast.errors import ObjectDamaged, ObjectMissing, StoreError, UserError
from vast.storage import Store, open_store
from vast.storage_s3 import S3Store


def test_objects_come_back_whole_by_range_and_as_files(s3_url: str, tmp_path: Path) -> None:
    store = open_store(f"{s3_url}/a/prefix")
    data = os.urandom(300_000)
    store.put_bytes("x/y.bin", data)
    assert store.get_bytes("x/y.bin") == data
    assert store.get_range("x/y.bin", 123, 100_000) == data[123:100_123]
    assert store.get_range("x/y.bin", 299_999, 1) == data[-1:]
    assert store.get_range("x/y.bin", 5, 0) == b""
    assert store.size("x/y.bin") == len(data)
    store.get_file("x/y.bin", tmp_path / "copy")
    store.put_file("z", tmp_path / "copy")
    store.put_bytes("empty", b"")
    assert store.get_bytes("z") == data
    assert store.get_bytes("empty") == b""
    assert list(store.list()) == ["empty", "x/y.bin", "z"]
    assert list(store.list("x")) == ["x/y.bin"]
    store.delete("z")
    store.delete("z")
    assert not store.exists("z")
    assert store.exists("empty")


def test_a_large_file_goes_up_in_parts_and_down_the_same(s3_url: str, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        for number in range(20):
            file.write(bytes([number]) * 1_000_000)
    store = open_store(s3_url)
    store.put_file("large", tmp_path / "large")
    assert store.size("large") == 20_000_000
    assert store.get_range("large", 7_999_999, 2) == b"\x07\x08"
    store.get_file("large", tmp_path / "back")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("large", "back")}
    assert len(digests) == 1


def test_a_range_past_the_end_is_an_error(s3_url: str) -> None:
    store = open_store(s3_url)
    store.put_bytes("a", b"12345")
    with pytest.raises(StoreError, match=r"a has no bytes 3\.\.6"):
        store.get_range("a", 3, 4)
    with pytest.raises(ObjectDamaged):
        store.get_range("a", 100, 4)


def test_a_missing_object_is_not_a_missing_bucket(s3_url: str, tmp_path: Path) -> None:
    store, nowhere = open_store(s3_url), open_store("s3://no-such-bucket-here/prefix")
    calls: list[Any] = [
        lambda store: store.get_bytes("k"),
        lambda store: store.get_range("k", 0, 1),
        lambda store: store.size("k"),
        lambda store: store.get_file("k", tmp_path / "k"),
    ]
    for call in calls:
        with pytest.raises(ObjectMissing, match="there is no k"):
            call(store)
        with pytest.raises(UserError, match=r"no bucket 'no-such-bucket-here' at http://127\.0\.0\.1"):
            call(nowhere)
    # Not put_bytes: this server makes a bucket that it is given an object for.
    for call in (lambda: list(nowhere.list()), lambda: nowhere.exists("k")):
        with pytest.raises(UserError, match="no bucket 'no-such-bucket-here'"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_wrong_or_absent_credentials_say_what_to_check(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for call in (lambda store: store.get_bytes("k"), lambda store: store.exists("k"), lambda store: list(store.list())):
        with pytest.raises(UserError, match=r"refused the credentials .* check AWS_ACCESS_KEY_ID"):
            call(open_store(s3_url))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        open_store(s3_url).put_bytes("k", b"")


def test_when_nothing_listens_the_endpoint_is_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 .*AWS_ENDPOINT_URL"):
        open_store(s3_url).put_bytes("k", b"")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_that_was_used_works_in_a_child_process(s3_url: str, method: str) -> None:
    store = open_store(s3_url)
    store.put_bytes("k", b"content")
    assert pickle.loads(pickle.dumps(store)).get_bytes("k") == b"content"
    child = get_context(method).Process(target=store.get_bytes, args=("k",))
    child.start()
    child.join(60)
    assert child.exitcode == 0


class _BreaksOff(BaseHTTPRequestHandler):
    """Serves 100 000 bytes; the first `breaks` bodies end half-way."""

    content = bytes(range(250)) * 400
    breaks = 0
    ranges: list[str | None] = []  # noqa: RUF012 - set anew by every test
    etag = '"one"'

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        if self.headers.get("If-Match", self.etag) != self.etag:
            self.send_response(412)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = 0, len(self.content) - 1
        if asked:
            start, end = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        body = self.content[start : end + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.etag)
        self.end_headers()
        if self.breaks > 0:
            type(self).breaks -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def breaking(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_BreaksOff]]:
    handler = type("Handler", (_BreaksOff,), {"ranges": []})
    monkeypatch.setattr(vast.storage_s3_requests.time, "sleep", lambda seconds: None)
    with serving_s3(handler, monkeypatch):
        yield handler


def test_a_body_that_breaks_off_is_resumed_where_it_broke(breaking: type[_BreaksOff]) -> None:
    store = open_store("s3://bucket")
    breaking.breaks = 2
    assert store.get_range("k", 1000, 80_000) == breaking.content[1000:81_000]
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in breaking.ranges if asked]
    assert len(starts) == 3
    assert starts == sorted(starts)
    breaking.breaks = 1
    assert store.get_bytes("k") == breaking.content


def test_a_body_that_always_breaks_off_is_an_error_after_some_tries(breaking: type[_BreaksOff]) -> None:
    breaking.breaks = 1000
    with pytest.raises(StoreError, match=r"body of k broke off 5 times, with \d+ of 80000 bytes read"):
        open_store("s3://bucket").get_range("k", 0, 80_000)
    assert len(breaking.ranges) == vast.storage_s3.BODY_TRIES


def test_an_object_that_is_replaced_while_it_is_read_is_not_stitched_together(
    breaking: type[_BreaksOff], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking.breaks = 1
    monkeypatch.setattr(vast.storage_s3_requests.time, "sleep", lambda seconds: setattr(breaking, "etag", '"two"'))
    with pytest.raises(StoreError, match="k was replaced while it was being read"):
        open_store("s3://bucket").get_range("k", 0, 80_000)


def test_a_put_tells_what_was_written(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vast.storage_s3, "PART_BYTES", 5 << 20)
    store = open_store(s3_url)
    versions = set()
    for number, size_bytes in enumerate((0, 10, 5 << 20, (5 << 20) + 1, 11 << 20)):
        data = bytes([number]) * size_bytes
        (tmp_path / "file").write_bytes(data)
        for written in (store.put_bytes("k", data), store.put_file("k", tmp_path / "file")):
            assert written == store.stat("k")
            assert written.size_bytes == size_bytes
        assert store.get_bytes("k") == data
        versions.add(written.version)
    assert len(versions) == 5
    with pytest.raises(ObjectMissing):
        store.stat("other")


def test_where_parts_carry_a_crc_the_upload_begins_and_ends_with_it(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on AWS, where no endpoint is in the environment.
    (tmp_path / "config").write_text(
        f"[default]\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\ns3 =\n  addressing_style = path\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(vast.storage_s3, "PART_BYTES", 5 << 20)
    store = S3Store(s3_url)
    sent: list[dict[str, Any]] = []
    events = store._requests.client.meta.events
    for method in ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
        events.register(f"provide-client-params.s3.{method}", lambda params, **_: sent.append(params))
    data = os.urandom(11 << 20)
    store.put_bytes("k", data)
    assert store.get_bytes("k") == data
    store.put_bytes("small", b"1")
    begin, *parts, end, small = sent
    assert [params["ChecksumAlgorithm"] for params in (begin, *parts, small)] == ["CRC32"] * 5
    assert all(part["ChecksumCRC32"] for part in end["MultipartUpload"]["Parts"])


def test_create_and_replace_only_do_what_they_are_asked(s3_url: str) -> None:
    store = open_store(f"{s3_url}/set")
    assert store.conditional_puts()
    assert list(store.list()) == []
    _create_and_replace(store)


def _create_and_replace(store: Store) -> None:
    assert not store.replace("k", b"0", '"no such version"')
    assert store.create("k", b"1")
    first = store.stat("k").version
    assert not store.create("k", b"2")
    assert store.replace("k", b"3", first)
    assert not store.replace("k", b"4", first)
    assert store.get_bytes("k") == b"3"
    store.delete("k")
    assert not store.replace("k", b"5", first)
    assert list(store.list()) == []


def test_sweep_ends_what_killed_puts_left_at_this_prefix_alone(s3_server: Any, s3_url: str) -> None:
    client, bucket = s3_server.client(), s3_url.removeprefix("s3://")
    scratch = f".probe.{'0' * 32}.tmp"
    for key in ("set/a.tar", "set/b.tar", "set/below/c.tar", "set2/d.tar", "e.tar"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"part")
        client.put_object(Bucket=bucket, Key=key, Body=b"whole")
    client.put_object(Bucket=bucket, Key=f"set/{scratch}", Body=b"")
    client.put_object(Bucket=bucket, Key=f"set2/{scratch}", Body=b"")
    store = open_store(f"{s3_url}/set")
    assert list(store.list()) == ["a.tar", "b.tar", "below/c.tar"]
    assert store.sweep() == 3
    left = {upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert left == {"set/below/c.tar", "set2/d.tar", "e.tar"}
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"set/a.tar", "set/b.tar", "set/below/c.tar", "set2/d.tar", "e.tar", f"set2/{scratch}"}
    assert open_store(s3_url).sweep() == 1
    assert store.sweep() == 0


class _Simple(BaseHTTPRequestHandler):
    """A server that knows PUT, GET, HEAD, DELETE and a list, and not, or not well, conditions."""

    protocol_version = "HTTP/1.1"
    conditions = "ignored"
    objects: dict[str, bytes] = {}  # noqa: RUF012 - set anew by every test

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        there = self.objects.get(self.path)
        if self.headers.get("If-None-Match") or self.headers.get("If-Match"):
            if self.conditions == "not implemented":
                return self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            if self.conditions == "only create" and (there is not None or self.headers.get("If-Match")):
                return self._answer(412)
        self.objects[self.path] = data
        return self._answer(200)

    def do_GET(self) -> None:
        if "list-type" in self.path:
            keys = (f"<Contents><Key>{path.split('/', 2)[2]}</Key></Contents>" for path in self.objects)
            lists = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(keys)}</ListBucketResult>"
            self._answer(200, lists.encode())
        elif self.path in self.objects:
            self._answer(200, self.objects[self.path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        is_there = self.path in self.objects or self.path == "/bucket"
        self._answer(200 if is_there else 404, self.objects.get(self.path, b""))

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        etag = hashlib.md5(self.objects.get(self.path, b""), usedforsecurity=False).hexdigest()
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def simple(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Simple]]:
    handler = type("Handler", (_Simple,), {"objects": {}})
    with serving_s3(handler, monkeypatch):
        yield handler


@pytest.mark.parametrize("conditions", ["ignored", "not implemented", "only create"])
def test_where_conditions_are_not_kept_create_and_replace_put_wait_and_look(
    conditions: str, simple: type[_Simple], monkeypatch: pytest.MonkeyPatch
) -> None:
    simple.conditions = conditions
    slept: list[float] = []
    monkeypatch.setattr(vast.storage_s3.time, "sleep", slept.append)
    store = open_store("s3://bucket/set")
    assert not store.conditional_puts()
    assert simple.objects == {}
    _create_and_replace(store)
    assert slept == [vast.storage_s3.SETTLE_S] * (1 if conditions == "only create" else 2)

    def rival(seconds: float) -> None:
        simple.objects["/bucket/set/k"] = b"the rival's, put a moment later"

    monkeypatch.setattr(vast.storage_s3.time, "sleep", rival)
    if conditions != "only create":
        assert not store.create("k", b"ours")
    store.put_bytes("k", b"older")
    assert not store.replace("k", b"ours", store.stat("k").version)
    assert store.get_bytes("k") == b"the rival's, put a moment later"
