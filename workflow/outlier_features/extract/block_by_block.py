"""A chunk's passes, one block at a time: each block's weights are read once, however many sequences there are.

What a block returned of each batch, and what its sites gave, are kept in files of their own until the chunk is done. A
killed job's are taken up by the next that asks for the same: Snakemake removes its outputs, which these are not.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from outlier_features.errors import DamagedFile
from outlier_features.files.tensorfile import TensorFile, TensorFileWriter, write_tensors
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.models import LoadedModel
from outlier_features.model.prefixes import Prefix, Prefixes
from outlier_features.model.sites import Site, hooked
from outlier_features.model.tensors import map_tensors, parts_of

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
_JOB, _BLOCK = "blocks_of", "block"
LOSSES = "nll"


def place_beside(file: Path) -> Path:
    """The directory beside a chunk's file that holds what is finished of its passes."""
    return file.with_name(f".{file.name}.blocks")


@dataclass(frozen=True)
class Batch:
    """Sequences of a pass: `rows` of the chunk, ids int64 and mask bool (B, T), on the model's device."""

    rows: slice
    ids: torch.Tensor
    mask: torch.Tensor


Take = Callable[[str, torch.Tensor, Batch], Array | None]
Listening = Callable[[Batch], AbstractContextManager[None]]


class BlockByBlock:
    """The passes of a chunk.

    batches   of all its sequences
    place     where files are kept until `remove`
    job       all that the numbers depend on: files of another job are removed
    """

    def __init__(
        self, loaded: LoadedModel, prefixes: Prefixes, batches: Sequence[Batch], place: Path, job: Mapping[str, Any]
    ):
        self._loaded, self._prefixes, self._batches, self._place = loaded, prefixes, batches, place
        self._job = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()

    def run(
        self,
        sites: Mapping[str, Site],
        shapes: Shapes,
        take: Take,
        losses: Callable[[Batch, Callable[[], None]], Array] | None,
        *,
        listening: Listening,
        beside: Mapping[str, Callable[[Path], None]],
    ) -> None:
        """Run the blocks that are not finished.

        sites       by name, `{site}.{block}`
        shapes      by name, dtype and shape of the chunk's tensor of those sites that are kept, also of `LOSSES`
        take        makes what is kept of a site's tensor
        losses      runs the last block's pass, which it is given, and makes what is kept as `LOSSES`
        listening   around each pass of a batch
        beside      by name, writes what else is kept of a block, once it has run: to a file beside the block's
        """
        done = self._done()
        if done:
            print(f"block by block: {done} of {len(self._loaded.stack)} were finished before", file=sys.stderr)
        blocks = range(done, len(self._loaded.stack))
        for block in tqdm(blocks, desc="blocks", unit="block", file=sys.stderr):
            own = {name: site for name, site in sites.items() if name.rpartition(".")[2] == str(block)}
            last = block == len(self._loaded.stack) - 1
            names = [*(name for name in own if name in shapes), *([LOSSES] if last and losses else [])]
            facts = {_JOB: self._job, _BLOCK: block}
            with TensorFileWriter(self._file(block), {name: shapes[name] for name in names}, facts) as file:
                for number, batch in enumerate(self._batches):
                    run = partial(self._run_batch, block, number, own, take, file, listening)
                    if last and losses:
                        file.write(LOSSES, batch.rows.start, losses(batch, run))
                    else:
                        run()
                for name, keep in beside.items():
                    keep(self._beside(block, name))
            for left in self._place.glob(f"{block:05d}.*.hidden"):
                left.unlink()

    def _run_batch(
        self,
        block: int,
        number: int,
        sites: Mapping[str, Site],
        take: Take,
        file: TensorFileWriter,
        listening: Listening,
    ) -> None:
        batch = self._batches[number]

        def write(name: str, value: torch.Tensor) -> None:
            kept = take(name, value, batch)
            if kept is not None:
                file.write(name, batch.rows.start, kept)

        run = partial(run_blocks, self._loaded, batch.ids, batch.mask)
        with listening(batch), hooked(sites.items(), write, self._prefixes.past(block)):
            following = self._prefixes.step(self._kept(block, number), batch.ids, run)
        if following:
            self._keep(following, number)

    def by_batch(self) -> Iterator[tuple[Batch, dict[str, Array]]]:
        """What was kept of each batch by name, (B, T, ...), once all blocks are finished."""
        files = [TensorFile(self._file(block)) for block in range(len(self._loaded.stack))]
        for batch in self._batches:
            yield batch, {name: file.array(name)[batch.rows] for file in files for name in file.entries}

    def kept_beside(self, name: str) -> list[Path]:
        """What `beside` of that name wrote, block by block."""
        return [self._beside(block, name) for block in range(len(self._loaded.stack))]

    def remove(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)

    def _done(self) -> int:
        """Blocks that are finished; files of another job are removed."""
        for block in range(len(self._loaded.stack)):
            if not self._file(block).exists():
                return block
            try:
                facts = TensorFile(self._file(block)).provenance
                same = (facts.get(_JOB), facts.get(_BLOCK)) == (self._job, block)
            except DamagedFile:
                same = False
            if not same:
                print(f"block by block: removed what another job left in {self._place}", file=sys.stderr)
                self.remove()
                return 0
        return len(self._loaded.stack)

    def _file(self, block: int) -> Path:
        return self._place / f"{block:05d}.block"

    def _beside(self, block: int, name: str) -> Path:
        return self._place / f"{block:05d}.{name}"

    def _hidden(self, block: int, number: int) -> Path:
        return self._place / f"{block:05d}.{number:06d}.hidden"

    def _keep(self, prefix: Prefix, number: int) -> None:
        """Write down what a block begins with."""
        parts = [part for part in parts_of(prefix.output) if part is not None]
        arrays = {str(n): _bits(part) for n, part in enumerate(parts)}
        write_tensors(self._hidden(prefix.start, number), arrays, {_JOB: self._job})

    def _kept(self, block: int, number: int) -> Prefix:
        shape = self._batches[number].ids.shape
        if block == 0:
            return Prefix(0, shape)
        file = TensorFile(self._hidden(block, number))
        values = (file.array(str(n)) for n in range(len(file.entries)))

        def fill(like: torch.Tensor) -> torch.Tensor:
            bits = torch.from_numpy(next(values).copy()).clone()
            return (bits if bits.dtype == like.dtype else bits.view(like.dtype)).to(like.device)

        return Prefix(block, shape, map_tensors(self._prefixes.example(block).output, fill))


def _bits(value: torch.Tensor) -> Array:
    """As numpy, in a dtype of the same width where numpy has none such."""
    value = value.detach().cpu().contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
