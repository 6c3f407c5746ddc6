"""Objects of a bucket: listed, and downloaded one at a time."""

import base64
import contextlib
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from audioscore.data.transfer.partial import CHUNK, LARGEST, Answer, StartOver, Whole, receive
from audioscore.data.transfer.pool import Hooks, TryAgain, Unreachable, run_all
from audioscore.errors import AudioError, DataError

if TYPE_CHECKING:
    from botocore.client import BaseClient


MD5 = re.compile(r'"?([0-9a-f]{32})"?')  # another ETag is of an upload in parts, and is no MD5 of the content
CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}
# What an error's code means, and what to do about it.
MEANINGS = {
    "NoSuchBucket": ("there is no such bucket", "Check the bucket's name and AWS_ENDPOINT_URL."),
    "NoSuchKey": ("there is no such object", "Check the key; upper and lower case differ."),
    "404": ("there is no such object", "Check the bucket and the key."),
    "AccessDenied": ("access is denied", "Ask for the right to list and read this bucket."),
    "403": ("access is denied", "Check your credentials, and ask for the right to list and read this bucket."),
    "InvalidAccessKeyId": ("the access key is unknown there", "Check your credentials and AWS_ENDPOINT_URL."),
    "SignatureDoesNotMatch": ("the secret key is wrong", "Check your credentials."),
    "ExpiredToken": ("the session has expired", "Log in again."),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Set it."),
    "InvalidObjectState": ("the object is archived", "Restore it from the archive first."),
}
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
UNREACHABLE = "Check AWS_ENDPOINT_URL and the network."


@dataclass(frozen=True)
class S3Object:
    """One object under a prefix: its key, its name relative to the prefix, bytes, and the ETag without quotes."""

    key: str
    name: str
    size: int
    etag: str


def connect(connections: int = 16) -> "BaseClient":
    """A client by the standard credential chain and AWS_ENDPOINT_URL; threads may share it.

    Raises DataError where the configuration cannot be read; credentials are first looked at by a request.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        max_pool_connections=connections,
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=10,
        read_timeout=60,
        response_checksum_validation="when_required",  # else it checks a range against the checksum of the whole
    )
    try:
        return boto3.session.Session().client("s3", config=config)  # of its own: the default one is not thread-safe
    except (BotoCoreError, ValueError) as fault:
        raise DataError(
            f"S3 at {endpoint()} cannot be used ({fault}). Check AWS_PROFILE and AWS_ENDPOINT_URL."
        ) from fault


def endpoint() -> str:
    """Where S3 requests go, for messages."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key, or prefix without slashes around it. Raises DataError where no bucket is named.

    >>> split_uri("s3://songs/录音 1/a.m4a")
    ('songs', '录音 1/a.m4a')
    """
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket:
        raise DataError(f"{uri} names no bucket. Give s3://BUCKET/PREFIX.")
    return bucket, key


def list_objects(client: "BaseClient", uri: str) -> list[S3Object]:
    """Every object under `s3://bucket/prefix`, as under a folder; keys that only stand for a folder are none.

    Raises DataError where the bucket cannot be listed; no object at all is an empty list.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, prefix = split_uri(uri)
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    objects: list[S3Object] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                name = item["Key"].removeprefix(prefix)
                if name and not name.endswith("/"):
                    objects.append(S3Object(item["Key"], name, item["Size"], item["ETag"].strip('"')))
    except (BotoCoreError, ClientError) as fault:
        raise explain(fault, uri) from fault
    return objects


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
    """Download one object to `target`, whole or not at all, going on where `partial` ends.

    It goes on only with the same object (If-Match with its ETag). Size, MD5 (an ETag that is one) and SHA-256 (where
    the object was stored with it) are compared. The client asks again by itself where no answer comes; connections
    that break within an answer are tried again here. `progress` is told the size of each piece, and may raise to stop.

    Raises AudioError, one sentence, where the object cannot be had; OSError where it cannot be written.
    """
    uri = f"s3://{bucket}/{key}"

    def ask(offset: int, known: Whole | None) -> contextlib.AbstractContextManager[Answer]:
        return _ask(client, bucket, key, offset, known)

    receive(uri, uri, ask, target, partial, sleep=sleep, progress=progress, limit=limit)


@contextlib.contextmanager
def _ask(client: Any, bucket: str, key: str, offset: int, known: Whole | None) -> Iterator[Answer]:
    from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
    from urllib3.exceptions import HTTPError

    uri = f"s3://{bucket}/{key}"
    request = {"Bucket": bucket, "Key": key}
    if offset and known and known.version:
        request |= {"Range": f"bytes={offset}-", "IfMatch": known.version}
    else:
        request |= {"ChecksumMode": "ENABLED"}
    answered = False
    try:
        answer = client.get_object(**request)
        answered = True
        with contextlib.closing(answer["Body"]) as body:
            chunks = iter(lambda: body.read(CHUNK), b"")
            if known and str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-"):
                yield Answer(known, offset, chunks)
            else:
                yield Answer(_describe(answer, uri), 0, chunks)
    except ClientError as fault:
        if _code(fault) in CHANGED:
            raise StartOver("the object changed while it was downloaded") from fault
        raise explain(fault, uri) from fault
    except FlexibleChecksumError as fault:
        raise StartOver("arrived with another checksum than it was stored with") from fault
    except (BotoCoreError, HTTPError) as fault:
        if answered:
            raise TryAgain("the connection broke") from fault
        raise explain(fault, uri) from fault


