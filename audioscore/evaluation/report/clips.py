"""Single clips: each as a dot, their errors by band, and those furthest off to listen to."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave, decode
from audioscore.data.audio_checks import audio_path
from audioscore.data.gate.report import DECODED_SECONDS, EXCERPT_SECONDS, loudest, player
from audioscore.errors import AudioError
from audioscore.evaluation.evaluate import NO_SOURCE
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.decision import PLAN_TITLES, Notes, bare_html, number, plan_title
from audioscore.evaluation.report.metrics import in_a_row, legend
from audioscore.html import Html, paragraph
from audioscore.html import figure_html as picture

RATE = 24_000  # Hz
FFT, FRAMES = 2048, 320  # 85 ms keep the partials of a voice apart from 100 Hz on; a column a frame
LOWEST, HIGHEST = 80.0, 10_240.0  # Hz: seven octaves, from the lowest sung notes to the air above the voice
ROWS = 112  # 16 an octave
RANGE_DB = 65.0  # below the loudest point is black
COLOURS, QUALITY = "magma", 70  # one look for all; a JPEG of 320 x 112 has about 8 kB

LOOK = (
    f"A spectrogram spans {LOWEST:.0f} Hz at the bottom to {HIGHEST / 1000:.0f} kHz at the top, octaves evenly spaced, "
    f"and {RANGE_DB:.0f} dB from bright to black. A player holds the loudest {EXCERPT_SECONDS:.0f} seconds, re-encoded."
)
GONE = "No player: the recording is missing, or cannot be decoded."
NO_ROOM = "No player: left out to keep the page small."


def listen(folder: Path, audio_file: str, label: str) -> Html:
    """A spectrogram and a player of a recording's loudest seconds; a sentence where there can be none.

    `label` names both for screen readers. It says so where the excerpt is less than the recording.
    """
    try:
        recording = decode(audio_path(folder, audio_file), max_seconds=DECODED_SECONDS)
    except (AudioError, OSError):
        return Html(f'<p class="soft">{GONE}</p>')
    audio = player(folder, audio_file, f"player: {label}")
    if audio is None:
        return Html(f'<p class="soft">{GONE}</p>')
    excerpt = loudest(recording)
    cut = recording.seconds > excerpt.seconds
    said = f"{excerpt.seconds:.0f} of {recording.seconds:.0f} s" if cut else f"all of its {recording.seconds:.0f} s"
    return Html(f'{spectrogram_html(excerpt, f"spectrogram: {label}")}{audio}<p class="soft">{said}</p>')


def listen_to_all(folder: Path, audio_files: Iterable[str], room: int) -> dict[str, Html]:
    """What `listen` gives for each recording, once each, as long as all of it together has at most `room` characters.

    What is too much for the room that is left is replaced by a sentence that says so; smaller ones may follow.
    """
    heard: dict[str, Html] = {}
    for count, name in enumerate(dict.fromkeys(audio_files), start=1):
        found = listen(folder, name, f"clip {count}")
        if len(found) > room:
            found = Html(f'<p class="soft">{NO_ROOM}</p>')
        else:
            room -= len(found)
        heard[name] = found
    return heard


def spectrogram_html(excerpt: Recording, label: str) -> Html:
    """The picture, small and inside the page, drawn only when it comes into view."""
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
    """Level by frequency and time, in dB below the loudest point, the lowest frequency first; silence is all floor.

    A row is the largest level between its edges, so that a partial is never lost between two rows; below 270 Hz, where
    rows are closer than bins, neighbours show the same one.

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


WORST = 20
LABEL = "a label, given by people"
NO_OWN = "the model gives no interval of its own"

Rows = Mapping[str, Sequence[Prediction]]


def rows_of(predictions: Sequence[Prediction], plan: str, seed: int) -> list[Prediction]:
    """The rows behind a plan's figures, in one order for all plans."""
    found = (row for row in predictions if (row.plan, row.seed, row.split) == (plan, seed, "test"))
    return sorted(found, key=lambda row: row.clip)


