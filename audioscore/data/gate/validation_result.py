"""The gate's answer: what was accepted, what was not and why, and what is worth knowing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from audioscore.data.clips import Clip
from audioscore.data.gate.expectations import ExpectationResult
from audioscore.data.gate.rejections import Rejection


class SourceSummary(TypedDict):
    """Accepted clips of one recording domain."""

    clips: int
    seconds: float
    score_min: float
    score_max: float


@dataclass(frozen=True)
class ValidationResult:
    """The gate's answer. `clips` counts the table's rows; `reasons` say why the gate failed, if it did.

    Accepted clips stand in the table's order and carry sha256 and what was measured. `warned` lists what is
    wrong with clips that are used all the same, a line a finding. `ordered` holds the groups of order.json, each still
    best first, as far as their clips are accepted; `near_duplicates` names pairs of used clips that sound the same.
    """

    table: str
    clips: int
    accepted: list[Clip]
    rejected: list[Rejection]
    expectations: list[ExpectationResult]
    reasons: list[str]
    warned: list[Rejection] = field(default_factory=list)
    ordered: list[list[Clip]] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.reasons

    @property
    def warnings(self) -> list[str]:
        """What the gate lets pass of the table, but says; single clips are in `warned`."""
        return [
            describe(result)
            for result in self.expectations
            if not result["success"] and result["severity"] == "warning"
        ]

    @property
    def seconds(self) -> float:
        """Length of the accepted clips together."""
        return sum(clip.seconds or 0.0 for clip in self.accepted)

    @property
    def sources(self) -> dict[str, SourceSummary]:
        """Accepted clips by recording domain; those that name none are under ""."""
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in self.accepted:
            groups[clip.source or ""].append(clip)
        return {name: _summary(clips) for name, clips in sorted(groups.items())}

    def to_json(self, report: str | None = None) -> dict[str, Any]:
        """The document of `data validate --json`; `report` is the HTML page's place."""
        return {
            "valid": self.valid,
            "clips": self.clips,
            "accepted": len(self.accepted),
            "rejected": self.rejected,
            "warnings": self.warned,
            "expectations": self.expectations,
            "report": report,
        }


def describe(result: ExpectationResult) -> str:
    """A failed expectation in words.

    >>> describe({"expectation": "", "column": None, "meaning": "at least 3 clips", "success": False,
    ...           "severity": "error", "observed": 2, "unexpected_count": 0, "examples": []})
    'Expected: at least 3 clips; found 2.'
    """
    if result["unexpected_count"]:
        found = f"not so in {result['unexpected_count']} ({'; '.join(result['examples'])})"
    else:
        observed = f"{result['observed']:.3g}" if isinstance(result["observed"], float) else result["observed"]
        missing = f"no column {result['column']}" if result["expectation"].endswith("_to_exist") else "found nothing"
        found = f"found {observed}" if observed is not None else missing
        found += f" ({'; '.join(result['examples'])})" if result["examples"] else ""
    return f"Expected: {result['meaning']}; {found}."


def _summary(clips: Sequence[Clip]) -> SourceSummary:
    scores = [clip.score for clip in clips if clip.score is not None]
    return {
        "clips": len(clips),
        "seconds": sum(clip.seconds or 0.0 for clip in clips),
        "score_min": min(scores),
        "score_max": max(scores),
    }
