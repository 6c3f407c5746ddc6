"""Download a recording from a web server."""

import base64
import binascii
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from audioscore.data.transfer.network import NOT_READY, check_proxy, network_settings, redact, system_message
from audioscore.data.transfer.partial import CHUNK, LARGEST, RemoteFile, RestartDownload, ServerResponse, receive
from audioscore.data.transfer.pool import TransientError
from audioscore.errors import AudioError

if TYPE_CHECKING:
    from requests import Response, Session

TIMEOUTS = (5.0, 30.0)  # seconds: to connect, and between two bytes
REDIRECTS = 10
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
PAGE, MESSAGE = "a web page", "a text message"
TEXT_TYPES = {  # media types of responses with status 200 that are not recordings
    "text/html": PAGE,
    "application/xhtml+xml": PAGE,
    "application/json": MESSAGE,
    "application/xml": MESSAGE,
    "text/xml": MESSAGE,
}
HASHES = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}  # name in headers -> in hashlib


def new_session() -> "Session":
    """Create a session with one connection per host. A session is for one thread."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.max_redirects = REDIRECTS
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=1)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["Accept-Encoding"] = "identity"  # compressed responses have no known size and cannot be resumed
    return session


def download_http(
    url: str,
    target: Path,
    *,
    partial: Path,
    session: "Session | None" = None,
    limit: int = LARGEST,
    timeouts: tuple[float, float] = TIMEOUTS,
    sleep: Callable[[float], object] = time.sleep,
    progress: Callable[[int], object] = lambda received: None,
) -> None:
    """Download a complete recording to `target`, resuming from `partial`.

    A download resumes only if the server confirms the same version (If-Range with the ETag or date). Length and
    checksums are compared where the server sends them (Content-Length; Content-MD5, Content-Digest, Repr-Digest,
    Digest, x-amz-checksum-sha256). Broken connections and the statuses 408, 425, 429, 500 and 502 to 504 are retried,
    after the pause of Retry-After or with exponential back-off.

    Args:
        limit: Largest accepted size, in bytes.
        timeouts: Seconds to connect, and between two received bytes.
        progress: Called with the size of each piece; may raise to stop the download.

    Raises:
        AudioError: The file cannot be received, or is a web page.
        OSError: The file cannot be written.
    """
    name = redact(url)
    check_proxy(url)
    with contextlib.ExitStack() as stack:
        current = session if session is not None else stack.enter_context(new_session())

        def open_response(offset: int, file: RemoteFile | None) -> contextlib.AbstractContextManager[ServerResponse]:
            return _open_response(current, url, name, offset, file, timeouts)

        def check(path: Path) -> None:
            with path.open("rb") as handle:
                if WEB_PAGE.match(handle.read(512)):
                    _refuse_text(name, PAGE, "its text begins with <html")

        receive(name, url, open_response, target, partial, sleep=sleep, progress=progress, limit=limit, check=check)


def _through(url: str) -> str:
    """Name the proxy of a URL, for messages; empty without one."""
    settings = network_settings(url)
    return f" through {settings}" if settings else ""


def redact_name(audio_file: str) -> str:
    """Name of a recording for messages: links without secrets, paths unchanged."""
    return redact(audio_file) if "://" in audio_file else audio_file


@contextlib.contextmanager
def _open_response(
    session: "Session", url: str, name: str, offset: int, file: RemoteFile | None, timeouts: tuple[float, float]
) -> Iterator[ServerResponse]:
    """Request the file from a byte offset on; see `OpenResponse`."""
    import requests
    from urllib3.exceptions import HTTPError

    headers = {}
    if offset and file and file.version:
        headers = {"Range": f"bytes={offset}-", "If-Range": file.version}
    responded = False
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeouts) as response:
            responded = True
            yield _check_response(response, url, name, offset, file)
    except (requests.RequestException, HTTPError, UnicodeError) as error:
        _raise_connection_error(error, name, responded)


def _check_response(response: "Response", url: str, name: str, offset: int, file: RemoteFile | None) -> ServerResponse:
    status, headers = response.status_code, response.headers
    if status == 416:
        raise RestartDownload("the server has no bytes beyond those that arrived")
    if status in TRANSIENT_STATUSES:
        through = _through(url) if status in NOT_READY else ""
        raise TransientError(
            f"the server responds with {status} ({response.reason}){through}", after=_retry_after(headers)
        )
    if status in (401, 403):
        raise AudioError(
            f"{name}: access is denied ({status} {response.reason}). Check the link, or request a new one."
        )
    if status in (404, 410):
        raise AudioError(f"{name}: the file does not exist ({status} {response.reason}). Check the link.")
    if status not in (200, 206):
        raise AudioError(f"{name}: the server responds with {status} ({response.reason}). Check the link.")
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in TEXT_TYPES:
        _refuse_text(name, TEXT_TYPES[media_type], media_type)
    encoded = headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")
    # read1 returns the bytes that have arrived, so an interrupted chunk is not lost.
    chunks = iter(lambda: response.raw.read1(CHUNK, decode_content=encoded), b"")
    if status == 206:
        _check_resumed(headers, offset, file)
        assert file is not None
        return ServerResponse(file, offset, chunks)
    return ServerResponse(RemoteFile(url) if encoded else _describe(headers, url), 0, chunks)


def _check_resumed(headers: Mapping[str, str], offset: int, file: RemoteFile | None) -> None:
    match = re.fullmatch(r"bytes\s+(\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if file is None or match is None or int(match[1]) != offset or match[2] not in ("*", str(file.size or "*")):
        raise RestartDownload(
            f"the server sent the range {headers.get('Content-Range')!r} instead of the bytes from {offset} on"
        )
    by_etag = (file.version or "").startswith('"')  # a response must then repeat it; the date may be missing
    version = headers.get("ETag") if by_etag else headers.get("Last-Modified", file.version)
    if version != file.version:
        raise RestartDownload("the file changed during the download")


def _describe(headers: Mapping[str, str], url: str) -> RemoteFile:
    etag = headers.get("ETag", "")
    version = etag if etag.startswith('"') else headers.get("Last-Modified")  # a weak ETag does not imply equal bytes
    length = headers.get("Content-Length", "")
    return RemoteFile(url, version, int(length) if length.isdecimal() else None, _checksums(headers))


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """Read the hexadecimal checksums of a response with the complete file; malformed checksums are ignored.

    >>> _checksums({"Digest": "MD5=kAFQmDzST7DWlj99KOF/cg==", "Repr-Digest": "sha-256=:AAAA:"})
    {'md5': '900150983cd24fb0d6963f7d28e17f72'}
    """
    given = [("md5", headers.get("Content-MD5", "")), ("sha-256", headers.get("x-amz-checksum-sha256", ""))]
    for header in ("Content-Digest", "Repr-Digest", "Digest"):
        pairs = (item.strip().partition("=") for item in headers.get(header, "").split(","))
        given += [(algorithm.lower(), value.strip(": ")) for algorithm, _, value in pairs]
    found: dict[str, str] = {}
    for algorithm, text in given:
        with contextlib.suppress(KeyError, binascii.Error, ValueError):
            digest = base64.b64decode(text, validate=True)
            if len(digest) == {"md5": 16, "sha": 20, "sha-256": 32, "sha-512": 64}[algorithm]:
                found[HASHES[algorithm]] = digest.hex()
    return found


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return None


def _refuse_text(name: str, kind: str, sign: str) -> NoReturn:
    raise AudioError(
        f"{name}: the server sent {kind} ({sign}) instead of a recording. Open the link; it may require a login."
    )


def _raise_connection_error(error: Any, name: str, responded: bool) -> NoReturn:
    """Raise TransientError for a connection error that may not recur, and AudioError for a permanent one."""
    import requests
    from urllib3.exceptions import NameResolutionError, TimeoutError

    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.TooManyRedirects):
        raise AudioError(f"{name}: the link has more than {REDIRECTS} redirects. Check the link.") from error
    if isinstance(error, requests.exceptions.InvalidSchema):
        raise AudioError(f"{name}: the link redirects to a non-web address ({error}). Check the link.") from error
    if isinstance(error, (UnicodeError, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema)):
        raise AudioError(f"{name}: the link is invalid ({error}). Correct it.") from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise AudioError(
            f"{name}: the server's certificate is not trusted ({system_message(cause or error)}). Check it."
        ) from error
    if isinstance(cause, NameResolutionError):
        raise TransientError(f"the host name cannot be resolved{_through(name)}", unreachable=True) from error
    if isinstance(error, (requests.Timeout, TimeoutError)):
        through = "" if responded else _through(name)
        raise TransientError(f"the server did not respond in time{through}", unreachable=not responded) from error
    if not responded:
        reason = system_message(cause or error)
        raise TransientError(f"the server cannot be reached ({reason}){_through(name)}", unreachable=True) from error
    raise TransientError("the connection broke") from error
