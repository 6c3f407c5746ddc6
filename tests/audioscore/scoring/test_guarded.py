"""Decoding in processes of its own; these spawn interpreters and take seconds."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audioscore.errors import AudioError
from audioscore.scoring.guarded import GuardedDecoder
from audioscore.scoring.intake import Ears, Limits, Take, take_in

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
def test_what_hangs_or_crashes_is_refused_and_the_next_is_taken(recordings: list[Path]) -> None:
    with GuardedDecoder(EARS, Limits(), seconds=20.0) as decode:
        clip, expected = decode(Take("a", recordings[0])), take_in(Take("a", recordings[0]), EARS, Limits())
        assert clip.muq is not None
        assert expected.muq is not None
        np.testing.assert_array_equal(clip.muq, expected.muq)
        with pytest.raises(AudioError, match=r"^b: ends the process that decodes it\. Export it again\.$"):
            decode(Take("b", Deed(kills=True)))
        with pytest.raises(AudioError, match=r"the uploaded recording: cannot be decoded"):
            decode(Take("c", b"not audio"))
        decode._seconds = 1.0
        with pytest.raises(AudioError, match=r"^d: is not decoded after 1 s"):
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
def test_ctrl_c_is_not_for_the_processes_that_decode(recordings: list[Path]) -> None:
    with GuardedDecoder(EARS, Limits(), seconds=20.0) as decode:
        assert decode(Take("a", Interrupted(recordings[0]))).muq is not None
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
