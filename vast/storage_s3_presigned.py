"""Ranges of S3 objects by presigned URLs, each used for many requests.

boto3 builds, signs and parses every request anew, which takes 2 ms of a processor, a tenth of what decoding a clip
does. A presigned URL leaves the range open, so one of them serves all samples of a shard, and what is left is HTTP.
"""

import time
from typing import Any

# A URL stays valid for so long, and is used for less: clocks differ.
_VALID_S = 3600
_USED_S = 900.0
_MAX_URLS = 4096
# What the object or the server answers, however the request was signed.
_MEANT = {404, 408, 412, 416, 429, 500, 502, 503, 504}


class PresignedGets:
    """Requests of one boto3 client for ranges of objects. Threads may share it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._urls: dict[str, tuple[str, float]] = {}
        self._refused = False

    def get_object(self, **request: Any) -> dict[str, Any]:
        """Return what `client.get_object(**request)` does of a range: `Body`, `ContentLength` and `ETag`.

        Where the server refuses the URL boto3 asks: its credentials may be newer, it follows a bucket to its region,
        and its error is the one to show. If it is not refused, URLs are not allowed here, and it asks from then on.

        Raises:
            ClientError: The server answers with an error.
            BotoCoreError: It does not answer.
        """
        from botocore.response import StreamingBody

        if self._refused:
            return self._by_boto(request)
        url, is_new = self._url(request)
        answer = self._send(url, request)
        if answer.status_code < 300:
            size_bytes = int(answer.headers["Content-Length"])
            body = StreamingBody(answer.raw, size_bytes)
            return {"Body": body, "ContentLength": size_bytes, "ETag": answer.headers["ETag"]}
        content = answer.content  # read to its end, so that the connection can be used again
        if answer.status_code in _MEANT:
            _raise(answer, content)
        self._urls.pop(request["Key"], None)
        found = self._by_boto(request)
        self._refused = is_new
        return found

    def _by_boto(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get_object(**request)
        return found

    def _url(self, request: dict[str, Any]) -> tuple[str, bool]:
        """Return the URL of an object, and whether it was made just now."""
        key, now = request["Key"], time.monotonic()
        url, made_s = self._urls.get(key, ("", 0.0))
        if url and now - made_s < _USED_S:
            return url, False
        if len(self._urls) >= _MAX_URLS:
            self._urls.clear()
        place = {"Bucket": request["Bucket"], "Key": key}
        url = self.client.generate_presigned_url("get_object", Params=place, ExpiresIn=_VALID_S)
        self._urls[key] = (url, now)
        return url, True

    def _send(self, url: str, request: dict[str, Any]) -> Any:
        from botocore.awsrequest import AWSPreparedRequest, HeadersDict
        from botocore.exceptions import BotoCoreError

        headers = HeadersDict({"Range": request["Range"]})
        if "IfMatch" in request:
            headers["If-Match"] = request["IfMatch"]
        # The client's own connections, with its timeouts, proxies and certificates.
        session = self.client._endpoint.http_session
        try:
            return session.send(AWSPreparedRequest("GET", url, headers, None, True))
        except BotoCoreError as error:
            if "endpoint_url" not in error.kwargs:
                raise
            # Messages get into logs, and whoever has the whole URL may read the object for an hour.
            raise type(error)(**error.kwargs | {"endpoint_url": url.partition("?")[0]}) from None


def _raise(answer: Any, content: bytes) -> None:
    """Raise what boto3 would."""
    from botocore.exceptions import ClientError
    from botocore.parsers import create_parser

    response = {"status_code": answer.status_code, "headers": answer.headers, "body": content}
    raise ClientError(create_parser("rest-xml").parse(response, None), "GetObject")
