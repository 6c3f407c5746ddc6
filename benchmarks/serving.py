"""Load test of the service on loopback: find the sustained rate, send twice that rate, then half of it again.

    python -m benchmarks.serving --seconds 120

The service runs a scorer with the small encoders and an untrained head in a process of its own. Requests start at
random times, independent of responses (open loop). Every score is compared with `Scorer.score`.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from audioscore.data.versions.repository import pull_missing

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ROOT / "pipelines" / "encoders"
SERVE = "from audioscore.cli import app; app.main()"
READY_SECONDS = 120.0


def make_scorer(folder: Path, *, seed: int = 5, encoders: Path = ENCODERS) -> Path:
    """Write a scorer folder with an untrained head over both encoders."""
    pull_missing(encoders, print)
    import torch

    from audioscore.encoders.campplus import load_campplus
    from audioscore.encoders.features import Kind
    from audioscore.encoders.muq import load_muq
    from audioscore.scoring.calibration import Calibration
    from audioscore.scoring.checkpoint import save_scorer
    from audioscore.scoring.head import ScoreHead
    from audioscore.scoring.network import ScoreNetwork
    from audioscore.scoring.scorer import Description

    folders: dict[Kind, Path] = {"muq": encoders / "muq-small", "campplus": encoders / "campplus-small"}
    muq, campplus = load_muq(str(folders["muq"]), layer=2), load_campplus(str(folders["campplus"]))
    sizes = {"muq": muq.dim, "campplus": campplus.dim}
    shape: Any = {"dims": sizes, "width": 8, "hidden": 8, "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ScoreHead(**shape)
    calibration = Calibration((-1.0, 1.0), (60.0, 90.0), 5.0)
    references = {"muq": muq.reference, "campplus": campplus.reference}
    description = Description("hybrid", seed, references, shape, calibration, (), "0.dir", "unknown")
    save_scorer(ScoreNetwork(head), description, folders, folder)
    return folder


class RunningService:
    """A running `audioscore serve` on a free port of loopback, as a context manager; `log` is its output."""

    def __init__(self, model: str, log: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-c", SERVE, "serve", "--model", model, "--port", "0", *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(environment or {})},
                process_group=0,
            )  # fmt: skip
        self.port = int(self._wait(lambda: self._port()))

    def ready(self) -> "RunningService":
        """Wait until the service is ready."""
        self._wait(lambda: "1" if self.get("/readyz")[0] == 200 else "")
        return self

    def get(self, path: str, *, method: str = "GET", body: bytes = b"", headers: Any = ()) -> tuple[int, Any, bytes]:
        """Status, headers and body of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def score(self, *files: tuple[str, bytes], path: str = "/score", headers: Any = ()) -> tuple[int, Any]:
        """Status and document for recordings given as (name, bytes)."""
        body, kind = multipart(files)
        status, _, content = self.get(path, method="POST", body=body, headers={**dict(headers), "Content-Type": kind})
        return status, json.loads(content)

    def rss(self) -> int:
        """Bytes of memory of the service and its processes."""
        total = 0
        for one in (main := psutil.Process(self.process.pid), *main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _port(self) -> str:
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("listening at "):
                return line.split(";")[0].rpartition(":")[2]
        return ""

    def _wait(self, ask: Any) -> str:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if found := str(ask()):
                    return found
            time.sleep(0.1)
        raise RuntimeError(f"the service did not become ready:\n{self.log.read_text(errors='replace')[-2000:]}")


def multipart(files: Sequence[tuple[str, bytes]], boundary: str = "-----audioscore-boundary") -> tuple[bytes, str]:
    """Encode files, given as (name, bytes), as a multipart body; returns the body and its content type."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@dataclass
class Tally:
    """Results of a load: responses by status, seconds of the successful ones, and wrong responses."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    late: int = 0  # requests that were not sent, because too many were in progress

    def text(self, took: float) -> str:
        """One line."""
        half, most = np.percentile(self.seconds, [50, 95]) if self.seconds else (0.0, 0.0)
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{counts}; {self.statuses['200'] / took:.1f} scored/s, median {half:.2f} s, 95 % {most:.2f} s, "
            f"{len(self.wrong)} wrong"
        )


