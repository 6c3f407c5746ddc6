"""What the service takes on."""

from dataclasses import dataclass, field

from audioscore.encoders.threads import cores


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
