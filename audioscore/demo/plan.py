"""What a synthetic corpus will hold, decided before any sound is made."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audioscore.demo.melody import BARS, Song, draw_song
from audioscore.demo.performance import Singer, draw_singer, timbre_quality
from audioscore.errors import UsageError

SOURCES = {"ktv": (50.0, 85.0, 1.0), "acapella": (85.0, 99.0, 0.4)}  # lowest and highest score, noise of the raters
# What a score must not be readable from, and the range of each: seconds, and dB for the last two.
NUISANCES = {
    "seconds": (3.0, 6.0),
    "lead": (0.05, 0.35),
    "trail": (0.05, 0.4),
    "level_db": (-30.0, -22.0),
    "crest_db": (11.3, 12.5),
}
SHUFFLES = 200  # arrangements tried for the one that tells least of the score
DEMO_SINGERS, DEMO_CLIPS, DEMO_SONGS, DEMO_SHARE = 96, 4, 16, 0.5


@dataclass(frozen=True)
class PlannedClip:
    """One recording to be made, and its label.

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
class _Take:
    """A singer's turn at a song, before it has a score."""

    singer: Singer
    song: Song
    source: str
    q_performance: float
    first_bar: int
    seed: tuple[int, ...]


def plan_corpus(
    singers: int = DEMO_SINGERS,
    clips_per_singer: int = DEMO_CLIPS,
    *,
    seed: int = 7,
    timbre_share: float = DEMO_SHARE,
    songs: int = DEMO_SONGS,
) -> list[PlannedClip]:
    """Plan a corpus; clips come in the order of their file names, which is unrelated to anything else.

    Quality within a source is `timbre_share * q_timbre + (1 - timbre_share) * q_performance`; its rank among the
    source's clips, plus the raters' noise, is the score. Length, silence, level, peak and file order are drawn alike
    for every source and arranged so that they tell next to nothing of the score.

    Raises UsageError for fewer than two singers, no clip or song, a negative seed, or a share outside 0 to 1.
    """
    _check(singers, clips_per_singer, songs, seed, timbre_share)
    takes = _takes(singers, clips_per_singer, songs, seed)
    quality = np.array([timbre_share * timbre_quality(t.singer) + (1 - timbre_share) * t.q_performance for t in takes])
    sources = np.array([take.source for take in takes])
    rng = np.random.default_rng([seed, 402])
    scores, nuisances = np.zeros(len(takes)), np.zeros((len(takes), len(NUISANCES)))
    for source in SOURCES:
        here = np.flatnonzero(sources == source)
        scores[here] = _scores(quality[here], source, rng)
        nuisances[here] = _nuisances(scores[here], np.random.default_rng([seed, 403]))
    places = _file_order(scores, sources, rng)
    digits = max(4, len(str(len(takes))))
    clips = [
        PlannedClip(
            audio_file=f"audio/c{place + 1:0{digits}d}.m4a",
            score=round(float(score), 1),
            singer=take.singer,
            song=take.song,
            source=take.source,
            q_timbre=timbre_quality(take.singer),
            q_performance=take.q_performance,
            first_bar=take.first_bar,
            seed=take.seed,
            **{name: float(value) for name, value in zip(NUISANCES, row, strict=True)},
        )
        for take, score, row, place in zip(takes, scores, nuisances, places, strict=True)
    ]
    return sorted(clips, key=lambda clip: clip.audio_file)


def _check(singers: int, clips_per_singer: int, songs: int, seed: int, timbre_share: float) -> None:
    if singers < 2:
        raise UsageError(f"A corpus needs at least 2 singers, one for each source; got {singers}. Ask for more.")
    if clips_per_singer < 1 or songs < 1:
        raise UsageError(
            f"A corpus needs at least 1 clip a singer and 1 song; got {clips_per_singer} and {songs}. Ask for more."
        )
    if seed < 0:
        raise UsageError(f"The seed of a corpus must not be negative; got {seed}. Give 0 or more.")
    if not 0.0 <= timbre_share <= 1.0:
        raise UsageError(f"The timbre share of quality must be between 0 and 1; got {timbre_share}. Give a share.")


def _takes(singers: int, clips_per_singer: int, songs: int, seed: int) -> list[_Take]:
    """Every singer's turns. A take depends on its own indices only, not on how many others there are."""
    book = [draw_song(index, seed=seed, song_id=f"song{index + 1:03d}") for index in range(songs)]
    names = tuple(SOURCES)
    takes = []
    for index in range(singers):
        # Neighbours in the choir get different sources; which of them gets which is a toss.
        toss = int(np.random.default_rng([seed, 400, index // 2]).integers(2))
        source = names[(index + toss) % 2]
        # Each source has a choir of its own, so that timbre is spread evenly within it.
        singer = draw_singer(index // 2, seed=_choir_seed(seed, source), singer_id=f"singer{index + 1:03d}")
        rng = np.random.default_rng([seed, 401, index])
        order = rng.permutation(songs)
        # One performance from each of K equal steps of quality: a singer's mean tells nothing of a single clip.
        qualities = (rng.permutation(clips_per_singer) + rng.random(clips_per_singer)) / clips_per_singer
        for turn, quality in enumerate(qualities):
            song, first_bar = book[order[turn % songs]], int(rng.integers(BARS))
            takes.append(_Take(singer, song, source, float(quality), first_bar, (seed, 500, index, turn)))
    return takes


def _choir_seed(seed: int, source: str) -> int:
    return int(np.random.SeedSequence([seed, 404, list(SOURCES).index(source)]).generate_state(1)[0])


def _scores(quality: NDArray[np.float64], source: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniform over the source's band by rank of quality, plus the raters' noise, kept within the band."""
    from scipy.stats import rankdata

    low, high, noise = SOURCES[source]
    rank = (rankdata(quality) - 0.5) / len(quality)
    noisy = low + (high - low) * rank + rng.normal(0.0, noise, len(rank))
    return np.asarray(np.clip(noisy, low, high))


def _nuisances(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Length, silences, level and peak of each clip, [clips, 5]: every range filled evenly, told by no score."""
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
    """The place of each clip among the files, which tells nothing of scores, overall or within a source."""
    groups = [np.arange(len(scores)), *(np.flatnonzero(sources == source) for source in SOURCES)]
    targets = [_ranks(scores[group, None])[:, 0] for group in groups]
    orders = [rng.permutation(len(scores)) for _ in range(SHUFFLES)]

    def told(order: NDArray[np.intp]) -> float:
        pairs = zip(groups, targets, strict=True)
        return max(float(np.abs(_correlations(_ranks(order[group, None]), target)).max()) for group, target in pairs)

    return np.asarray(min(orders, key=told))


def _ranks(columns: NDArray[np.generic]) -> NDArray[np.float64]:
    """Ranks of each column, centred and scaled to unit length."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=0)
    ranks = ranks - ranks.mean(axis=0)
    return np.asarray(ranks / np.maximum(np.sqrt((ranks**2).sum(axis=0)), 1e-12))


def _correlations(ranks: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((ranks * target[:, None]).sum(axis=0))
