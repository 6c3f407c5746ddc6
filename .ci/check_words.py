"""Check that code, messages and documents use standard terms: the words of words.toml do not occur.

Usage: python .ci/check_words.py [PATH ...]; all tracked files by default. Exit code 1 and a line for each finding.
"""

import fnmatch
import io
import keyword
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUFFIXES = {".py", ".md", ".js", ".html", ".css", ".yaml", ".yml", ".toml", ".sh", ".ipynb", ""}
# History keeps its words; the list itself names them; vendored files are not ours.
SKIPPED = ("docs/LOG.md", "CHANGELOG.md", "LICENSE", ".ci/words.toml", ".ci/check_words.py", "*/vendor/*", "*.lock",
           ".dvc/*", "requirements*", "tests/faults/*", "tests/compat/*")  # fmt: skip
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")


@dataclass(frozen=True)
class Rule:
    """One entry of words.toml; `where` is "everywhere" or "identifiers"."""

    pattern: re.Pattern[str]
    instead: str
    where: str
    allow: tuple[re.Pattern[str], ...]
    paths: tuple[str, ...]
    excluded: tuple[str, ...]

    def applies(self, path: str) -> bool:
        """Whether the rule is for this file."""
        return any(fnmatch.fnmatch(path, glob) for glob in self.paths) and not any(
            fnmatch.fnmatch(path, glob) for glob in self.excluded
        )


def read_rules(source: Path) -> list[Rule]:
    """Read the word list."""
    entries = tomllib.loads(source.read_text(encoding="utf-8"))["word"]
    return [
        Rule(
            re.compile(rf"\b(?:{entry['pattern']})\b", re.IGNORECASE),
            entry["instead"],
            entry.get("where", "everywhere"),
            tuple(re.compile(allowed) for allowed in entry.get("allow", [])),
            tuple(entry.get("paths", ["*"])),
            tuple(glob.replace("**", "*") for glob in entry.get("except", [])),
        )
        for entry in entries
    ]


def without_contracts(line: str, contracts: re.Pattern[str]) -> str:
    """Blank the names of a line that are contracts (keys, tags, file names) where they stand in quotes."""
    return contracts.sub('""', line)


def split_words(text: str) -> str:
    """Identifiers as words.

    >>> split_words("hear_all(ProbeLimits)")
    'hear all(Probe Limits)'
    """
    return CAMEL.sub(" ", text)


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """Line number and name of each identifier in Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            yield token.start[0], token.string


def read_contracts(source: Path) -> re.Pattern[str]:
    """Read the names that users and files rely on; they are legitimate where they are quoted."""
    names = tomllib.loads(source.read_text(encoding="utf-8"))["contracts"]
    return re.compile(rf"(?P<quote>[\"'`])(?:{'|'.join(names)})(?P=quote)")


def findings(path: str, text: str, rules: list[Rule], contracts: re.Pattern[str]) -> Iterator[str]:
    """One line for each use of a word, with the line number and the replacement."""
    lines = text.splitlines()
    names: dict[int, str] = {}
    if path.endswith(".py"):
        for number, name in identifiers(text):
            names[number] = f"{names.get(number, '')} {split_words(name)}"
    for number, line in enumerate(lines, start=1):
        words = split_words(without_contracts(line, contracts))
        for rule in rules:
            found = rule.pattern.search(words if rule.where == "everywhere" else names.get(number, ""))
            if found and not any(allowed.search(line) for allowed in rule.allow):
                yield f"{path}:{number}: {found[0]!r}: write {rule.instead}"


def tracked(paths: list[str]) -> list[str]:
    """Files of the repository under the given paths, untracked ones that git does not ignore included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        name
        for name in dict.fromkeys(listed.stdout.splitlines())
        if Path(name).suffix in SUFFIXES and not any(fnmatch.fnmatch(name, glob) for glob in SKIPPED)
    ]


def main() -> int:
    """Print every finding; the exit code is 1 where there is one."""
    rules, contracts = read_rules(HERE / "words.toml"), read_contracts(HERE / "words.toml")
    count = 0
    for name in tracked(sys.argv[1:] or ["."]):
        source = ROOT / name
        if not source.is_file():
            continue
        try:
            text = source.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        own = [rule for rule in rules if rule.applies(name)]
        for line in findings(name, text, own, contracts):
            sys.stdout.write(line + "\n")
            count += 1
    sys.stdout.write(f"{count} words to replace\n" if count else "words: standard terms only\n")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
