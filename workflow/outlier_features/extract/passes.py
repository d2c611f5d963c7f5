"""The passes of a chunk: a model whose sites are proven, the sequences that it runs, and what comes out of them."""

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import transformers
from tqdm import tqdm

from outlier_features import __version__
from outlier_features.channels.kept_channels import RECORDED
from outlier_features.channels.linear_layers import find_linear_inputs
from outlier_features.channels.record_channels import ChannelRecorder
from outlier_features.code_version import code_version
from outlier_features.errors import InputError
from outlier_features.extract.block_by_block import LOSSES, Batch, BlockByBlock
from outlier_features.extract.loss_schema import SCORED
from outlier_features.extract.losses import LossRecorder, loss_recorder
from outlier_features.extract.proven_sites import ProvenSites, Write, as_stored, not_finite, require_finite
from outlier_features.extract.request import Request, Sequences
from outlier_features.files.tensorfile import TensorFileWriter
from outlier_features.model.forward_pass import run_blocks, sees_padding
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.record_in_passes import RecordInPasses
from outlier_features.model.sites import Block, hooked
from outlier_features.neurons.ranked_at import RANKING, Ranking
from outlier_features.neurons.record_neurons import NeuronRecorder
from outlier_features.norms.kept_norms import norm_tensors, norms_or_why
from outlier_features.norms.norm import Norm
from outlier_features.norms.norms import checkpoint_of, find_norms
from outlier_features.quantized.quantization import Quantization
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]


