import socket

import pytest

from audioscore.errors import UsageError
from audioscore.serving.metrics import Settings
from audioscore.serving.server import serve


def test_an_unavailable_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^127\.0\.0\.1:{port}: .*\(.*in use\).*--host.*--port"):
            serve("anything", Settings(), port=port)
    with pytest.raises(UsageError, match=r"^no\.such\.host\.invalid:0: "):
        serve("anything", Settings(), host="no.such.host.invalid", port=0)


def test_a_missing_model_ends_the_server() -> None:
    addresses: list[str] = []
    with pytest.raises(UsageError, match=r"^gone: "):
        serve("gone", Settings(), port=0, listening=addresses.append)
    assert addresses[0].startswith("http://127.0.0.1:")
