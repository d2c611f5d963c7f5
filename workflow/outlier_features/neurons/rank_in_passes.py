"""The ranking of neurons in a chunk's passes, which go on without it where it cannot be had."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlier_features.files.missing import MISSING, Missing, why_missing
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.model.sites import Site
from outlier_features.neurons.ranked_at import RANKING, Ranking
from outlier_features.neurons.record_neurons import NeuronRecorder

Array = np.ndarray[Any, Any]
_ABSENT = "absent"


class RankInPasses:
    """What a chunk's passes hand to a recorder, and the file that comes of it.

    sites   by name `{site}.{block}`, whose tensors `receive` wants; none where nothing is ranked
    """

    def __init__(self, ranking: Ranking | None, make: Callable[[Ranking], NeuronRecorder], log: Path):
        """ranking   what is wanted; None: nothing
        make      the recorder
        log       of the job
        """
        self._ranking, self._log = ranking, log
        self._recorder: NeuronRecorder | None = None
        self._missing: Missing | None = None
        if ranking is not None:
            try:
                self._recorder = make(ranking)
            except Exception as error:
                self._missing = why_missing(error, "neurons", log)
        self.sites: Mapping[str, Site] = self._recorder.sites if self._recorder else {}

    def listening(self, first: int, shape: tuple[int, ...]) -> AbstractContextManager[None]:
        """Around a pass of (B, T) of the run's sequences, from `first` on."""
        return self._recorder.listening(first, shape) if self._recorder else nullcontext()

    def receive(self, name: str, value: torch.Tensor) -> None:
        if self._recorder:
            self._recorder.receive(name, value)

    def keep(self, block: int, file: Path) -> None:
        """Write what was recorded of a block that has run, and forget it."""
        if self._recorder and not self._recorder.failed:
            facts = {_ABSENT: self._recorder.absent.get(block)}
            write_tensors(file, self._recorder.arrays(block), facts)

    def write(self, path: Path, provenance: Mapping[str, Any], kept: Mapping[int, Path]) -> None:
        """Write the chunk's file, with the files of blocks that were kept."""
        if self._recorder and self._recorder.failed:
            self._missing = why_missing(self._recorder.failed, "neurons", self._log)
        facts = {**provenance, RANKING: self._ranking}
        if self._recorder and not self._missing:
            arrays = dict(self._arrays(self._recorder, kept))
            write_tensors(path, arrays, {**facts, **self._recorder.provenance})
        else:
            write_tensors(path, {}, facts | ({MISSING: asdict(self._missing)} if self._missing else {}))
        if self._recorder:
            self._recorder.close()

    def _arrays(self, recorder: NeuronRecorder, kept: Mapping[int, Path]) -> Iterator[tuple[str, Array]]:
        for block in recorder.blocks:
            if block in kept:
                file = TensorFile(kept[block])
                if reason := file.provenance[_ABSENT]:
                    recorder.absent[block] = reason
                yield from ((name, file.array(name)) for name in file.entries)
            else:
                yield from recorder.arrays(block).items()
