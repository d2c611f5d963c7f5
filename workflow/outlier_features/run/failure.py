"""How a job failed, as its log says it, and what a run that did not fail is missing."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outlier_features.files.artifacts import read_json
from outlier_features.files.missing import missing_sentence
from outlier_features.stage_log import ERROR, LastWord, last_word

WITHOUT_A_WORD = "ended without a word: killed, or out of memory"
_WITHOUT_A_LOG = "never began: killed, out of memory, or not submitted, which Snakemake's log says"


def has_spoken(log: Path, since: float) -> bool:
    """Whether a log was written since then, in seconds from the epoch, and ends with a word."""
    return log.is_file() and log.stat().st_mtime >= since and last_word(log) is not None


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
                _write(log, "a", word)
        elif not _is_writable(log):
            word = LastWord("failed, and its log could not be written", said=True)
        else:
            word = LastWord(_WITHOUT_A_LOG)
            _write(log, "w", word)
        return cls(rule, of, word, str(log))

    @property
    def sentence(self) -> str:
        """A line for stderr, with `error: ` where the job wrote no such line."""
        reason = self.word.reason
        if self.word.was_stopped:
            reason = f"was {reason}"
        elif reason not in (WITHOUT_A_WORD, _WITHOUT_A_LOG) and not reason.startswith("failed, "):
            reason = f"failed: {reason}"
        return f"{'' if self.word.said else ERROR}rule {self.rule} {reason}; log: {self.log}"


def failure_lines(failures: Iterable[Failure]) -> Iterator[str]:
    """A line for each reason: chunks of a run may have the same. Jobs that were not run have none."""
    alike: dict[tuple[str, str, LastWord], list[Failure]] = {}
    for one in (one for one in failures if one.word.is_failure or one.word.was_stopped):
        alike.setdefault((one.rule, one.of, one.word), []).append(one)
    for first, *others in alike.values():
        jobs = "job" if len(others) == 1 else "jobs"
        more = f" (and of {len(others)} other {jobs} of {first.of})" if others else ""
        yield first.sentence + more


def missing_lines(summary: Path) -> Iterator[str]:
    """A line for each analysis of a run that could not be had, from its summary.json."""
    found = read_json(summary, "model", "corpus", "missing")
    for analysis, facts in found["missing"].items():
        if facts["cause"] != "off":
            yield f"{found['model']['name']} on {found['corpus']['name']}: {missing_sentence(analysis, facts)}"


def _write(log: Path, mode: str, word: LastWord) -> None:
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open(mode, encoding="utf-8") as file:
            file.write(f"\n{ERROR}{word.reason}\n")


def _is_writable(log: Path) -> bool:
    place = next(place for place in (log, *log.absolute().parents) if place.exists())
    return os.access(place, os.W_OK)
