"""Every command and link of the two READMEs works, and both languages have the same ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from audioscore.cli.app import app

ROOT = Path(__file__).parents[1]
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")}
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> set[str]:
    """Lines of the shell blocks and inline code that start with a program, without comments."""
    shell = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(shell).replace("\\\n", " ").splitlines() + re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    found = {" ".join(re.sub(r"(^|\s)# .*$", "", line).split()) for line in lines}
    return {line for line in found if re.match(r"(?:\.venv/bin/)?(?:audioscore|make|python|curl|git) ", line)}


def links(text: str) -> set[str]:
    return set(re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", BLOCK.sub("", text)))


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


def test_both_languages_have_the_same_commands() -> None:
    english, chinese = map(commands, READMES.values())
    assert (english - chinese, chinese - english) == (set(), set())
    assert english


def test_both_languages_link_to_the_same_pages_and_to_each_other() -> None:
    english, chinese = (
        {link for link in links(text) if not link.startswith(("#", "README"))} for text in READMES.values()
    )
    assert (english - chinese, chinese - english) == (set(), set())
    assert "README.zh-CN.md" in links(READMES["README.md"])
    assert "README.md" in links(READMES["README.zh-CN.md"])


@pytest.mark.parametrize("name", READMES)
def test_links_lead_to_files_and_sections_that_exist(name: str) -> None:
    broken = []
    for link in links(READMES[name]) | set(re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", READMES[name])):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = ROOT / (target or name)
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", READMES)
def test_commands_and_their_options_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    unknown = []
    for line in commands(READMES[name]):
        program, *words = re.split(r"\s[|>&]|;", line)[0].split()
        if program == "make":
            unknown += [line for word in words if "=" not in word and re.match(r"\w", word) and word not in targets]
        elif program.endswith("python"):
            unknown += [line for word in words if word.endswith(".py") and not (ROOT / word).is_file()]
        elif program.endswith("audioscore"):
            command: Any = typer.main.get_command(app)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            unnamed = hasattr(command, "commands") and any(re.match(r"[a-z]", word) for word in words)
            unknown += [line] if unnamed or options - known else []
    assert unknown == []
