"""Why a recording has its score."""