def _describe(answer: dict[str, Any], uri: str) -> Whole:
    checksums: dict[str, str] = {}
    # Encrypted with a key of its own, an object has an ETag that is no MD5 of its content.
    sealed = "kms" in answer.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in answer
    if (match := MD5.fullmatch(answer.get("ETag", ""))) and not sealed:
        checksums["md5"] = match[1]
    sha256 = answer.get("ChecksumSHA256", "")
    if sha256 and "-" not in sha256:  # with "-N" it is of an upload in parts
        checksums["sha256"] = base64.b64decode(sha256).hex()
    return Whole(uri, answer.get("ETag"), answer["ContentLength"], checksums)


def explain(fault: Exception, uri: str) -> AudioError:
    """What a fault of boto3 means, as one sentence: what cannot be fetched, from where, why, and what to do."""
    from botocore import exceptions as known
    from urllib3.exceptions import HTTPError

    kind, reason, advice = AudioError, str(fault), "Check the bucket's name, your credentials and AWS_ENDPOINT_URL."
    if isinstance(fault, known.ClientError):
        meaning, todo = MEANINGS.get(_code(fault), (fault.response["Error"].get("Message", ""), advice))
        reason, advice = f"{_code(fault)}: {meaning}", todo
    elif isinstance(fault, (known.NoCredentialsError, known.PartialCredentialsError, known.CredentialRetrievalError)):
        advice = CREDENTIALS
    elif isinstance(fault, (known.ConnectionError, known.HTTPClientError, HTTPError)):  # no answer in several tries
        kind, advice = Unreachable, UNREACHABLE
    reason = " ".join(reason.split()).rstrip(".")  # some are of several lines
    return kind(f"{uri} cannot be fetched from {endpoint()} ({reason}). {advice}")


def _code(fault: Any) -> str:
    return str(fault.response.get("Error", {}).get("Code", ""))


REMOVALS = 8  # at once
ADVICE = "Check the bucket, AWS_ENDPOINT_URL, your credentials and the right to write there."


def upload_object(
    client: "BaseClient",
    bucket: str,
    key: str,
    source: Path | bytes,
    *,
    progress: Callable[[int], object] = lambda sent: None,
) -> int:
    """Store a file, or bytes, as one object, whole or not at all; how many bytes.

    Its SHA-256 goes with it, which the server checks and `download_object` compares later; an ETag that is an MD5 is
    compared here, since not every server checks. `progress` is told the size, once it is there. Raises DataError, one
    sentence, where it cannot be stored or the server got other bytes than were sent.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as body:
        size, sha256, md5 = _measured(body)
        answer = _request(
            client, "put_object", bucket, key, "stored",
            Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=base64.b64encode(sha256).decode(),
        )  # fmt: skip
    sealed = "kms" in answer.get("ServerSideEncryption", "")  # then the ETag is no MD5 of the content
    if (match := MD5.fullmatch(answer.get("ETag", ""))) and not sealed and match[1] != md5:
        raise DataError(f"s3://{bucket}/{key} was stored with MD5 {match[1]}, not {md5}. Delete it, and try again.")
    progress(size)
    return size


def remove_objects(client: "BaseClient", bucket: str, keys: Sequence[str]) -> int:
    """Take objects away, several at once; those that are not there count as taken away.

    Returns of how many the bucket keeps the content as an older version. Raises DataError for the first that stays.
    """
    markers: list[str] = []

    def remove(key: str, _: Hooks) -> None:
        if _request(client, "delete_object", bucket, key, "deleted").get("DeleteMarker"):
            markers.append(key)

    run_all([partial(remove, key) for key in keys], workers=REMOVALS)
    return len(markers)


def _measured(body: BinaryIO) -> tuple[int, bytes, str]:
    """Bytes, SHA-256 and MD5 of what can be read, which is at its beginning again afterwards."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while piece := body.read(1 << 20):
        sha256.update(piece)
        md5.update(piece)
    size = body.tell()
    body.seek(0)
    return size, sha256.digest(), md5.hexdigest()


def _request(client: Any, action: str, bucket: str, key: str, done: str, **request: Any) -> dict[str, Any]:
    """A request that changes an object; its answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: dict[str, Any] = getattr(client, action)(Bucket=bucket, Key=key, **request)
    except (BotoCoreError, ClientError) as fault:
        code = getattr(fault, "response", {}).get("Error", {}).get("Code")
        why = " ".join(str(code or fault).split()).rstrip(".")
        raise DataError(f"s3://{bucket}/{key} cannot be {done} at {endpoint()} ({why}). {ADVICE}") from fault
    return answer
