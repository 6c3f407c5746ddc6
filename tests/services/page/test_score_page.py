"""The web page in headless Chromium, with the running service."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import RunningService

pytestmark = pytest.mark.services

PHONE = 360  # CSS pixels
WIDE = """[...document.querySelectorAll('body *')].filter((one) => !one.closest('.wave, .live')
  && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.className || one.tagName)"""
# Contrast ratio of every visible text with its background. Source: WCAG 2, relative luminance and contrast ratio.
CONTRASTS = """(() => {
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility() && !one.disabled
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((one) => {
    const [a, b] = [light(numbers(getComputedStyle(one).color).slice(0, 3)), light(behind(one))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.className || one.tagName];
  }).filter(([ratio]) => ratio < 4.5);
})()"""


def url(served: RunningService) -> str:
    return f"http://127.0.0.1:{served.port}/"


def of(card: int, selector: str, what: str = "textContent") -> str:
    """A property of an element of the first or second recording, 0 or 1."""
    return f"document.querySelectorAll('.recording')[{card}].querySelector('{selector}').{what}"


def response(served: RunningService, file: Path) -> dict[str, Any]:
    """The service's result for a recording, without the page."""
    status, document = served.score((file.name, file.read_bytes()), path="/score?timeline=true")
    assert status == 200
    result: dict[str, Any] = document["results"][0]
    return result


def instead(status: int, headers: dict[str, str] | None = None) -> str:
    """Replace the service's responses to /score on the page; the service itself has its own tests."""
    options = json.dumps({"status": status, "headers": headers or {}})
    return f"""(() => {{ const real = window.fetch; window.fetch = (path, options) => path.startsWith('score')
      ? Promise.resolve(new Response('{{}}', {options})) : real(path, options); }})()"""


def test_an_upload_shows_the_result_of_the_service(page: Any, served: RunningService, recordings: Path) -> None:
    expected = response(served, recordings / "long.m4a")
    page.open(url(served))
    page.choose(0, recordings / "long.m4a")
    page.until(of(0, ".score"))
    low, high = expected["interval"]
    assert page.run(of(0, ".score")) == f"{expected['score']:.1f}"
    assert re.search(rf"90.*\b{low:.1f}\b.*\b{high:.1f}$", page.run(of(0, ".interval")))
    bands = served.get("/model")[2]
    band = next(pair for pair in json.loads(bands)["bands"] if pair[0] <= expected["score"] < pair[1])
    assert re.search(rf"\b{max(band[0], 50):g}\b.*\b{min(band[1], 99):g}\b", page.run(of(0, ".band")))
    assert len(expected["notes"]) == 1  # the harmonics end at 2.4 kHz
    assert page.run(f"[...{of(0, '.notes', 'children')}].map((one) => one.textContent.toLowerCase())") == [
        note.lower() for note in expected["notes"]
    ]
    rows = page.run(f"[...{of(0, 'tbody', 'rows')}].map((row) => [...row.cells].map((cell) => cell.textContent))")
    scores = [f"{segment['score']:.1f}" for segment in expected["timeline"]]
    assert rows == [
        list(row) for row in zip(("0:00\u20130:10", "0:02\u20130:12", "0:04\u20130:14"), scores, strict=True)
    ]
    assert page.run(of(0, ".course", "points.numberOfItems")) == 3 + 2  # to both edges
    assert page.run(of(0, ".answer", "getAttribute('aria-live')")) == "polite"


def test_the_mark_and_the_chart_are_aligned(page: Any, served: RunningService, recordings: Path) -> None:
    page.open(url(served))
    page.choose(0, recordings / "long.m4a")
    score = float(page.until(of(0, ".score")))
    scale, mark = (page.run(f"{of(0, part, 'getBoundingClientRect()')}.toJSON()") for part in (".scale", ".mark"))
    middle = (mark["left"] + mark["right"]) / 2
    assert 50 + 49 * (middle - scale["left"]) / scale["width"] == pytest.approx(min(max(score, 50), 99), abs=0.2)
    page.until(of(0, ".wave div div", "shadowRoot.querySelectorAll('canvas').length"))
    wave, chart = (page.run(f"{of(0, part, 'getBoundingClientRect()')}.toJSON()") for part in (".wave", ".chart"))
    assert (wave["left"], wave["width"]) == (chart["left"], chart["width"])
    assert page.until(of(0, "audio", "duration")) == pytest.approx(14, abs=0.1)
    page.run(
        of(0, ".chart", f"dispatchEvent(new MouseEvent('click', {{clientX: {chart['left'] + chart['width'] / 2}}}))")
    )
    assert page.until(of(0, "audio", "currentTime")) == pytest.approx(7, abs=0.2)


