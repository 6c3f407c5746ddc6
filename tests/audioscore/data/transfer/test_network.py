import os
import socket
import threading
import time
from typing import Any

import pytest
from requests.utils import get_environ_proxies

from audioscore.data.transfer import network
from audioscore.data.transfer.network import await_server, check_proxy, exempt_loopback, proxy_of
from audioscore.errors import ServerUnreachable, UsageError

PROXY = "http://me:pw@127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(network, "PAUSE", 0.02)
    monkeypatch.setattr(network, "TIMEOUTS", (0.2, 0.2))
    await_server.cache_clear()


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (None, None, ["localhost,127.0.0.1,::1"] * 2),
        (None, "corp, 127.0.0.1", ["corp,127.0.0.1,localhost,::1"] * 2),
        ("a.com", "b.com", ["a.com,localhost,127.0.0.1,::1", "b.com,localhost,127.0.0.1,::1"]),
        ("*", None, ["*", "*"]),
        ("a.com,*", None, ["a.com,*,localhost,127.0.0.1,::1"] * 2),  # no client reads * in a list
    ],
)
def test_loopback_is_added_to_what_the_user_has(
    monkeypatch: pytest.MonkeyPatch, lower: str | None, upper: str | None, expected: list[str]
) -> None:
    given = {name: value for name, value in (("no_proxy", lower), ("NO_PROXY", upper)) if value is not None}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    exempt_loopback()
    assert {name: os.environ.get(name) for name in given} == given  # without a proxy, nothing changes
    monkeypatch.setenv("https_proxy", PROXY)
    for _ in range(2):
        exempt_loopback()
    assert [os.environ.get("no_proxy"), os.environ.get("NO_PROXY")] == expected


def test_the_proxy_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("all_proxy", "http://other:1")
    monkeypatch.setenv("NO_PROXY", ".corp")
    assert proxy_of("https://host/a") == ("HTTPS_PROXY", PROXY)
    assert proxy_of("http://host/a") == ("all_proxy", "http://other:1")
    assert proxy_of("http://host/a", uses_requests=False) is None
    for exempt in (
        "https://x.corp/a",
        "https://localhost:1",
        "http://127.0.0.1:9000",
        "http://[::1]:9000",
        "http://[::1",
    ):
        assert proxy_of(exempt) is None
        assert proxy_of(exempt, uses_requests=False) is None


def test_each_client_reads_no_proxy_by_its_own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,songs,corp:9000")
    for url in ("http://10.1.2.3:5000", "http://songs", "http://songs:9000/a", "http://corp:9000"):
        assert proxy_of(url) is None
        assert not get_environ_proxies(url)
    for url in ("http://11.1.2.3:5000", "http://corp:9001"):
        assert proxy_of(url) == proxy_of(url, uses_requests=False) == ("HTTP_PROXY", PROXY)
    assert proxy_of("http://10.1.2.3:5000", uses_requests=False) == ("HTTP_PROXY", PROXY)
    assert proxy_of("http://songs", uses_requests=False) is None


@pytest.mark.parametrize("uses_requests", [True, False])
def test_an_empty_lower_case_variable_switches_the_proxy_off(
    monkeypatch: pytest.MonkeyPatch, uses_requests: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("http_proxy", "")
    assert proxy_of("http://host/a", uses_requests=uses_requests) is None
    monkeypatch.setenv("http_proxy", "http://lower:1")
    assert proxy_of("http://host/a", uses_requests=uses_requests) == ("http_proxy", "http://lower:1")


@pytest.mark.parametrize("value", ["socks5://h:1", "http://h:abc", "http://", "ftp://h", "http://h:1 ", "me:pw@h:1"])
def test_an_invalid_proxy_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(UsageError, match=r"^HTTPS_PROXY: .*\bhost\b.*NO_PROXY") as error:
        check_proxy("https://host/a")
    assert "pw" not in str(error.value)
    check_proxy("http://host/a")


@pytest.mark.parametrize(
    "value", ["h.corp:1", "10.0.0.1:1", "//h:1", "http://me:pw@h:8080", "https://h", "http://[::1]:80"]
)
def test_a_valid_proxy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    check_proxy("https://host/a")


def test_a_proxy_without_a_scheme_is_valid_only_for_the_client_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "localhost:3128")
    check_proxy("https://host/a", uses_requests=False)
    with pytest.raises(UsageError, match=r"localhost:3128"):  # for requests, `localhost:` is the scheme
        check_proxy("https://host/a")


@pytest.mark.parametrize("form", ["//{}", "{}", "http://{}"])
@pytest.mark.parametrize("uses_requests", [True, False])
def test_a_server_responds_through_a_proxy(
    web: Any, monkeypatch: pytest.MonkeyPatch, form: str, uses_requests: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", form.format(web.url.removeprefix("http://")))
    web.serve("", answers=[(200, {})])
    await_server("http://songs.invalid", "SETTING", uses_requests=uses_requests)
    assert len(web.requests) == 1


def test_a_dead_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    expected = r"^https://host\.invalid: .*\(Connection refused\).*HTTPS_PROXY \(http://127\.0\.0\.1:1\) and SETTING\b"
    with pytest.raises(ServerUnreachable, match=expected):
        await_server("https://host.invalid", "SETTING")


def test_a_server_is_asked_until_it_responds(web: Any, caplog: pytest.LogCaptureFixture) -> None:
    web.serve("", answers=[(503, {}), (502, {})])
    for _ in range(2):
        await_server(web.url, "SETTING", patience=5.0)
    assert len(web.requests) == 3
    assert caplog.text.count(web.url) == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("silent", "timeout"), ("closes", "closed|reset|end"), ("garbage", "HTTP"), ("busy", "502")],
)
def test_servers_that_do_not_work(web: Any, behaviour: str, reason: str) -> None:
    url = web.url
    if behaviour == "busy":
        web.serve("", answers=[(502, {})])
    with socket.create_server(("127.0.0.1", 0)) as other:
        if behaviour != "busy":
            url = f"http://127.0.0.1:{other.getsockname()[1]}"
        if behaviour in ("closes", "garbage"):
            answer(other, b"\0\1 nothing\r\n\r\n" if behaviour == "garbage" else b"")
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=rf"^{url}: .*\(.*({reason}).*\).*SETTING"):
            await_server(url, "SETTING")
        assert time.monotonic() - started < 5


def answer(listener: socket.socket, content: bytes) -> None:
    """Answer the next connection with these bytes."""

    def run() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1 << 12)
            connection.sendall(content)

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("url", ["host:1", "http://", "https://{web}", "ftp://host"])
def test_invalid_addresses_and_schemes(web: Any, url: str) -> None:
    with pytest.raises(ServerUnreachable, match="SETTING"):
        await_server(url.format(web=web.url.removeprefix("http://")), "SETTING", patience=60.0)
