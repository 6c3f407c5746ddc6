"""Damaged recordings: whatever bytes come, decoding ends soon, with a recording or one sentence."""

import pytest

from benchmarks.decoder_fuzz import fuzz

pytestmark = pytest.mark.services


def test_no_bytes_crash_or_hang_the_decoder() -> None:
    """2,400 cases, of which each ends in a recording or an AudioError: no process has to be ended."""
    found = fuzz(2_400, seed=11)
    assert found.ended == []
    assert found.strange == []
    assert found.taken + found.refused == 2_400
    assert found.refused > 400
    assert found.taken > 100
