"""Render the result of the data gate as a self-contained HTML page, with audio excerpts."""

import base64
import html
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audioscore.data.audio import Recording, decode, encode
from audioscore.data.file_checks import audio_path
from audioscore.data.gate.expectations import ExpectationResult
from audioscore.data.gate.rejections import Rejection
from audioscore.data.gate.validation import ValidationResult
from audioscore.data.index import ORDER
from audioscore.errors import AudioError
from audioscore.html import INK, PALETTE, figure_html, render_page, style_axes, table

EXCERPT_SECONDS = 8.0
EXCERPT_RATE = 24_000  # Hz
BIT_RATE = 32_000  # 8 s are 32 kB, 43 kB as base64: a page with twelve is well below a megabyte
MAX_DECODED_SECONDS = 900.0  # a longer recording gets no excerpt
MAX_LISTED = 500  # rejected or warned rows on the page; all of them are in the JSON document
MAX_PLAYERS = 12
MAX_TRIED = 60  # recordings to decode for players; most rejected ones cannot be decoded
BINS = 24
UNNAMED = "(no source)"


def render_validation(result: ValidationResult, folder: Path) -> str:
    """Render the page: verdict, totals, histograms, all rejected rows and warnings, and players of the worst clips.

    The page needs no network access or other files, so it can be sent to the people who recorded the data. `folder` is
    read for the players.
    """
    sections = [("Summary", _totals(result))]
    if result.reasons:
        sections.insert(0, ("Why the gate failed", _list(result.reasons)))
    if result.warnings:
        sections.append(("Warnings about the table", _list(result.warnings)))
    if result.accepted:
        sections.append(("Accepted clips", _figures(result)))
    if players := _players(result, folder):
        sections.append(("Listen to the worst", players))
    sections.append(("Rejected rows", _listed(result.rejected)))
    if result.warned:
        sections.append(("Clips used with a warning", _listed(result.warned)))
    if result.near_duplicates:
        sections.append(("Near-duplicates", _near_duplicates(result)))
    sections.append(("Expectations", _expectations(result)))
    return render_page(
        f"Data check of {folder.resolve().name}",
        f"{result.table}: {_count(result.clips, 'row')}",
        sections,
        lead=_verdict(result),
        good=result.valid,
    )


def player(folder: Path, audio_file: str, label: str) -> str | None:
    """Return an HTML audio player with the loudest EXCERPT_SECONDS of a recording; None if it cannot be decoded.

    `label` is the name for screen readers; it is escaped.
    """
    try:
        excerpt = loudest(decode(audio_path(folder, audio_file), max_seconds=MAX_DECODED_SECONDS))
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "excerpt.m4a"
            encode(excerpt.at(EXCERPT_RATE), EXCERPT_RATE, target, bit_rate=BIT_RATE)
            coded = base64.b64encode(target.read_bytes()).decode("ascii")
    except (AudioError, OSError):  # the page lists the reason; the clip only has no player
        return None
    return (
        f'<audio controls preload="none" aria-label="{html.escape(label)}" src="data:audio/mp4;base64,{coded}"></audio>'
    )


def loudest(recording: Recording, seconds: float = EXCERPT_SECONDS) -> Recording:
    """Return the part of a recording with the most energy, at most `seconds` long; of equal parts, the first.

    >>> loud = loudest(Recording(np.array([0, 0, 1, 1, 0], dtype=np.float32), 1), seconds=2)
    >>> loud.wave.tolist()
    [1.0, 1.0]
    """
    wave, length = recording.wave, round(seconds * recording.rate)
    if len(wave) <= length:
        return recording
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    start = int(np.argmax(sums[length:] - sums[:-length]))
    return Recording(wave[start : start + length], recording.rate)


