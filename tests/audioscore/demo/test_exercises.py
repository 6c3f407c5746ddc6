import numpy as np
import pytest

from audioscore.demo.pretrain import exercises
from audioscore.errors import UsageError


def test_exercises_come_voice_by_voice_and_are_reproducible() -> None:
    found = list(exercises(3, 2, 1.5, seed=0))
    assert [exercise.singer.singer_id for exercise in found] == [f"voice000{n}" for n in (1, 1, 2, 2, 3, 3)]
    assert {exercise.wave.shape for exercise in found} == {(36_000,)}
    assert found[0].singer == found[1].singer
    assert found[0].faults != found[1].faults
    assert {exercise.source for exercise in exercises(4, 2, 1.0, seed=1)} == {"ktv", "acapella"}
    first = next(exercises(1, 1, 1.5, seed=0))
    assert np.array_equal(found[0].wave, first.wave)
    assert first.faults == found[0].faults
    assert not np.array_equal(first.wave, next(exercises(1, 1, 1.5, seed=1)).wave)


def test_two_processes_make_the_same_exercises() -> None:
    alone, together = (list(exercises(2, 2, 1.0, seed=3, workers=workers)) for workers in (1, 2))
    assert all(np.array_equal(one.wave, other.wave) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("arguments", [(0, 1, 3.0), (1, 0, 3.0), (1, 1, 0.2)])
def test_impossible_exercises_are_refused(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(UsageError, match=r"\b{}, {}, {}\b".format(*arguments)):
        next(exercises(*arguments, seed=0))
