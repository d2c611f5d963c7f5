"""Rule trace_origin: from which block, part of it, checkpoint, neuron and weight a massive activation comes."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import numpy as np
import polars as pl
import torch
import transformers
from tqdm import tqdm

from outlier_features import __version__
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.dims.steps import steps
from outlier_features.errors import ConfigError, InputError
from outlier_features.files.artifacts import replacing
from outlier_features.files.tables import write_table
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import Block, Site, find_sites, hooked
from outlier_features.model.verify_sites import TOLERANCE, verify_sites
from outlier_features.origin.block_parts import SITES as LIFECYCLE_SITES
from outlier_features.origin.expert_parts import expert_sites
from outlier_features.origin.extremes import find_extremes
from outlier_features.origin.lifecycle import lifecycle_rows
from outlier_features.origin.mlp_ladder import checkpoints, ladder_rows, ladder_sites
from outlier_features.origin.mlp_weights import (
    Spectrum,
    feed,
    feed_rows,
    projection_row,
    spectrum,
    weight_of,
    weight_row,
)
from outlier_features.origin.origin_schema import LIFECYCLE, ORIGIN, ORIGIN_NEURONS, ORIGIN_SHARES, ORIGIN_WEIGHTS
from outlier_features.origin.origin_targets import Selection, TracedDim, recorded_targets
from outlier_features.origin.origin_text import origin_text
from outlier_features.origin.shares_of_parts import ROUTED, SHARED, shares_of_parts
from outlier_features.rules.kinds import listing_rules
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens

Rows = list[dict[str, Any]]
Key = TypeVar("Key")
TABLES = (LIFECYCLE, ORIGIN_SHARES, ORIGIN, ORIGIN_NEURONS, ORIGIN_WEIGHTS)
OF_MLP = ("mlp_out", ROUTED, SHARED)  # parts of a block's lifecycle
STREAM = ("resid_pre", "resid_post")
# That the parts of a block sum to its output is checked on each traced token, so its outputs need no probe.
PROVEN_ALONE = ("resid_mid", "mlp_norm", "mlp_pre", "mlp_act", "mlp_down")


def trace_origin(
    source: Path,
    tokens: Path,
    texts: Path,
    dims: Path,
    massive: Path,
    lifecycle: Path,
    shares: Path,
    origin: Path,
    neurons: Path,
    weights: Path,
    text: Path,
    *,
    wanted: Literal["auto"] | Sequence[int],
    max_dims: int,
    **loading: Unpack[Loading],
) -> None:
    """Follow dims of the residual stream to where they come from.

    Each is followed at the token of its largest massive activation, or of its largest `abs(x)` on resid_post where it
    has none.

    source, tokens, texts, dims, massive   of the run
    wanted                                 `auto`, or dims to trace; `max_dims` is how many `auto` takes at most

    Writes the tables `lifecycle`, `shares`, `origin`, `neurons` and `weights`, and the same in words, `text`; where
    what routed experts write cannot be told from the rest, the provenance says why (`experts_not_told_apart`). The
    model runs only on the sequences that hold an extreme, each by itself; but once over all of them where the run's
    table of massive activations does not say where an extreme is.

    Raises `InputError` where a file is of another run, a dim is not one of the model's, the model's values are not
    those of the run, or the stream between its blocks is not found.
    """
    run = Tokens.read(tokens)
    spelled = read_texts(texts, run)
    dim_rows, provenance = run.files.table(dims, DIMS)
    massive_rows = run.files.rows(massive, MASSIVE)
    record = run.files.model(source)
    listing = pl.col("rule").is_in(listing_rules(provenance["rules"]))
    targets = recorded_targets(wanted, max_dims, massive_rows.filter(listing), dim_rows.filter(listing))
    for dim in targets:
        if dim >= provenance["d_model"]:
            raise ConfigError(
                f"trace_origin.dims: found {dim}, expected dims below {provenance['d_model']}, the width of "
                f"{provenance['model']}"
            )
    rows: dict[str, Rows] = {table.name: [] for table in TABLES}
    if targets or wanted == "auto":
        loaded = load_model(Path(record["location"]), **loading)
        tracer = _Tracer.of(loaded, run)
        for target in tqdm(tracer.complete(targets, max_dims), desc="trace dims", unit="dim", file=sys.stderr):
            spelling = token_text(spelled, run, target.sequence, target.position) or ""
            for name, more in tracer.trace(target, spelling).items():
                rows[name] += more
        threads = [torch.get_num_threads()]
        provenance |= {"device": loaded.device.type, "attention": loaded.attention, "threads": threads}
        if tracer.not_told_apart:
            provenance["experts_not_told_apart"] = tracer.not_told_apart
    provenance |= {
        "trace_origin": {"dims": wanted, "max_dims": max_dims},
        "package_version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    frames = {table.name: pl.DataFrame(rows[table.name], schema=table.schema) for table in TABLES}
    for table, path in zip(TABLES, (lifecycle, shares, origin, neurons, weights), strict=True):
        write_table(path, frames[table.name], table, provenance)
    with replacing(text) as temporary:
        temporary.write_text(origin_text(frames, provenance, spelled, run), encoding="utf-8")


@dataclass(frozen=True)
class _Tracer:
    """A model with its sites proven, and the sequences to run.

    unproven         sites inside of blocks that no identity proves on this model, and why; they are left out
    experts          by block with experts, the sites that tell what the routed ones write from what the shared one does
    not_told_apart   why there are none, of a model with experts
    spectra          of W_down, by layer, as they are made
    """

    loaded: LoadedModel
    blocks: list[Block]
    run: Tokens
    unproven: dict[str, str]
    experts: dict[int, dict[str, Site]]
    not_told_apart: str | None
    spectra: dict[int, Spectrum] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: LoadedModel, run: Tokens) -> "_Tracer":
        blocks = find_sites(loaded)
        for index, block in enumerate(blocks):
            if not block.sites.keys() >= {"resid_pre", "resid_post"}:
                raise InputError(f"sites: block {index} ({block.path}) lacks resid_pre or resid_post, expected both")
        unproven, (experts, why) = _unproven(loaded, blocks), expert_sites(loaded, blocks)
        if why:
            print(f"the routed experts are not told from the shared one: {why}", file=sys.stderr)
        return cls(loaded, blocks, run, unproven, experts, why)

    def complete(self, targets: Mapping[int, TracedDim | None], max_dims: int) -> list[TracedDim]:
        """The targets with their extremes; where there are none, the dims that rise most."""
        known = [target for target in targets.values() if target]
        if known and len(known) == len(targets):
            return known
        extremes = find_extremes(self.loaded, self.blocks, self.run)
        selection: Selection = "named" if targets else "largest_rise"

        def at_extreme(dim: int) -> TracedDim:
            return TracedDim(dim, selection, *extremes.where(dim), steps(extremes.max_abs[:, dim]))

        return [targets.get(dim) or at_extreme(dim) for dim in targets or extremes.largest_rises(max_dims)]

    def trace(self, target: TracedDim, spelling: str) -> dict[str, Rows]:
        """The rows of each table for a target, whose token's text is `spelling`."""
        tensors = self._stream(target)
        self._require_same(target, tensors)
        life: Rows = list(lifecycle_rows([target.dim], self.blocks, tensors))
        after = np.array([float(one["resid_post"][target.dim]) for one in tensors])
        shares: dict[int, float] = {}
        for row in life:
            if row["part"] in OF_MLP and row["share"] is not None:
                shares[row["layer"]] = shares.get(row["layer"], 0.0) + row["share"]
        place = {
            "target_dim": target.dim,
            "sequence": target.sequence,
            "traced_token": target.position,
            "selection": target.selection,
        }
        facts = {"token_id": int(self.run.tokens[target.sequence, target.position]), "token_text": spelling}
        rows: dict[str, Rows] = {table.name: [] for table in TABLES}
        rows["lifecycle"] = [{**place, **facts, **row} for row in life]
        frame = pl.DataFrame(rows["lifecycle"], schema=LIFECYCLE.schema)
        rows["origin_shares"] = [{**place, **row} for row in shares_of_parts(frame)]
        layers = self._layers(target, after)
        inside = self._inside(target, layers)
        for layer, step in layers.items():
            where = {**place, "layer": layer}
            block, tensors_here = self.blocks[layer], inside[layer]
            chain = checkpoints(block, tensors_here, self._absent(block), self.loaded.config)
            ladder = ladder_rows(chain, target.position, target.dim)
            ladder[-1]["share"] = shares.get(layer)
            rows["origin"] += [{**where, "step": step, **row} for row in ladder]
            rows["origin_neurons"] += [{**where, **row} for row in _feeds(block, tensors_here, target)]
            rows["origin_weights"] += [
                {"target_dim": target.dim, "layer": layer, **row} for row in self._weights(target, layer, tensors_here)
            ]
        return rows

    def _stream(self, target: TracedDim) -> list[dict[str, torch.Tensor]]:
        """By block, the sites of the lifecycle at the traced token, (H,)."""
        sites = {
            (index, name): block.sites[name]
            for index, block in enumerate(self.blocks)
            for name in LIFECYCLE_SITES
            if name in block.sites and name not in self.unproven
        }
        sites |= {(index, name): site for index, its in self.experts.items() for name, site in its.items()}
        found = self._run(target.sequence, sites, lambda value: value[target.position].clone())
        return [
            {name: found[index, name] for at, name in sites if at == index and (index, name) in found}
            for index in range(len(self.blocks))
        ]

    def _require_same(self, target: TracedDim, tensors: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """The model, run again, gives the value that the run's table of massive activations has."""
        if target.layer is None or target.value is None:
            return
        found = float(tensors[target.layer]["resid_post"][target.dim])
        if abs(found - target.value) > max(1e-3, 3 * TOLERANCE[self.loaded.dtype]) * abs(target.value):
            raise InputError(
                f"massive.parquet: has {target.value:.6g} in dim {target.dim} of layer {target.layer} at sequence "
                f"{target.sequence}, position {target.position}, but the model gives {found:.6g} there, expected the "
                "same value; delete the run's tables to have them made again"
            )

    def _layers(self, target: TracedDim, after: np.ndarray[Any, Any]) -> dict[int, str]:
        """The layers whose MLP is looked into, in order: where the dim steps up or down, here or over the run."""
        up, down = steps(np.abs(after))
        run_up, run_down = target.steps
        named = {run_down: "run_down", run_up: "run_up", down: "down", up: "up"}  # of one layer, the last is kept
        return {layer: named[layer] for layer in sorted(layer for layer in named if layer is not None)}

    def _inside(self, target: TracedDim, layers: Iterable[int]) -> dict[int, dict[str, torch.Tensor]]:
        """By layer, the tensors of its MLP at the positions of the sequence, (T, H)."""
        sites = {
            (layer, name): site
            for layer in layers
            for name, site in ladder_sites(self.blocks[layer]).items()
            if name not in self.unproven
        }
        found = self._run(target.sequence, sites, torch.clone)
        return {layer: {name: value for (one, name), value in found.items() if one == layer} for layer in layers}

    def _absent(self, block: Block) -> dict[str, str]:
        return {**block.absent, **{name: why for name, why in self.unproven.items() if name in block.sites}}

    def _weights(self, target: TracedDim, layer: int, tensors: Mapping[str, torch.Tensor]) -> Rows:
        dim = target.dim
        linears = self.blocks[layer].mlp_linears
        rows = [weight_row(site) for site in linears]
        if linears:
            if layer not in self.spectra:
                self.spectra[layer] = spectrum(weight_of(linears[-1].module))
            found = self.spectra[layer]
            rows[-1] |= {"singular_values": found.values.tolist(), "dim_shares": found.dim_shares[dim].tolist()}
            if tensors.keys() >= {"mlp_act", "mlp_down"}:
                rows[-1] |= projection_row(found, tensors["mlp_act"], tensors["mlp_down"], target.position, dim)
        return rows

    def _run(
        self, sequence: int, sites: Mapping[Key, Site], take: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[Key, torch.Tensor]:
        """What `take` makes of each site's tensor, (positions, H) without padding, in a pass over one sequence."""
        found: dict[Key, torch.Tensor] = {}
        ids = torch.from_numpy(self.run.tokens[sequence][None].astype(np.int64)).to(self.loaded.device)
        mask = torch.from_numpy(self.run.mask[sequence][None].copy()).to(self.loaded.device)
        positions, length = mask.shape[1], int(mask.sum())

        def keep(key: Key, value: torch.Tensor) -> None:
            found[key] = take(value.reshape(positions, -1)[:length]).to(self.loaded.device)

        with hooked(sites.items(), keep):
            run_blocks(self.loaded, ids, mask)
        return found


def _unproven(loaded: LoadedModel, blocks: list[Block]) -> dict[str, str]:
    """The sites that no identity proves on this model, and why. The stream between the blocks must be proven."""
    try:
        verify_sites(loaded, blocks, [*STREAM, *PROVEN_ALONE])
    except InputError:
        verify_sites(loaded, blocks, list(STREAM))
    else:
        return {}
    unproven = {}
    for site in PROVEN_ALONE:
        try:
            verify_sites(loaded, blocks, [site])
        except InputError as error:
            unproven[site] = f"not proven: {error.found}"
    return unproven


def _feeds(block: Block, tensors: Mapping[str, torch.Tensor], target: TracedDim) -> Iterator[dict[str, Any]]:
    if tensors.keys() >= {"mlp_act", "mlp_down"}:
        neurons, written = tensors["mlp_act"][target.position], tensors["mlp_down"][target.position]
        yield from feed_rows(feed(block.sites["mlp_down"], neurons, written, target.dim))
