import signal
import threading

import pytest

from audioscore.data.transfer.pool import Hooks, Stopped, run_all


def test_results_are_in_the_order_of_the_tasks() -> None:
    done_of: list[tuple[int, int]] = []
    first = threading.Event()

    def slow(hooks: Hooks) -> str:
        assert first.wait(10)
        return "slow"

    def fast(hooks: Hooks) -> str:
        first.set()
        return "fast"

    def record(done: int, of: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        done_of.append((done, of))

    assert run_all([slow, fast], workers=2, progress=record) == ["slow", "fast"]
    assert done_of == [(1, 2), (2, 2)]
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


def test_an_interrupt_stops_the_tasks() -> None:
    stopped, main = threading.Event(), threading.get_ident()

    def endless(hooks: Hooks) -> None:
        hooks.sleep(0.2)  # until the main thread waits for results
        signal.pthread_kill(main, signal.SIGINT)
        try:
            while True:
                hooks.received(1)
        except Stopped:
            stopped.set()
            raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all([endless], workers=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.wait(10)
