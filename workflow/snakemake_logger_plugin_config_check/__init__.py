"""A Snakemake logger plugin that logs nothing of a run: it looks at the configuration before Snakemake reads it.

`profiles/default` turns it on. Snakemake makes its log handlers first, so this is where a file that Snakemake would
meet with a traceback, or would run code from, can be refused in one line.
"""

import re
import sys
from logging import LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase

from outlier_features.errors import InputError
from outlier_features.run.config_files import require_arguments
from outlier_features.run.recovery import require_nothing_left


class LogHandler(LogHandlerBase):
    def __post_init__(self) -> None:
        try:
            require_arguments(sys.argv[1:])
        except InputError as error:
            sys.exit(f"error: {error}")

    def emit(self, record: LogRecord) -> None:
        """Of a target that no rule makes, and of a lock, say in one line what Snakemake says in several."""
        raised = getattr(record, "exception", None)
        if raised == "MissingRuleException":
            found = re.search(r"No rule to produce (.*?) \(if ", record.getMessage())
            target = repr(found[1]) if found else "a target that no rule makes"
            print(
                f"error: found {target}, expected a target: all, tables, report, figures, export, or a file of a run",
                file=sys.stderr,
            )
        elif raised == "LockException":
            try:
                require_nothing_left(Path.cwd())
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)

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
