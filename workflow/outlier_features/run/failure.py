"""How a job failed, as its log says it, and what a run that did not fail is missing."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outlier_features.errors import INTERRUPTED_LINE, TERMINATED_LINE
from outlier_features.files.artifacts import read_json
from outlier_features.files.missing import missing_sentence

WITHOUT_A_WORD = "ended without a word: killed, or out of memory"
_LAST = 5  # lines in which a job's last word stands: a progress bar may be drawn once more after it
_ERROR = "error: "


@dataclass(frozen=True)
class LastWord:
    """The end of a job's log: the sentence of its error, or that it was interrupted or terminated.

    said   whether it is an `error:` line, which the job wrote to the terminal too
    """

    reason: str
    said: bool = False

    @property
    def was_stopped(self) -> bool:
        """By a signal to end, which is no failure."""
        return self.reason in (INTERRUPTED_LINE, TERMINATED_LINE)


def last_word(log: Path) -> LastWord | None:
    """None of a log that ends otherwise, as that of a job which succeeded, is at work or was killed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    for line in lines[: -_LAST - 1 : -1]:
        if line.startswith(_ERROR):
            return LastWord(line.removeprefix(_ERROR), said=True)
        if line in (INTERRUPTED_LINE, TERMINATED_LINE):
            return LastWord(line)
    return LastWord(lines[-1]) if "Traceback (most recent call last):" in lines[:-1] else None


@dataclass(frozen=True)
class Failure:
    """A job that failed: its rule, its run (`model/corpus`, or what else its output is of), why, and its log."""

    rule: str
    of: str
    word: LastWord
    log: str

    @classmethod
    def of_job(cls, rule: str, of: str, logs: Sequence[str | Path], since: float) -> "Failure":
        """Of a job whose Snakemake began at `since`, seconds from the epoch: an older log is an earlier job's.

        The log of a job that left no word, such as one that was killed, is given one.
        """
        [log] = map(Path, logs)
        if log.is_file() and log.stat().st_mtime >= since:
            word = last_word(log)
            if word is None:
                word = LastWord(WITHOUT_A_WORD)
                _write(log, "a")
        elif not _is_writable(log):
            word = LastWord("failed, and its log could not be written", said=True)
        else:
            word = LastWord(WITHOUT_A_WORD)
            _write(log, "w")
        return cls(rule, of, word, str(log))

    @property
    def sentence(self) -> str:
        """A line for stderr, with `error: ` where the job wrote no such line."""
        reason = self.word.reason
        if self.word.was_stopped:
            reason = f"was {reason}"
        elif reason != WITHOUT_A_WORD and not reason.startswith("failed, "):
            reason = f"failed: {reason}"
        return f"{'' if self.word.said else _ERROR}rule {self.rule} {reason}; log: {self.log}"


def failure_lines(failures: Iterable[Failure]) -> Iterator[str]:
    """A line for each reason: chunks of a run may all have the same."""
    alike: dict[tuple[str, str, LastWord], list[Failure]] = {}
    for one in failures:
        alike.setdefault((one.rule, one.of, one.word), []).append(one)
    for first, *others in alike.values():
        more = f" (and of {len(others)} other jobs of {first.of})" if others else ""
        yield first.sentence + more


def missing_lines(summary: Path) -> Iterator[str]:
    """A line for each analysis of a run that could not be had, from its summary.json."""
    found = read_json(summary, "model", "corpus", "missing")
    for analysis, facts in found["missing"].items():
        if facts["cause"] != "off":
            yield f"{found['model']['name']} on {found['corpus']['name']}: {missing_sentence(analysis, facts)}"


def _write(log: Path, mode: str) -> None:
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open(mode, encoding="utf-8") as file:
            file.write(f"\n{_ERROR}{WITHOUT_A_WORD}\n")


def _is_writable(log: Path) -> bool:
    place = next(place for place in (log, *log.absolute().parents) if place.exists())
    return os.access(place, os.W_OK)
