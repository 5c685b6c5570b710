"""The last lines that a process logged, for whoever leads the fleet; older ones are in the process's own output."""

from __future__ import annotations

import collections
import logging

from edgewise.fleet.messages import LogAnswer, LogLine, LogRequest

MOST_LINES = 2000
"""Lines kept; a busy coordinator writes some hundred an hour."""
MOST_CHARACTERS = 2000
"""Of one line."""


class RecentLog(logging.Handler):
    """Keeps the last records of a logger; thread-safe, like every handler."""

    def __init__(self, logger: str = "edgewise") -> None:
        """Begins to listen.

        Args:
            logger: Which logger, with those below it.
        """
        super().__init__()
        self._logger = logging.getLogger(logger)
        self._lines: collections.deque[LogLine] = collections.deque(maxlen=MOST_LINES)
        self._next = 1
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        text = record.getMessage()[:MOST_CHARACTERS]
        self._lines.append(LogLine(self._next, record.created, record.levelname, text))
        self._next += 1

    def answer(self, request: LogRequest) -> LogAnswer:
        """The newest lines that were asked for, oldest first."""
        self.acquire()
        try:
            found = [line for line in self._lines if line.number > request.after]
        finally:
            self.release()
        return LogAnswer(tuple(found[-request.most :] if request.most > 0 else ()))

    def close(self) -> None:
        """Listens no more."""
        self._logger.removeHandler(self)
        super().close()
