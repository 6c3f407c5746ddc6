"""Synthesise planned recordings: one clip, or a whole corpus on disk (`python -m audioscore.demo.corpus --out DIR`)."""

import argparse
import csv
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from audioscore.data.audio import Wave, encode
from audioscore.data.file_checks import start_workers
from audioscore.demo.melody import cut_phrase
from audioscore.demo.performance import CONTROL_HZ, Faults, draw_faults, perform
from audioscore.demo.plan import DEMO_CLIPS, DEMO_SHARE, DEMO_SINGERS, DEMO_SONGS, PlannedClip, plan_corpus
from audioscore.demo.synthesis import RATE, acapella, backing, ktv, master, synthesise
from audioscore.errors import AudioscoreError, DataError, UsageError, shorten
from audioscore.files import atomic_folder

DOMAINS = {"ktv": ktv, "acapella": acapella}
COLUMNS = ("audio_file", "score", "singer_id", "song_id", "source")
PROGRESS_EVERY = 25  # clips

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def render(planned: PlannedClip) -> Wave:
    """Synthesise a planned recording; the same plan gives the same samples.

    Each purpose has its own random generator, so that plans that differ in one respect are equal in all others.

    Shape: [seconds * 24 000], float32, mono, 24 kHz.
    """
    streams = [np.random.default_rng([*planned.seed, purpose]) for purpose in range(6)]
    total = round(planned.seconds * RATE)
    lead, trail = round(planned.lead * RATE), round(planned.trail * RATE)
    frames = (total - lead - trail) * CONTROL_HZ // RATE
    phrase = cut_phrase(planned.song, planned.first_bar, frames / CONTROL_HZ)
    middle = float(np.mean([note.note.pitch for note in phrase]))
    tonic = round(planned.singer.centre - middle + streams[0].uniform(-2.0, 2.0))
    faults = faults_of(planned)
    controls = perform(phrase, tonic, planned.singer, faults, streams[2])
    voice = synthesise(controls, planned.singer, streams[3])
    music = backing(planned.song, planned.first_bar, tonic, len(voice), streams[4])
    sung = DOMAINS[planned.source](voice, music, streams[4])
    trail = total - lead - len(sung)
    levels = {"level_db": planned.level_db, "crest_db": planned.crest_db}
    return master(sung, lead=lead, trail=trail, **levels, rng=streams[5])


def faults_of(planned: PlannedClip) -> Faults:
    """Return the faults of a planned performance."""
    return draw_faults(planned.q_performance, np.random.default_rng([*planned.seed, 1]))


def write_corpus(out: Path, plan: Sequence[PlannedClip], *, workers: int = 1) -> None:
    """Write `out/labels.csv` and `out/audio/*.m4a` (24 kHz, AAC at 48 kb/s), with `workers` processes.

    The folder is written atomically; an existing corpus is replaced. Workers are new interpreters: with more than one,
    a script must call this under `if __name__ == "__main__"`.

    Raises: UsageError for an empty plan or less than one worker, DataError if `out` contains anything else.
    """
    if not plan or workers < 1:
        raise UsageError(f"corpus: {len(plan)} clips and {workers} workers; at least 1 of each is needed. Raise them.")
    _check_replaceable(out)
    with atomic_folder(out) as folder:
        (folder / "audio").mkdir()
        written = in_processes(partial(_write_clip, folder), plan, workers)
        for done, _ in enumerate(written, start=1):
            if done % PROGRESS_EVERY == 0 or done == len(plan):
                log.info("synthesised %d of %d clips", done, len(plan))
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(COLUMNS)
            for clip in plan:
                row = (clip.audio_file, f"{clip.score:.1f}", clip.singer.singer_id, clip.song.song_id, clip.source)
                writer.writerow(row)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: a file, but a corpus is a folder. Choose another name.")
    foreign = sorted(item.name for item in out.iterdir() if item.name not in {"labels.csv", "audio"})
    if foreign:
        raise DataError(
            f"{out}: it contains {len(foreign)} items that do not belong to a corpus ({shorten(foreign)}), and "
            f"writing would delete them. Choose an empty folder."
        )


def in_processes(work: Callable[[PlannedClip], Result], plan: Sequence[PlannedClip], workers: int) -> Iterator[Result]:
    """Apply `work` to each planned clip in `workers` processes; yield the results in the order of the plan."""
    if workers == 1:
        yield from map(work, plan)
        return
    # Without this variable, numpy starts its own threads in each worker.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with start_workers(min(workers, len(plan))) as pool:
            yield from pool.map(work, plan, chunksize=4)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _write_clip(folder: Path, planned: PlannedClip) -> None:
    encode(render(planned), RATE, folder / planned.audio_file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan and write a corpus; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m audioscore.demo.corpus", description="Write a synthetic corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write labels.csv and audio/ into")
    parser.add_argument("--singers", type=int, default=DEMO_SINGERS)
    parser.add_argument("--clips-per-singer", type=int, default=DEMO_CLIPS)
    parser.add_argument("--songs", type=int, default=DEMO_SONGS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--timbre-share", type=float, default=DEMO_SHARE, help="share of the timbre in the quality, 0 to 1"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        plan = plan_corpus(
            given.singers, given.clips_per_singer, seed=given.seed, timbre_share=given.timbre_share, songs=given.songs
        )
        write_corpus(given.out, plan, workers=given.workers)
    except AudioscoreError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
