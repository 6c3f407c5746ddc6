"""Decoding of audio files by FFmpeg: container headers, streams, and which files are recordings."""
