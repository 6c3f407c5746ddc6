import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audioscore.errors import AudioError
from audioscore.scoring.input import Ears, Limits, Take, take_in
from audioscore.scoring.stream import GuardedDecoder

EARS = Ears(muq=True, voice=True, whole=False)


@dataclass(frozen=True)
class Deed:
    """A source that does something in the process that asks for its bytes."""

    kills: bool

    def __call__(self) -> bytes:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        return b""


@pytest.mark.services
def test_the_decoder_survives_a_crash_and_a_hang(recordings: list[Path]) -> None:
    with GuardedDecoder(EARS, Limits(), seconds=20.0) as decode:
        clip, expected = decode(Take("a", recordings[0])), take_in(Take("a", recordings[0]), EARS, Limits())
        np.testing.assert_array_equal(clip.muq, expected.muq)
        with pytest.raises(AudioError, match=r"^b: "):
            decode(Take("b", Deed(kills=True)))
        with pytest.raises(AudioError, match="uploaded"):
            decode(Take("c", b"not audio"))
        decode._seconds = 1.0
        with pytest.raises(AudioError, match=r"^d: .*\b1 s\b"):
            decode(Take("d", Deed(kills=False)))
        decode._seconds = 20.0
        assert decode(Take("a", recordings[0])).seconds == clip.seconds


@dataclass(frozen=True)
class Interrupted:
    """A source in the middle of which Ctrl-C is pressed."""

    path: Path

    def __call__(self) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        return self.path.read_bytes()


@pytest.mark.services
def test_decoding_processes_ignore_ctrl_c(recordings: list[Path]) -> None:
    with GuardedDecoder(EARS, Limits(), seconds=20.0) as decode:
        assert decode(Take("a", Interrupted(recordings[0]))).muq is not None
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
