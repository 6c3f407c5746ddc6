"""What the last accepted version of a data folder held, as the index says that `data sort` left there."""

from collections import defaultdict
from pathlib import Path

from audioscore.data.index import read_index
from audioscore.data.split.assign import SPLITS


def last_scores(folder: Path) -> dict[str, list[float]]:
    """Scores of the last accepted version by source, "" for clips that name none; empty where there was no version.

    Raises DataError where an index is there and cannot be read.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for name in SPLITS:
        path = folder / "index" / f"{name}.json"
        for group in read_index(path) if path.is_file() else []:
            for clip in group:
                if clip.score is not None:
                    scores[clip.source or ""].append(clip.score)
    return dict(scores)