class Passes:
    """The passes of a request.

    shapes       by name `{site}.{block}`, format and shape (n, T, H) of the activations of the sites that are there
    gains        by site, what the norms that make it multiply by, float32 (L, H), see `site_gains`
    provenance   of everything that comes out of them
    """

    def __init__(
        self,
        request: Request,
        loaded: LoadedModel,
        location: Path | None,
        *,
        batch_size: int,
        threads: int,
        kept: Path,
        log: Path,
        ranking: Ranking | None = None,
        recording: bool = False,
        scoring: bool = True,
    ):
        """Find and prove the sites of a model.

        location     of its files, in which the gains of its norms are looked up; None: it has none
        batch_size   sequences in a pass on a GPU; a CPU takes one at a time
        threads      that rank neurons
        kept         a directory for what is finished of a model that runs one block at a time
        log          of the job, for whoever looks into why the norms could not be found
        ranking      how neurons are ranked on the way, see `record_neurons`; None: they are not
        recording    whether the inputs of linear layers are recorded on the way, see `record_channels`
        scoring      whether the losses of tokens are computed

        A site that the model lacks is named in the provenance (`absent`) and on stderr. Raises `InputError` where the
        model cannot be used, or its vocabulary or positions do not fit the tokens.
        """
        self._request = request
        _check_fit(request.run, loaded, request.tokens, request.model["location"])
        print(
            f"attention: {loaded.attention}; blocks: {len(loaded.stack)} x {loaded.stack.blocks[0].path}",
            file=sys.stderr,
        )
        quantized = loaded.quantized.kept if loaded.quantized else request.model.get("quantized")
        if quantized:
            print(f"weights: dequantized from {Quantization.of(quantized)}", file=sys.stderr)
        found = ProvenSites.of(loaded, request.sites, loaded.model_type)
        self._loaded = loaded
        recorder, no_loss = loss_recorder(loaded)
        self._recorder = recorder if scoring else None
        self._scoring = {SCORED: scoring}
        if no_loss:
            print(f"no loss: {no_loss}", file=sys.stderr)
        self.provenance: dict[str, Any] = request.run.provenance | {
            "model_origin": request.model["origin"],
            "model_revision": request.model["revision"],
            **_facts(loaded),
            "quantized": quantized,
            "causal_head": recorder is not None,
            "no_loss": no_loss,
            **request.place,
            **found.facts,
            "job": uuid.uuid4().hex,
            "package_version": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self._sites, self.gains = found.by_name, found.gains
        self._norms: dict[str, Array] = {}
        self._norm_facts: dict[str, Any] = {}
        if request.start == 0:
            norms = norms_or_why(lambda: self._find_norms(found, location), log)
            self._norms, self._norm_facts = norm_tensors(norms)
        self._batch_size = _sequences_at_once(loaded, batch_size)
        self._chunk = request.sequences(request.start, request.stop)
        shape = self._chunk.ids.shape
        self.shapes = found.shapes(shape)
        self._loss_shapes = {LOSSES: ("F32", shape)} if self._recorder else {}
        ranks = partial(self._neuron_recorder, found.blocks, ranking, threads) if ranking else None
        records = partial(self._channel_recorder, found.blocks) if recording else None
        self._neurons = RecordInPasses("neurons", ranks, {RANKING: ranking}, log)
        self._channels = RecordInPasses("channels", records, {RECORDED: recording}, log)
        self._stepwise = self._one_block_at_a_time(kept)

    @classmethod
    def of_fetched(
        cls,
        request: Request,
        *,
        batch_size: int,
        kept: Path,
        log: Path,
        ranking: Ranking | None,
        recording: bool,
        scoring: bool,
        **loading: Unpack[Loading],
    ) -> "Passes":
        """The passes of the model of the request, which is loaded."""
        location = Path(request.model["location"])
        return cls(
            request,
            load_model(location, **loading),
            location,
            batch_size=batch_size,
            threads=loading["threads"],
            kept=kept,
            log=log,
            ranking=ranking,
            recording=recording,
            scoring=scoring,
        )

    @contextmanager
    def loss_file(self, path: Path) -> Iterator[TensorFileWriter]:
        """The file of losses, `nll` float32 (n, T) in nats where asked for and the model predicts a next token; it
        gets the norms of the model too, if the run begins here (see `kept_norms`)."""
        shapes = self._loss_shapes | {name: ("F32", values.shape) for name, values in self._norms.items()}
        with TensorFileWriter(path, shapes, self.provenance | self._norm_facts | self._scoring) as file:
            for name, values in self._norms.items():
                file.write(name, 0, values)
            yield file

    @property
    def most_at_once(self) -> int:
        """The most sequences of a pass."""
        return max(rows.stop - rows.start for rows in self._batches(self._chunk))

    def run(self, write: Write, write_losses: Write, done: Callable[[slice], None] = lambda rows: None) -> None:
        """Run all sequences.

        write          gets the activations
        write_losses   gets `nll`
        done           called with the rows of each pass when all of theirs were handed out

        Raises `InputError` where an activation is not finite.
        """
        if self._stepwise:
            self._run_block_by_block(self._stepwise, write, write_losses, done)
            return
        for rows in tqdm(self._batches(self._chunk), desc="forward passes", unit="batch", file=sys.stderr):
            losses = self._run_batch(self._chunk, rows, write, first=False)
            if losses is not None:
                write_losses(LOSSES, rows.start, losses)
            done(rows)

    def run_first(self, stop: int, write: Write) -> None:
        """Run the first of the passes of the run's first chunk, which ends before sequence `stop`."""
        chunk = self._request.sequences(0, stop)
        self._run_batch(chunk, self._batches(chunk)[0], write, first=True)

    def write_beside(self, neurons: Path, channels: Path) -> None:
        """Write what was ranked and recorded, once all have run."""
        for recording, path in ((self._neurons, neurons), (self._channels, channels)):
            kept = self._stepwise.kept_beside(recording.analysis) if self._stepwise else []
            recording.write(path, self.provenance, kept)

    def finish(self) -> None:
        """Remove what was kept of them, once all else is written."""
        if self._stepwise:
            self._stepwise.remove()

    def _find_norms(self, found: ProvenSites, location: Path | None) -> list[Norm]:
        return find_norms(self._loaded, found.blocks, checkpoint_of(location) if location else [], found.calls)

    def _neuron_recorder(self, blocks: list[Block], ranking: Ranking, threads: int) -> NeuronRecorder:
        parts, sequences = self._request.run.parts, self._request.stop - self._request.start
        return NeuronRecorder(self._loaded, blocks, parts, sequences=sequences, threads=threads, **ranking)

    def _channel_recorder(self, blocks: list[Block]) -> ChannelRecorder:
        inputs = find_linear_inputs(self._loaded, blocks)
        return ChannelRecorder(inputs, self._request.run.parts, self._request.start, self._request.stop)

    @contextmanager
    def _listening(self, sequences: Sequences, rows: slice) -> Iterator[None]:
        """Around a pass of some rows: neurons and channels are reduced while it runs."""
        first, shape = sequences.start + rows.start, sequences.ids[rows].shape
        with self._neurons.listening(first, shape), self._channels.listening(first, shape):
            yield

    def _batches(self, chunk: Sequences) -> list[slice]:
        return chunk.batches(self._batch_size, apart=sees_padding(self._loaded))

    def _run_batch(self, chunk: Sequences, rows: slice, write: Write, *, first: bool) -> Array | None:
        """first   of the run's first sequences nothing but the activations is wanted"""
        ids, mask = chunk.tensors(rows, self._loaded.device)
        recorder = None if first else self._recorder
        ranked = {} if first else self._neurons.sites
        nonfinite: dict[str, int] = {}

        def take(name: str, value: torch.Tensor) -> None:
            if name in ranked:
                self._neurons.receive(name, value)
            if name in self._sites:
                if count := not_finite(value):
                    nonfinite[name] = count
                write(name, rows.start, as_stored(value, chunk.ids[rows].shape))

        with ExitStack() as around:
            around.enter_context(hooked({**self._sites, **ranked}.items(), take))
            if not first:
                around.enter_context(self._listening(chunk, rows))
            if recorder:
                around.enter_context(recorder.states())
            run_blocks(self._loaded, ids, mask)
        require_finite(nonfinite, self._loaded.dtype, chunk.start + rows.start)
        return _losses(recorder, ids, mask) if recorder else None

    def _one_block_at_a_time(self, kept: Path) -> BlockByBlock | None:
        """The passes of a model whose weights stay on disk, if they give the same numbers that way."""
        loaded = self._loaded
        if loaded.placement.kind != "layerwise":
            return None
        prefixes = Prefixes(loaded)
        if problem := prefixes.no_steps():
            print(
                f"block by block: not with this model, every batch reads the weights anew: {problem}", file=sys.stderr
            )
            return None
        batches = [Batch(rows, *self._chunk.tensors(rows, loaded.device)) for rows in self._batches(self._chunk)]
        own = {"job": None, "code": code_version(Path(__file__)), "batch_size": self._batch_size}
        asked = {**self._neurons.asked, **self._channels.asked, **self._scoring}
        job = {**self.provenance, "files": self._request.model["files"], **own, **asked}
        return BlockByBlock(loaded, prefixes, batches, kept, job)

    def _run_block_by_block(
        self, passes: BlockByBlock, write: Write, write_losses: Write, done: Callable[[slice], None]
    ) -> None:
        def take(name: str, value: torch.Tensor, batch: Batch) -> Array | None:
            if name in self._neurons.sites:
                self._neurons.receive(name, value)
            if name not in self._sites:
                return None
            if count := not_finite(value):
                require_finite({name: count}, self._loaded.dtype, self._chunk.start + batch.rows.start)
            return as_stored(value, tuple(batch.ids.shape))

        def losses(batch: Batch, run: Callable[[], None]) -> Array:
            assert self._recorder is not None
            with self._recorder.states():
                run()
            return _losses(self._recorder, batch.ids, batch.mask)

        def listening(batch: Batch) -> AbstractContextManager[None]:
            return self._listening(self._chunk, batch.rows)

        passes.run(
            {**self._sites, **self._neurons.sites},
            self.shapes | self._loss_shapes,
            take,
            losses if self._recorder else None,
            listening=listening,
            beside={one.analysis: one.keep for one in (self._neurons, self._channels)},
        )
        for batch, tensors in passes.by_batch():
            for name, values in tensors.items():
                (write_losses if name == LOSSES else write)(name, batch.rows.start, values)
            done(batch.rows)


def _sequences_at_once(loaded: LoadedModel, batch_size: int) -> int:
    # On a CPU the last bit of a matrix product depends on its number of rows (few tokens, or few at an expert), so each
    # sequence is run for itself; larger batches are no quicker there.
    return 1 if loaded.device.type == "cpu" else batch_size


def _losses(recorder: LossRecorder, ids: torch.Tensor, mask: torch.Tensor) -> Array:
    values: Array = recorder.token_losses(ids, mask).cpu().numpy()
    return values


def _check_fit(run: Tokens, loaded: LoadedModel, path: Path, location: str) -> None:
    largest = int(run.tokens.max())
    if largest >= loaded.vocab_size:
        raise InputError(
            f"{path}: found token id {largest}, expected ids below {loaded.vocab_size}, the vocabulary of "
            f"{loaded.model_type}; the tokenizer in {location} does not fit the model"
        )
    positions = getattr(loaded.config, "max_position_embeddings", None)
    if positions is not None and run.tokens.shape[1] > positions:
        print(
            f"sample.tokens: {run.tokens.shape[1]} is more than the {positions} positions that {loaded.model_type} "
            "says it has; if it can run them at all, it extrapolates",
            file=sys.stderr,
        )


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "architecture": loaded.model_type,
        "parameters": loaded.parameters,
        "blocks": loaded.blocks,
        "d_model": loaded.d_model,
        "vocab_size": loaded.vocab_size,
        "causal": loaded.causal,
        "part": loaded.part,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "attention": loaded.attention,
        "threads": torch.get_num_threads(),
        "placement": loaded.placement.kind,
    }