def agreement(rows: Rows) -> str:
    """A scatter for each plan, its clips coloured by recording domain."""
    sources = sorted({row.source or NO_SOURCE for of_plan in rows.values() for row in of_plan})
    palette = plots.colours(sources, first=2)  # not the colours of the plans
    figures = []
    for plan, of_plan in rows.items():
        figure = plots.agreement(
            np.array([row.human for row in of_plan]),
            np.array([row.predicted for row in of_plan]),
            np.array([[np.nan if end is None else end for end in (row.lo, row.hi)] for row in of_plan]),
            [row.source or NO_SOURCE for row in of_plan],
            palette,
        )
        figures.append(picture(figure, f"{plan_title(plan)}, seed {of_plan[0].seed}: every test clip."))
    how = (
        "A dot is a test clip, and the faint bar through it the model's own interval. On the dashed line the model "
        "agrees with people; above it, it is too kind. Look for a slope inside each colour: two flat clouds at "
        "different heights mean that the model only tells the recording domains apart."
    )
    return legend(palette) + in_a_row(*figures) + paragraph(how, "soft")


def residuals(rows: Rows, palette: Mapping[str, str]) -> str:
    """A picture of the errors for each plan, all on one scale."""
    human = np.array([row.human for row in next(iter(rows.values()))])
    predicted = {plan: np.array([row.predicted for row in of_plan]) for plan, of_plan in rows.items()}
    reach = 1.05 * max(1.0, *(float(np.abs(values - human).max()) for values in predicted.values()))
    figures = [
        picture(plots.residuals_by_band(human, values, reach, palette[plan]), f"{plan_title(plan)}: errors by band.")
        for plan, values in predicted.items()
    ]
    how = (
        "A dot is a test clip. The box holds the middle half of a band's errors, its bar is the median, and the "
        "whiskers span the 5th to the 95th percentile. Above zero the model is too kind. Boxes that fall from left to "
        "right mean that it pulls every clip towards the middle of the scale."
    )
    return in_a_row(*figures) + paragraph(how, "soft")


def worst_clips(rows: Rows, winner: str | None, recordings: Path | None, room: int) -> str:
    """The clips with the largest error of the winner, or of any candidate where none is named, to listen to.

    `recordings` is the folder their names are relative to; None leaves the players out. `room` is how many characters
    players and pictures may have.
    """
    candidates = [plan for plan in rows if plan in PLAN_TITLES] or list(rows)
    judges = [winner] if winner in rows else candidates
    places = range(len(next(iter(rows.values()))))

    def error(place: int) -> float:
        return max(abs(rows[plan][place].predicted - rows[plan][place].human) for plan in judges if plan is not None)

    worst = sorted(places, key=lambda place: -error(place))[:WORST]
    clips = [{plan: of_plan[place] for plan, of_plan in rows.items()} for place in worst]
    files = [next(iter(clip.values())).audio_file for clip in clips]
    heard = {} if recordings is None else listen_to_all(recordings, files, room)
    notes = Notes()
    cards = "".join(_card(clip, heard.get(name, ""), notes) for clip, name in zip(clips, files, strict=True))
    whose = plan_title(judges[0]) if len(judges) == 1 and judges[0] is not None else "either candidate"
    how = f"The {len(clips)} largest errors of {whose}. Listen to these first: the model is wrong, or the label is."
    seen = LOOK if recordings is not None else "The recordings were not at hand, so that there are no players."
    return f'{paragraph(f"{how} {seen}", "soft")}<div class="clips">{cards}</div>{notes.html()}'


def _card(clip: Mapping[str, Prediction], heard: str, notes: Notes) -> str:
    """One clip: what people said of it, and what every plan does, with the plan's own interval."""
    first = next(iter(clip.values()))
    lines = [f"{html.escape(first.source or NO_SOURCE)}, human {bare_html(first.human, notes, LABEL, 'score')}"]
    for plan, row in clip.items():
        off = number(row.predicted - row.human, "score", "+")
        lines.append(f"{html.escape(plan_title(plan))} {_predicted(row, notes)}, off by {off}")
    told = "<br>".join(lines)
    return f'<article class="clip">{heard}<p><code>{html.escape(first.audio_file)}</code></p><p>{told}</p></article>'


def _predicted(row: Prediction, notes: Notes) -> str:
    if row.lo is None or row.hi is None:
        return bare_html(row.predicted, notes, NO_OWN, "score")
    ends = f"[{number(row.lo, 'score')}, {number(row.hi, 'score')}]"
    return f'{number(row.predicted, "score")} <span class="interval">{ends}</span>'
