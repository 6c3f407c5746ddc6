"""One recording from a web server."""

import base64
import binascii
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from audioscore.data.transfer.partial import CHUNK, LARGEST, Answer, StartOver, Whole, receive
from audioscore.data.transfer.pool import TryAgain
from audioscore.errors import AudioError

if TYPE_CHECKING:
    from requests import Response, Session

TIMEOUTS = (10.0, 60.0)  # seconds: to connect, and between two bytes
REDIRECTS = 10
MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
PAGE, MESSAGE = "a web page", "a message"
NO_RECORDING = {  # media types of answers that only look like success
    "text/html": PAGE,
    "application/xhtml+xml": PAGE,
    "application/json": MESSAGE,
    "application/xml": MESSAGE,
    "text/xml": MESSAGE,
}
HASHES = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}  # in headers -> in hashlib
SECRET = re.compile(r"([?&][^=&]*(?:sign|token|key|secret|auth|credential|password)[^=&]*=)[^&]*", re.IGNORECASE)


def new_session() -> "Session":
    """A session of one connection a host, for one thread."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.max_redirects = REDIRECTS
    adapter = HTTPAdapter(pool_connections=4, pool_maxsize=1)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["Accept-Encoding"] = "identity"  # a compressed answer can be neither measured nor resumed
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
    """Download a recording to `target`, whole or not at all, going on where `partial` ends.

    It goes on only while the server says that the file is the same (If-Range with its ETag or date). Length and
    checksums are compared where given (Content-Length; Content-MD5, Content-Digest, Repr-Digest, Digest,
    x-amz-checksum-sha256). Broken connections and the answers 408, 425, 429, 500, 502 to 504 are tried again, after
    what Retry-After asks or growing pauses. `progress` is told the size of each piece, and may raise to stop.

    Raises AudioError, one sentence, where the file cannot be had or is a web page; OSError where it cannot be written.
    """
    name = shown(url)
    with contextlib.ExitStack() as opened:
        current = session if session is not None else opened.enter_context(new_session())

        def ask(offset: int, known: Whole | None) -> contextlib.AbstractContextManager[Answer]:
            return _ask(current, url, name, offset, known, timeouts)

        def check(path: Path) -> None:
            with path.open("rb") as handle:
                if WEB_PAGE.match(handle.read(512)):
                    _refuse_text(name, PAGE, "its text begins with <html")

        receive(name, url, ask, target, partial, sleep=sleep, progress=progress, limit=limit, check=check)


def shown(url: str) -> str:
    """A link for messages: without the secrets that may stand in it.

    >>> shown("https://me:pw@host/a.m4a?id=7&X-Amz-Signature=5fd2")
    'https://host/a.m4a?id=7&X-Amz-Signature=...'
    """
    return SECRET.sub(r"\1...", re.sub(r"^(\w+://)[^/@]*@", r"\1", url))


def shown_name(audio_file: str) -> str:
    """What a table calls a recording, for messages: a link as `shown`, and a path as it is."""
    return shown(audio_file) if "://" in audio_file else audio_file


@contextlib.contextmanager
def _ask(
    session: "Session", url: str, name: str, offset: int, known: Whole | None, timeouts: tuple[float, float]
) -> Iterator[Answer]:
    """Ask for the file from a byte on; what may pass is raised as TryAgain, also while the bytes are read."""
    import requests
    from urllib3.exceptions import HTTPError

    headers = {}
    if offset and known and known.version:
        headers = {"Range": f"bytes={offset}-", "If-Range": known.version}
    answered = False
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeouts) as response:
            answered = True
            yield _answer(response, url, name, offset, known)
    except (requests.RequestException, HTTPError, UnicodeError) as fault:
        _explain(fault, name, answered)


def _answer(response: "Response", url: str, name: str, offset: int, known: Whole | None) -> Answer:
    status, headers = response.status_code, response.headers
    if status == 416:
        raise StartOver("the server has no bytes beyond those that arrived")
    if status in MAY_PASS:
        raise TryAgain(f"the server answers {status} ({response.reason})", after=_retry_after(headers))
    if status in (401, 403):
        raise AudioError(
            f"{name}: access is denied ({status} {response.reason}). Check the link, or ask for a new one."
        )
    if status in (404, 410):
        raise AudioError(f"{name}: there is no such file any more ({status} {response.reason}). Check the link.")
    if status not in (200, 206):
        raise AudioError(f"{name}: the server answers {status} ({response.reason}), not the recording. Check the link.")
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in NO_RECORDING:
        _refuse_text(name, NO_RECORDING[media_type], media_type)
    encoded = headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")
    # read1 gives what has arrived: a chunk that is cut short is not lost.
    chunks = iter(lambda: response.raw.read1(CHUNK, decode_content=encoded), b"")
    if status == 206:
        _check_continues(headers, offset, known)
        assert known is not None
        return Answer(known, offset, chunks)
    return Answer(Whole(url) if encoded else _describe(headers, url), 0, chunks)


def _check_continues(headers: Mapping[str, str], offset: int, known: Whole | None) -> None:
    match = re.fullmatch(r"bytes\s+(\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if known is None or match is None or int(match[1]) != offset or match[2] not in ("*", str(known.size or "*")):
        raise StartOver(
            f"the server sends {headers.get('Content-Range', 'an unnamed range')!r} when asked for the rest"
        )
    version = headers.get("ETag" if (known.version or "").startswith('"') else "Last-Modified")
    if version is not None and version != known.version:
        raise StartOver("the file changed while it was downloaded")


def _describe(headers: Mapping[str, str], url: str) -> Whole:
    etag = headers.get("ETag", "")
    version = etag if etag.startswith('"') else headers.get("Last-Modified")  # a weak ETag does not promise equal bytes
    length = headers.get("Content-Length", "")
    return Whole(url, version, int(length) if length.isdecimal() else None, _checksums(headers))


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """The checksums of an answer with the whole file, in hexadecimal; what is malformed is no checksum.

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
    """Seconds, from a number or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return None


def _refuse_text(name: str, kind: str, sign: str) -> NoReturn:
    raise AudioError(f"{name}: answered with {kind} ({sign}), not a recording. Open the link; it may ask to log in.")


def _explain(fault: Any, name: str, answered: bool) -> NoReturn:
    """Raise what a fault of the connection means: TryAgain where it may pass, AudioError where it will not."""
    import requests
    from urllib3.exceptions import NameResolutionError, TimeoutError

    cause = getattr(fault.args[0], "reason", None) if fault.args else None
    if isinstance(fault, requests.TooManyRedirects):
        raise AudioError(f"{name}: leads from link to link more than {REDIRECTS} times. Check the link.") from fault
    if isinstance(fault, requests.exceptions.InvalidSchema):
        raise AudioError(f"{name}: leads to something that is no web address ({fault}). Check the link.") from fault
    if isinstance(fault, (UnicodeError, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema)):
        raise AudioError(f"{name}: is no valid link ({fault}). Mend it.") from fault
    if "CERTIFICATE_VERIFY_FAILED" in str(fault):
        raise AudioError(
            f"{name}: the server's certificate is not trusted ({_last(cause or fault)}). Check it."
        ) from fault
    if isinstance(cause, NameResolutionError):
        raise TryAgain("its host is unknown", unreachable=True) from fault
    if isinstance(fault, (requests.Timeout, TimeoutError)):
        raise TryAgain("the server does not answer in time", unreachable=not answered) from fault
    if not answered:
        raise TryAgain(f"the server cannot be reached ({_last(cause or fault)})", unreachable=True) from fault
    raise TryAgain("the connection broke") from fault


def _last(fault: Any) -> str:
    """The words of the operating system or of TLS, without the objects that they stand in."""
    text = str(fault)
    if match := re.search(r"\[(?:Errno -?\d+|(SSL|X509): \w+)\] ([^()'\"]+)", text):
        return f"{'TLS: ' if match[1] else ''}{match[2].strip()}"
    quoted = re.findall(r"'([^']+)'", text)
    return str(quoted[-1]) if quoted else type(fault).__name__
