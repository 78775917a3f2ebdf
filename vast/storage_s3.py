"""S3 as a store: uploads in parts with checksums, downloads that resume, conditional puts."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from vast.errors import ObjectMissing, StoreError, UserError
from vast.storage import ObjectStat, checked_key, complete_or_absent, is_temporary, range_error, temporary_name
from vast.storage_s3_requests import Requests, Torn, UploadGone, chunks, error_code, error_status, pause

# A larger object goes up in parts and comes down in ranges of this size; S3 takes parts from 5 MiB on.
PART_BYTES = 16 << 20
MAX_PARTS = 10_000
# Parts in flight; each is held in memory while it goes up.
NUM_STREAMS = 3
# Uploads of one object that the server forgets before they are complete.
UPLOAD_TRIES = 3
# Bodies in a row that break off with less than a part read.
BODY_TRIES = 5
# Where the server ignores conditions: how long a rival's put may take to show.
SETTLE_S = 1.0

_PROBE = "probe"

T = TypeVar("T")
J = TypeVar("J")


class _Conditions(NamedTuple):
    """Which conditions of a PUT the server keeps."""

    create: bool
    replace: bool


class S3Store:
    """A prefix in an S3 bucket."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url, allow_fragments=False)
        if not parts.netloc or parts.query:
            raise UserError(f"{url}: expected s3://bucket/prefix")
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._base = f"{prefix}/" if prefix else ""
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._requests = Requests(self.url, self._bucket)
        self._kept_conditions: _Conditions | None = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str]]:
        return S3Store, (self.url,)

    def put_bytes(self, key: str, data: bytes) -> ObjectStat:
        """See Store."""
        view = memoryview(data)
        return self._put(key, len(data), lambda offset, size_bytes: bytes(view[offset : offset + size_bytes]))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> ObjectStat:
        """See Store."""
        with open(path, "rb") as file:
            descriptor = file.fileno()
            size_bytes = os.fstat(descriptor).st_size

            def read(offset: int, size_bytes: int) -> bytes:
                data = os.pread(descriptor, size_bytes, offset)
                if len(data) != size_bytes:
                    raise StoreError(f"{self.url}: {path} became shorter while it was put as {key}")
                return data

            return self._put(key, size_bytes, read)

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        if self._conditions().create:
            return self._put_if(key, data, IfNoneMatch="*")
        return not self.exists(key) and self._put_and_look(key, data)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See Store."""
        if self._conditions().replace:
            return self._put_if(key, data, IfMatch=version)
        try:
            return self.stat(key).version == version and self._put_and_look(key, data)
        except ObjectMissing:
            return False

    def conditional_puts(self) -> bool:
        """See Store."""
        return all(self._conditions())

    def get_bytes(self, key: str) -> bytes:
        """See Store."""
        parts: list[bytes] = []
        self._fetch(key, 0, None, parts.append)
        return b"".join(parts)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """See Store."""
        parts: list[bytes] = []
        if size_bytes:
            self._fetch(key, offset, size_bytes, parts.append)
        return b"".join(parts)

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """See Store."""
        found = self.stat(key)
        with complete_or_absent(Path(path)) as temporary:
            temporary.touch()

            def fetch(offset: int) -> None:
                with open(temporary, "r+b") as file:
                    file.seek(offset)
                    size_bytes = min(PART_BYTES, found.size_bytes - offset)
                    self._fetch(key, offset, size_bytes, file.write, found.version)

            _in_streams(fetch, range(0, found.size_bytes, PART_BYTES))

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            self.stat(key)
        except ObjectMissing:
            return False
        return True

    def stat(self, key: str) -> ObjectStat:
        """See Store."""
        head = self._requests.ask(key, "head_object", self._place(key))
        return ObjectStat(int(head["ContentLength"]), head["ETag"])

    def size(self, key: str) -> int:
        """See Store."""
        return self.stat(key).size_bytes

    def list(self, prefix: str = "") -> Iterator[str]:
        """See Store."""
        yield from sorted(key for key in self._all_keys(prefix) if not is_temporary(key.rpartition("/")[2]))

    def delete(self, key: str) -> None:
        """See Store."""
        self._requests.ask(key, "delete_object", self._place(key))

    def sweep(self) -> int:
        """See Store."""
        left = [key for key in self._all_keys(f".{_PROBE}.") if "/" not in key and is_temporary(key)]
        for key in left:
            self.delete(key)
        uploads = [upload for upload in self._uploads() if "/" not in upload["Key"].removeprefix(self._base)]
        for upload in uploads:
            self._abort(upload)
        return len(left) + len(uploads)

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._base + checked_key(key)}

    def _put(self, key: str, size_bytes: int, read: Callable[[int, int], bytes]) -> ObjectStat:
        """Put what `read(offset, size_bytes)` returns."""
        if size_bytes <= PART_BYTES:
            answer = self._requests.ask(key, "put_object", self._place(key), data=read(0, size_bytes))
            return ObjectStat(size_bytes, answer["ETag"])
        # A few servers give a finished upload another ETag than the object has then: a version that no object has.
        for num_tries in range(1, UPLOAD_TRIES + 1):
            try:
                return ObjectStat(size_bytes, self._upload(key, size_bytes, read))
            except UploadGone:
                if num_tries == UPLOAD_TRIES:
                    raise
        raise AssertionError

    def _upload(self, key: str, size_bytes: int, read: Callable[[int, int], bytes]) -> str:
        """Put an object in parts, which nobody sees before the last request; return its ETag."""
        place, ask = self._place(key), self._requests.ask
        # Where the parts come with a CRC, the server wants to know at the beginning and to hear them again at the end.
        with_crc = {"ChecksumAlgorithm": "CRC32"} if self._requests.sends_crc else {}
        upload = {
            **place,
            "UploadId": ask(key, "create_multipart_upload", place | with_crc, needs="UploadId")["UploadId"],
        }
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))

        def put_part(number: int) -> dict[str, Any]:
            offset = (number - 1) * part_bytes
            data = read(offset, min(part_bytes, size_bytes - offset))
            answer = ask(key, "upload_part", {**upload, "PartNumber": number}, data=data)
            crc = {"ChecksumCRC32": answer["ChecksumCRC32"]} if with_crc and "ChecksumCRC32" in answer else {}
            return {"PartNumber": number, "ETag": answer["ETag"], **crc}

        try:
            parts = _in_streams(put_part, range(1, -(-size_bytes // part_bytes) + 1))
            content = {**upload, "MultipartUpload": {"Parts": parts}}
            done = ask(key, "complete_multipart_upload", content, needs="ETag")
        except BaseException:
            self._abort(upload)
            raise
        return str(done["ETag"])

    def _abort(self, upload: dict[str, Any]) -> None:
        """Have the server throw away the parts; what fails here is left for `sweep`."""
        with contextlib.suppress(StoreError, UserError):
            self._requests.ask(upload["Key"], "abort_multipart_upload", upload)

    def _uploads(self) -> Iterator[dict[str, Any]]:
        """Yield the multipart uploads below this URL that have not ended."""
        from botocore.exceptions import ClientError

        request = {"Bucket": self._bucket, "Prefix": self._base}

        def ask(client: Any) -> dict[str, Any]:
            try:
                page: dict[str, Any] = client.list_multipart_uploads(**request)
            except ClientError as error:
                # One server says so when there are none; others do not know the request.
                if error_code(error) == "NoSuchUpload" or error_status(error) in (405, 501):
                    return {}
                raise
            if "Bucket" not in page:
                raise Torn("the list of uploads broke off")
            return page

        while page := self._requests.run("", ask):
            for upload in page.get("Uploads", ()):
                if upload["Key"].startswith(self._base):
                    yield {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            if not page.get("IsTruncated"):
                return
            request |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def _all_keys(self, prefix: str) -> Iterator[str]:
        marker: dict[str, str] = {}
        while True:
            request = {"Bucket": self._bucket, "Prefix": self._base + prefix, **marker}
            page = self._requests.ask(prefix, "list_objects_v2", request, needs="IsTruncated")
            keys = (entry["Key"].removeprefix(self._base) for entry in page.get("Contents", ()))
            # Some clients leave empty "folder/" objects behind; they are no keys of ours.
            yield from (key for key in keys if key and not key.endswith("/"))
            if not page["IsTruncated"]:
                return
            marker = {"ContinuationToken": page["NextContinuationToken"]}

    def _fetch(
        self, key: str, offset: int, size_bytes: int | None, write: Callable[[bytes], object], version: str = ""
    ) -> None:
        """Read from `offset` on; what a broken body has delivered is kept and the rest asked for by range."""
        position = offset
        end = None if size_bytes is None else offset + size_bytes
        num_tries = 0
        while True:
            request = self._place(key)
            if version:
                request["IfMatch"] = version
            if end is not None:
                request["Range"] = f"bytes={position}-{end - 1}"
                answer = self._requests.get_range(key, request)
            else:
                answer = self._requests.ask(key, "get_object", request)
            version, coming = answer["ETag"], int(answer["ContentLength"])
            end = position + coming if end is None else end
            if coming != end - position:
                raise range_error(self.url, key, offset, end - offset, position + coming)
            begun = position
            try:
                for chunk in chunks(answer["Body"], coming):
                    write(chunk)
                    position += len(chunk)
                return
            except Torn as error:
                num_tries = 1 if position - begun >= PART_BYTES else num_tries + 1
                if num_tries == BODY_TRIES:
                    raise StoreError(
                        f"{self.url}: the body of {key} broke off {BODY_TRIES} times, "
                        f"with {position - offset} of {end - offset} bytes read: {error}"
                    ) from error
            pause(num_tries)

    def _put_if(self, key: str, data: bytes, **condition: str) -> bool:
        """Put when the condition holds; return whether that was done."""
        from botocore.exceptions import ClientError

        place = self._place(key)
        doubtful = False

        def put(client: Any) -> bool:
            nonlocal doubtful
            try:
                client.put_object(**place, **condition, **self._requests.body(data))
            except Exception as error:
                if isinstance(error, ClientError) and _does_not_hold(error):
                    return False
                doubtful = True
                raise
            return True

        # A request that failed may have been carried out all the same, and is then what stands in the way of the next.
        return self._requests.run(key, put) or (doubtful and self._holds(key, data))

    def _put_and_look(self, key: str, data: bytes) -> bool:
        self.put_bytes(key, data)
        time.sleep(SETTLE_S)
        return self._holds(key, data)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get_bytes(key) == data
        except ObjectMissing:
            return False

    def _conditions(self) -> _Conditions:
        """Try on a scratch object, once: many servers take a conditional PUT and ignore its condition."""
        if self._kept_conditions is None:
            key = temporary_name(_PROBE)
            other = f'"{hashlib.md5(b"other", usedforsecurity=False).hexdigest()}"'
            try:
                create = self._put_if(key, b"1", IfNoneMatch="*") and not self._put_if(key, b"2", IfNoneMatch="*")
                version = self.put_bytes(key, b"3").version
                replace = not self._put_if(key, b"4", IfMatch=other) and self._put_if(key, b"5", IfMatch=version)
                self._kept_conditions = _Conditions(create, replace)
            finally:
                self.delete(key)
        return self._kept_conditions


def _does_not_hold(error: Any) -> bool:
    # Some servers do not know conditions and say so, with 501; the probe takes that as the answer that it is.
    return error_code(error) in ("PreconditionFailed", "412", "NoSuchKey") or error_status(error) == 501


def _in_streams(call: Callable[[J], T], jobs: Iterable[J]) -> list[T]:
    """Return the results in the jobs' order, from a few threads; the first error ends the rest."""
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        futures = [pool.submit(call, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
