"""A Zenoh session that tells when its library has panicked, e.g. of a full disk or a lost lock: it is of no use then.

Zenoh is written in Rust. A panic on one of its threads leaves its locks poisoned: the process lives, its liveliness token stands,
and whatever it asks of Zenoh from then on panics too. Python sees that as a `PanicException`, which is no `Exception`: it ends
threads and passes every handler. Here it becomes a `TransportError`, and whoever opened the session is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewise.core.errors import TransportError

_PARTS = ("info", "liveliness")
"""What a session gives that is asked in its place."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust; its class cannot be imported."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


class WatchedSession:
    """A session, or a part of one, whose calls raise `TransportError` where it panics.

    Args:
        watched: The session.
        panicked: Told of each panic, on the thread that met it.
    """

    def __init__(self, watched: Any, panicked: Callable[[], object]) -> None:
        self._watched, self._panicked = watched, panicked

    def __getattr__(self, name: str) -> Any:
        found = self._call(getattr, self._watched, name)
        if not callable(found):
            return WatchedSession(found, self._panicked) if name in _PARTS else found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._call(found, *args, **kwargs)
            return WatchedSession(result, self._panicked) if name in _PARTS else result

        return call

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not is_panic(error):
                raise
            self._panicked()
            raise TransportError(f"zenoh has panicked ({error}). Start this process again.") from error