class Load:
    """Clips with their scores, sent to a service."""

    def __init__(self, served: RunningService, clips: Sequence[tuple[str, bytes]], expected: Sequence[float]) -> None:
        self._served, self._clips, self._expected = served, list(clips), list(expected)
        self._lock = threading.Lock()

    def once(self, number: int, tally: Tally) -> None:
        """Send one clip and record the response."""
        which, started = number % len(self._clips), time.perf_counter()
        try:
            status, document = self._served.score(self._clips[which])
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, document = 0, {"error": f"{type(error).__name__}: {error}"}
        took = time.perf_counter() - started
        with self._lock:
            tally.statuses[str(status or "lost")] += 1
            if status == 200:
                tally.seconds.append(took)
                found = document["results"][0]
                if found["score"] is None or abs(found["score"] - self._expected[which]) > 2e-4:
                    tally.wrong.append(f"{found['file']}: {found['score']}, expected {self._expected[which]:.4f}")
            elif status not in (429, 503):
                tally.wrong.append(f"{status}: {document}")

    def closed(self, clients: int, seconds: float) -> Tally:
        """Closed loop: each client sends its next clip after the previous response."""
        tally, end = Tally(), time.monotonic() + seconds

        def client(first: int) -> None:
            number = first
            while time.monotonic() < end:
                self.once(number, tally)
                number += clients

        run_threads([threading.Thread(target=client, args=(first,)) for first in range(clients)])
        return tally

    def open(self, rate: float, seconds: float, most: int = 256) -> Tally:
        """Open loop: send `rate` clips per second at random times, at most `most` at once."""
        tally, random_times, slots = Tally(), random.Random(3), threading.Semaphore(most)
        threads: list[threading.Thread] = []
        started, due = time.monotonic(), 0.0

        def client(number: int) -> None:
            with slots:
                self.once(number, tally)

        while (due := due + random_times.expovariate(rate)) < seconds:
            time.sleep(max(0.0, started + due - time.monotonic()))
            threads = [thread for thread in threads if thread.is_alive()]
            if len(threads) >= most:
                tally.late += 1
                continue
            threads.append(threading.Thread(target=client, args=(len(threads) + sum(tally.statuses.values()),)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return tally


def run_threads(threads: Sequence[threading.Thread]) -> None:
    """Start all threads and wait for them."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def watched_rss(served: RunningService, every: float = 0.5) -> Iterator[list[float]]:
    """Memory of the service in MiB while the block runs."""
    found: list[float] = []
    end = threading.Event()

    def look() -> None:
        while not end.wait(every):
            found.append(served.rss() / 2**20)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


def overload(load: Load, served: RunningService, seconds: float, calm_seconds: float) -> dict[str, Any]:
    """Measure the sustained rate, then send twice that rate for `seconds`; returns the results of each phase."""
    load.closed(8, calm_seconds / 2)  # warm-up
    started = time.monotonic()
    sustained = load.closed(8, calm_seconds)
    rate = sustained.statuses["200"] / (time.monotonic() - started)
    before = load.open(rate / 2, calm_seconds)
    with watched_rss(served) as memory:
        started = time.monotonic()
        during = load.open(2 * rate, seconds)
        took = time.monotonic() - started
    after = load.open(rate / 2, calm_seconds)
    third = max(1, len(memory) // 3)
    return {
        "rate": rate, "before": before, "during": during, "after": after, "took": took,
        "rss": (float(np.median(memory[third : 2 * third])), float(np.median(memory[-third:])), max(memory)),
        "calm": calm_seconds,
    }  # fmt: skip


def demo_clips(count: int) -> list[tuple[str, bytes]]:
    """Recordings of the demo corpus."""
    pull_missing(ROOT / "data", print)
    return [(path.name, path.read_bytes()) for path in sorted((ROOT / "data" / "audio").iterdir())[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--calm", type=float, default=15.0, help="seconds of each phase before and after")
    parser.add_argument("--queue", type=int, default=32)
    options = parser.parse_args()
    from audioscore import load_scorer

    with tempfile.TemporaryDirectory() as folder:
        model = make_scorer(Path(folder) / "scorer")
        clips, scorer = demo_clips(24), load_scorer(model, device="cpu")
        expected = [scorer.score(data).score for _, data in clips]
        with RunningService(str(model), Path(folder) / "log", "--queue", str(options.queue)) as served:
            found = overload(Load(served.ready(), clips, expected), served, options.seconds, options.calm)
            print(f"sustained: {found['rate']:.1f} recordings/s (8 clients, each waiting for its response)")
            for name, took in (("before", found["calm"]), ("during", found["took"]), ("after", found["calm"])):
                print(f"{name:7} {found[name].text(took)}; {found[name].late} clients late")
                print("\n".join(found[name].wrong[:5]))
            print(
                "memory in MiB: second third of the overload {:.0f}, last third {:.0f}, most {:.0f}".format(
                    *found["rss"]
                )
            )
            print((Path(folder) / "log").read_text()[-500:])


if __name__ == "__main__":
    main()