def _verdict(result: ValidationResult) -> str:
    counts = f"{len(result.accepted)} of {_count(result.clips, 'clip')} accepted, {len(result.rejected)} rejected"
    if not result.valid:
        return f"These data cannot be used for training: {_count(len(result.reasons), 'reason')} below. {counts}."
    warned = bool(result.warnings or result.warned)
    if not result.rejected and not warned:
        return f"These data can be used for training. {counts}."
    parts = ["the rejected rows" if result.rejected else "", "the warnings" if warned else ""]
    return f"These data can be used for training. {counts}; see {' and '.join(filter(None, parts))} below."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    >>> _duration(12.34), _duration(600), _duration(9000)
    ('12.3 s', '10.0 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _totals(result: ValidationResult) -> str:
    rows = [
        [name or UNNAMED, one["clips"], _duration(one["seconds"]), f"{one['score_min']:g} to {one['score_max']:g}"]
        for name, one in result.sources.items()
    ]
    scores = [clip.score for clip in result.accepted if clip.score is not None]
    reach = f"{min(scores):g} to {max(scores):g}" if scores else "-"
    rows.append(["all accepted", len(result.accepted), _duration(result.seconds), reach])
    singers = {clip.singer_id for clip in result.accepted if clip.singer_id}
    unknown = sum(not clip.singer_id for clip in result.accepted)
    singers_text = f"{_count(len(singers), 'singer')}" + (
        f", and {_count(unknown, 'clip')} of unknown singers" if unknown else ""
    )
    notes = f'<p class="soft">{singers_text}.</p>'
    if result.ordered:
        clips, groups = _count(sum(map(len, result.ordered)), "clip"), _count(len(result.ordered), "group")
        notes += f'<p class="soft">In {ORDER}: {clips} in {groups}, sorted but without scores.</p>'
    return table(["source", "clips", "length", "scores"], rows) + notes


def _figures(result: ValidationResult) -> str:
    measures = (
        ("score", "score", "Scores. If they differ by source, a model can predict the source instead of the quality."),
        ("seconds", "length, s", "Lengths. A difference between sources is also a shortcut for a model."),
        ("level_db", "level, dBFS", "Levels: RMS relative to full scale."),
    )
    figures = []
    for measure, name, caption in measures:
        groups: dict[str, list[float]] = defaultdict(list)
        for clip in sorted(result.accepted, key=lambda clip: clip.source or UNNAMED):
            if (value := getattr(clip, measure)) is not None:
                groups[clip.source or UNNAMED].append(value)
        if groups:
            figures.append(_histogram(groups, name, caption))
    return "".join(figures)


def _histogram(groups: dict[str, list[float]], name: str, caption: str) -> str:
    """Histogram by source over common bins, with a legend if there are several sources."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    together = np.concatenate([np.asarray(values) for values in groups.values()])
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    figure = Figure(figsize=(6.4, 2.4))
    axes = figure.add_subplot()
    style_axes(axes)
    for number, (source, values) in enumerate(groups.items()):
        colour = PALETTE[number % len(PALETTE)]
        label = source.replace("$", r"\$")  # a dollar sign would start a formula
        axes.hist(values, bins=list(edges), color=colour, alpha=0.55, edgecolor=colour, label=label)
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel("clips", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if len(groups) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure_html(figure, caption)


def _listed(clips: Sequence[Rejection]) -> str:
    if not clips:
        return "<p>None.</p>"
    rows = [[str(one["row"] or ""), one["audio_file"] or "(no name)", one["reason"]] for one in clips[:MAX_LISTED]]
    return table(["row", "recording", "reason"], rows) + _more(len(clips) - len(rows))


def _more(number: int) -> str:
    return f'<p class="soft">And {number} more; the JSON document lists them all.</p>' if number else ""


def _near_duplicates(result: ValidationResult) -> str:
    scores = {clip.audio_file: "-" if clip.score is None else f"{clip.score:g}" for clip in result.accepted}
    pairs = result.near_duplicates[:MAX_LISTED]
    rows = [[one, scores.get(one, "-"), other, scores.get(other, "-")] for one, other in pairs]
    note = "These recordings have the same audio, but different bytes. They are always in the same split."
    listed = table(["recording", "score", "near-duplicate", "score"], rows)
    return f"<p>{note}</p>{listed}" + _more(len(result.near_duplicates) - len(pairs))


def _players(result: ValidationResult, folder: Path) -> str:
    """Players of rejected recordings (errors, then duplicates), then of those with warnings, if they can be decoded."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in sorted(result.rejected, key=lambda one: one["severity"] != "error") + result.warned:
        reasons[one["audio_file"]].append(one["reason"])
    rejected = {one["audio_file"] for one in result.rejected}
    shown: list[str] = []
    for name in [name for name in reasons if name][:MAX_TRIED]:
        if audio := player(folder, name, name):
            verdict = "rejected" if name in rejected else "used"
            caption = html.escape(f"{verdict}: {' '.join(reasons[name])}")
            shown.append(
                f"<figure><code>{html.escape(name)}</code><div>{audio}</div><figcaption>{caption}</figcaption></figure>"
            )
        if len(shown) == MAX_PLAYERS:
            break
    note = '<p class="soft">The loudest eight seconds of each recording, re-encoded; rejected ones first.</p>'
    return note + "".join(shown) if shown else ""


def _expectations(result: ValidationResult) -> str:
    rows = []
    for one in result.expectations:
        observed = one["observed"]
        found = f"{observed:.3g}" if isinstance(observed, float) else "" if observed is None else str(observed)
        if one["column"] == "fault" and one["unexpected_count"]:
            found = f"{_count(one['unexpected_count'], 'row')}, listed above"
        elif one["unexpected_count"]:
            found = f"{one['unexpected_count']} violations: {'; '.join(one['examples'])}"
        rows.append([one["meaning"], _outcome(one), found])
    return table(["expected", "verdict", "found"], rows)


def _outcome(one: ExpectationResult) -> str:
    if one["success"]:
        return "met"
    if one["severity"] == "warning":
        return "warning"
    return "rows rejected" if one["unexpected_count"] else "not met"
