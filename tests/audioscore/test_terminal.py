import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from audioscore.terminal import describe_encode_error

PROGRAM = """
import json, os, sys
from audioscore.terminal import prepare_output, use_utf8
use_utf8()
prepare_output()
print(json.dumps([sys.argv[1:], sorted(os.listdir("."))], ensure_ascii=False))
"""
GBK = "歌.wav".encode("gbk")


def has_locale(name: str) -> bool:
    code = f"import locale; locale.setlocale(locale.LC_ALL, {name!r})"
    return not subprocess.run([sys.executable, "-c", code], capture_output=True).returncode


needs_gbk = pytest.mark.skipif(not has_locale("zh_CN.GBK"), reason="needs the locale zh_CN.GBK")
LOCALES = [name for name in ("C", "POSIX", "C.UTF-8", "zh_CN.GBK", "en_US.ISO-8859-1") if has_locale(name)]


def run(folder: Path, name: str, *arguments: str | bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment | {"LC_ALL": name} | variables, cwd=folder, capture_output=True)


@pytest.mark.parametrize("name", LOCALES)
@pytest.mark.parametrize("mode", [{}, {"PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "utf-8"}])
def test_a_pipe_gets_utf8_and_names_keep_their_bytes(tmp_path: Path, name: str, mode: dict[str, str]) -> None:
    names = [os.fsencode("\U0001f3a4 歌.wav"), GBK]
    for one in names:
        (tmp_path / os.fsdecode(one)).touch()
    done = run(tmp_path, name, *names, **mode)
    assert (done.returncode, done.stderr) == (0, b"")
    arguments, listed = json.loads(done.stdout.decode("utf-8"))
    assert [one.encode("utf-8", "surrogateescape") for one in arguments] == names
    assert sorted(one.encode("utf-8", "surrogateescape") for one in listed) == sorted(names)


@needs_gbk
def test_an_argument_that_names_no_file_is_text(tmp_path: Path) -> None:
    done = run(tmp_path, "zh_CN.GBK", "歌手".encode("gbk"), "歌手".encode())
    assert json.loads(done.stdout)[0] == ["歌手", "歌手"]


@needs_gbk
def test_a_terminal_gets_its_own_encoding(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(GBK)).touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    parent, child = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "歌", GBK, "\U0001f3a4"]
    done = subprocess.run(command, env=environment | {"LC_ALL": "zh_CN.GBK"}, cwd=tmp_path, stdout=child)
    os.close(child)
    shown = os.read(parent, 1 << 12)
    os.close(parent)
    assert done.returncode == 0
    assert shown.strip() == b'[["%s", "%s", "\\U0001f3a4"], ["%s"]]' % ("歌".encode("gbk"), GBK, GBK)


def test_only_names_that_are_not_utf8_are_described() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        os.fsdecode(b"songs/" + GBK).encode("utf-8")
    text = describe_encode_error(caught.value) or ""
    assert r"songs/\udcb8\udce8.wav" in text
    assert text.isascii()
    assert describe_encode_error(ValueError("x")) is None
    with pytest.raises(UnicodeEncodeError) as other:
        "歌".encode("ascii")
    assert describe_encode_error(other.value) is None


def test_a_terminal_without_a_size_shows_errors(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("audioscore"), "run", "--data", str(tmp_path / "gone")]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "0"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("gone: ")) == (2, 1)
