"""Single clips: each as a dot, their errors by band, and those furthest off to listen to."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audioscore.evaluation.evaluate import NO_SOURCE
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report import plots
from audioscore.evaluation.report.figure_text import PLAN_TITLES, Notes, bare_html, number, plan_title
from audioscore.evaluation.report.listening import LOOK, listen_to_all
from audioscore.evaluation.report.metrics import in_a_row, legend
from audioscore.html import figure_html as picture
from audioscore.html import paragraph

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
