import socket

import pytest

from audioscore.errors import UsageError
from audioscore.serving.server import serve
from audioscore.serving.settings import Settings


def test_an_address_that_cannot_be_had_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^127\.0\.0\.1:{port}: cannot be listened at \(.*in use\)\. Choose"):
            serve("anything", Settings(), port=port)
    with pytest.raises(UsageError, match=r"^no\.such\.host\.invalid:0: cannot be listened at"):
        serve("anything", Settings(), host="no.such.host.invalid", port=0)


def test_a_model_that_cannot_be_loaded_ends_it() -> None:
    heard: list[str] = []
    with pytest.raises(UsageError, match=r"^gone: no such folder"):
        serve("gone", Settings(), port=0, listening=heard.append)
    assert heard[0].startswith("http://127.0.0.1:")
