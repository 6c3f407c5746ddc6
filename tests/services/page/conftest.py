"""Services in their own processes, and Chromium, controlled by its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket

from audioscore.data.audio import encode
from benchmarks.serving import RunningService, make_scorer

RATE = 24_000
TIMEOUT = 60.0  # seconds


class Browser:
    """Headless Chromium with one page. `errors`: the page's errors and violations of its content policy."""

    def __init__(self, folder: Path, microphone: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("Chromium is not installed: see .ci/packages")
        self._process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
             "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
             f"--use-file-for-fake-audio-capture={microphone}", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        written = folder / "DevToolsActivePort"
        port = until(lambda: written.is_file() and written.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=TIMEOUT) as response:
            page = next(target for target in json.load(response) if target["type"] == "page")
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=TIMEOUT, suppress_origin=True)
        self._sent = 0
        self.errors: list[str] = []
        self.requests: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def __call__(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol and wait for its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv())).get("id") != self._sent:
            self._record(message["method"], message["params"])
        assert "error" not in message, (method, message)
        return message["result"]

    def _record(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"])

    def open(self, url: str) -> None:
        """Open `url` and wait until the page is ready."""
        self("Page.navigate", url="about:blank")
        self.run("1")
        self.errors.clear()
        self.requests.clear()
        self("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.querySelector('.recording .record')?.textContent")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, its result."""
        done = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, (script, done)
        return done["result"].get("value")

    def until(self, script: str) -> Any:
        """Value of an expression in the page, as soon as it is true."""
        return until(lambda: self.run(script), script)

    def choose(self, card: int, *files: Path) -> None:
        """Choose a file for the first or second recording, 0 or 1."""
        every = self(
            "DOM.querySelectorAll", nodeId=self("DOM.getDocument")["root"]["nodeId"], selector=".recording .file"
        )
        self("DOM.setFileInputFiles", nodeId=every["nodeIds"][card], files=[str(file) for file in files])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                 text=text if kind == "keyDown" else "")  # fmt: skip

    def look(self, width: int, height: int, *, dark: bool = False, language: str = "en-US") -> None:
        """Set the size, colour scheme and language of the window."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Network.setUserAgentOverride", userAgent="Chromium", acceptLanguage=language)

    def picture(self) -> bytes:
        """A screenshot of the whole page, as PNG."""
        return base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])


def until(check: Callable[[], Any], what: str = "the browser") -> Any:
    """Wait until `check` returns a true value, and return it."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := check()):
        assert time.monotonic() < deadline, f"{what}: still {value!r} after {TIMEOUT:g} s"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long.m4a` (14 s) and `short.wav` (3 s), sung; `silent.wav`; `microphone.wav` for the simulated microphone."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, seconds, pitch in (("long.m4a", 14, 220.0), ("short.wav", 3, 330.0), ("microphone.wav", 20, 262.0)):
        time_ = np.arange(seconds * RATE) / RATE
        phase = 2 * np.pi * pitch * (time_ + 0.003 * np.sin(2 * np.pi * 5 * time_))
        wave = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.1 + 0.05 * np.sin(time_))
        codec = {"codec": "pcm_s16le"} if name.endswith("wav") else {}
        encode(np.asarray(wave, dtype=np.float32), RATE, folder / name, **codec)
    encode(np.zeros(3 * RATE, dtype=np.float32), RATE, folder / "silent.wav", codec="pcm_s16le")
    return folder


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningService]]:
    """A function that starts the service with options and an environment, until the end of the session."""
    folder = tmp_path_factory.mktemp("served")
    model = make_scorer(folder / "model")
    with ExitStack() as ends:

        def start(name: str, *options: str, **environment: str) -> RunningService:
            served = RunningService(str(model), folder / f"{name}.log", *options, environment=environment)
            return ends.enter_context(served).ready()

        yield start


@pytest.fixture(scope="session")
def served(serve: Callable[..., RunningService]) -> RunningService:
    return serve("open", "--max-megabytes", "2")


@pytest.fixture(scope="session")
def chromium(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), recordings / "microphone.wav")
    yield browser
    browser.close()


@pytest.fixture
def page(chromium: Browser, served: RunningService) -> Browser:
    """The browser at the first visit: a wide, light, English window without stored data."""
    chromium("Storage.clearDataForOrigin", origin=f"http://127.0.0.1:{served.port}", storageTypes="local_storage")
    chromium.look(1100, 900)
    return chromium
