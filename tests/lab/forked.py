"""Other processes of a test. None is waited for longer than a minute, and none outlives its test:
what hangs is a failure that says where, for a suite that waits forever says nothing."""

import multiprocessing
import time
from contextlib import contextmanager

import pytest

MINUTE = 60.0  # seconds
CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
FORK = multiprocessing.get_context("fork" if CAN_FORK else None)  # the package is imported already
forks = pytest.mark.skipif(not CAN_FORK, reason="needs processes that fork, and can be killed")


@contextmanager
def forked(target, *args, **kwargs):
    """A running process, which has ended, or is killed, behind the block."""
    process = FORK.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    try:
        yield process
    finally:
        if process.exitcode is None:
            process.join(MINUTE)
        hangs = process.exitcode is None
        process.kill()
        process.join()
    assert not hangs, f"{target.__name__} did not end within {MINUTE:g} s"


def until(condition):
    """What `condition()` returns, once it is true."""
    end = time.monotonic() + MINUTE
    while not (found := condition()):
        assert time.monotonic() < end, f"not so within {MINUTE:g} s"
        time.sleep(0.01)
    return found