def test_singing_is_recorded_with_the_microphone_and_scored(page: Any, served: RunningService) -> None:
    page.open(url(served))
    assert page.run(of(0, ".record")) == "Record"
    page.run(of(0, ".record", "click()"))
    page.until(f"{of(0, '.record')} === 'Stop' && {of(0, '.status')} === 'Recording… 0:03'")
    assert page.run(of(0, ".live div div", "shadowRoot.querySelectorAll('canvas').length")) > 0
    page.run(of(0, ".record", "click()"))
    score = float(page.until(of(0, ".score")))
    assert 50 <= score <= 100
    assert page.until(of(0, "audio", "duration")) == pytest.approx(3.3, abs=1.5)
    assert page.run(of(0, ".live", "hidden")) is True
    sent = next(one for one in page.requests if "/score" in one["url"])
    assert sent["method"] == "POST"
    assert page.errors == []


def test_a_cancelled_recording_is_not_uploaded(page: Any, served: RunningService) -> None:
    page.open(url(served))
    page.run(of(0, ".record", "click()"))
    page.until(f"{of(0, '.clear')} === 'Cancel' && {of(0, '.status')} === 'Recording… 0:01'")
    page.run(of(0, ".clear", "click()"))
    assert page.until(of(0, ".record")) == "Record"
    assert page.run(of(0, ".status")) == ""
    assert page.run("document.activeElement.textContent") == "Record"
    assert [one for one in page.requests if "/score" in one["url"]] == []
    assert page.errors == []


