import importlib.util
from pathlib import Path
from types import ModuleType

import numba
import pytest

from audioscore.muq_cpu import compiled as compiled_module
from audioscore.muq_cpu.compiled import compiled


def test_a_function_is_compiled_without_a_cache_folder_and_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    full, real = [], numba.njit

    def save(*_: object) -> None:
        full.append(True)
        raise OSError(28, "full")

    def njit(**settings: bool) -> object:
        if settings.get("cache"):
            raise RuntimeError
        return real(**settings)

    def doubled(number: int) -> int:
        return 2 * number

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", save)
    assert compiled(doubled)(21) == 42
    assert full
    monkeypatch.setattr("audioscore.muq_cpu.compiled.njit", njit)
    assert compiled(doubled)(21) == 42


def load(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("doubling", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.doubled(21) == 42
    return module


def test_machine_code_is_cached_until_a_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    source = tmp_path / "doubling.py"
    source.write_text(
        "from audioscore.muq_cpu.compiled import compiled\n\n@compiled\ndef doubled(number):\n    return 2 * number\n"
    )
    assert not load(source).doubled.stats.cache_hits
    assert list((tmp_path / "__pycache__").glob("doubling.doubled*.nbc"))
    assert load(source).doubled.stats.cache_hits
    sources = compiled_module._sources()
    kernels = ["int16_kernels.py", "winograd_kernels.py"]
    assert [name for name, _ in sources] == [*kernels, "compiled.py"]
    monkeypatch.setattr(compiled_module, "_sources", lambda: (*sources[:-1], ("compiled.py", "changed")))
    assert not load(source).doubled.stats.cache_hits
