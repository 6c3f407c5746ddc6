import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from audioscore.html import INK, Html, definitions, figure_html, paragraph, render_page, style_axes, table

EVIL = "<script>alert(1)</script>"


def test_title_subtitle_lead_and_headings_are_escaped_and_bodies_are_not() -> None:
    page = render_page(EVIL, EVIL, [(EVIL, "<b>body</b>")], lead=EVIL, good=False)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5  # the title occurs twice
    assert "<b>body</b>" in page


@pytest.mark.parametrize(("good", "css"), [(True, "lead good"), (False, "lead bad"), (None, "lead ")])
def test_the_class_of_the_lead(good: bool | None, css: str) -> None:
    assert f'<p class="{css}">text</p>' in render_page("t", "s", [], lead="text", good=good)
    assert '<p class="lead' not in render_page("t", "s", [])


def test_the_page_loads_no_external_resource() -> None:
    figure = Figure()
    style_axes(figure.add_subplot())
    page = render_page("t", "s", [("h", figure_html(figure, "c"))])
    for fetched in ("src=", "@import", "url(http", "<link", "<script", 'href="http'):
        assert fetched not in page


def test_only_numeric_columns_align_right() -> None:
    rendered = table(["n", "name", "share"], [[1, "2a b", "5 %"], [None, "x", "\u22123.5%"]])
    assert '<th class="number">n</th><th>name</th><th class="number">share</th>' in rendered
    assert '<td class="number">-</td>' in rendered


def test_numeric_cells_may_have_a_unit_an_interval_or_a_mark() -> None:
    rendered = table(["n", "figure", "words"], [["1.5 min", Html('0.5 <span class="i">[0, 1]</span>'), "76 clips"]])
    assert '<th class="number">n</th><th class="number">figure</th><th>words</th>' in rendered
    assert '<td class="number">-<sup>a</sup></td>' in table(["x"], [[Html("-<sup>a</sup>")], ["0.1"]])


def test_html_stays_html_and_other_text_is_escaped() -> None:
    assert table(["x"], [[Html("<b>1</b>")], [EVIL]]).count("<b>") == 1
    assert paragraph(Html("<b>bold</b>")) == "<p><b>bold</b></p>"
    for escaped in (table([EVIL], [[EVIL]]), definitions({EVIL: EVIL}), paragraph(EVIL)):
        assert "<script" not in escaped
        assert "&lt;script" in escaped


def test_contents_link_to_every_section() -> None:
    page = render_page("t", "s", [(EVIL, ""), ("two", "")], contents=True)
    assert "<script" not in page
    assert '<a href="#s2">two</a>' in page
    assert '<section id="s2"><h2>two</h2>' in page
    assert "<nav" not in render_page("t", "s", [("two", "")])


def test_floats_have_three_decimals_and_an_empty_table_is_a_table() -> None:
    assert '<td class="number">0.123</td>' in table(["x"], [[0.12345]])
    assert "<tbody></tbody>" in table(["x"], [])


def test_a_figure_is_valid_svg_in_the_pages_ink_and_always_the_same() -> None:
    def draw() -> str:
        figure = Figure(figsize=(2, 1))
        axes = figure.add_subplot()
        style_axes(axes)
        axes.set_xlabel("分数 <score>", color=INK)
        axes.plot([1, 2], [1, 2], color=INK)
        return figure_html(figure, 'a "caption" <b>')

    rendered = draw()
    assert rendered == draw()
    assert INK not in rendered
    assert "currentColor" in rendered
    assert "分数 &lt;score&gt;" in rendered
    assert "<figcaption>a &quot;caption&quot; &lt;b&gt;</figcaption>" in rendered
    ElementTree.fromstring(rendered[rendered.index("<svg") : rendered.index("</svg>") + 6])