def test_two_recordings_are_shown_side_by_side(page: Any, served: RunningService, recordings: Path) -> None:
    first, second = (response(served, recordings / name)["score"] for name in ("long.m4a", "short.wav"))
    page.open(url(served))
    page.choose(0, recordings / "long.m4a")
    page.choose(1, recordings / "short.wav")
    page.until("!document.getElementById('comparison').hidden")
    left, right = page.run(
        "[...document.querySelectorAll('.recording')].map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert left["top"] == right["top"]
    assert left["right"] < right["left"]
    comparison = page.run("document.querySelector('.verdict').textContent")
    better, worse = (1, 2) if first >= second else (2, 1)
    difference = f"{abs(first - second):.1f}"
    assert difference == "0.0" or re.search(rf"\b{better}\b.*\b{difference}\b.*\b{worse}\b", comparison)
    page.run(of(1, ".clear", "click()"))
    assert page.run("document.getElementById('comparison').hidden") is True
    assert page.run(of(1, ".sound", "hidden")) is True


def test_a_refusal_is_shown_in_both_languages(page: Any, served: RunningService, recordings: Path) -> None:
    page.open(url(served))
    page.choose(0, recordings / "silent.wav")
    assert "Silent" in page.until(of(0, ".error"))
    assert page.run(of(0, ".answer", "hidden")) is True
    page.run("document.getElementById('language').click()")
    assert re.search("没有声音.*dBFS", page.run(of(0, ".error")))


@pytest.mark.parametrize(
    ("status", "headers", "english", "chinese"),
    [
        (429, {"Retry-After": "7"}, r"busy.*\b7\b", r"繁忙.*7"),
        (503, {}, "starting", "启动"),
        (408, {}, "slow", "慢"),
        (500, {}, r"\b500\b", "500"),
    ],
)
def test_a_failure_of_the_service_is_explained_in_both_languages(
    page: Any,
    served: RunningService,
    recordings: Path,
    status: int,
    headers: dict[str, str],
    english: str,
    chinese: str,
) -> None:
    page.open(url(served))
    page.run(instead(status, headers))
    page.choose(0, recordings / "short.wav")
    assert re.search(english, page.until(of(0, ".error")))
    page.run("document.getElementById('language').click()")
    assert re.search(chinese, page.run(of(0, ".error")))
    assert page.run(of(0, ".again", "hidden")) is False


def test_a_too_large_recording_is_not_uploaded(page: Any, served: RunningService, tmp_path: Path) -> None:
    (tmp_path / "large.wav").write_bytes(bytes(3 << 20))
    page.open(url(served))
    page.choose(0, tmp_path / "large.wav")
    assert "2 MB" in page.until(of(0, ".error"))
    assert [one for one in page.requests if "/score" in one["url"]] == []


def test_the_token_is_requested_and_sent(page: Any, serve: Callable[..., RunningService], recordings: Path) -> None:
    guarded = serve("guarded", AUDIOSCORE_TOKEN="open-sesame")
    page.open(url(guarded))
    page.until("!document.getElementById('token-form').hidden")
    page.choose(0, recordings / "short.wav")
    assert "token" in page.until(of(0, ".error"))
    assert page.run("document.activeElement.id") == "token"
    page("Input.insertText", text="open-sesame")
    page.run(of(0, ".again", "click()"))
    assert float(page.until(of(0, ".score"))) > 0
    assert page.run(of(0, ".error", "hidden")) is True


def test_the_page_uses_the_browsers_language_and_stores_a_choice(page: Any, served: RunningService) -> None:
    page.look(1100, 900, language="zh-CN,zh;q=0.9")
    page.open(url(served))
    assert (page.run("document.documentElement.lang"), page.run("document.title")) == ("zh-CN", "歌声评分")
    assert page.run(of(0, ".record")) == "开始录音"
    page.run("document.getElementById('language').click()")
    assert (page.run("document.documentElement.lang"), page.run(of(0, ".record"))) == ("en", "Record")
    page.open(url(served))
    assert page.run(of(0, ".record")) == "Record"


def test_the_tab_key_reaches_all_controls_in_order(page: Any, served: RunningService) -> None:
    page.open(url(served))
    reached = []
    for _ in range(5):
        page.press("Tab", 9)
        reached.append(page.run("document.activeElement.textContent"))
    assert reached == ["中文", "Record", "Choose a file", "Record", "Choose a file"]
    outlined = "getComputedStyle(document.activeElement)"
    assert page.run(f"{outlined}.boxShadow !== 'none' || {outlined}.outlineStyle !== 'none'")


@pytest.mark.parametrize(
    ("devices", "state", "named"),
    [
        ([], "prompt", "No microphone"),
        (["audioinput"], "denied", "settings"),
        (["audioinput"], "prompt", "(Error accessing the microphone: no)"),
    ],
)
def test_an_unusable_microphone(page: Any, served: RunningService, devices: list[str], state: str, named: str) -> None:
    page.open(url(served))
    page.run(f"""navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', 'NotFoundError'); }};
      navigator.mediaDevices.enumerateDevices = async () => {json.dumps(devices)}.map((kind) => ({{ kind }}));
      navigator.permissions.query = async () => ({{ state: '{state}' }}); 0""")
    page.run(of(0, ".record", "focus()"))
    page.press("Enter", 13, "\r")
    assert named in page.until(of(0, ".error"))
    assert page.run(of(0, ".record", "disabled")) is False


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_the_layout_on_a_phone(page: Any, served: RunningService, recordings: Path, dark: bool, language: str) -> None:
    page.look(PHONE, 780, dark=dark, language=language)
    page.open(url(served))
    page.choose(0, recordings / "long.m4a")
    page.choose(1, recordings / "silent.wav")
    page.until(f"{of(0, '.score')} && {of(1, '.error')}")
    assert page.run("document.documentElement.scrollWidth") == PHONE
    assert page.run(WIDE) == []
    assert page.run(CONTRASTS) == []
    with Image.open(io.BytesIO(page.picture())) as picture:
        paper = np.median(np.asarray(picture.convert("L")))
    assert (paper < 60) == dark


def test_only_the_recording_is_uploaded_and_the_policy_is_kept(
    page: Any, served: RunningService, recordings: Path
) -> None:
    page.open(url(served))
    page.choose(0, recordings / "long.m4a")
    page.until(of(0, ".score"))
    page.until(of(0, ".wave div div", "shadowRoot.querySelectorAll('canvas').length"))
    paths = [one["url"].removeprefix(url(served)) for one in page.requests]
    elsewhere = [one for one in paths if one.startswith("http")]
    assert elsewhere == []
    assert [one["url"] for one in page.requests if one["method"] != "GET"] == [url(served) + "score?timeline=true"]
    assert page.errors == []
