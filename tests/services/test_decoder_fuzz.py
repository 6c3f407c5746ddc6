import pytest

from benchmarks.decoder_fuzz import fuzz


@pytest.mark.services
def test_damaged_recordings_never_crash_or_hang_the_decoder() -> None:
    """Each of 2,400 cases ends with a decoded recording or an AudioError; no process must be killed."""
    found = fuzz(2_400, seed=11)
    assert found.ended == []
    assert found.malformed == []
    assert found.accepted + found.refused == 2_400
    assert found.refused > 400
    assert found.accepted > 100
