"""Settings of the service, and its metrics for Prometheus."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from audioscore.encoders.compute import cores
from audioscore.scoring.results import ClipScore


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service. Requests beyond them are refused early, so that they do not use memory.

    `max_bytes` limits a request with all its recordings, `queue` the number of requests in progress: uploading,
    decoding, waiting or scoring. A body must arrive within `body_seconds` plus the time of its bytes at `slowest`
    bytes/s.
    """

    max_bytes: int = 100 << 20
    max_seconds: float = 900.0  # of one recording
    max_files: int = 32
    queue: int = 32
    decode_seconds: float = 30.0
    body_seconds: float = 20.0
    slowest: int = 16 << 10
    stop_seconds: float = 30.0  # to finish accepted requests after a signal
    watch_seconds: float = 30.0  # between two polls of the champion alias; 0: never
    processes: int = field(default_factory=cores)  # for decoding
    token: str | None = field(default=None, repr=False)


PATHS = frozenset({"/", "/score", "/model", "/healthz", "/readyz", "/metrics", "/openapi.json"})
LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # s


class Metrics:
    """Metrics of one service, in a registry of its own, so that tests and services do not share counters."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "audioscore_requests", "Requests answered.", ("method", "path", "status"), registry=registry
        )
        self._recordings = Counter(
            "audioscore_recordings", "Recordings that were scored or refused.", ("outcome",), registry=registry
        )
        self.latency = Histogram(
            "audioscore_score_seconds", "Time from request headers to scores.", buckets=LATENCIES, registry=registry
        )
        self.in_flight = Gauge("audioscore_in_flight_requests", "Requests in progress.", registry=registry)
        Gauge("audioscore_queue_limit", "Requests in progress from which on 429 is returned.", registry=registry).set(
            settings.queue
        )
        self.waiting_clips = Gauge(
            "audioscore_waiting_recordings", "Decoded recordings that wait to be scored.", registry=registry
        )
        self.waiting_seconds = Gauge(
            "audioscore_waiting_audio_seconds", "Seconds of audio that wait to be scored.", registry=registry
        )
        self._batch_clips = Histogram(
            "audioscore_batch_recordings", "Recordings per batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self._scoring = Counter("audioscore_scoring_seconds", "Time spent scoring.", registry=registry)
        self._audio = Counter("audioscore_scored_audio_seconds", "Audio scored.", registry=registry)
        self._model = Gauge("audioscore_model_info", "The model in use.", ("name", "version", "uri"), registry=registry)
        self._switches = Counter(
            "audioscore_model_switches", "Attempts to switch to another model.", ("outcome",), registry=registry
        )

    def count_request(self, method: str, path: str, status: int) -> None:
        """Count a request; unknown paths share one label, so that requests cannot create labels."""
        label = path if path in PATHS else "/page" if path.startswith("/page/") else "other"
        self._requests.labels(method if method in ("GET", "POST") else "other", label, str(status)).inc()

    def count_result(self, row: ClipScore) -> None:
        """Count a recording."""
        self._recordings.labels("refused" if row.error else "scored").inc()

    def count_batch(self, clips: int, audio_seconds: float, scoring_seconds: float) -> None:
        """Count a batch of recordings with their total length, and the time that scoring took."""
        self._batch_clips.observe(clips)
        self._audio.inc(audio_seconds)
        self._scoring.inc(scoring_seconds)

    def set_model(self, name: str, version: int | None, uri: str) -> None:
        """Set the model in use."""
        self._model.clear()
        self._model.labels(name, "" if version is None else str(version), uri).set(1)

    def count_switch(self, outcome: str) -> None:
        """Count an attempt to switch to another model: done or failed."""
        self._switches.labels(outcome).inc()

    def page(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
