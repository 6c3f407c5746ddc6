import threading

import pytest

from audioscore.data.transfer.pool import Hooks, Stopped, run_all


def test_results_come_in_the_tasks_order() -> None:
    done_of: list[tuple[int, int]] = []
    sizes: list[int] = []
    first = threading.Event()

    def slow(hooks: Hooks) -> str:
        assert first.wait(10)
        return "slow"

    def quick(hooks: Hooks) -> str:
        hooks.received(7)
        first.set()
        return "quick"

    def note(done: int, of: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        done_of.append((done, of))

    assert run_all([slow, quick], workers=2, progress=note, bytes_progress=sizes.append) == ["slow", "quick"]
    assert done_of == [(1, 2), (2, 2)]
    assert sizes == [7]
    assert run_all([], workers=2) == []


def test_a_fault_stops_the_others_and_is_raised() -> None:
    ended: list[str] = []
    begun = threading.Event()

    def endless(hooks: Hooks) -> None:
        begun.set()
        try:
            hooks.sleep(3600)
        except Stopped:
            ended.append("sleep")
            raise

    def bad(hooks: Hooks) -> None:
        assert begun.wait(10)
        raise ValueError("full")

    later: list[int] = []
    with pytest.raises(ValueError, match="full"):
        run_all([endless, bad, *[lambda hooks: later.append(1)] * 9], workers=2)
    assert ended == ["sleep"]
    assert later == []


def test_what_a_progress_bar_raises_stops_the_tasks() -> None:
    stopped = threading.Event()

    def endless(hooks: Hooks) -> None:
        try:
            while True:
                hooks.received(1)
        except Stopped:
            stopped.set()
            raise

    def interrupt(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([endless], workers=1, bytes_progress=interrupt)
    assert stopped.wait(10)
