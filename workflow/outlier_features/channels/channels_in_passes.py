"""The recording of channels in a chunk's passes, which go on without it where it cannot be had."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.channels.kept_channels import ABSENT, RECORDED, TOKEN_ABSMAX, merged
from outlier_features.channels.record_channels import ChannelRecorder
from outlier_features.files.missing import MISSING, Missing, why_missing
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.populations import EXCLUDED, REST

Array = np.ndarray[Any, Any]


class ChannelsInPasses:
    """What a chunk's passes hand to a recorder, and the file that comes of it."""

    def __init__(self, wanted: bool, make: Callable[[], ChannelRecorder], log: Path):
        """make   the recorder
        log    of the job
        """
        self._wanted, self._log = wanted, log
        self._recorder: ChannelRecorder | None = None
        self._why: Missing | None = None
        if wanted:
            try:
                self._recorder = make()
            except Exception as error:
                self._why = why_missing(error, "channels", log)

    def listening(self, first: int, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Around a pass of (B, T) of the run's sequences, from `first` on."""
        return self._recorder.listening(first, shape) if self._recorder else nullcontext()

    def keep(self, block: int, file: Path) -> None:
        """Write what was recorded in the passes of a block, and forget it."""
        if self._recorder:
            arrays = self._recorder.arrays()
            write_tensors(file, arrays, {ABSENT: self._recorder.absent, MISSING: _record(self._missing())})

    def write(self, path: Path, provenance: Mapping[str, Any], kept: Mapping[int, Path]) -> None:
        """Write the chunk's file, with the files of blocks that were kept."""
        files = [TensorFile(file) for file in kept.values()] if self._recorder else []
        reasons = [_record(self._missing()), *(file.provenance[MISSING] for file in files)]
        missing = next((one for one in reasons if one), None)
        arrays: dict[str, Array] = {}
        facts = {**provenance, RECORDED: self._wanted} | ({MISSING: missing} if missing else {})
        if self._recorder and not missing:
            for file in files:
                self._recorder.absent |= file.provenance[ABSENT]
            arrays = _together(files, self._recorder.names) if files else self._recorder.arrays()
            facts |= self._recorder.provenance
        write_tensors(path, arrays, facts)

    def _missing(self) -> Missing | None:
        if self._recorder and self._recorder.failed and not self._why:
            self._why = why_missing(self._recorder.failed, "channels", self._log)
        return self._why


def _record(missing: Missing | None) -> dict[str, Any] | None:
    return asdict(missing) if missing else None


def _together(files: list[TensorFile], names: list[str]) -> dict[str, Array]:
    """What was kept of all blocks: an input of a layer that several share was recorded in the passes of each."""
    found: dict[str, Array] = {}
    for name in names:
        for part in (EXCLUDED, REST):
            if kept := merged(files, name, [part]):
                found |= kept.arrays(name, part)
        tokens = f"{name}.{TOKEN_ABSMAX}"
        if of_blocks := [file.array(tokens) for file in files if tokens in file.entries]:
            found[tokens] = np.maximum.reduce(of_blocks)
    return found
