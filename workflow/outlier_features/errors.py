"""The one error class for mistakes outside the code, and how a stage ends on one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """A config, model, corpus or file is not what it must be.

    The message is one sentence: what was found, where (key or file), what was expected.
    """


@contextmanager
def stage(log: str | Path) -> Iterator[None]:
    """Run the body of a rule's script: an `InputError` becomes one `error:` line and exit status 1.

    The line goes to stderr and to `log`; whatever the body writes to stderr (progress, warnings) is left alone.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    Path(log).write_text("")
    try:
        yield
    except InputError as error:
        line = f"error: {' '.join(str(error).split())}"
        Path(log).write_text(line + "\n")
        print(line, file=sys.stderr, flush=True)
        sys.exit(1)
