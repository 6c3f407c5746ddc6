"""A singing-voice scorer on the 50-99 scale, and the pipeline that trains, compares and registers it."""

__version__ = "0.1.0"
