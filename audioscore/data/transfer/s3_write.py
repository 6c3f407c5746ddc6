"""Objects of a bucket: stored, and taken away."""

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from audioscore.data.transfer.pool import Hooks, run_all
from audioscore.data.transfer.s3 import MD5, endpoint
from audioscore.errors import DataError

if TYPE_CHECKING:
    from botocore.client import BaseClient

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
