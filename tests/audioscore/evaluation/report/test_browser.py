import io
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audioscore.data.audio import encode
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.report.page import render_report

pytestmark = pytest.mark.services

PHONE = 360  # CSS pixels
# A frame as wide as a phone, because headless windows cannot be so narrow. The title lists elements that are too wide.
FRAME = f"""<body style="margin:0"><iframe id="page" src="report.html" style="width:{PHONE}px;height:800px;border:0">
</iframe><script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument;
  const wide = [...page.querySelectorAll("main *")].filter((part) => !part.closest(".scroll") && !part.closest("svg")
    && part.getBoundingClientRect().right > {PHONE} + 1);
  const audio = page.querySelector("audio");
  audio.addEventListener("loadedmetadata", () => {{
    document.title = [page.documentElement.scrollWidth, audio.duration.toFixed(1),
      page.querySelector("img").naturalWidth, ...wide.map((part) => part.tagName)].join(" ");
  }});
  page.querySelector("img").loading = "eager";
  audio.load();
  audio.preload = "auto";
}};
</script></body>"""


def chromium(folder: Path, *arguments: str) -> bytes:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: see .ci/packages")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, check=True, timeout=120, cwd=folder).stdout


@pytest.fixture(scope="module")
def folder(
    make_predictions: Callable[..., list[Prediction]],
    robustness_document: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A page with long names, one player, and every table."""
    path: Path = tmp_path_factory.mktemp("browser")
    name = "audio/" + "很长的文件名" * 20 + "_" * 80 + ".m4a"
    recordings = tmp_path_factory.mktemp("recordings")
    (recordings / "audio").mkdir()
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 24_000)
    encode(wave.astype(np.float32), 24_000, recordings / "audio" / "003.m4a")
    rows = [
        replace(row, predicted=0.0) if int(row.sha256, 16) == 3
        else replace(row, predicted=1.0, audio_file=name, song_id="a" * 90) if int(row.sha256, 16) == 4 else row
        for row in make_predictions()
    ]  # fmt: skip
    controls = {"level": {row.sha256: row.human for row in rows}}
    figures = evaluate(rows, controls, {"baseline": 0, "hybrid": 1}, resamples=50)
    page = render_report(
        figures, rows, {}, {"digest": "d" * 90}, {}, {"promoted": False, "reason": "no"},
        robustness=robustness_document, recordings=recordings
    )  # fmt: skip
    (path / "report.html").write_text(page, encoding="utf-8")
    (path / "phone.html").write_text(FRAME, encoding="utf-8")
    return path


def test_the_page_fits_a_phone_and_its_player_loads(folder: Path) -> None:
    document = chromium(folder, "--dump-dom", "--virtual-time-budget=8000", (folder / "phone.html").as_uri()).decode()
    title = re.search(r"<title>(.*?)</title>", document)
    width, seconds, picture, *wide = title[1].split()
    assert (int(width), wide) == (PHONE, [])
    assert float(seconds) == pytest.approx(2.0, abs=0.1)
    assert picture == "320"


@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])  # Blink's PreferredColorScheme: dark, light
def test_the_page_follows_the_readers_colours(folder: Path, scheme: int, dark: bool) -> None:
    chromium(
        folder, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1000,3000",
        f"--screenshot={folder / 'shot.png'}", (folder / "report.html").as_uri()
    )  # fmt: skip
    with Image.open(io.BytesIO((folder / "shot.png").read_bytes())) as picture:
        levels = np.asarray(picture.convert("L"))
    paper, ink = np.median(levels), levels.min() if not dark else levels.max()
    assert (paper < 40) == dark
    assert abs(float(paper) - float(ink)) > 180
