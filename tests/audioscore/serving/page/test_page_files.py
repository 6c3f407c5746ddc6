import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "audioscore" / "serving" / "page"
OWN = sorted([*PAGE.glob("*.js"), *PAGE.glob("*.css"), *PAGE.glob("*.html")])
Element = tuple[str, dict[str, str | None]]
VENDORED = re.compile(r"^\| `([\w.-]+)` \|.*\| `([0-9a-f]{64})` \|$", re.MULTILINE)


def texts(language: str) -> dict[str, str]:
    block = re.search(rf"^  {language}: {{\n(.*?)^  }},$", (PAGE / "strings.js").read_text("utf-8"), re.M | re.S)
    assert block is not None
    return dict(re.findall(r'^    (\w+): "(.*)",$', block[1], re.MULTILINE))


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"{(\w+)}", text))


@pytest.fixture(scope="module")
def elements() -> list[Element]:
    found: list[Element] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    return found


def test_vendored_files_match_their_table() -> None:
    listed = dict(VENDORED.findall((PAGE / "VENDORED.md").read_text(encoding="utf-8")))
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (PAGE / "vendor").iterdir()}
    assert found == listed


def test_no_script_or_style_is_inline_and_all_files_exist(
    elements: list[Element],
) -> None:
    assert not [tag for tag, _ in elements if tag == "style"]
    assert not [attributes for _, attributes in elements if "style" in attributes]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    loaded = [attributes for tag, attributes in elements if tag in ("script", "link")]
    named = [attributes.get("src") or attributes.get("href") or "" for attributes in loaded]
    assert len(named) == 4
    assert [name for name in named if not (PAGE.parent / name).is_file()] == []


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_nothing_is_loaded_from_other_servers(file: Path) -> None:
    code = re.sub(r"^\s*// .*$", "", file.read_text("utf-8"), flags=re.M)
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", code))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    if file.suffix == ".js":
        imported = re.findall(r'from "\./([\w./-]+)"', file.read_text("utf-8"))
        assert [name for name in imported if not (PAGE / name).is_file()] == []


def test_every_text_exists_in_both_languages_with_the_same_placeholders() -> None:
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    assert len(english) > 30
    assert [key for key, text in english.items() if placeholders(text) != placeholders(chinese[key])] == []


def test_every_used_text_exists_and_every_text_is_used(
    elements: list[Element],
) -> None:
    used = {key for _, attributes in elements if (key := attributes.get("data-text"))}
    code = "\n".join(file.read_text("utf-8") for file in PAGE.glob("*.js") if file.name != "strings.js")
    quoted = set(re.findall(r'"(\w+)"', code))
    defined = set(texts("en"))
    assert used <= defined
    built = {f"status{status}" for status in re.findall(r"\b[45]\d\d\b", code)}  # service.js builds these keys
    assert defined - used - quoted - built == set()


def test_every_control_has_a_name(elements: list[Element]) -> None:
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label"}
    inputs = [attributes for tag, attributes in elements if tag == "input" and "hidden" not in attributes]
    assert {attributes["id"] for attributes in inputs} == labelled
