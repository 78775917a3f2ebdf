"""One small object store interface over a local folder or S3.

Keys are relative to the store's URL and separated by "/". A put is complete or absent: local files go through a
temporary name, fsync and rename; S3 objects appear only when their PUT or multipart upload has ended.

S3 reads its endpoint and credentials from the environment of the process that uses the store (AWS_ENDPOINT_URL or
AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION), so a pickled store carries no secret, and
every node of a cluster needs these variables itself.
"""

import contextlib
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from vast.errors import ObjectMissing, StoreError, UserError

# boto3 retries requests but never a body that breaks off half-way; those are resumed here, this many times.
BODY_TRIES = 5
_CHUNK_BYTES = 1 << 20
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_ABSENT = {"404", "NotFound", "NoSuchKey"}


class Store(Protocol):
    """What every store can do; it may be pickled, and used from several threads and after a fork."""

    url: str

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write an object; it is complete or absent, and replaces an older one."""

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Write a file's content as an object; it is complete or absent."""

    def get_bytes(self, key: str) -> bytes:
        """Read a whole object.

        Raises:
            ObjectMissing: There is no such object.
        """

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Read exactly `size_bytes` from `offset`; a body that breaks off is resumed a bounded number of times.

        Raises:
            StoreError: The object ends before the range does, or the body kept breaking off.
        """

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Fetch an object into a file, which is complete or absent."""

    def exists(self, key: str) -> bool:
        """Tell whether the object is there; a store that cannot be reached is an error, not a no."""

    def size(self, key: str) -> int:
        """Return the object's size in bytes."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""


def open_store(url: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///folder` or a local path; nothing is contacted yet.

    Raises:
        UserError: The URL has another scheme, or no bucket.
    """
    match = _SCHEME.match(url)
    scheme = match.group(1).lower() if match else ""
    if scheme == "s3":
        return S3Store(url)
    if scheme == "file":
        return LocalStore(unquote(urlsplit(url).path))
    if scheme:
        raise UserError(f"{url}: cannot open a {scheme}:// store; use s3://bucket/prefix or a local folder")
    if not url.strip():
        raise UserError("an empty URL names no store; use s3://bucket/prefix or a local folder")
    return LocalStore(url)


