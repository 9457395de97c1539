"""Stops code that does not come back: a loop without an end, a wait for nothing.

Used by :mod:`distill_helpers.course.checks` on what learners write, in every notebook.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# Once the time is over, ask this often: one request may be swallowed.
_AGAIN_SECONDS = 0.02
# In another thread, wait so long for the code to stop, then leave it behind.
_PATIENCE_SECONDS = 0.5


class OutOfTime(BaseException):
    """The time is over. No ``Exception``: the code that is stopped may catch those.

    Attributes:
        stack: Where the code was, outermost call first.
    """

    def __init__(self, frame: FrameType | None):
        super().__init__()
        self.stack = traceback.extract_stack(frame) if frame is not None else []


def call_within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work()`` returns or raises; :class:`OutOfTime` if it takes too long.

    Waits such as ``time.sleep`` are cut off, too. Not stopped is one long call of a
    compiled function, which hands nothing back to Python until it is done.

    Args:
        seconds: The limit.
        work: Called without arguments; on Linux and macOS in this thread, if it is
            the main one, elsewhere in another.
    """
    if _alarm_is_free():
        return _call_with_alarm(seconds, work)
    return _call_in_thread(seconds, work)


def _alarm_is_free() -> bool:
    """Python runs signal handlers in the main thread; Windows has no alarm.

    Nor can a handler be put back that was not set from Python.
    """
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is not None
    )


def _call_with_alarm(seconds: float, work: Callable[[], T]) -> T:
    outermost: FrameType | None = None
    asked = False

    def inside() -> T:
        nonlocal outermost
        outermost = sys._getframe()
        return work()

    def stop(_: int, frame: FrameType | None) -> None:
        # An alarm may come late. Outside of the work it must not raise: it would hit
        # the lines below, which clean up, or the caller.
        nonlocal asked
        if not _is_inside(frame, outermost):
            return
        over = OutOfTime(frame)
        if asked:
            _raise_again_where_caught(over, frame, outermost)
        asked = True
        raise over

    trace, handler = sys.gettrace(), signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        return inside()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if asked:
            sys.settrace(trace)
        outermost = None
        if left:
            # Somebody else's alarm goes on, at once if its time has come meanwhile.
            left = max(left - (time.monotonic() - start), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _is_inside(frame: FrameType | None, outermost: FrameType | None) -> bool:
    while frame is not None and frame is not outermost:
        frame = frame.f_back
    return frame is not None


def _raise_again_where_caught(
    over: OutOfTime, frame: FrameType | None, outermost: FrameType | None
) -> None:
    """Against a bare ``except:`` in a loop, which swallows every request.

    A trace function sees the line of such a clause before it runs, and what is raised
    there is no longer in its reach.
    """

    def trace(_: FrameType, event: str, __: object) -> Any:
        if event == "line":
            raise over
        return trace

    while frame is not None and frame is not outermost:
        frame.f_trace = trace
        frame = frame.f_back
    sys.settrace(trace)


def _call_in_thread(seconds: float, work: Callable[[], T]) -> T:
    returned: list[T] = []
    raised: list[BaseException] = []

    def inside() -> None:
        try:
            returned.append(work())
        except BaseException as error:
            raised.append(error)

    # A daemon, so that one which cannot be stopped does not keep Python from ending.
    thread = threading.Thread(target=inside, daemon=True)
    thread.start()
    try:
        _wait_for(thread, seconds)
        if thread.is_alive():
            raise OutOfTime(_frame_of(thread))
    finally:
        _stop(thread)
    if raised:
        raise raised[0]
    return returned[0]


def _wait_for(thread: threading.Thread, seconds: float) -> None:
    end = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < end:
        # Short waits, because Windows holds Ctrl-C back while it waits for a thread.
        thread.join(min(0.05, seconds))


def _stop(thread: threading.Thread) -> None:
    """Raise in the thread until it ends, or for as long as we have patience."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while thread.is_alive() and time.monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
        thread.join(_AGAIN_SECONDS)


def _frame_of(thread: threading.Thread) -> FrameType | None:
    return sys._current_frames().get(thread.ident or 0)
