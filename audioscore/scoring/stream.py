"""Many recordings as a stream: decoded ahead in parallel, scored together, told in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from audioscore.encoders.threads import cores
from audioscore.errors import AudioError, AudioscoreError, describe_os_error
from audioscore.scoring.input import DecodedClip, Source, Take, named
from audioscore.scoring.results import Answer, ClipScore

# What waits, decoded, for its turn: a bound on memory (about 160 kB a second), and enough to find equal lengths in.
AHEAD_CLIPS, AHEAD_SECONDS = 32, 600.0
BATCH_SECONDS = 240.0  # scored together at most, but for one recording that is longer

Decode = Callable[[Take], DecodedClip]
Score = Callable[[Sequence[DecodedClip]], Sequence[Answer]]
Waiting = deque[tuple[Take, "Future[DecodedClip]"]]


def score_stream(decode: Decode, score: Score, sources: Iterable[Source | Take]) -> Iterator[ClipScore]:
    """A row for each source, in their order, as soon as it is known; sources are read as their turn comes."""
    takes = (named(source, place) for place, source in zip(count(), sources, strict=False))
    waiting: Waiting = deque()
    pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
    try:
        while _fill(waiting, takes, decode, pool):
            yield from _score_first(waiting, score)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(waiting: Waiting, takes: Iterator[Take], decode: Decode, pool: ThreadPoolExecutor) -> bool:
    """Start as much decoding as may wait; False once nothing is left."""
    while len(waiting) < AHEAD_CLIPS and _seconds(waiting) < AHEAD_SECONDS:
        take = next(takes, None)
        if take is None:
            break
        waiting.append((take, pool.submit(decode, take)))
    return bool(waiting)


def _seconds(waiting: Waiting) -> float:
    done = (future for _, future in waiting if future.done() and not future.exception())
    return sum(future.result().seconds for future in done)


def _score_first(waiting: Waiting, score: Score) -> list[ClipScore]:
    """Rows of the first recordings, one a core waited for, and of those after them that are decoded and fit beside."""
    rows: list[ClipScore] = []
    clips: list[DecodedClip] = []
    places: list[int] = []
    seconds = 0.0
    while waiting and (len(clips) < cores() or waiting[0][1].done()):
        take, future = waiting[0]
        try:
            clip = future.result()
        except AudioError as fault:
            rows.append(ClipScore(take.file, error=str(fault)))
        except OSError as fault:  # it vanished between two looks at it, or the disk is full
            rows.append(ClipScore(take.file, error=describe_os_error(fault)))
        else:
            if clips and seconds + clip.seconds > BATCH_SECONDS:
                break
            places.append(len(rows))
            rows.append(ClipScore(take.file))
            clips.append(clip)
            seconds += clip.seconds
        waiting.popleft()
    for place, answer in zip(places, score(clips), strict=True):
        rows[place] = _row(rows[place].file, answer)
    return rows


def _row(file: str, answer: Answer) -> ClipScore:
    return ClipScore(file, error=str(answer)) if isinstance(answer, AudioscoreError) else ClipScore.of(file, answer)