def join_url(url: str, *parts: str) -> str:
    """Append parts to a store's URL with single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def _checked(key: str) -> str:
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a key: it must be relative, without empty, '.' or '..' parts")
    return key


class LocalStore:
    """A folder as a store; it is made when the first object is put."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        # Absolute at once: Ray workers run in another working directory than the driver.
        self._root = Path(folder).expanduser().absolute()
        self.url = str(self._root)

    def put_bytes(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._new_file(key) as temporary:
            temporary.write_bytes(data)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        with self._new_file(key) as temporary:
            shutil.copyfile(path, temporary)

    def get_bytes(self, key: str) -> bytes:
        """See Store."""
        with self._reading(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See Store."""
        with self._reading(key), open(self._path(key), "rb") as file:
            file.seek(offset)
            data = file.read(size_bytes)
        if len(data) != size_bytes:
            raise _short(self.url, key, offset, size_bytes, offset + len(data))
        return data

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        with self._reading(key):
            source = open(self._path(key), "rb")  # noqa: SIM115 - closed below; only its opening is a store's error
        with source, _complete_or_absent(Path(path)) as temporary, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        """See Store."""
        with self._reading(key):
            return self._path(key).stat().st_size

    def list(self, prefix: str = "") -> Iterator[str]:
        """See Store."""
        folder = self._root / prefix.rpartition("/")[0]
        paths = (path for path in folder.rglob("*") if path.is_file() and not _is_temporary(path.name))
        keys = (path.relative_to(self._root).as_posix() for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See Store."""
        with contextlib.suppress(ObjectMissing), self._reading(key):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self._root / _checked(key)

    @contextlib.contextmanager
    def _new_file(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _complete_or_absent(path) as temporary:
                yield temporary
        except OSError as error:
            raise StoreError(f"{self.url}: cannot write {key}: {error}") from error

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"{self.url}: there is no {key}") from error
        except OSError as error:
            raise StoreError(f"{self.url}: cannot read {key}: {error.strerror or error}") from error


class S3Store:
    """A prefix in an S3 bucket. The client is made on first use in each process, as clients neither pickle nor fork."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url, allow_fragments=False)
        if not parts.netloc or parts.query:
            raise UserError(f"{url}: expected s3://bucket/prefix")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client_of: tuple[int, Any] | None = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str]]:
        return S3Store, (self.url,)

    def put_bytes(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._speaking(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        # upload_fileobj, not upload_file: the latter turns every error into a text without its code.
        with self._speaking(key), open(path, "rb") as file:
            self._client.upload_fileobj(file, self._bucket, self._key(key))

    def get_bytes(self, key: str) -> bytes:
        """See Store."""
        return self._read(key, 0, None)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See Store."""
        return self._read(key, offset, size_bytes) if size_bytes else b""

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        with self._speaking(key), _complete_or_absent(Path(path)) as temporary, open(temporary, "wb") as file:
            self._client.download_fileobj(self._bucket, self._key(key), file)

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def size(self, key: str) -> int:
        """See Store."""
        with self._speaking(key):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"])

    def list(self, prefix: str = "") -> Iterator[str]:
        """See Store."""
        base = f"{self._prefix}/" if self._prefix else ""
        found = []
        with self._speaking(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=base + prefix)
            for page in pages:
                found += [entry["Key"][len(base) :] for entry in page.get("Contents", ())]
        # Some clients leave empty "folder/" objects behind; they are no keys of ours.
        yield from sorted(key for key in found if key and not key.endswith("/"))

    def delete(self, key: str) -> None:
        """See Store."""
        with self._speaking(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{_checked(key)}" if self._prefix else _checked(key)

    @property
    def _client(self) -> Any:
        # No lock: two threads may make one each, which is harmless, but a lock held during a fork stays locked.
        made = self._client_of
        if made is None or made[0] != os.getpid():
            made = self._client_of = (os.getpid(), _make_s3_client())
        return made[1]

    def _read(self, key: str, offset: int, size_bytes: int | None) -> bytes:
        """Read from `offset` on; what a broken body has delivered is kept and the rest asked for by range."""
        from botocore.exceptions import BotoCoreError

        data = bytearray()
        end = None if size_bytes is None else offset + size_bytes
        condition: dict[str, str] = {}
        trouble: Exception | None = None
        for attempt in range(BODY_TRIES):
            if attempt:
                # Jitter: the readers of a whole cluster must not come back in step.
                time.sleep(random.uniform(0.5, 1.0) * min(2.0, 0.1 * 2**attempt))
            start = offset + len(data)
            request = dict(condition)
            if end is not None:
                request["Range"] = f"bytes={start}-{end - 1}"
            with self._speaking(key):
                response = self._client.get_object(Bucket=self._bucket, Key=self._key(key), **request)
            coming = int(response["ContentLength"])
            end = start + coming if end is None else end
            if coming != end - start:
                raise _short(self.url, key, offset, end - offset, start + coming)
            condition = {"IfMatch": response["ETag"]}
            try:
                for chunk in response["Body"].iter_chunks(_CHUNK_BYTES):
                    data += chunk
            except (BotoCoreError, OSError) as error:
                trouble = error
            if len(data) == end - offset:
                return bytes(data)
        raise StoreError(
            f"{self.url}: the body of {key} broke off {BODY_TRIES} times, "
            f"with {len(data)} of {(end or 0) - offset} bytes read: {trouble}"
        ) from trouble

    @contextlib.contextmanager
    def _speaking(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into ours, which name the store, the key and what to check."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UserError(
                f"{self.url}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "in the environment of this process (on a cluster: of every node)"
            ) from error
        except ClientError as error:
            raise self._translated(key, error) from error
        except (BotoCoreError, Boto3Error) as error:
            raise StoreError(
                f"{self.url}: {self._endpoint()} does not answer as it should for {key!r}: {error}; "
                "check that AWS_ENDPOINT_URL is right and the server is up"
            ) from error

    def _translated(self, key: str, error: Any) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket" or (code in ("404", "NotFound") and not self._has_bucket()):
            return UserError(
                f"{self.url}: there is no bucket {self._bucket!r} at {self._endpoint()}; "
                "create it, or check the bucket's name and AWS_ENDPOINT_URL"
            )
        if code in _ABSENT:
            return ObjectMissing(f"{self.url}: there is no {key}")
        if code in _REFUSED:
            return UserError(
                f"{self.url}: {self._endpoint()} refused the credentials ({code}); check AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and that they may use bucket {self._bucket!r}"
            )
        if code in ("412", "PreconditionFailed"):
            return StoreError(f"{self.url}: {key} was replaced while it was being read")
        return StoreError(f"{self.url}: {self._endpoint()} failed on {key!r}: {error}")

    def _has_bucket(self) -> bool:
        # A HEAD has no body, so its 404 does not say whether the object or the whole bucket is missing.
        from botocore.exceptions import ClientError

        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return str(error.response.get("Error", {}).get("Code", "")) not in ("404", "NoSuchBucket", "NotFound")
        return True

    def _endpoint(self) -> str:
        return str(self._client.meta.endpoint_url)


def _make_s3_client() -> Any:
    import boto3
    from botocore.config import Config

    config: dict[str, Any] = {
        "signature_version": "s3v4",
        "retries": {"mode": "standard", "max_attempts": 5},
        "connect_timeout": 10,
        "read_timeout": 60,
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


@contextlib.contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(url: str, key: str, offset: int, size_bytes: int, end: int) -> StoreError:
    return StoreError(
        f"{url}: {key} has no bytes {offset}..{offset + size_bytes - 1}: they end at {end}; "
        "the object is shorter than its index says"
    )
