"""A stage's log: what it writes to stderr, kept in a file as well, and what such a file says last."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

INTERRUPTED_LINE, TERMINATED_LINE = "interrupted", "terminated"
ERROR, NOT_RUN = "error: ", "not run: "  # what lines begin with
_LAST = 5  # lines in which a job's last word stands: a progress bar may be drawn once more after it
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


@dataclass(frozen=True)
class LastWord:
    """The end of a job's log: the sentence of its error, that it was ended by a signal, or why it did not run.

    said   whether it is an `error:` line, which the job wrote to the terminal too
    """

    reason: str
    said: bool = False

    @property
    def is_failure(self) -> bool:
        return not (self.was_stopped or self.reason.startswith(NOT_RUN))

    @property
    def was_stopped(self) -> bool:
        return self.reason in (INTERRUPTED_LINE, TERMINATED_LINE)


def last_word(log: Path) -> LastWord | None:
    """None of a log that ends otherwise, as that of a job which succeeded, is at work or was killed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    for line in lines[: -_LAST - 1 : -1]:
        if line.startswith(ERROR):
            return LastWord(line.removeprefix(ERROR), said=True)
        if line in (INTERRUPTED_LINE, TERMINATED_LINE) or line.startswith(NOT_RUN):
            return LastWord(line)
    return LastWord(lines[-1]) if "Traceback (most recent call last):" in lines[:-1] else None
