"""An HTTP proxy in front of a real S3 server that damages what passes through it, by a seeded schedule.

What happens to a request depends on the seed, on the request and on how often the same one has come, and not on the
order in which threads send theirs: two runs with one seed meet the same faults.
"""

import contextlib
import hashlib
import http.client
import re
import select
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

# Faults of requests that the server never sees whole.
ERROR_500 = "500"
SLOW_DOWN = "503 SlowDown"
RESET_BEFORE = "reset before the server sees the request"
CUT_REQUEST = "request's body cut, connection reset"
CORRUPT_REQUEST = "request's body corrupted"
# Faults of answers; the server has done its work.
LOST_RESPONSE = "answer lost"
RESET_IN_HEAD = "reset within the answer's head"
RESET_AFTER_HEAD = "reset after the answer's head"
CUT_BODY = "answer's body cut short"
RESET_BODY = "reset half-way through the answer's body"
EMPTY_BODY = "answer's body cut before its first byte"
SLOW_BODY = "answer's body trickles"

UPLOAD_FAULTS = (CUT_REQUEST, CORRUPT_REQUEST)
BODY_FAULTS = (RESET_AFTER_HEAD, CUT_BODY, RESET_BODY, EMPTY_BODY, SLOW_BODY)
ANY_FAULTS = (ERROR_500, SLOW_DOWN, RESET_BEFORE, LOST_RESPONSE, RESET_IN_HEAD)
ALL_FAULTS = (*ANY_FAULTS, *UPLOAD_FAULTS, *BODY_FAULTS)

_TRICKLE_S = 0.02


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    method: str
    target: str
    head: bytes
    body: bytes
    headers: dict[str, str]

    @property
    def identity(self) -> str:
        """What the same request has again when it is repeated, in this run and in another one.

        Left out: the bucket and the numbers of uploads and scratch objects, which are drawn at random, the host, a
        signature, and where a range begins, as a resumed download asks for the rest of the same range.
        """
        key = re.sub("[0-9a-f]{32}", "*", urlsplit(self.target).path.lstrip("/").partition("/")[2])
        fields = sorted((name, value) for name, value in self.fields if name != "uploadId")
        return f"{self.method} {key} {fields} {self.headers.get('range', '').rpartition('-')[2]}"

    @property
    def fields(self) -> list[tuple[str, str]]:
        """What the URL asks for besides the object, without its signature."""
        fields = parse_qsl(urlsplit(self.target).query, keep_blank_values=True)
        return [(name, value) for name, value in fields if not name.startswith("X-Amz-")]


Schedule = Callable[[Request, int], str | None]
"""Called with a request and how often it has come before; returns the fault, None for none."""


def seeded(seed: int, rate: float, faults: tuple[str, ...] = ALL_FAULTS, in_a_row: int = 3) -> Schedule:
    """Return a schedule that damages a share of the requests, and no request more than so many times in a row."""

    def draw(request: Request, number: int) -> str | None:
        words = hashlib.sha256(f"{seed}/{request.identity}/{number}".encode()).digest()
        chance, choice = struct.unpack_from("<II", words)
        possible = [fault for fault in faults if fits(fault, request)]
        return possible[choice % len(possible)] if possible and chance < rate * 2**32 else None

    def schedule(request: Request, number: int) -> str | None:
        before = range(max(0, number - in_a_row), number)
        if len(before) == in_a_row and all(draw(request, earlier) for earlier in before):
            return None
        return draw(request, number)

    return schedule


def fits(fault: str, request: Request) -> bool:
    """Tell whether a fault can happen to a request."""
    if fault in UPLOAD_FAULTS:
        return len(request.body) > 1
    if fault == SLOW_BODY:
        return request.method == "GET" and not request.fields  # an object's body, not a list
    return fault not in BODY_FAULTS or request.method in ("GET", "POST")


