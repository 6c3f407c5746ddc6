"""The promotion gate: which plan wins, and whether it becomes champion."""
