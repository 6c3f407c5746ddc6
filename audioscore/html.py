"""Self-contained HTML pages: one file that works offline, on small screens, and in light and dark mode."""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#123456"  # colour in matplotlib figures that the page replaces by its text colour
# A number, alone or before a short unit, an interval or a footnote mark; or the dash of an undefined number.
NUMBER = re.compile(r"^([+\-\u2212]?\d[\d.,]*%?(?=$|<| [<\[(%]| \w{1,3}$)|-(?=<))")
PALETTE = ("#3b82c4", "#d9822b", "#3f9f6b", "#b5539b", "#8a7a5c")  # readable on white and on near-black

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --paper: #ffffff; --panel: #f4f6f9; --line: #d9dfe7;
  --good: #1f7a4d; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa7b8; --paper: #12161d; --panel: #1b212b;
  --line: #303947; --good: #5cc48f; --bad: #f0877f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.lead { background: var(--panel); border-left: .3rem solid var(--line); padding: .75rem 1rem; margin: 1rem 0;
  font-size: 1.05rem; } .lead.good { border-color: var(--good); color: inherit; }
.lead.bad { border-color: var(--bad); color: inherit; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; } section { scroll-margin-top: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: .9rem; margin: 1rem 0; } a { color: inherit; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem 1rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; }
tr > :first-child { position: sticky; left: 0; background: var(--paper); min-width: 6rem; max-width: 18rem;
  overflow-wrap: break-word; }
.interval { color: var(--soft); font-size: .9em; white-space: nowrap; } sup { line-height: 0; color: var(--soft); }
.notes { color: var(--soft); font-size: .85rem; margin: .25rem 0 .75rem; } .notes span { margin-right: .9rem; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.clip { background: var(--panel); padding: .75rem; min-width: 0; overflow-wrap: anywhere; font-size: .9rem; }
.clip img { display: block; width: 100%; height: 6rem; object-fit: fill; } .clip audio { width: 100%; max-width: none; }
.clip p { margin: .25rem 0; } summary { cursor: pointer; color: var(--soft); }
figure { margin: .75rem 0; } figure svg { width: 100%; height: auto; max-width: 58rem; display: block; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
audio { height: 2rem; max-width: 16rem; } code { font-size: .9em; overflow-wrap: anywhere; }
</style></head><body><main>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{% if lead %}<p class="lead {{ 'good' if good else 'bad' if good is false else '' }}">{{ lead }}</p>{% endif %}
{% if contents %}<nav aria-label="contents">
{% for heading, body in sections %}<a href="#s{{ loop.index }}">{{ heading }}</a>
{% endfor %}</nav>{% endif %}
{% for heading, body in sections %}<section id="s{{ loop.index }}"><h2>{{ heading }}</h2>{{ body | safe }}</section>
{% endfor %}
</main></body></html>
"""


class Html(str):
    """Text that is HTML already and must not be escaped."""


def paragraph(text: str, css: str = "") -> str:
    """Return a paragraph; text that is not `Html` is escaped.

    >>> paragraph("a < b", "soft")
    '<p class="soft">a &lt; b</p>'
    """
    return f'<p class="{css}">{_escape(text)}</p>' if css else f"<p>{_escape(text)}</p>"


def render_page(
    title: str,
    subtitle: str,
    sections: Sequence[tuple[str, str]],
    *,
    lead: str = "",
    good: bool | None = None,
    contents: bool = False,
) -> str:
    """Render a page from (heading, HTML body) sections. Everything except the bodies is escaped.

    Args:
        lead: a highlighted first paragraph, coloured by `good`.
        contents: add links to the sections.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE)
    return template.render(title=title, subtitle=subtitle, sections=sections, lead=lead, good=good, contents=contents)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table. Cells that are not `Html` are escaped; columns of numbers are aligned right.

    >>> table(["a"], [["<b>"]]).count("&lt;b&gt;")
    1
    """
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(headers))]
    css = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f"<th{style}>{_escape(str(text))}</th>" for style, text in zip(css, headers, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{_escape(_cell(cell))}</td>" for style, cell in zip(css, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: Any) -> bool:
    return cell is None or isinstance(cell, int | float) or bool(NUMBER.match(str(cell)))


def _cell(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else cell if isinstance(cell, str) else str(cell)


def _escape(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


def definitions(values: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    return table(["", ""], [[name, str(value)] for name, value in values.items()])


def style_axes(axes: Any) -> None:
    """Style matplotlib axes for the page: adaptive text colour, no frame, light grid."""
    axes.set_facecolor("none")
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)


def figure_html(figure: "Figure", caption: str) -> str:
    """Return a matplotlib figure as inline SVG in the page's text colour; the caption is escaped."""
    import matplotlib

    buffer = io.StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "audioscore", "font.family": "sans-serif"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Text is kept as text: browsers have glyphs, for example of Chinese names, that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    text = html.escape(caption)
    return f'<figure role="img" aria-label="{text}">{svg}<figcaption>{text}</figcaption></figure>'