class FaultyProxy:
    """Forwards to the server at `upstream`; `with` starts and ends it. `schedule` may be set anew at any time."""

    def __init__(self, upstream: str, schedule: Schedule = lambda request, number: None) -> None:
        self.schedule = schedule
        self.injected: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._upstream = (urlsplit(upstream).hostname or "", urlsplit(upstream).port or 80)
        self._came: Counter[str] = Counter()
        self._mutex = threading.Lock()
        self._num_connections = 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    proxy._serve(self.request)
                with proxy._mutex:
                    proxy._num_connections -= 1

        class Server(socketserver.ThreadingTCPServer):
            def process_request(self, *connection: Any) -> None:
                with proxy._mutex:
                    proxy._num_connections += 1
                super().process_request(*connection)

        self._server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.request_queue_size = 64
        self._server.server_bind()
        self._server.server_activate()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def drain(self, limit_s: float) -> None:
        """Wait until what clients that are no more have sent is done; only for one whose clients have all ended."""
        # Connections are accepted in turn: once this one has been served, all that came before have been accepted.
        with socket.create_connection(self._server.server_address, timeout=limit_s) as connection:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        deadline = time.monotonic() + limit_s
        while self._num_connections:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def _serve(self, client: socket.socket) -> None:
        """Answer a client's requests until one of the two has had enough."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client.makefile("rb") as stream:
            while (request := _read_request(client, stream)) is not None:
                with self._mutex:
                    number = self._came[request.identity]
                    self._came[request.identity] += 1
                    self.requests.append(Request(request.method, request.target, b"", b"", request.headers))
                fault = self.schedule(request, number)
                if fault is None:
                    client.sendall(b"".join(self._forward(request)))
                    continue
                with self._mutex:
                    self.injected[fault] += 1
                if not self._damage(client, request, fault):
                    return

    def _damage(self, client: socket.socket, request: Request, fault: str) -> bool:
        """Let a request meet its fault; return whether the connection goes on."""
        if fault in (ERROR_500, SLOW_DOWN):
            client.sendall(_error(fault, request.method))
            return True
        if fault == CORRUPT_REQUEST:
            middle = len(request.body) // 2
            body = request.body[:middle] + bytes([request.body[middle] ^ 0x10]) + request.body[middle + 1 :]
            client.sendall(b"".join(self._forward(request, body)))
            return True
        if fault == CUT_REQUEST:
            with self._connect() as server:
                server.sendall(request.head + request.body[: len(request.body) // 2])
                # A clean end, which a careless server would take for the end of the body.
                server.shutdown(socket.SHUT_WR)
                server.recv(1)
        elif fault != RESET_BEFORE:
            head, body = self._forward(request)
            if fault == RESET_IN_HEAD:
                client.sendall(head[: len(head) // 2])
            elif fault != LOST_RESPONSE:
                client.sendall(head)
                self._damage_body(client, body, fault)
        if fault in (CUT_BODY, EMPTY_BODY, SLOW_BODY):
            client.shutdown(socket.SHUT_WR)
        else:
            _reset(client)
        return False

    def _damage_body(self, client: socket.socket, body: bytes, fault: str) -> None:
        if fault in (CUT_BODY, RESET_BODY):
            client.sendall(body[: len(body) // 2])
        elif fault == SLOW_BODY:
            for position in range(len(body) - 1):
                # A client that has given up closes: that makes its socket readable.
                if select.select([client], [], [], _TRICKLE_S)[0]:
                    return
                client.sendall(body[position : position + 1])

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._upstream, timeout=60)

    def _forward(self, request: Request, body: bytes | None = None) -> tuple[bytes, bytes]:
        """Have the server do its work; return the head and the body of its answer."""
        with self._connect() as server:
            server.sendall(request.head + (request.body if body is None else body))
            response = http.client.HTTPResponse(server, method=request.method)
            response.begin()
            content = response.read()
        lines = [f"HTTP/1.1 {response.status} {response.reason}"]
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        if request.method != "HEAD":
            kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
            kept.append(("Content-Length", str(len(content))))
        lines += [f"{name}: {value}" for name, value in kept]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), content


_HOP_BY_HOP = {"transfer-encoding", "connection", "keep-alive"}


def _read_request(client: socket.socket, stream: BinaryIO) -> Request | None:
    """Read a request; None when the client has closed."""
    lines = list(_head_lines(stream))
    if not lines:
        return None
    method, target, _ = lines[0].decode("latin-1").split(" ", 2)
    headers = dict(re.split(r":\s*", line.decode("latin-1").strip(), maxsplit=1) for line in lines[1:])
    headers = {name.lower(): value for name, value in headers.items()}
    if headers.get("expect") == "100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = stream.read(int(headers.get("content-length", 0)))
    # The signature covers neither of these headers; it does cover the host, which stays the one of this proxy.
    kept = [line for line in lines if not line.lower().startswith((b"expect:", b"connection:"))]
    return Request(method, target, b"".join([*kept, b"Connection: close\r\n\r\n"]), body, headers)


def _head_lines(stream: BinaryIO) -> Iterator[bytes]:
    while (line := stream.readline()) not in (b"", b"\r\n"):
        yield line


def _error(fault: str, method: str) -> bytes:
    code = "SlowDown" if fault == SLOW_DOWN else "InternalError"
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    status = "503 Slow Down" if fault == SLOW_DOWN else "500 Internal Server Error"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)


def _reset(connection: socket.socket) -> None:
    """Close so that the other side sees a reset, now."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
