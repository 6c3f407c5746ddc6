"""The two READMEs say the same: commands, outputs, figures, names, links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+# .*$", re.MULTILINE)


def blocks(text: str) -> list[str]:
    """Code blocks without their comments, which are translated."""
    return [COMMENT.sub("", block) for block in BLOCK.findall(text)]


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def test_code_blocks_are_the_same() -> None:
    assert blocks(ENGLISH) == blocks(CHINESE)
    assert len(blocks(ENGLISH)) >= 10


def test_commands_and_names_in_the_text_are_the_same() -> None:
    english, chinese = (set(re.findall(r"`([^`\n]+)`", prose(text))) for text in (ENGLISH, CHINESE))
    assert (english - chinese, chinese - english) == (set(), set())


def test_decimal_figures_and_percentages_in_the_text_are_the_same() -> None:
    pattern = r"(?<![\w.])(?:\d+\.\d+|\d+(?= ?%)|\d{1,3}(?:,\d{3})+)(?![\w.]\d)"
    english, chinese = (sorted(re.findall(pattern, prose(text))) for text in (ENGLISH, CHINESE))
    assert english == chinese


@pytest.mark.parametrize("mark", [r"^#+ ", r"^\| ", r"^(?:\d+\. |- )"])
def test_headings_table_rows_and_list_items_are_as_many(mark: str) -> None:
    english, chinese = (len(re.findall(mark, prose(text), re.MULTILINE)) for text in (ENGLISH, CHINESE))
    assert english == chinese


def test_links_lead_to_the_same_files_and_sections_exist() -> None:
    english, chinese = (re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", prose(text)) for text in (ENGLISH, CHINESE))
    files = [{link for link in links if not link.startswith(("#", "README"))} for links in (english, chinese)]
    assert files[0] == files[1]
    missing = [link for link in files[1] if not (ROOT / link.partition("#")[0]).exists()]
    assert missing == []
    sections = {
        re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in re.findall(r"^#+ (.*)$", CHINESE, re.M)
    }
    assert {link[1:] for link in chinese if link.startswith("#")} <= sections


def test_each_names_the_other_at_its_top() -> None:
    assert "[中文](README.zh-CN.md)" in ENGLISH[:200]
    assert "[English](README.md)" in CHINESE[:200]
