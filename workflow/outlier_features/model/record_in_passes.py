"""What is reduced while a model runs a chunk's sequences, and the file that comes of it.

The passes go on without it where it cannot be had.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlier_features.files.missing import MISSING, Missing, why_missing
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.model.sites import Site

Array = np.ndarray[Any, Any]
_ABSENT = "absent"


class Recorder(ABC):
    """A reduction of tensors that a model makes.

    sites    by name `{site}.{block}`, whose tensors `receive` wants
    absent   what is not recorded, and why
    failed   what stopped the recording, which must not stop a pass
    """

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.absent: dict[str, str] = {}
        self.failed: Exception | None = None

    @abstractmethod
    def listening(self, first: int, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """While the model runs (B, T) of the run's sequences, from `first` on."""

    def receive(self, name: str, value: torch.Tensor) -> None:
        """A tensor of one of `sites`, (B, T, H) or (B*T, H)."""
        raise NotImplementedError

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What is recorded, and `absent`."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """What was recorded, as it is named in a file; it is forgotten here. Layer by layer it is of one block."""

    @abstractmethod
    def together(self, files: Sequence[TensorFile]) -> dict[str, Array]:
        """The arrays of all blocks, each of which was kept in a file."""

    @abstractmethod
    def forget(self) -> None:
        """What was recorded."""

    def close(self) -> None:
        """Nothing will be recorded any more."""
        self.forget()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Whatever happens here, the model's pass goes on."""
        try:
            yield
        except Exception as error:
            self.failed = self.failed or error
            self.forget()


class RecordInPasses:
    """What a chunk's passes hand to a recorder, and the file that comes of it."""

    def __init__(self, analysis: str, make: Callable[[], Recorder] | None, asked: Mapping[str, Any], log: Path):
        """analysis   that the recording is for, see `files.missing`
        make       the recorder; None: nothing is recorded
        asked      what was to be recorded, for the provenance
        log        of the job
        """
        self.analysis, self.asked, self._log = analysis, asked, log
        self._recorder: Recorder | None = None
        self._why: Missing | None = None
        if make:
            try:
                self._recorder = make()
            except Exception as error:
                self._why = why_missing(error, analysis, log)
        self.sites: Mapping[str, Site] = self._recorder.sites if self._recorder else {}

    def listening(self, first: int, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Around a pass of (B, T) of the run's sequences, from `first` on."""
        return self._recorder.listening(first, shape) if self._recorder else nullcontext()

    def receive(self, name: str, value: torch.Tensor) -> None:
        if self._recorder and not self._recorder.failed:
            self._recorder.receive(name, value)

    def keep(self, file: Path) -> None:
        """Write what was recorded in the passes of a block that has run, and forget it."""
        if self._recorder:
            arrays = self._recorder.arrays()
            write_tensors(file, arrays, {_ABSENT: self._recorder.absent, MISSING: _record(self._missing())})

    def write(self, path: Path, provenance: Mapping[str, Any], kept: Sequence[Path]) -> None:
        """Write the chunk's file, with the files of blocks that were kept."""
        recorder = self._recorder
        files = [TensorFile(file) for file in kept] if recorder else []
        reasons = [_record(self._missing()), *(file.provenance[MISSING] for file in files)]
        missing = next((one for one in reasons if one), None)
        arrays: dict[str, Array] = {}
        facts = {**provenance, **self.asked} | ({MISSING: missing} if missing else {})
        if recorder and not missing:
            for file in files:
                recorder.absent |= file.provenance[_ABSENT]
            arrays = recorder.together(files) if files else recorder.arrays()
            facts |= recorder.provenance
        write_tensors(path, arrays, facts)
        if recorder:
            recorder.close()

    def _missing(self) -> Missing | None:
        if self._recorder and self._recorder.failed and not self._why:
            self._why = why_missing(self._recorder.failed, self.analysis, self._log)
        return self._why


def _record(missing: Missing | None) -> dict[str, Any] | None:
    return asdict(missing) if missing else None
