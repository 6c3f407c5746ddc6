"""The plan of a synthetic corpus: its clips and their labels, before any sound is synthesised."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audioscore.demo.melody import BARS, Song, draw_song
from audioscore.demo.performance import Singer, draw_singer, timbre_quality
from audioscore.errors import UsageError

SOURCES = {"ktv": (50.0, 85.0, 1.0), "acapella": (85.0, 99.0, 0.4)}  # lowest and highest score, rater noise
# Properties that must not correlate with the score, and their ranges: seconds, and dB for the last two.
NUISANCES = {
    "seconds": (3.0, 6.0),
    "lead": (0.05, 0.35),
    "trail": (0.05, 0.4),
    "level_db": (-30.0, -22.0),
    "crest_db": (11.3, 12.5),
}
SHUFFLES = 200  # random orders, of which the one with the lowest correlation with the score is used
DEMO_SINGERS, DEMO_CLIPS, DEMO_SONGS, DEMO_SHARE = 96, 4, 16, 0.5


@dataclass(frozen=True)
class PlannedClip:
    """A planned recording with its label.

    `q_timbre` and `q_performance` are hidden qualities, 0 to 1. `seconds` is the whole length, of which `lead` and
    `trail` are silence; `level_db` is the RMS over the file (dB full scale), `crest_db` the highest peak above it.
    """

    audio_file: str
    score: float
    singer: Singer
    song: Song
    source: str
    q_timbre: float
    q_performance: float
    first_bar: int
    seconds: float
    lead: float
    trail: float
    level_db: float
    crest_db: float
    seed: tuple[int, ...]


@dataclass(frozen=True)
class _Performance:
    """A singer's performance of a song, without its score."""

    singer: Singer
    song: Song
    source: str
    q_performance: float
    first_bar: int
    seed: tuple[int, ...]


def plan_corpus(
    singers: int = DEMO_SINGERS, clips_per_singer: int = DEMO_CLIPS, *, seed: int = 7,
    timbre_share: float = DEMO_SHARE, songs: int = DEMO_SONGS,
) -> list[PlannedClip]:  # fmt: skip
    """Plan a corpus; the clips are sorted by file name, which is independent of everything else.

    Quality within a source is `timbre_share * q_timbre + (1 - timbre_share) * q_performance`; its rank among the
    source's clips, plus rater noise, is the score. Length, silence, level, peak and file order have the same
    distribution in every source, and are ordered so that they hardly correlate with the score.

    Raises: UsageError for fewer than two singers, no clip or song, a negative seed, or a share outside 0 to 1.
    """
    _check(singers, clips_per_singer, songs, seed, timbre_share)
    performances = _performances(singers, clips_per_singer, songs, seed)
    quality = np.array(
        [timbre_share * timbre_quality(one.singer) + (1 - timbre_share) * one.q_performance for one in performances]
    )
    sources = np.array([one.source for one in performances])
    rng = np.random.default_rng([seed, 402])
    scores, nuisances = np.zeros(len(quality)), np.zeros((len(quality), len(NUISANCES)))
    for source in SOURCES:
        rows = np.flatnonzero(sources == source)
        scores[rows] = _scores(quality[rows], source, rng)
        nuisances[rows] = _nuisances(scores[rows], np.random.default_rng([seed, 403]))
    positions = _file_order(scores, sources, rng)
    digits = max(4, len(str(len(performances))))
    clips = [
        PlannedClip(
            audio_file=f"audio/c{position + 1:0{digits}d}.m4a",
            score=round(float(score), 1),
            q_timbre=timbre_quality(one.singer),
            **vars(one),
            **dict(zip(NUISANCES, row.tolist(), strict=True)),
        )
        for one, score, row, position in zip(performances, scores, nuisances, positions, strict=True)
    ]
    return sorted(clips, key=lambda clip: clip.audio_file)


