"""A stage's log: what it writes to stderr, kept in a file as well."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_SECONDS = 5.0  # a progress bar leaves a line in the log that often


@contextmanager
def logging_stderr(log: Path) -> Iterator["StderrCopy"]:
    """Copy what the body writes to `sys.stderr` to `log`, which is emptied first.

    Of a progress bar, which draws over its own line, the log gets a line now and then and the last one. What other
    programs and libraries write to the file descriptor itself is not copied.
    """
    terminal = sys.stderr
    file = _opened(log)
    copy = StderrCopy(terminal, file)
    sys.stderr = copy  # type: ignore[assignment]
    handlers = _handlers_on(terminal)
    for handler in handlers:
        handler.setStream(copy)  # type: ignore[arg-type]
    try:
        yield copy
    finally:
        sys.stderr = terminal
        for handler in handlers:
            handler.setStream(terminal)
        copy.finish()
        with suppress(OSError):
            file.close()


def say(sentence: str) -> None:
    """Write a line of its own to stderr, also where a progress bar stands."""
    if isinstance(sys.stderr, StderrCopy):
        sys.stderr.say(sentence)
    else:
        print(sentence, file=sys.stderr)


def _opened(log: Path) -> TextIO:
    """`log`; where it cannot be written, such as on a full disk, no file: the body's own files tell the reason."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


class StderrCopy:
    """The stream `terminal`, with its whole lines going to `file` too."""

    def __init__(self, terminal: TextIO, file: TextIO):
        self._terminal, self._file = terminal, file
        self._line, self._overdrawn, self._written = "", False, time.monotonic()

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)

    def write(self, text: str) -> int:
        for part in re.findall(r"[^\r\n]+|\r|\n", text):
            if part == "\n":
                self._keep()
            elif part == "\r":
                self._overdrawn = True
            else:
                if self._overdrawn:
                    self._overdraw()
                self._line += part
        return self._terminal.write(text)

    def say(self, sentence: str) -> None:
        """Write a line of its own, also where a progress bar stands."""
        self.write(f"\n{sentence}\n" if self._line.strip() else f"{sentence}\n")
        self.flush()

    def flush(self) -> None:
        self._terminal.flush()

    def finish(self) -> None:
        if self._line.strip():
            self._keep()

    def _overdraw(self) -> None:
        if self._line.strip() and time.monotonic() - self._written >= _SECONDS:
            self._keep()
        self._line, self._overdrawn = "", False

    def _keep(self) -> None:
        with suppress(OSError):
            self._file.write(self._line.rstrip() + "\n")
            self._file.flush()
        self._line, self._overdrawn, self._written = "", False, time.monotonic()


def _handlers_on(stream: TextIO) -> list["logging.StreamHandler[TextIO]"]:
    """The handlers of all loggers that write to `stream`: they took it when their library was imported."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [one for one in handlers if isinstance(one, logging.StreamHandler) and one.stream is stream]
