"""Proxy settings of the environment, and a first request to a server before a client with long retries uses it."""

import contextlib
import importlib.util
import logging
import os
import re
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from audioscore.errors import ServerUnreachable, UsageError

log = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PAUSE = 3.0  # seconds between two attempts
TIMEOUTS = (5.0, 10.0)  # seconds: to connect, and to the response
NOT_READY = {502, 503, 504}  # a proxy responds with these when the server behind it does not respond
SECRET = re.compile(r"([?&][^=&]*(?:sign|token|key|secret|auth|credential|password)[^=&]*=)[^&]*", re.IGNORECASE)


def exempt_loopback() -> None:
    """Add this machine's own addresses to NO_PROXY if a proxy is set: a proxy cannot reach servers on loopback."""
    names = ("no_proxy", "NO_PROXY")
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    given = [os.environ.get(name) for name in names]
    for name, value in zip(names, given, strict=True):
        entries = [one.strip() for one in (value or given[0] or given[1] or "").split(",") if one.strip()]
        missing = [] if entries == ["*"] else [one for one in LOOPBACK if one not in entries]
        os.environ[name] = ",".join([*entries, *missing])


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine.

    >>> is_loopback("http://[::1]:9000"), is_loopback("AWS")
    (True, False)
    """
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname in LOOPBACK
    return False


def proxy_of(url: str, *, uses_requests: bool = True) -> tuple[str, str] | None:
    """Return the variable and the value of the proxy that a client chooses for a URL; None without a proxy.

    Args:
        uses_requests: whether the client is based on requests, which reads ALL_PROXY and networks in NO_PROXY. The
            clients of S3 and of DVC's remotes do not.
    """
    from requests.utils import get_environ_proxies, select_proxy

    exempt_loopback()
    try:
        parts = urlsplit(url)
        if uses_requests:
            value = select_proxy(url, get_environ_proxies(url))
        else:  # urllib does not exempt [::1] with a port
            value = None if is_loopback(url) or proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    except ValueError:  # the client reports the invalid address
        return None
    named = [(name, text) for name, text in os.environ.items() if text == value]
    return next((one for kind in (parts.scheme, "all") for one in named if one[0].lower() == f"{kind}_proxy"), None)


def check_proxy(url: str, *, uses_requests: bool = True) -> None:
    """Raise UsageError if the proxy for a URL is not a valid address, or a SOCKS proxy that cannot be used."""
    from urllib3.util import parse_url

    found = proxy_of(url, uses_requests=uses_requests)
    if found is None:
        return
    name, value = found
    schemes = {"http", "https"}
    if uses_requests and importlib.util.find_spec("socks"):
        schemes |= {"socks4", "socks4a", "socks5", "socks5h"}
    with contextlib.suppress(ValueError):  # an invalid port
        parts = parse_url(value if uses_requests else _with_scheme(value))  # as requests does
        if (parts.scheme or "http") in schemes and parts.host and parts.port != 0 and not re.search(r"\s", value):
            return
    raise UsageError(
        f"{name}: {redact(value) if '://' in value else value.rpartition('@')[2]} is not the address of an HTTP proxy. "
        f"Set it to http://HOST:PORT, or add {urlsplit(url).hostname} to NO_PROXY."
    )


def network_settings(url: str, *others: str, uses_requests: bool = True) -> str:
    """Name the variables that decide how a URL is reached, for messages: that of its proxy, then the others.

    >>> network_settings("http://localhost:9000", "AWS_ENDPOINT_URL")
    'AWS_ENDPOINT_URL'
    """
    found = proxy_of(url, uses_requests=uses_requests)
    proxy = (f"{found[0]} ({redact(_with_scheme(found[1]))})",) if found else ()
    return " and ".join((*proxy, *others))


@cache  # once a server has responded, the retries of its client are sufficient
def await_server(url: str, setting: str, *, patience: float = 0.0, uses_requests: bool = True) -> None:
    """Check that a server responds, with any status but 502 to 504.

    The clients of MLflow, S3, DVC and the model hubs retry for minutes, and do not name the proxy that failed.

    Args:
        setting: the variable or setting that holds the address, for the message.
        patience: seconds to wait for a server that restarts.

    Raises:
        ServerUnreachable: it did not respond in time, or does not support HTTP or TLS.
        UsageError: the proxy for the URL is not valid.
    """
    check_proxy(url, uses_requests=uses_requests)
    until = time.monotonic() + patience
    waiting = False
    while (problem := _request(url, uses_requests=uses_requests)) is not None:
        reason, permanent = problem
        if permanent or time.monotonic() + PAUSE > until:
            what = f"Check {network_settings(url, setting, uses_requests=uses_requests)}, and that the server runs."
            raise ServerUnreachable(f"{redact(url)}: the server does not respond ({reason}). {what}")
        if not waiting:
            log.warning("waiting for the server at %s", redact(url))
            waiting = True
        time.sleep(PAUSE)


def _request(url: str, *, uses_requests: bool) -> tuple[str, bool] | None:
    """Request a URL once; returns None, or what failed and whether it would fail again."""
    import requests
    from urllib3.exceptions import HTTPError

    proxy = proxy_of(url, uses_requests=uses_requests)
    try:
        with requests.Session() as session:
            session.trust_env = False  # the proxy is chosen here
            session.proxies = {urlsplit(url).scheme: _with_scheme(proxy[1])} if proxy else {}
            session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
            with session.get(url, timeout=TIMEOUTS, allow_redirects=False, stream=True) as response:
                if response.status_code in NOT_READY:
                    return f"status {response.status_code} {response.reason}".strip(), False
                return None
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # a server exists, and its client may have other certificates
            return None
        return system_message(error), True
    except ValueError:  # requests' own classes for invalid addresses are ValueErrors
        return "not a valid http:// or https:// address", True
    except requests.Timeout:
        return "timeout", False
    except (requests.RequestException, HTTPError) as error:
        if "BadStatusLine" in str(error):
            return "its response is not HTTP", True
        return system_message(error), False


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy.removeprefix('//')}"


def redact(url: str) -> str:
    """Remove passwords, tokens and signatures from a link, for messages.

    >>> redact("https://me:pw@host/a.m4a?id=7&X-Amz-Signature=5fd2")
    'https://host/a.m4a?id=7&X-Amz-Signature=...'
    """
    return SECRET.sub(r"\1...", re.sub(r"^(\w+://)[^/@]*@", r"\1", url))


def system_message(error: Any) -> str:
    """Extract the message of the operating system or of TLS from a nested exception text."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    text = str(cause if isinstance(cause, Exception) else error)
    if match := re.search(r"\[(?:Errno -?\d+|(SSL|X509): \w+)\] ([^()'\"]+)", text):
        return f"{'TLS: ' if match[1] else ''}{match[2].strip()}"
    quoted = re.findall(r"'([^']+)'", text)
    return str(quoted[-1]) if quoted else type(error).__name__
