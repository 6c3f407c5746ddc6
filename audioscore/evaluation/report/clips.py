"""Report sections on single clips: predicted against human score, errors by band, and the largest errors."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave, decode
from audioscore.data.file_checks import audio_path
from audioscore.data.gate.report import EXCERPT_SECONDS, MAX_DECODED_SECONDS, loudest, player
from audioscore.errors import AudioError
from audioscore.evaluation.bootstrap import NO_SOURCE
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.metrics import in_a_row, legend
from audioscore.evaluation.report.tables import PLAN_TITLES, Notes, bare_html, number, plan_title
from audioscore.html import Html, figure_html, paragraph

RATE = 24_000  # Hz
FFT, FRAMES = 2048, 320  # 85 ms resolve the harmonics of a voice from 100 Hz; one column for each frame
LOWEST, HIGHEST = 80.0, 10_240.0  # Hz, seven octaves
ROWS = 112  # 16 an octave
RANGE_DB = 65.0  # dynamic range of the colours
COLOURS, QUALITY = "magma", 70  # a JPEG of 320 x 112 has about 8 kB
WORST = 20  # clips with the largest errors

LABEL = "label"
NO_OWN = "the model has no prediction interval"
LOOK = (
    f"Players have the loudest {EXCERPT_SECONDS:.0f} seconds, re-encoded. Spectrograms: {LOWEST:.0f} Hz to "
    f"{HIGHEST / 1000:.0f} kHz (logarithmic), {RANGE_DB:.0f} dB."
)
UNREADABLE = "No player: the recording is missing or cannot be decoded."
PAGE_FULL = "No player: the page has reached its maximum size."

Rows = Mapping[str, Sequence[Prediction]]


def rows_of(predictions: Sequence[Prediction], plan: str, seed: int) -> list[Prediction]:
    """Return the test rows of a run, in the same order for all plans."""
    found = (row for row in predictions if (row.plan, row.seed, row.split) == (plan, seed, "test"))
    return sorted(found, key=lambda row: row.clip)


def agreement(rows: Rows) -> str:
    """Plot predicted against human score for each plan, coloured by source."""
    sources = sorted({row.source or NO_SOURCE for of_plan in rows.values() for row in of_plan})
    palette = plots.colours(sources, first=2)  # colours other than those of the plans
    figures = []
    for plan, of_plan in rows.items():
        figure = plots.agreement(
            np.array([row.human for row in of_plan]),
            np.array([row.predicted for row in of_plan]),
            np.array([[row.lo, row.hi] for row in of_plan], dtype=np.float64),  # None becomes NaN
            [row.source or NO_SOURCE for row in of_plan],
            palette,
        )
        figures.append(figure_html(figure, f"{plan_title(plan)}, seed {of_plan[0].seed}"))
    how = (
        "Dots: test clips with prediction intervals. Dashed: predicted = human. A model that ranks clips has a slope "
        "within each colour; flat clouds at different heights mean that it only separates the sources."
    )
    return legend(palette) + in_a_row(*figures) + paragraph(how, "soft")


def residuals(rows: Rows, palette: Mapping[str, str]) -> str:
    """Plot the errors of each plan by score band, on one scale."""
    human = np.array([row.human for row in next(iter(rows.values()))])
    predicted = {plan: np.array([row.predicted for row in of_plan]) for plan, of_plan in rows.items()}
    limit = 1.05 * max(1.0, *(float(np.abs(values - human).max()) for values in predicted.values()))
    figures = [
        figure_html(plots.residuals_by_band(human, values, limit, palette[plan]), plan_title(plan))
        for plan, values in predicted.items()
    ]
    how = (
        "Predicted minus human score. Box: quartiles and median; whiskers: 5th to 95th percentile. Boxes that fall "
        "from left to right: predictions shrink towards the middle of the scale."
    )
    return in_a_row(*figures) + paragraph(how, "soft")


def largest_errors(rows: Rows, winner: str | None, recordings: Path | None, max_characters: int) -> str:
    """Show the clips with the largest errors of the winner (of any candidate without a winner), with players.

    `recordings` is the data folder; None omits the players. `max_characters` limits the size of players and
    spectrograms.
    """
    candidates = [plan for plan in rows if plan in PLAN_TITLES] or list(rows)
    ranked_by = [winner] if winner in rows else candidates
    indices = range(len(next(iter(rows.values()))))

    def error(index: int) -> float:
        return max(abs(rows[plan][index].predicted - rows[plan][index].human) for plan in ranked_by if plan is not None)

    worst = sorted(indices, key=lambda index: -error(index))[:WORST]
    clips = [{plan: of_plan[index] for plan, of_plan in rows.items()} for index in worst]
    files = [next(iter(clip.values())).audio_file for clip in clips]
    players = {} if recordings is None else clip_players(recordings, files, max_characters)
    notes = Notes()
    cards = "".join(_card(clip, players.get(name, ""), notes) for clip, name in zip(clips, files, strict=True))
    whose = plan_title(ranked_by[0]) if len(ranked_by) == 1 and ranked_by[0] is not None else "any candidate"
    how = f"The {len(clips)} largest errors of {whose}. Check these clips first: the model or the label is wrong."
    seen = LOOK if recordings is not None else "No players: the recordings are not available."
    return f'{paragraph(f"{how} {seen}", "soft")}<div class="clips">{cards}</div>{notes.html()}'


def _card(clip: Mapping[str, Prediction], player_html: str, notes: Notes) -> str:
    """Show the human score of one clip, and the prediction and error of every plan."""
    first = next(iter(clip.values()))
    lines = [f"{html.escape(first.source or NO_SOURCE)}, human {bare_html(first.human, notes, LABEL, 'score')}"]
    for plan, row in clip.items():
        error = number(row.predicted - row.human, "score", "+")
        lines.append(f"{html.escape(plan_title(plan))} {_predicted(row, notes)}, error {error}")
    scores = "<br>".join(lines)
    name = html.escape(first.audio_file)
    return f'<article class="clip">{player_html}<p><code>{name}</code></p><p>{scores}</p></article>'


def _predicted(row: Prediction, notes: Notes) -> str:
    if row.lo is None or row.hi is None:
        return bare_html(row.predicted, notes, NO_OWN, "score")
    ends = f"[{number(row.lo, 'score')}, {number(row.hi, 'score')}]"
    return f'{number(row.predicted, "score")} <span class="interval">{ends}</span>'


def clip_player(folder: Path, audio_file: str, label: str) -> Html:
    """Return spectrogram and player of the loudest seconds of a recording, or a note where that is impossible.

    `label` names both for screen readers.
    """
    try:
        recording = decode(audio_path(folder, audio_file), max_seconds=MAX_DECODED_SECONDS)
    except (AudioError, OSError):
        return Html(f'<p class="soft">{UNREADABLE}</p>')
    audio = player(folder, audio_file, f"player: {label}")
    if audio is None:
        return Html(f'<p class="soft">{UNREADABLE}</p>')
    excerpt = loudest(recording)
    cut = recording.seconds > excerpt.seconds
    length = f"{excerpt.seconds:.0f} of {recording.seconds:.0f} s" if cut else f"{recording.seconds:.0f} s"
    return Html(f'{spectrogram_html(excerpt, f"spectrogram: {label}")}{audio}<p class="soft">{length}</p>')


def clip_players(folder: Path, audio_files: Iterable[str], max_characters: int) -> dict[str, Html]:
    """Return `clip_player` of each recording; a note replaces those that exceed the remaining characters."""
    players: dict[str, Html] = {}
    for count, name in enumerate(dict.fromkeys(audio_files), start=1):
        found = clip_player(folder, name, f"clip {count}")
        if len(found) > max_characters:
            found = Html(f'<p class="soft">{PAGE_FULL}</p>')
        else:
            max_characters -= len(found)
        players[name] = found
    return players


def spectrogram_html(excerpt: Recording, label: str) -> Html:
    """Return a spectrogram as an inline JPEG that the browser decodes when it becomes visible."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    levels = log_spectrogram(excerpt.at(RATE))
    imsave(
        buffer, levels, format="jpeg", cmap=COLOURS, origin="lower", vmin=-RANGE_DB, vmax=0.0,
        pil_kwargs={"quality": QUALITY},
    )  # fmt: skip
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{levels.shape[1]}" height="{levels.shape[0]}"'
    return Html(f'<img loading="lazy" {size} alt="{html.escape(label)}" src="data:image/jpeg;base64,{coded}">')


