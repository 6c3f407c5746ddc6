"""List, download, upload and delete objects of an S3 bucket."""

import base64
import contextlib
import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from audioscore.data.transfer.network import await_server, exempt_loopback, is_loopback, network_settings
from audioscore.data.transfer.partial import CHUNK, LARGEST, RemoteFile, RestartDownload, ServerResponse, receive
from audioscore.data.transfer.pool import Hooks, TransientError, run_all
from audioscore.errors import AudioError, DataError, ServerUnreachable

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger(__name__)

REMOVALS = 8  # concurrent requests
PATIENCE = 10.0  # seconds to wait for the first response of a server
MD5 = re.compile(r'"?([0-9a-f]{32})"?')  # ETags of multipart uploads do not match: they are not the MD5 of the content
CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}
MEANINGS = {  # error code -> cause, fix
    "NoSuchBucket": ("the bucket does not exist", "Check the bucket's name and AWS_ENDPOINT_URL."),
    "NoSuchKey": ("the object does not exist", "Check the key; upper and lower case differ."),
    "404": ("the object does not exist", "Check the bucket and the key."),
    "AccessDenied": ("access is denied", "Request permission to list and read this bucket."),
    "403": ("access is denied", "Check your credentials, and request permission to list and read this bucket."),
    "InvalidAccessKeyId": ("the server has no such access key", "Check your credentials and AWS_ENDPOINT_URL."),
    "SignatureDoesNotMatch": ("the secret key is wrong", "Check your credentials."),
    "ExpiredToken": ("the session has expired", "Log in again."),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Set the clock."),
    "InvalidObjectState": ("the object is archived", "Restore it from the archive first."),
}
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
NOT_S3 = "the response is not that of an S3 server"
VARIABLE = "AWS_ENDPOINT_URL"
CHECK_WRITE = "Check the bucket, AWS_ENDPOINT_URL, your credentials and your permission to write there."


@dataclass(frozen=True)
class S3Object:
    """An object under a prefix: its key, its name relative to the prefix, bytes, and the ETag without quotes."""

    key: str
    name: str
    size: int
    etag: str


def connect(connections: int = 16) -> "BaseClient":
    """Create an S3 client from the standard credential chain and AWS_ENDPOINT_URL. Threads may share it.

    Raises DataError for a configuration that cannot be read, and for a server that does not respond; credentials are
    first checked by a request.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=connections,
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        proxies={} if is_loopback(endpoint()) else None,  # None: those of the environment
        response_checksum_validation="when_required",  # otherwise a range is compared with the whole object's checksum
    )
    exempt_loopback()
    try:
        client = boto3.session.Session().client("s3", config=config)  # the default session is not thread-safe
    except (BotoCoreError, ValueError) as error:
        raise DataError(
            f"S3 at {endpoint()}: cannot be used ({error}). Check AWS_PROFILE and AWS_ENDPOINT_URL."
        ) from error
    await_server(client.meta.endpoint_url, VARIABLE, patience=PATIENCE, uses_requests=False)
    return client


def endpoint() -> str:
    """Address of the S3 server, for messages."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def split_uri(uri: str) -> tuple[str, str]:
    """Split an s3:// URI into bucket and key (or prefix). Raises DataError when it has no bucket.

    >>> split_uri("s3://songs/录音 1/a.m4a")
    ('songs', '录音 1/a.m4a')
    """
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket:
        raise DataError(f"{uri}: names no bucket. Give s3://BUCKET/PREFIX.")
    return bucket, key