def _check(singers: int, clips_per_singer: int, songs: int, seed: int, timbre_share: float) -> None:
    if singers < 2:
        raise UsageError(f"corpus: at least 2 singers are needed, one for each source; got {singers}. Raise it.")
    if clips_per_singer < 1 or songs < 1:
        raise UsageError(
            f"corpus: at least 1 clip per singer and 1 song are needed; got {clips_per_singer} and {songs}. Raise them."
        )
    if seed < 0:
        raise UsageError(f"corpus: the seed is {seed}. Set it to 0 or more.")
    if not 0.0 <= timbre_share <= 1.0:
        raise UsageError(f"corpus: the timbre share must be between 0 and 1; got {timbre_share}. Correct it.")


def _performances(singers: int, clips_per_singer: int, songs: int, seed: int) -> list[_Performance]:
    """Draw the performances of every singer. Each depends only on its own indices, not on the number of others."""
    book = [draw_song(index, seed=seed, song_id=f"song{index + 1:03d}") for index in range(songs)]
    names = tuple(SOURCES)
    performances = []
    for index in range(singers):
        # Of two consecutive singers, a random one gets each source.
        toss = int(np.random.default_rng([seed, 400, index // 2]).integers(2))
        source = names[(index + toss) % 2]
        # Each source has its own choir, so that timbre quality is spread evenly within it.
        singer = draw_singer(index // 2, seed=_choir_seed(seed, source), singer_id=f"singer{index + 1:03d}")
        rng = np.random.default_rng([seed, 401, index])
        order = rng.permutation(songs)
        # One performance from each of K equal ranges of quality: all singers have the same mean performance.
        qualities = (rng.permutation(clips_per_singer) + rng.random(clips_per_singer)) / clips_per_singer
        for turn, quality in enumerate(qualities):
            song, first_bar = book[order[turn % songs]], int(rng.integers(BARS))
            performances.append(_Performance(singer, song, source, float(quality), first_bar, (seed, 500, index, turn)))
    return performances


def _choir_seed(seed: int, source: str) -> int:
    return int(np.random.SeedSequence([seed, 404, list(SOURCES).index(source)]).generate_state(1)[0])


def _scores(quality: NDArray[np.float64], source: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Scores that are uniform over the source's band by rank of quality, plus rater noise, clipped to the band."""
    from scipy.stats import rankdata

    low, high, noise = SOURCES[source]
    rank = (rankdata(quality) - 0.5) / len(quality)
    noisy = low + (high - low) * rank + rng.normal(0.0, noise, len(rank))
    return np.asarray(np.clip(noisy, low, high))


def _nuisances(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Length, silences, level and peak of each clip, [clips, 5], spread evenly and uncorrelated with the scores."""
    count = len(scores)
    columns = [
        low + (high - low) * (rng.permutation(count) + rng.random(count)) / count for low, high in NUISANCES.values()
    ]
    table = np.stack(columns, axis=1)
    share = (table[:, 1] + table[:, 2]) / table[:, 0]
    ranks = _ranks(np.column_stack([table, share]))
    target = _ranks(scores[:, None])[:, 0]
    orders = [rng.permutation(count) for _ in range(SHUFFLES)]
    best = min(orders, key=lambda order: float(np.abs(_correlations(ranks[order], target)).max()))
    return table[best]


def _file_order(scores: NDArray[np.float64], sources: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """File number of each clip, uncorrelated with the scores, overall and within each source."""
    groups = [np.arange(len(scores)), *(np.flatnonzero(sources == source) for source in SOURCES)]
    targets = [_ranks(scores[group, None])[:, 0] for group in groups]
    orders = [rng.permutation(len(scores)) for _ in range(SHUFFLES)]

    def correlation(order: NDArray[np.intp]) -> float:
        pairs = zip(groups, targets, strict=True)
        return max(float(np.abs(_correlations(_ranks(order[group, None]), target)).max()) for group, target in pairs)

    return np.asarray(min(orders, key=correlation))


def _ranks(columns: NDArray[np.generic]) -> NDArray[np.float64]:
    """Ranks of each column, centred and scaled to unit norm."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=0)
    ranks = ranks - ranks.mean(axis=0)
    return np.asarray(ranks / np.maximum(np.sqrt((ranks**2).sum(axis=0)), 1e-12))


def _correlations(ranks: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((ranks * target[:, None]).sum(axis=0))
