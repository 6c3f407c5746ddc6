"""Explanations of the score of a recording."""
