import threading

import pytest

from audioscore.data.transfer.pool import Hooks, Stopped, run_all


def test_results_are_in_the_order_of_the_tasks() -> None:
    done_of: list[tuple[int, int]] = []
    sizes: list[int] = []
    first = threading.Event()

    def slow(hooks: Hooks) -> str:
        assert first.wait(10)
        return "slow"

    def fast(hooks: Hooks) -> str:
        hooks.received(7)
        first.set()
        return "fast"

    def record(done: int, of: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        done_of.append((done, of))

    assert run_all([slow, fast], workers=2, progress=record, bytes_progress=sizes.append) == ["slow", "fast"]
    assert done_of == [(1, 2), (2, 2)]
    assert sizes == [7]
    assert run_all([], workers=2) == []


def test_an_error_stops_the_other_tasks_and_is_raised() -> None:
    ended: list[str] = []
    started = threading.Event()

    def endless(hooks: Hooks) -> None:
        started.set()
        try:
            hooks.sleep(3600)
        except Stopped:
            ended.append("sleep")
            raise

    def bad(hooks: Hooks) -> None:
        assert started.wait(10)
        raise ValueError("full")

    later: list[int] = []
    with pytest.raises(ValueError, match="full"):
        run_all([endless, bad, *[lambda hooks: later.append(1)] * 9], workers=2)
    assert ended == ["sleep"]
    assert later == []


def test_an_exception_of_a_progress_bar_stops_the_tasks() -> None:
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
