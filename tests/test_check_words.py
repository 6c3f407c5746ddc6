import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check_words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_words", ROOT / ".ci" / "check_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORD, TAG = "hea" + "rd", "pro" + "bes"  # written apart, since this file is checked too


@pytest.mark.parametrize(
    ("path", "text", "lines"),
    [
        ("a.md", f"The clip is {WORD}.\n\nIt was {WORD.title()} twice.", [1, 3]),
        ("a.py", f"def {WORD}_all() -> None:\n    pass", [1]),
        ("a.py", f"class {WORD.title()}Clips:\n    pass", [1]),
        ("a.py", f"x = {{'{TAG}': 1}}\n# {TAG}", [2]),
        ("a.md", "An embedding is extracted.", []),
    ],
)
def test_words_are_found_in_prose_and_in_identifiers(
    check_words: ModuleType, path: str, text: str, lines: list[int]
) -> None:
    source = ROOT / ".ci" / "words.toml"
    rules = check_words.read_rules(source)
    found = list(check_words.findings(path, text, rules, check_words.read_contracts(source)))
    assert [int(line.split(":")[1]) for line in found] == lines


def test_every_allowance_is_a_valid_pattern(check_words: ModuleType) -> None:
    rules = check_words.read_rules(ROOT / ".ci" / "words.toml")
    assert len(rules) > 10
    assert all(rule.instead for rule in rules)
