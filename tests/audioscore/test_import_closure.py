"""What a user imports for scoring stays small: storage, the data gate and training are not imported with it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def file_of(module: str) -> Path | None:
    """The file of a module of ours, if there is one."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def imports(node: ast.AST) -> Iterator[str]:
    """Names that a module imports at its top level, outside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield name if file_of(name) else child.module
        yield from imports(child)


def closure(module: str) -> set[str]:
    """Our modules that an import runs, packages included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name in found or file is None:
            continue
        found.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:count]) for count in range(1, len(parts))]
        waiting += imports(ast.parse(file.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize(("module", "most"), [("audioscore.scoring.network", 12), ("audioscore.scoring.scorer", 32)])
def test_scoring_imports_few_files(module: str, most: int) -> None:
    found = closure(module)
    assert {module, "audioscore", "audioscore.scoring", "audioscore.encoders.features"} <= found
    assert len(found) <= most, sorted(found)
    assert not [name for name in found if name.startswith(("audioscore.muq_cpu", "audioscore.training"))]
