"""Rule extract_activations: one forward pass over a chunk of sequences, its activations and token losses to files."""

import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import transformers
from tqdm import tqdm

from outlier_features import __version__
from outlier_features.code_version import code_version
from outlier_features.errors import InputError
from outlier_features.extract.block_by_block import LOSSES, Batch, BlockByBlock, place_of
from outlier_features.extract.losses import LossRecorder, loss_recorder
from outlier_features.files.artifacts import require_equal
from outlier_features.files.layer_keys import GAIN
from outlier_features.files.tensorfile import TensorFileWriter, write_tensors
from outlier_features.model.forward_pass import run_blocks, sees_padding
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model, overflow_hint
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import SITES, Block, Site, find_sites, hooked
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.norms.kept_norms import norm_tensors, norms_or_why
from outlier_features.norms.norm_forms import norm_calls
from outlier_features.norms.norms import checkpoint_of, find_norms
from outlier_features.norms.site_gains import site_gains
from outlier_features.quantized.quantization import Quantization
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
_STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def extract_activations(
    source: Path,
    tokens: Path,
    activations: Path,
    losses: Path,
    *,
    start: int,
    stop: int,
    sites: list[str],
    batch_size: int,
    sample: Mapping[str, Any] | None = None,
    log: Path | None = None,
    **loading: Unpack[Loading],
) -> None:
    """Run the sequences from `start` to before `stop` through a model.

    source       the model's source.json
    tokens       the run's tokens.safetensors: N sequences of T tokens, padded on the right
    sites        names of `sites.SITES`; one that the model lacks is named in the provenance (`absent`) and on stderr
    batch_size   sequences in a pass on a GPU; a CPU takes one at a time
    sample       how the tokens must have been sampled, as the config says it; any way will do if None
    log          of the job, for whoever looks into why the norms could not be found

    A chunk that begins after the last sequence, of a text shorter than the sample, gets files without tensors and costs
    no pass.

    Writes `activations`, a tensor `{site}.{block}` (stop - start, T, H) in the model's dtype for each site and block
    that has it and `gain.{site}` float32 (L, H), what the norms that make a site multiply by (see `site_gains`), and
    `losses`, `nll` float32 (stop - start, T) in nats where the model predicts a next token. Both carry the same
    provenance. The run's first `losses` hold the norms of the model too (see `kept_norms`). Memory does not grow with
    the number of sequences.

    Raises `InputError` where the model cannot be used, its vocabulary or positions do not fit the tokens, a site is
    not what its name says, or an activation is not finite.
    """
    run = Tokens.read(tokens)
    sequences = len(run.tokens)
    start, stop = min(start, sequences), min(stop, sequences)
    _check_request(run, tokens, sites)
    model_source = run.files.model(source)
    if sample is not None:
        require_equal({"sample": dict(sample)}, run.provenance, ("sample",), tokens)
    if start == stop:
        print(f"the text has {sequences} sequences, none is left for this chunk", file=sys.stderr)
        for path in (activations, losses):
            write_tensors(path, {}, {**run.provenance, "start": start, "stop": stop, "sequences": sequences})
        return
    loaded = load_model(Path(model_source["location"]), **loading)
    _check_fit(run, loaded, tokens, model_source["location"])
    print(
        f"attention: {loaded.attention}; blocks: {len(loaded.stack)} x {loaded.stack.blocks[0].path}", file=sys.stderr
    )
    quantized = loaded.quantized.kept if loaded.quantized else model_source.get("quantized")
    if quantized:
        print(f"weights: dequantized from {Quantization.of(quantized)}", file=sys.stderr)
    blocks = find_sites(loaded)
    proof = prove_sites(loaded, blocks)
    keep_proven(blocks, proof)
    absent = _absent(blocks, sites)
    _report(blocks, sites, absent, proof.held)
    if not any(site in block.sites for block in blocks for site in sites):
        site = "resid_post" if "resid_post" in absent else next(iter(absent))
        reason = absent[site]
        raise InputError(f"sites: found none of {', '.join(sites)} in {loaded.model_type}: {site}: {reason}")
    recorder, no_loss = loss_recorder(loaded)
    if no_loss:
        print(f"no loss: {no_loss}", file=sys.stderr)
    provenance = run.provenance | {
        "model_origin": model_source["origin"],
        "model_revision": model_source["revision"],
        **_facts(loaded),
        "quantized": quantized,
        "causal_head": recorder is not None,
        "no_loss": no_loss,
        "start": start,
        "stop": stop,
        "sequences": sequences,
        "sites": [site for site in sites if any(site in block.sites for block in blocks)],
        "absent": absent,
        "job": uuid.uuid4().hex,
        "package_version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    found = {
        f"{site}.{index}": block.sites[site]
        for site in sites
        for index, block in enumerate(blocks)
        if site in block.sites
    }
    chunk = _Chunk(run.tokens[start:stop], run.mask[start:stop], start)
    size = _sequences_at_once(loaded, batch_size)
    stepwise = _stepwise(loaded, chunk, size, activations, provenance | {"files": model_source["files"]})
    shape, stored_as = chunk.ids.shape, _STORED_AS[loaded.dtype]
    activation_shapes = {name: (stored_as, (*shape, site.width)) for name, site in found.items()}
    calls = norm_calls(loaded)
    gains = {GAIN + site: values for site, values in site_gains(loaded, blocks, sites, calls).items()}
    norms: dict[str, Array] = {}
    norm_facts: dict[str, Any] = {}
    if start == 0:
        weights = Path(model_source["location"])
        found_norms = norms_or_why(lambda: find_norms(loaded, blocks, checkpoint_of(weights), calls), log or losses)
        norms, norm_facts = norm_tensors(found_norms)
    norm_shapes = {name: ("F32", values.shape) for name, values in norms.items()}
    loss_shapes = {LOSSES: ("F32", shape)} if recorder else {}
    gain_shapes = {name: ("F32", values.shape) for name, values in gains.items()}
    with (
        TensorFileWriter(activations, activation_shapes | gain_shapes, provenance) as activation_file,
        TensorFileWriter(losses, loss_shapes | norm_shapes, provenance | norm_facts) as loss_file,
    ):
        for name, values in gains.items():
            activation_file.write(name, 0, values)
        for name, values in norms.items():
            loss_file.write(name, 0, values)
        if stepwise:
            shapes = activation_shapes | loss_shapes
            _run_block_by_block(stepwise, loaded, found, recorder, chunk, shapes, activation_file, loss_file)
        else:
            _run(loaded, found, recorder, chunk, size, activation_file, loss_file)
    if stepwise:
        stepwise.remove()


