"""A Snakemake logger plugin that logs nothing of a run: it looks at the configuration before Snakemake reads it, and at
what Snakemake says when it cannot go on; and it tells `outlier-features run` how far the run is.

`profiles/default` turns it on. Snakemake makes its log handlers first, so this is where a file that Snakemake would
meet with a traceback, or would run code from, can be refused in one line.
"""

import builtins
import re
import sys
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase

from outlier_features.errors import InputError, fault_sentence
from outlier_features.run.config_files import require_arguments
from outlier_features.run.events import tell
from outlier_features.run.recovery import require_nothing_left


class LogHandler(LogHandlerBase):
    def __post_init__(self) -> None:
        try:
            require_arguments(sys.argv[1:])
        except InputError as error:
            sys.exit(f"error: {error}")

    def emit(self, record: LogRecord) -> None:
        """Of an unknown target, a lock and a fault of the rules say in one line what Snakemake says in several.

        `outlier-features run` is told of jobs.
        """
        tell(record)
        raised = getattr(record, "exception", None)
        if raised == "MissingRuleException":
            found = re.search(r"No rule to produce (.*?) \(if ", record.getMessage())
            target = repr(found[1]) if found else "a target that no rule makes"
            _say(f"found {target}, expected a target: all, tables, report, figures, export, or a file of a run")
        elif raised == "LockException":
            try:
                require_nothing_left(Path.cwd())
            except InputError as error:
                _say(str(error))
        elif raised and _is_fault(raised):
            _say(fault_sentence(f"{raised} in the rules", "what stands above, the configuration"))

    @property
    def writes_to_stream(self) -> bool:
        return False

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return False

    @property
    def has_formatter(self) -> bool:
        return False

    @property
    def needs_rulegraph(self) -> bool:
        return False


def _say(sentence: str) -> None:
    """On a line of its own, though Snakemake, in another thread, may not have ended its last one."""
    sys.stderr.write(f"\nerror: {sentence}\n")


def _is_fault(raised: str) -> bool:
    """Whether an exception of that name comes from the rules' code: Python's own, but for what a machine refuses."""
    kind = getattr(builtins, raised, None)
    if isinstance(kind, type):
        return issubclass(kind, Exception) and not issubclass(kind, OSError | MemoryError)
    return raised == "InputFunctionException"
