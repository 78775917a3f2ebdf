"""Requests to an S3 server: repeated while trouble may pass, told in our words when it does not.

boto3's own retries are off. They do not cover bodies, and `S3Store.create` must know whether an earlier request may
have been carried out before its answer was lost.
"""

import base64
import contextlib
import hashlib
import io
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vast.errors import ObjectDamaged, ObjectMissing, StoreError, UserError
from vast.storage_s3_presigned import PresignedGets

# With these pauses some twenty seconds pass before a server that fails at once is given up, so it may be restarted.
TRIES = 8
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
# An address that has never answered this process is more likely to be wrong than busy.
FIRST_TRIES = 5

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
# These timeouts only see silence. A body that trickles, fewer bytes than this within the window, has failed as well.
SLOW_WINDOW_S = 30.0
SLOW_BYTES = 1 << 20

_READ_BYTES = 256 << 10
# A larger body is sent as a stream: each piece of it has the timeout for itself, and a server that is busy can say so
# before it is sent, for which a small body is not worth the wait.
_STREAMED_BYTES = 256 << 10
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_ABSENT = {"404", "NotFound", "NoSuchKey"}
# Answers below 500 that the same request need not get again; those of the second and third line mean that its body was
# damaged on the way (the list of an upload's parts carries no checksum).
_PASSING = {
    *("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "OperationAborted"),
    *("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"),
    *("MalformedXML", "InvalidPart", "ConditionalRequestConflict"),
}
# Endpoints that have answered this process.
_ANSWERED: set[str] = set()
# A client takes a fifth of a second and 10 MB to make: threads that want their first one at once wait for each other.
_making = threading.Lock()


def _unlock_in_child() -> None:
    """Give a forked process a lock that no thread holds, for it has not those threads."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_unlock_in_child)

T = TypeVar("T")


class Torn(Exception):  # noqa: N818 - not ours to raise to callers
    """An answer that came without an error but is not whole."""


class UploadGone(StoreError):  # noqa: N818 - see ObjectMissing
    """The server no longer knows a multipart upload: it was ended, perhaps by a request whose answer was lost."""


class Requests:
    """Requests to one bucket. The client is made on first use in each process, as clients neither pickle nor fork."""

    def __init__(self, url: str, bucket: str) -> None:
        self._url = url
        self._bucket = bucket
        self._gets_of: tuple[int, PresignedGets] | None = None

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        return self._gets().client

    def _gets(self) -> PresignedGets:
        made = self._gets_of
        if made is None or made[0] != os.getpid():
            with _making:
                made = self._gets_of
                if made is None or made[0] != os.getpid():
                    made = self._gets_of = (os.getpid(), PresignedGets(_make_client()))
        return made[1]

    def run(self, key: str, call: Callable[[Any], T]) -> T:
        """Return what `call(client)` returns; call again, after a pause, when it failed in a way that may pass.

        Raises:
            ObjectMissing: There is no such object.
            StoreError: The server failed, or refuses this request.
            UserError: The bucket, the credentials or the endpoint are wrong.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        # boto3 lets urllib3's errors out when the body of an error breaks off.
        kinds = (BotoCoreError, Boto3Error, ClientError, ResponseParserError, HTTPError, Torn)
        for num_tries in itertools.count(1):
            try:
                result = call(self.client)
            except kinds as error:
                if isinstance(error, ClientError):
                    _ANSWERED.add(self._endpoint())
                if not _may_pass(error) or num_tries >= self._tries():
                    raise self._translated(key, error, num_tries) from error
            else:
                _ANSWERED.add(self._endpoint())
                return result
            pause(num_tries)
        raise AssertionError

    def ask(
        self, key: str, method: str, place: dict[str, Any], *, needs: str = "", data: bytes | None = None
    ) -> dict[str, Any]:
        """Return the answer to one of the client's methods, see `run`.

        Args:
            key: What it is about, for messages.
            method: The name of the client's method.
            place: Its arguments.
            needs: A field that a whole answer has. An answer whose body was cut off before its first byte reads as one
                that says nothing, for instance as a list without objects.
            data: The request's body.
        """

        def call(client: Any) -> dict[str, Any]:
            body = {} if data is None else self.body(data)
            answer: dict[str, Any] = getattr(client, method)(**place, **body)
            if needs and needs not in answer:
                raise Torn(f"the answer ended before its {needs}")
            return answer

        return self.run(key, call)

    def get_range(self, key: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request for a range of an object, see `run`."""
        return self.run(key, lambda _: self._gets().get_object(**request))

    def body(self, data: bytes) -> dict[str, Any]:
        """Return the arguments of a request that carry its body, with a checksum that the server compares."""
        body: dict[str, Any] = {"Body": data if len(data) <= _STREAMED_BYTES else _PacedBody(data)}
        if self.sends_crc:
            return {**body, "ChecksumAlgorithm": "CRC32"}
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {**body, "ContentMD5": base64.b64encode(digest).decode()}

    @property
    def sends_crc(self) -> bool:
        """Whether bodies go with a CRC, as on AWS. Other servers ignore it or do not know it; all compare an MD5."""
        return str(self.client.meta.config.request_checksum_calculation) == "when_supported"

    def _tries(self) -> int:
        return TRIES if self._endpoint() in _ANSWERED else FIRST_TRIES

    def _endpoint(self) -> str:
        return str(self.client.meta.endpoint_url)

    def _translated(self, key: str, error: Exception, num_tries: int) -> Exception:
        """Turn boto3's errors into ours, which name the store, the key and what to check."""
        from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return UserError(
                f"{self._url}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "in the environment of this process (on a cluster: of every node)"
            )
        tries = f" ({num_tries} tries)" if num_tries > 1 else ""
        if not isinstance(error, ClientError):
            return StoreError(
                f"{self._url}: {self._endpoint()} does not answer as it should for {key!r}: {error}{tries}; "
                "check that AWS_ENDPOINT_URL is right and the server is up"
            )
        code = error_code(error)
        if code == "NoSuchBucket" or (code in ("404", "NotFound") and not self._has_bucket()):
            return UserError(
                f"{self._url}: there is no bucket {self._bucket!r} at {self._endpoint()}; "
                "create it, or check the bucket's name and AWS_ENDPOINT_URL"
            )
        if code in _ABSENT:
            return ObjectMissing(f"{self._url}: there is no {key}")
        if code in ("416", "InvalidRange"):
            return ObjectDamaged(f"{self._url}: {key} ends before the range that was asked for")
        if code == "NoSuchUpload":
            return UploadGone(f"{self._url}: the upload of {key} was ended by someone else")
        if code in _REFUSED:
            return UserError(
                f"{self._url}: {self._endpoint()} refused the credentials ({code}); check AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and that they may use bucket {self._bucket!r}"
            )
        if code in ("412", "PreconditionFailed"):
            return StoreError(f"{self._url}: {key} was replaced while it was being read")
        # Not the error's own text, which counts boto3's retries.
        what = f"{error.operation_name}: {code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
        return StoreError(f"{self._url}: {self._endpoint()} failed on {key!r}: {what}{tries}")

    def _has_bucket(self) -> bool:
        # A HEAD has no body, so its 404 does not say whether the object or the whole bucket is missing.
        def look(client: Any) -> bool:
            from botocore.exceptions import ClientError

            try:
                client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _may_pass(error):
                    raise
                return error_code(error) not in ("404", "NoSuchBucket", "NotFound")
            return True

        return self.run("", look)


def error_code(error: Any) -> str:
    """Return S3's name of what went wrong, or the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_status(error: Any) -> int:
    """Return the HTTP status of an answer that is an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def chunks(body: Any, size_bytes: int) -> Iterator[bytes]:
    """Yield a response's body as it comes in.

    Raises:
        Torn: It broke off, ended early or was too slow.
    """
    from urllib3.exceptions import HTTPError

    pace = _Pace()
    missing = size_bytes
    with contextlib.closing(body):
        while missing:
            try:
                # boto3's own read() waits until all it was asked for is there, however slowly that comes.
                chunk = body._raw_stream.read1(min(missing, _READ_BYTES))
                missing -= len(chunk)
                if missing:
                    pace.moved(len(chunk))
            except (HTTPError, OSError) as error:
                raise Torn(str(error)) from error
            if not chunk:
                raise Torn(f"it ended {missing} bytes early")
            yield chunk


def pause(num_tries: int) -> None:
    """Wait before the next try."""
    # Jitter: the readers of a whole cluster must not come back in step.
    time.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (num_tries - 1)))


