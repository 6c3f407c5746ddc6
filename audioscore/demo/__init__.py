"""Synthetic singing whose quality is known: voices, songs, faults and rooms to train and test a scorer on."""

from audioscore.demo.corpus import render, write_corpus
from audioscore.demo.plan import PlannedClip, plan_corpus
from audioscore.demo.pretrain import Exercise, exercises

__all__ = ["Exercise", "PlannedClip", "exercises", "plan_corpus", "render", "write_corpus"]
