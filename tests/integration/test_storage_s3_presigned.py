"""Ranges by presigned URLs, against a real S3 server and against one that does not take them."""

import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

import vast.storage_s3_presigned
import vast.storage_s3_requests
from tests.integration.loopback import serving_s3
from vast.errors import StoreError
from vast.storage_s3 import S3Store

CONTENT = bytes(range(250)) * 4


def test_one_url_serves_all_ranges_of_an_object(s3_url: str) -> None:
    store = S3Store(s3_url)
    store.put_bytes("k", CONTENT)
    asked: list[str] = []
    store._requests.client.meta.events.register("before-call.s3.*", lambda model, **_: asked.append(model.name))
    for offset in range(0, 900, 100):
        assert store.get_range("k", offset, 100) == CONTENT[offset : offset + 100]
    assert asked == []


class _Picky(BaseHTTPRequestHandler):
    """Serves CONTENT, to presigned URLs only while it `takes_urls`."""

    protocol_version = "HTTP/1.1"
    takes_urls = True
    answers: list[tuple[str, int]]

    def do_GET(self) -> None:
        way = "url" if "X-Amz-Signature" in self.path else "boto"
        if way == "url" and not self.takes_urls:
            body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.answer(way, 403, body)
        else:
            start, end = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(way, 206, CONTENT[start : end + 1])

    def answer(self, way: str, status: int, body: bytes) -> None:
        self.answers.append((way, status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def picky(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Picky]]:
    handler = type("Handler", (_Picky,), {"answers": []})
    with serving_s3(handler, monkeypatch):
        yield handler


def read(times: int, store: S3Store) -> None:
    for offset in range(times):
        assert store.get_range("k", offset, 500) == CONTENT[offset : offset + 500]


def test_where_urls_are_not_taken_boto3_asks_and_no_more_are_tried(picky: type[_Picky]) -> None:
    picky.takes_urls = False
    read(3, S3Store("s3://bucket"))
    assert picky.answers == [("url", 403), ("boto", 206), ("boto", 206), ("boto", 206)]


def test_a_url_that_has_become_invalid_costs_one_request_and_the_next_is_tried(picky: type[_Picky]) -> None:
    store = S3Store("s3://bucket")
    read(2, store)
    picky.takes_urls = False  # as when the credentials that signed it have ended
    read(1, store)
    picky.takes_urls = True
    read(2, store)
    assert picky.answers == [*[("url", 206)] * 2, ("url", 403), ("boto", 206), *[("url", 206)] * 2]


def test_a_url_is_made_anew_before_it_ends(picky: type[_Picky], monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store("s3://bucket")
    made: list[dict[str, Any]] = []
    sign = store._requests.client.generate_presigned_url

    def count(*arguments: Any, **named: Any) -> Any:
        made.append(named)
        return sign(*arguments, **named)

    monkeypatch.setattr(store._requests.client, "generate_presigned_url", count)
    read(3, store)
    assert len(made) == 1
    begun = time.monotonic()
    monkeypatch.setattr(vast.storage_s3_presigned.time, "monotonic", lambda: begun + made[0]["ExpiresIn"] / 2)
    read(3, store)
    assert len(made) == 2


def test_a_signature_is_in_no_message(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(vast.storage_s3_requests, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(StoreError, match=r'Could not connect .* "http://127\.0\.0\.1:9/[^?]*/k"') as caught:
        S3Store(s3_url).get_range("k", 0, 10)
    assert "X-Amz" not in "".join(traceback.format_exception(caught.value))


def test_threads_that_begin_together_share_one_client(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = S3Store(s3_url), []
    store.put_bytes("k", CONTENT)
    make = vast.storage_s3_requests._make_client

    def slowly() -> Any:
        made.append(threading.get_ident())
        time.sleep(0.1)
        return make()

    monkeypatch.setattr(vast.storage_s3_requests, "_make_client", slowly)
    other = S3Store(s3_url)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: other.get_range("k", 0, 1000), range(8))) == {CONTENT}
    assert len(made) == 1