def log_spectrogram(wave: Wave) -> NDArray[np.float64]:
    """Compute a log-frequency spectrogram in dB relative to its maximum, lowest frequency first.

    A row is the maximum over its frequency range, so that no harmonic is lost between rows; below 270 Hz, where rows
    are narrower than bins, neighbours are equal. Silence is -RANGE_DB everywhere.

    Shape: wave [T] at RATE -> [ROWS, FRAMES], within -RANGE_DB and 0.
    """
    padded = np.pad(wave.astype(np.float64), FFT // 2)
    starts = np.linspace(0, len(padded) - FFT, FRAMES).round().astype(np.intp)
    power = np.empty((FFT // 2 + 1, FRAMES))
    window = np.hanning(FFT)
    for column, start in enumerate(starts):
        power[:, column] = np.abs(np.fft.rfft(window * padded[start : start + FFT])) ** 2
    edges = np.geomspace(LOWEST, HIGHEST, ROWS + 1) * FFT / RATE  # in bins
    low = edges[:-1].round().astype(np.intp)
    high = np.maximum(edges[1:].round().astype(np.intp), low + 1)
    rows = np.stack([power[first:last].max(axis=0) for first, last in zip(low, high, strict=True)])
    peak = float(rows.max())
    if peak <= 0:
        return np.full(rows.shape, -RANGE_DB)
    levels: NDArray[np.float64] = np.maximum(10 * np.log10(np.maximum(rows / peak, 1e-12)), -RANGE_DB)
    return levels
