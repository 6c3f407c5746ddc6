"""What the service tells Prometheus."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from audioscore.encoders.compute import cores
from audioscore.scoring.results import ClipScore


@dataclass(frozen=True)
class Settings:
    """Limits of the service; what is beyond them is refused, and never costs memory.

    `max_bytes` bounds a request with all its recordings, `queue` how many requests are in the house: being uploaded,
    decoded, waiting or scored. A body must be through in `body_seconds` and what its bytes take at `slowest` bytes/s.
    """

    max_bytes: int = 100 << 20
    max_seconds: float = 900.0  # of one recording
    max_files: int = 32
    queue: int = 32
    decode_seconds: float = 30.0
    body_seconds: float = 20.0
    slowest: int = 16 << 10
    stop_seconds: float = 30.0  # to finish what was accepted
    watch_seconds: float = 30.0  # from one look at the champion's alias to the next; 0: never
    processes: int = field(default_factory=cores)  # that decode
    token: str | None = field(default=None, repr=False)


PATHS = frozenset({"/", "/score", "/model", "/healthz", "/readyz", "/metrics", "/openapi.json"})
LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # s


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self, settings: Settings) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "audioscore_requests", "Requests answered.", ("method", "path", "status"), registry=registry
        )
        self._recordings = Counter(
            "audioscore_recordings", "Recordings answered: scored, or refused.", ("outcome",), registry=registry
        )
        self.latency = Histogram(
            "audioscore_score_seconds", "From a request's headers to its scores.", buckets=LATENCIES, registry=registry
        )
        self.in_flight = Gauge("audioscore_in_flight_requests", "Requests that were accepted.", registry=registry)
        Gauge("audioscore_queue_limit", "In-flight requests beyond which 429 is said.", registry=registry).set(
            settings.queue
        )
        self.waiting_clips = Gauge("audioscore_waiting_recordings", "Decoded, not yet scored.", registry=registry)
        self.waiting_seconds = Gauge("audioscore_waiting_audio_seconds", "The same, in seconds.", registry=registry)
        self._batch_clips = Histogram(
            "audioscore_batch_recordings", "Recordings a batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self._scoring = Counter("audioscore_scoring_seconds", "Time spent scoring.", registry=registry)
        self._audio = Counter("audioscore_scored_audio_seconds", "Audio scored.", registry=registry)
        self._model = Gauge("audioscore_model_info", "The model in use.", ("name", "version", "uri"), registry=registry)
        self._switches = Counter(
            "audioscore_model_switches", "Models loaded in place of another.", ("outcome",), registry=registry
        )

    def answered(self, method: str, path: str, status: int) -> None:
        """Count a request; what strangers ask for must not become a label each."""
        known = path if path in PATHS else "/page" if path.startswith("/page/") else "other"
        self._requests.labels(method if method in ("GET", "POST") else "other", known, str(status)).inc()

    def result(self, row: ClipScore) -> None:
        """Count a recording."""
        self._recordings.labels("refused" if row.error else "scored").inc()

    def batch(self, clips: int, seconds: float, took: float) -> None:
        """Count a batch of `clips` recordings, `seconds` long together, that took `took` seconds."""
        self._batch_clips.observe(clips)
        self._audio.inc(seconds)
        self._scoring.inc(took)

    def model(self, name: str, version: int | None, uri: str) -> None:
        """Say which model is in use."""
        self._model.clear()
        self._model.labels(name, "" if version is None else str(version), uri).set(1)

    def switch(self, outcome: str) -> None:
        """Count a try to use another model: done, or failed."""
        self._switches.labels(outcome).inc()

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
