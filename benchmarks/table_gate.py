"""Measure the data gate on a labels table without recordings: seconds and peak memory.

`python benchmarks/table_gate.py [ROWS]`: a table of ROWS (100,000) rows, one percent of them invalid, with an index of
the last accepted version, as csv and as xlsx. Each part runs in a separate process, so that peak memory is its own.
"whole" is `data validate --table-only` with report, JSON document and imports, in wall-clock and processor seconds.
"""

import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HEADER = ("audio_file", "score", "singer_id", "song_id", "source", "rater_1", "rater_2")
FORMATS = ("csv", "xlsx")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a new process and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make(folder: Path, rows: int, kind: str) -> None:
    """Write `labels.<kind>` and the index of a last version with half of the clips."""
    chance = random.Random(7)
    cells = [row(number, chance) for number in range(rows)]
    (folder / "index").mkdir(parents=True)
    if kind == "csv":
        lines = [",".join(map(str, one)) for one in [HEADER, *cells]]
        (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        from openpyxl import Workbook

        book = Workbook(write_only=True)
        sheet = book.create_sheet("labels")
        for one in [HEADER, *cells]:
            sheet.append(one)
        book.save(folder / "labels.xlsx")
    before = [one for one in cells[: rows // 2] if isinstance(one[1], float)]
    clips = [
        {"audio_file": one[0], "score": one[1], "source": one[4]} for one in sorted(before, key=lambda one: -one[1])
    ]
    (folder / "index" / "train.json").write_text(json.dumps([clips]), encoding="utf-8")


def row(number: int, chance: random.Random) -> tuple[Any, ...]:
    """Make one row: 10 % acapella, 1 % without a valid score."""
    source, low, high = ("acapella", 85, 99) if number % 10 == 0 else ("ktv", 50, 85)
    score: Any = round(chance.uniform(low, high), 1) if number % 100 else chance.choice(["", "good", 120])
    rated = (score, score) if isinstance(score, float) else ("", "")
    return f"audio/{number:06d}.m4a", score, f"singer{number % 5000}", f"song{number % 997}", source, *rated


def parts(folder: Path, kind: str) -> tuple[float, float, float]:
    """Measure reading the table, importing Great Expectations, and running the suite, in seconds."""
    from audioscore.data.gate.expectations import check_table
    from audioscore.data.gate.rejections import ValidationSettings
    from audioscore.data.gate.validation import labels_frame
    from audioscore.data.labels import read_labels
    from audioscore.data.versions.changes import last_scores

    started = time.monotonic()
    table = read_labels(folder / f"labels.{kind}")
    read = time.monotonic()
    check_table(labels_frame(table, table.clips[:10], []))
    imported = time.monotonic()
    settings = ValidationSettings(min_per_source=10, min_per_band=10, min_singers=10, min_per_singer=2)
    check_table(labels_frame(table, table.clips, []), settings, last_scores=last_scores(folder))
    return read - started, imported - read, time.monotonic() - imported


def whole(folder: Path, kind: str) -> tuple[float, float, float, str]:
    """Measure the whole gate: seconds, processor seconds, peak MB, and its result."""
    started, worked = time.monotonic(), time.process_time()
    from audioscore.data.gate.report import render_validation
    from audioscore.data.gate.validation import validate_folder

    result = validate_folder(folder, audio=False)
    page, document = render_validation(result, folder), json.dumps(result.to_json())
    seconds, worked = time.monotonic() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    sizes = f"page {len(page) / 1e6:.1f} MB, document {len(document) / 1e6:.1f} MB"
    return seconds, worked, peak, f"{len(result.accepted)} accepted, {len(result.rejected)} rejected; {sizes}"


def main(rows: int) -> None:
    """Print one line for each format."""
    print(f"{'':6}{'rows':>8}{'reading s':>11}{'imports s':>11}{'suite s':>9}{'whole s':>9}{'core s':>8}{'peak MB':>9}")
    for kind in FORMATS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "data"
            alone(make, folder, rows, kind)
            reading, imports, suite = alone(parts, folder, kind)
            seconds, worked, peak, found = alone(whole, folder, kind)
        print(f"{kind:6}{rows:8}{reading:11.1f}{imports:11.1f}{suite:9.1f}{seconds:9.1f}{worked:8.1f}{peak:9.0f}")
        print(f"      {found}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