def _sequences_at_once(loaded: LoadedModel, batch_size: int) -> int:
    # On a CPU the last bit of a matrix product depends on its number of rows (few tokens, or few at an expert), so each
    # sequence is run for itself; larger batches are no quicker there.
    return 1 if loaded.device.type == "cpu" else batch_size


@dataclass(frozen=True)
class _Chunk:
    """Sequences to run: ids int32 and mask bool (n, T), from sequence `start` of the run on."""

    ids: Array
    mask: Array
    start: int = 0

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 and mask bool (B, T) of some rows."""
        ids, mask = self.ids[rows].astype(np.int64), self.mask[rows].copy()
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def batches(self, size: int, apart: bool) -> list[slice]:
        """Rows of each pass, in order; `apart`: full and padded sequences never share one."""
        full = [bool(row.all()) for row in self.mask]
        batches, start = [], 0
        for row in range(1, len(full) + 1):
            if row == len(full) or row - start == size or (apart and full[row] != full[start]):
                batches.append(slice(start, row))
                start = row
        return batches


def _run(
    loaded: LoadedModel,
    found: Mapping[str, Site],
    recorder: LossRecorder | None,
    chunk: _Chunk,
    batch_size: int,
    activation_file: TensorFileWriter,
    loss_file: TensorFileWriter,
) -> None:
    batches = chunk.batches(batch_size, apart=sees_padding(loaded))
    for rows in tqdm(batches, desc="forward passes", unit="batch", file=sys.stderr):
        ids, mask = chunk.tensors(rows, loaded.device)
        nonfinite: dict[str, int] = {}

        def write(name: str, value: torch.Tensor, rows: slice = rows, nonfinite: dict[str, int] = nonfinite) -> None:
            if count := value.numel() - int(torch.isfinite(value).sum()):
                nonfinite[name] = count
            activation_file.write(name, rows.start, _array(value, chunk.ids[rows].shape))

        with hooked(found.items(), write), recorder.states() if recorder else nullcontext():
            run_blocks(loaded, ids, mask)
        _require_finite(nonfinite, loaded, chunk.start + rows.start)
        if recorder:
            loss_file.write(LOSSES, rows.start, recorder.token_losses(ids, mask).cpu().numpy())


def _stepwise(
    loaded: LoadedModel, chunk: _Chunk, batch_size: int, activations: Path, job: Mapping[str, Any]
) -> BlockByBlock | None:
    """The passes one block at a time, of a model whose weights stay on disk, if they give the same numbers."""
    if loaded.placement.kind != "layerwise":
        return None
    prefixes = Prefixes(loaded)
    if problem := prefixes.no_steps():
        print(f"block by block: not with this model, every batch reads the weights anew: {problem}", file=sys.stderr)
        return None
    batches = [
        Batch(rows, *chunk.tensors(rows, loaded.device)) for rows in chunk.batches(batch_size, sees_padding(loaded))
    ]
    own = {"job": None, "code": code_version(Path(__file__)), "batch_size": batch_size}
    return BlockByBlock(loaded, prefixes, batches, place_of(activations), {**job, **own})


def _run_block_by_block(
    passes: BlockByBlock,
    loaded: LoadedModel,
    found: Mapping[str, Site],
    recorder: LossRecorder | None,
    chunk: _Chunk,
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    activation_file: TensorFileWriter,
    loss_file: TensorFileWriter,
) -> None:
    def take(name: str, value: torch.Tensor, batch: Batch) -> Array:
        if count := value.numel() - int(torch.isfinite(value).sum()):
            _require_finite({name: count}, loaded, chunk.start + batch.rows.start)
        return _array(value, tuple(batch.ids.shape))

    def losses(batch: Batch, run: Callable[[], None]) -> Array:
        assert recorder is not None
        with recorder.states():
            run()
        values: Array = recorder.token_losses(batch.ids, batch.mask).cpu().numpy()
        return values

    passes.run(found, shapes, take, losses if recorder else None)
    for name, batch, values in passes.tensors([*found, LOSSES]):
        (loss_file if name == LOSSES else activation_file).write(name, batch.rows.start, values)


def _require_finite(nonfinite: Mapping[str, int], loaded: LoadedModel, sequence: int) -> None:
    """Raise `InputError` with the first tensor, in the order in which the model made them, that is not finite."""
    if nonfinite:
        name, count = next(iter(nonfinite.items()))
        site, _, layer = name.rpartition(".")
        raise InputError(
            f"site {site}, layer {layer} has {count} values that are NaN or infinite in the batch from sequence "
            f"{sequence} on, expected finite ones{overflow_hint(loaded.dtype)}"
        )


def _array(value: torch.Tensor, shape: tuple[int, ...]) -> Array:
    """The values (B, T, H) as numpy, bfloat16 as its bits."""
    value = value.detach().reshape(*shape, -1).cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _check_request(run: Tokens, path: Path, sites: list[str]) -> None:
    if (run.mask[:, 1:] > run.mask[:, :-1]).any():
        raise InputError(f"{path}: found padding before tokens, expected it at the end of each sequence")
    if unknown := sorted(set(sites) - set(SITES)):
        raise InputError(f"sites: found {unknown[0]!r}, expected names among {', '.join(SITES)}")


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


def _absent(blocks: list[Block], sites: list[str]) -> dict[str, str]:
    """For each requested site that a block lacks: why, and which blocks unless all do."""
    absent = {}
    for site in sites:
        lacking: dict[str, list[int]] = defaultdict(list)
        for index, block in enumerate(blocks):
            if site not in block.sites:
                lacking[block.absent[site]].append(index)
        if lacking:
            absent[site] = "; ".join(_reason(reason, indices, len(blocks)) for reason, indices in lacking.items())
    return absent


def _reason(reason: str, indices: list[int], blocks: int) -> str:
    return reason if len(indices) == blocks else f"blocks {','.join(map(str, indices))}: {reason}"


def _report(blocks: list[Block], sites: list[str], absent: Mapping[str, str], proven: Mapping[str, list[str]]) -> None:
    for site in sites:
        count = sum(site in block.sites for block in blocks)
        if count:
            print(f"{site}: in {count} of {len(blocks)} blocks; checked: {', '.join(proven[site])}", file=sys.stderr)
        if site in absent:
            print(f"{site}: absent ({absent[site]})", file=sys.stderr)


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
        "placement_reason": loaded.placement.why,
    }
