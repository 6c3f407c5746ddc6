"""Synthetic singing whose quality is known: voices, songs, faults and rooms to train and test a scorer on."""

from audioscore.data.synthesis.corpus import render, speaker_clips, write_corpus
from audioscore.data.synthesis.plan import PlannedClip, plan_corpus

__all__ = ["PlannedClip", "plan_corpus", "render", "speaker_clips", "write_corpus"]
