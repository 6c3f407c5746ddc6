"""The clips that models are judged on: a sorted data folder, or what the run that registered a version left behind."""

from dataclasses import dataclass, replace
from pathlib import Path

from audioscore.data.clips import Clip
from audioscore.data.split.assign import SPLITS
from audioscore.data.split.sort import INDEX, read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import DataError, UsageError
from audioscore.files import sha256_of

ALL = "all"
RUN_DATA, RUN_INDEX, RUN_CONFIG = "steps/*/fetch-data/data", "steps/*/sort-data/index", "config.json"


@dataclass(frozen=True)
class JudgingData:
    """Recordings, the folder whose index/ says which split each is in, and the data's digest."""

    data: Path
    index: Path
    digest: str

    def clips(self, split: str = "test") -> list[tuple[str, Clip]]:
        """The scored clips of a split, or of all, each with its split; a clip without sha256 is given it.

        Raises DataError where there is none, or a recording is missing.
        """
        splits = SPLITS if split == ALL else (split,)
        found = [(name, self._hashed(clip)) for name in splits for clip in read_split(self.index, name)]
        if not found:
            raise DataError(f"{self.index}: no scored clip in split {split}. Choose another with --split.")
        return found

    def _hashed(self, clip: Clip) -> Clip:
        if clip.sha256 is not None:
            return clip
        path = self.data / clip.audio_file
        if not path.is_file():
            raise DataError(f"{path}: no such file, though the index names it. Sort the data again.")
        return replace(clip, sha256=sha256_of(path))


def require_sorted(folder: Path) -> None:
    """Raise UsageError where it is no sorted data folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give a data folder that `audioscore data sort` has sorted.")
    if not (folder / INDEX).is_dir():
        raise UsageError(f"{folder}: is not sorted, {INDEX}/ missing. Run `audioscore data sort {folder}` first.")


def sorted_data(folder: Path) -> JudgingData:
    """A sorted data folder. Raises UsageError where it is none."""
    require_sorted(folder)
    return JudgingData(folder, folder, folder_digest(folder))


def data_of_run(run: Path, digest: str) -> JudgingData:
    """The data and splits of a run, in its folder. Raises UsageError where they are there no longer."""
    data, index = sorted(run.glob(RUN_DATA)), sorted(run.glob(RUN_INDEX))
    if len(data) != 1 or len(index) != 1:
        raise UsageError(f"{run}: the run's data are there no longer. Name a sorted data folder with --data.")
    return JudgingData(data[0], index[0], digest)
