"""What the data gate asks of a data folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from audioscore.data.audio_checks import ProbeLimits
from audioscore.data.rules import RULES, Severity
from audioscore.errors import UsageError, shorten


@dataclass(frozen=True)
class ValidationSettings:
    """What the gate asks for. `sources` lists the recording domains allowed; empty allows any, and none.

    A minimum of 0 asks for nothing; `min_per_band` and `min_per_source` hold for every score band and source that has
    clips now or had some in the last accepted version. `max_shift` is how far the scores of a source may have moved
    since then, as the Kullback-Leibler divergence in nats: 0.2 is a bell curve that moved by 0.63 of its width.
    `severity` overrides RULES by name. `column_map` and `singer_from` are those of `read_labels`.

    Raises UsageError where `severity` names an unknown rule.
    """

    min_clips: int = 10
    min_per_source: int = 0
    min_per_band: int = 0
    min_singers: int = 0
    min_per_singer: int = 0
    sources: tuple[str, ...] = ()
    usual_scores: tuple[float, float] = (50.0, 99.0)
    max_shift: float = 0.2
    max_rejected_share: float = 0.1
    limits: ProbeLimits = field(default_factory=ProbeLimits)
    severity: Mapping[str, Severity] = field(default_factory=dict)
    column_map: Mapping[str, str] | None = None
    singer_from: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.severity) - set(RULES)):
            raise UsageError(
                f"validation.severity: no such rule: {shorten(unknown)}. The rules are {', '.join(RULES)}."
            )

    def severity_of(self, rule: str) -> Severity:
        """The severity set for a rule, or the one it has by itself.

        >>> settings = ValidationSettings(severity={"no_voice": "error"})
        >>> settings.severity_of("no_voice"), settings.severity_of("dc_offset")
        ('error', 'warning')
        """
        return self.severity.get(rule, RULES[rule])
