"""What the model was judged on: the data gate in short, and facts about data and provenance."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from audioscore.evaluation.estimates import NO_SOURCE
from audioscore.evaluation.predictions import SPLITS, Prediction
from audioscore.html import definitions, paragraph, table

MAX_REASONS = 12
VARIABLE = re.compile(r"\d[\d.,]*|'[^']*'|\"[^\"]*\"")  # what differs between two rows with the same fault


def data_gate(validation: Mapping[str, Any] | None) -> str:
    """Accepted and rejected rows, the reasons, and expectations that are not met, from the gate's JSON document."""
    if validation is None:
        return paragraph("The data gate's answer was not given.", "soft")
    rejected, warned = validation["rejected"], validation.get("warnings", [])
    verdict = "open" if validation["valid"] else "closed"
    said = (
        f"The gate was {verdict}: {validation['accepted']} of {validation['clips']} rows were accepted, "
        f"{len(rejected)} rejected; {len(warned)} warnings are about clips that are used. Its own page lists every row."
    )
    return (
        paragraph(said) + _reasons("rejected", rejected) + _reasons("used with a warning", warned) + _unmet(validation)
    )


def _reasons(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by reason, the most frequent first; reasons that differ only in figures or names are one."""
    if not rows:
        return ""
    kinds = Counter(_kind(one) for one in rows)
    examples = {_kind(one): _example(one) for one in reversed(rows)}
    listed = [[kind, count, examples[kind]] for kind, count in kinds.most_common(MAX_REASONS)]
    more = len(kinds) - len(listed)
    rest = paragraph(f"And {more} more reasons.", "soft") if more else ""
    return table([heading, "rows", "for example"], listed) + rest


def _kind(one: Mapping[str, Any]) -> str:
    """A reason without what is the row's own.

    >>> _kind({"audio_file": "a.wav", "reason": "a.wav: 0.8 s long; at least 2.0 s are needed."})
    '… s long; at least … s are needed.'
    """
    return VARIABLE.sub("\N{HORIZONTAL ELLIPSIS}", str(one["reason"]).replace(f"{one['audio_file']}: ", ""))


def _example(one: Mapping[str, Any]) -> str:
    """A row and its reason, which may name the row already."""
    name, reason = str(one["audio_file"]), str(one["reason"])
    return reason if name and name in reason else f"{name}: {reason}"


def _unmet(validation: Mapping[str, Any]) -> str:
    """Expectations of the table that do not hold; rows that are rejected one by one are counted above."""
    unmet = [one for one in validation["expectations"] if not one["success"]]
    if not unmet:
        return paragraph(f"All {len(validation['expectations'])} expectations of the table hold.", "soft")
    rows = [[one["meaning"], one["severity"], one["unexpected_count"] or "-"] for one in unmet]
    return table(["expectation that does not hold", "severity", "rows"], rows)


def sources_of(predictions: Sequence[Prediction]) -> list[list[str]]:
    """For each recording domain: its name, clips by split, singers, and the range of its scores; each clip once."""
    clips = {row.clip: row for row in predictions}.values()
    rows = []
    for name in sorted({clip.source or NO_SOURCE for clip in clips}):
        own = [clip for clip in clips if (clip.source or NO_SOURCE) == name]
        singers = len({clip.singer_id for clip in own} - {None})
        scores = [clip.score for clip in own if clip.score is not None]
        reach = f"{min(scores):.1f} to {max(scores):.1f}" if scores else "-"
        rows.append([name, *(str(sum(clip.split == split for clip in own)) for split in SPLITS), str(singers), reach])
    return rows


SOURCE_HEADERS = ("source", *SPLITS, "known singers", "scores")


def data_facts(predictions: Sequence[Prediction], summary: Mapping[str, Any]) -> str:
    """What the plans were trained, chosen and judged on."""
    return table(SOURCE_HEADERS, sources_of(predictions)) + facts(summary)


def facts(values: Mapping[str, Any]) -> str:
    """Names and values; nested ones as one level."""
    return definitions(flat(values)) if values else paragraph("Nothing was recorded.", "soft")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of text.

    >>> flat({"split": {"train": 10, "test": 2}, "share": 0.123456, "files": ["a", "b"]})
    {'split, train': '10', 'split, test': '2', 'share': '0.1235', 'files': 'a, b'}
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}, "))
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(map(str, value)) or "none"
        else:
            found[name] = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)
    return found
