import torch

from audioscore.encoders.extract import Features
from audioscore.scoring.batch import collate

CLIPS: list[Features] = [
    {"muq": torch.full((length, 3), float(length)), "campplus": torch.full((2,), -float(length))} for length in (2, 4)
]


def test_clips_are_padded_to_the_longest_and_lengths_say_what_is_real() -> None:
    batch = collate(CLIPS)
    assert batch.frames is not None
    assert batch.embedding is not None
    assert batch.frames.shape == (2, 4, 3)
    assert batch.lengths.tolist() == [2, 4]
    assert batch.frames[0, :2].unique().tolist() == [2.0]
    assert batch.frames[0, 2:].unique().tolist() == [0.0]
    assert batch.embedding.tolist() == [[-2.0, -2.0], [-4.0, -4.0]]


def test_a_plan_of_one_branch_has_only_that_one() -> None:
    voice = collate([{"campplus": clip["campplus"]} for clip in CLIPS])
    assert voice.frames is None
    assert voice.lengths.tolist() == [1, 1]
    music = collate([{"muq": clip["muq"]} for clip in CLIPS])
    assert music.embedding is None
    assert music.lengths.tolist() == [2, 4]


def test_a_batch_moves_whole() -> None:
    moved = collate(CLIPS).to("meta")
    assert {str(part.device) for part in (moved.lengths, moved.frames, moved.embedding) if part is not None} == {"meta"}