def list_objects(client: "BaseClient", uri: str) -> list[S3Object]:
    """List the objects under `s3://bucket/prefix`, like the files of a folder.

    Folder markers, which are empty objects whose name ends in `/` or is a folder of other objects, are left out.

    Raises DataError when the bucket cannot be listed; without objects, the list is empty.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    bucket, prefix = split_uri(uri)
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    objects: list[S3Object] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            if "IsTruncated" not in page:  # a web page that happens to be XML
                raise ResponseParserError
            for item in page.get("Contents", []):
                name = item["Key"].removeprefix(prefix)
                if name:
                    objects.append(S3Object(item["Key"], name, item["Size"], item["ETag"].strip('"')))
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        raise s3_error(error, uri) from error
    folders = folders_of(one.name for one in objects)
    kept = [one for one in objects if one.size or not (one.name.endswith("/") or one.name in folders)]
    if len(kept) < len(objects):
        log.info("%s: %d folder markers are left out", uri, len(objects) - len(kept))
    return kept


def folders_of(names: Iterable[str]) -> set[str]:
    """Return the folders that names of objects imply.

    >>> sorted(folders_of(["a/b/c", "a/d"]))
    ['a', 'a/b']
    """
    return {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}


def download_object(
    client: "BaseClient",
    bucket: str,
    key: str,
    target: Path,
    *,
    partial: Path,
    limit: int = LARGEST,
    sleep: Callable[[float], object] = time.sleep,
    progress: Callable[[int], object] = lambda received: None,
) -> None:
    """Download a complete object to `target`, resuming from `partial`.

    A download resumes only with the same version (If-Match with the ETag). Size, MD5 (from the ETag) and SHA-256 are
    compared where the object has them. The client retries requests without a response; connections that break within
    a response are retried here. `progress` gets the size of each piece and may raise to stop the download.

    Raises:
        AudioError: The object cannot be received.
        OSError: The file cannot be written.
    """
    uri = f"s3://{bucket}/{key}"

    def open_response(offset: int, file: RemoteFile | None) -> contextlib.AbstractContextManager[ServerResponse]:
        return _open_response(client, bucket, key, offset, file)

    receive(uri, uri, open_response, target, partial, sleep=sleep, progress=progress, limit=limit)


@contextlib.contextmanager
def _open_response(
    client: Any, bucket: str, key: str, offset: int, file: RemoteFile | None
) -> Iterator[ServerResponse]:
    """Request the object from a byte offset on; see `partial.OpenResponse`."""
    from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    uri = f"s3://{bucket}/{key}"
    request = {"Bucket": bucket, "Key": key}
    if offset and file and file.version:
        request |= {"Range": f"bytes={offset}-", "IfMatch": file.version}
    else:
        request |= {"ChecksumMode": "ENABLED"}
    responded = False
    try:
        response = client.get_object(**request)
        with contextlib.closing(response["Body"]) as body:
            if "ETag" not in response:  # a web server responds to each request, for example with a page
                raise ResponseParserError
            responded = True
            chunks = iter(lambda: body.read(CHUNK), b"")
            sent = str(response.get("ContentRange", ""))
            if file and sent.startswith(f"bytes {offset}-"):
                if response["ETag"] != file.version or not sent.endswith(f"/{file.size}"):  # not all check If-Match
                    raise RestartDownload("the object changed during the download")
                yield ServerResponse(file, offset, chunks)
            else:
                yield ServerResponse(_describe(response, uri), 0, chunks)
    except ClientError as error:
        if _code(error) in CHANGED:
            raise RestartDownload("the object changed during the download") from error
        raise s3_error(error, uri) from error
    except FlexibleChecksumError as error:
        raise RestartDownload("the checksum differs from the stored one") from error
    except (BotoCoreError, HTTPError, ResponseParserError) as error:
        if responded:
            raise TransientError("the connection broke") from error
        raise s3_error(error, uri) from error


def _describe(response: dict[str, Any], uri: str) -> RemoteFile:
    checksums: dict[str, str] = {}
    if (md5 := _md5_of_content(response)) is not None:
        checksums["md5"] = md5
    sha256 = response.get("ChecksumSHA256", "")
    if sha256 and "-" not in sha256:  # "-N" marks the checksum of a multipart upload
        checksums["sha256"] = base64.b64decode(sha256).hex()
    return RemoteFile(uri, response.get("ETag"), response["ContentLength"], checksums)


def _md5_of_content(response: dict[str, Any]) -> str | None:
    """The ETag where it is the MD5 of the content; that of an object encrypted with its own key is not."""
    encrypted = "kms" in response.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in response
    match = MD5.fullmatch(response.get("ETag", ""))
    return match[1] if match and not encrypted else None


def s3_error(error: Exception, uri: str) -> AudioError:
    """Convert an exception of boto3 to an AudioError that names the object, the endpoint, the cause and a fix."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    address = endpoint() if "://" in endpoint() else "https://s3.amazonaws.com"
    check = f"Check {network_settings(address, VARIABLE, uses_requests=False)} and the network."
    kind, reason, fix = AudioError, str(error), "Check the bucket's name, your credentials and AWS_ENDPOINT_URL."
    if isinstance(error, exceptions.ClientError):
        meaning, fix = MEANINGS.get(_code(error), (error.response["Error"].get("Message", ""), fix))
        reason = f"{_code(error)}: {meaning}"
        if _header(error, "content-type").startswith("text/html"):  # S3 has XML for errors: a web server or a proxy
            reason, fix = f"{_code(error)}: {NOT_S3}", check
    elif isinstance(
        error,
        (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError),
    ):
        fix = CREDENTIALS
    elif isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError, HTTPError)):
        kind, fix = ServerUnreachable, check  # the client has retried already
    elif isinstance(error, ResponseParserError):
        reason, fix = NOT_S3, check
    reason = " ".join(reason.split()).rstrip(".")  # some messages have several lines
    return kind(f"{uri}: cannot be fetched from {endpoint()} ({reason}). {fix}")


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _header(error: Any, name: str) -> str:
    return str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))