class _Pace:
    """Raises TimeoutError when too few bytes move within a window of time."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._num_bytes = 0

    def moved(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        passed_s = time.monotonic() - self._begun
        if passed_s >= SLOW_WINDOW_S:
            if self._num_bytes < SLOW_BYTES:
                raise TimeoutError(f"only {self._num_bytes} bytes moved in {passed_s:.0f} s")
            self._begun, self._num_bytes = time.monotonic(), 0


class _PacedBody(io.BytesIO):
    """A request's body that must not take for ever to be sent."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._pace = _Pace()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._pace.moved(len(data))
        return data


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, exceptions.ClientError):
        status = error_status(error)
        return (status >= 500 and status != 501) or status in (408, 429) or error_code(error) in _PASSING
    kinds = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    return isinstance(error, (*kinds, exceptions.FlexibleChecksumError, ResponseParserError, HTTPError, Torn))


def _make_client() -> Any:
    import boto3
    from botocore.config import Config

    config: dict[str, Any] = {
        "signature_version": "s3v4",
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": 32,
    }
    # A session of our own: boto3's default session is not safe to use from several threads.
    session = boto3.session.Session()
    if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # Other servers have no bucket host names, and some answer a range with the whole object's checksum.
        config["s3"] = {"addressing_style": "path"}
        config["request_checksum_calculation"] = "when_required"
        config["response_checksum_validation"] = "when_required"
    region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
    return session.client("s3", region_name=region, config=Config(**config))