def upload_object(
    client: "BaseClient",
    bucket: str,
    key: str,
    source: Path | bytes,
    *,
    progress: Callable[[int], object] = lambda sent: None,
) -> int:
    """Store a file, or bytes, as one complete object and return its size in bytes.

    The server checks the SHA-256 that is sent along, and `download_object` compares it later. An ETag that is an MD5
    is compared here, because not every server checks. `progress` gets the size after the upload.

    Raises DataError when the object cannot be stored, or the server received different bytes.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as body:
        size, sha256, md5 = _measure(body)
        response = _request(
            client, "put_object", bucket, key, "stored",
            Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=base64.b64encode(sha256).decode(),
        )  # fmt: skip
    if (stored := _md5_of_content(response)) not in (None, md5):
        raise DataError(f"s3://{bucket}/{key}: was stored with MD5 {stored}, not {md5}. Delete it, and try again.")
    progress(size)
    return size


def remove_objects(client: "BaseClient", bucket: str, keys: Sequence[str]) -> int:
    """Delete objects concurrently; missing objects count as deleted.

    Returns:
        The number of objects whose content the bucket keeps as an older version.

    Raises DataError for the first object that cannot be deleted.
    """
    markers: list[str] = []

    def remove(key: str, _: Hooks) -> None:
        if _request(client, "delete_object", bucket, key, "deleted").get("DeleteMarker"):
            markers.append(key)

    run_all([partial(remove, key) for key in keys], workers=REMOVALS)
    return len(markers)


def _measure(body: BinaryIO) -> tuple[int, bytes, str]:
    """Size, SHA-256 and MD5 of a stream, which is rewound afterwards."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    while piece := body.read(1 << 20):
        sha256.update(piece)
        md5.update(piece)
        size += len(piece)
    body.seek(0)
    return size, sha256.digest(), md5.hexdigest()


def _request(client: Any, action: str, bucket: str, key: str, done: str, **request: Any) -> dict[str, Any]:
    """Send a request that changes an object and return the response."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        response: dict[str, Any] = getattr(client, action)(Bucket=bucket, Key=key, **request)
        if action == "put_object" and "ETag" not in response:
            raise ResponseParserError
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        code = getattr(error, "response", {}).get("Error", {}).get("Code")
        reason = NOT_S3 if isinstance(error, ResponseParserError) else " ".join(str(code or error).split()).rstrip(".")
        raise DataError(f"s3://{bucket}/{key}: cannot be {done} at {endpoint()} ({reason}). {CHECK_WRITE}") from error
    return response
