"""A small run, written table by table: what it holds is chosen, so what a report of it must show is known."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.ablate.ablation_schema import ABLATION, ABLATION_SEQUENCES
from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES
from outlier_features.ablate.knock_out_schema import KNOCK_OUT_DIMS, KNOCK_OUTS, SPIKES
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.attention.sinks_schema import SINKS
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.detect.layers_schema import DISTRIBUTION, LAYERS, SITE_POSITIONS
from outlier_features.dims.analyze_emergence import dims_of
from outlier_features.dims.dims_schema import MASSIVE, PAIRS, POSITIONS, SENSITIVITY
from outlier_features.dims.emergence_schema import EMERGENCE
from outlier_features.experts.expert_load import balance_rows
from outlier_features.experts.experts_schema import EXPERT_LOAD, EXPERTS, ROUTING
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.artifacts import write_json
from outlier_features.files.missing import optional
from outlier_features.files.tables import Table, public_tables, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.gallery.attribution_schema import LOGIT_ATTRIBUTION, LOGIT_ATTRIBUTION_TOKENS
from outlier_features.gallery.gallery_schema import GALLERY_DIMS, GALLERY_EXAMPLES, GALLERY_NEURONS, GALLERY_VALUES
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS, WITHOUT_HIGH_NORM
from outlier_features.norms.norms_schema import GAINS, NORMS
from outlier_features.origin.origin_schema import LIFECYCLE, ORIGIN, ORIGIN_NEURONS, ORIGIN_SHARES
from outlier_features.origin.shares_of_parts import shares_of_parts
from outlier_features.quantize.loss_schema import (
    PREFIX_TRIAL,
    QUANTIZATION_LOSS,
    QUANTIZATION_LOSS_SEQUENCES,
    QUANTIZATION_SENSITIVITY,
    QUANTIZATION_SIGNALS,
)
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.summary.summarize_run import summarize_run
from outlier_features.surface.surface_schema import SURFACE
from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import tokens_digest

POPULATIONS = ("all", "without_first")
NEURON_POPULATIONS = (*POPULATIONS, WITHOUT_HIGH_NORM)
BASIS = ("attn_norm", "mlp_norm", "resid_post")
RULES = {
    "dettmers": {"kind": "systematic", "sites": ["attn_norm", "mixer_norm", "mlp_norm"], "threshold": 6.0,
                 "layer_share": 0.25, "position_share": 0.06, "layer_reading": "blocks", "position_reading": "union",
                 "sensitivity": [4.0, 6.0]},
    "massive": {"kind": "massive", "threshold": 100.0, "ratio": 1000.0},
    "super_weight": {"kind": "super_weight"},
    "super_expert": {"kind": "super_expert"},
}  # fmt: skip
GRID = {"threshold": [4.0, 6.0], "layer_share": [0.0, 0.25], "position_share": [0.0, 0.06, 0.5]}
RUN_TABLES = (
    "layers",
    "distribution",
    "site_positions",
    "dims",
    "emergence",
    "pairs",
    "sensitivity",
    "massive",
    "positions",
    "surface",
    "loss",
    "norms",
    "gains",
    "sinks",
    "lifecycle",
    "origin_shares",
    "origin",
    "origin_neurons",
    "experts",
    "routing",
    "expert_load",
    "expert_balance",
    "expert_ablation",
    "expert_ablation_sequences",
    "neurons",
    "neuron_statistics",
    "prefix_tokens",
    "quantization",
    "weight_outliers",
    "gallery_neurons",
    "gallery_examples",
    "gallery_values",
    "gallery_dims",
    "super_weights",
    "ablation",
    "ablation_sequences",
)
KNOCK_OUT_TABLES = ("knock_outs", "knock_out_dims", "spikes")
LOSS_TABLES = (
    "quantization_loss",
    "quantization_loss_sequences",
    "quantization_sensitivity",
    "quantization_signals",
    "prefix_trial",
)
ATTRIBUTION_TABLES = ("logit_attribution", "logit_attribution_tokens")
FIGURES = (
    "first-screen",
    "magnitude-by-layer", "dimension-map", "surface", "surface-map", "massive-tokens", "positions", "distribution",
    "kurtosis", "lifecycle", "origin-shares", "origin", "norm-gains", "attention-sinks", "attention-maps", "ablation",
    "quantization-map", "quantization-remedies", "weight-outliers",
    "rules", "signs", "shares", "sensitivity",
)  # fmt: skip
KURTOSES = ("kurtosis_flat_excess", "kurtosis_token", "kurtosis_channel_rms")
PIECES = ("The", " cat", " sat", "\n", " down", ".")


OUTPUTS = {
    "surface": ["surface.parquet"],
    "norms": ["norms.parquet", "gains.parquet"],
    "origin": ["lifecycle.parquet", "origin_shares.parquet", "origin.parquet", "origin_neurons.parquet"],
    "experts": ["experts.parquet", "routing.parquet", "expert_load.parquet", "expert_balance.parquet"],
    "attention_maps": ["sinks.parquet", "attention.safetensors"],
    "loss": ["loss.parquet", "token_losses.safetensors"],
    "super_weights": ["super_weights.parquet"],
    "ablation": ["ablation.parquet", "ablation_sequences.parquet"],
    "expert_ablation": ["expert_ablation.parquet", "expert_ablation_sequences.parquet"],
    "neurons": ["neurons.parquet", "neuron_statistics.parquet", "neurons.safetensors"],
    "gallery": [
        "gallery_neurons.parquet",
        "gallery_examples.parquet",
        "gallery_values.parquet",
        "gallery_dims.parquet",
    ],
    "attribution": ["logit_attribution.parquet", "logit_attribution_tokens.parquet"],
    "knock_outs": ["knock_outs.parquet", "knock_out_dims.parquet", "spikes.parquet"],
    "channels": ["channel_stats.safetensors", "prefix_tokens.parquet"],
    "quantization": ["quantization.parquet", "weight_outliers.parquet"],
    "quantization_losses": [f"{name}.parquet" for name in LOSS_TABLES],
}


def _filled(rows: list[dict[str, Any]], table: Table) -> pl.DataFrame:
    """With nulls for columns that the rows lack."""
    return pl.DataFrame(rows, schema=table.schema, strict=False)


def leave_out(analysis: str, why: BaseException | str, directory: Path) -> None:
    """Make an analysis end with an error, or not begin for a reason."""

    outputs = [str(directory / name) for name in OUTPUTS[analysis]]
    off, log = why if isinstance(why, str) else None, f"results/logs/{analysis}.log"
    with optional(analysis, outputs, log, of=str(directory / "dims.parquet"), off=off) as wanted:
        assert wanted == isinstance(why, BaseException)
        if isinstance(why, BaseException):
            raise why


@dataclass
class FakeRun:
    """What the run holds. `outliers` and `massive`: dims that rule dettmers and rule massive select; `hits`: further
    dims with a hit. `nll`: of a sequence; `sites_share`, `union`: of a pair by rule dettmers, from sequence to sequence
    `spread` less. By default every massive activation is at position 0. `missing`: by analysis, the error that it
    ended with, or why the config leaves it out."""

    model: str = "tiny"
    origin: str = "a wheel"
    layers: int = 4
    sites: tuple[str, ...] = BASIS
    absent: dict[str, str] = field(default_factory=dict)
    dense: dict[str, dict[str, float]] = field(default_factory=dict)
    outliers: tuple[int, ...] = (5,)
    massive: tuple[int, ...] = (7, 5)
    hits: tuple[int, ...] = (1,)
    pieces: tuple[str, ...] = PIECES
    position: int = 0
    rest: bool = True
    missing: dict[str, Exception | str] = field(default_factory=dict)
    attention: bool = True
    sequences: int = 2
    norms: bool = True
    experts: int = 0
    knock_outs: bool = False
    losses: bool = False
    attribution: bool = False
    super_weights: tuple[tuple[int, int, int], ...] = ((1, 7, 30),)
    published: list[dict[str, object]] = field(default_factory=list)
    quantized: dict[str, object] | None = None
    parameters: int = 1234567
    nll: float = 10.0
    sites_share: float = 0.25
    union: float = 0.9
    spread: float = 0.0

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True)
        self._write_tokens(directory)
        self._write_tables(directory)
        self._write_attention(directory)
        for analysis, why in self.missing.items():
            leave_out(analysis, why, directory)
        self._write_summary(directory)
        return directory

    @property
    def rules(self) -> dict[str, str]:
        """The sites of each rule, as the tables name them."""
        norms = "+".join(site for site in ("attn_norm", "mlp_norm") if site in self.sites)
        massive = "resid_post" if "resid_post" in self.sites else ""
        return {rule: sites for rule, sites in (("dettmers", norms), ("massive", massive)) if sites}

    def magnitude(self, population: str, site: str, dim: int, layer: int) -> float:
        """Max |x| of a dim in the table of emergence."""
        return (dim + 1) * 10.0 ** (layer % 3) / (1 + POPULATIONS.index(population)) + len(site)

    def _write_tokens(self, directory: Path) -> None:
        length, shape = len(self.pieces), (self.sequences, len(self.pieces))
        ends = np.cumsum([len(piece.encode()) for piece in self.pieces])
        offsets = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        arrays = {
            "tokens": np.tile(np.arange(length, dtype=np.int32), (self.sequences, 1)),
            "special": np.full(shape, not self.rest),
            "mask": np.ones(shape, bool),
            "offsets": np.tile(offsets.astype(np.int32), (self.sequences, 1, 1)),
        }
        self.provenance = {
            "model": self.model, "model_revision": "0" * 8, "corpus": "text", "corpus_sha256": "1" * 64,
            "sample": {"sequences": self.sequences, "tokens": length, "pack": "windows", "bos": "auto"},
            "tokens_sha256": tokens_digest(arrays["tokens"], arrays["special"], arrays["mask"]),
            "package_version": "0", "sequences": self.sequences, "blocks": self.layers, "d_model": 64,
            "sites": list(self.sites), "absent": self.absent, "dtype": "float32", "attention": "sdpa", "device": "cpu",
            "threads": [2], "placement": "one", "quantized": self.quantized, "architecture": "toy",
            "parameters": self.parameters, "vocab_size": 100, "torch": "2", "transformers": "5",
            "rules": RULES, "special_tokens": {}, "dense": self.dense,
            "super_weight": {"threshold": 50.0, "rounds": 20, "tokens": length}, "not_searched": {},
            "published": self.published,
            "ablate": {"sequences": self.sequences, "tokens": length, "seeds": 2, "only_first_excluded": True,
                       "weights_searched": "super_weights" not in self.missing},
            "pruning": {"has_experts": self.experts > 0, "super_experts": int(self.experts > 0)}
            | ({"sequences": self.sequences, "tokens": length, "seeds": 2, "only_first_excluded": True}
               if self.experts else {}),
            "knock_out": {"sequences": self.sequences, "tokens": length, "head_tokens": 4, "dims": [*self.massive],
                          "not_tried": {"attention": {"it has none": [0]}}},
            "quantize_model": {"sequences": self.sequences, "tokens": length, "schemes": ["int8_token", "mxfp4"],
                               "remedied": ["int8_token"], "loss_scheme": "int8_token", "budget": 0.01, "seeds": 2,
                               "absent": {}, "prefix": []},
            "quantize": {"schemes": ["int8_token", "int8_tensor_static", "mxfp4"], "remedied": ["int8_token"],
                         "output_tokens": 8, "seeds": 2, "absent": {}},
        }  # fmt: skip
        write_tensors(directory / "tokens.safetensors", arrays, self.provenance)
        texts = pl.DataFrame({"sequence": range(self.sequences), "text": ["".join(self.pieces)] * self.sequences})
        write_table(directory / "texts.parquet", texts, TEXTS, self.provenance)

    def _write_tables(self, directory: Path) -> None:
        pairs, has_residual = self._pairs(), "resid_post" in self.sites
        dims = dims_of(pairs, self.sequences).with_columns(
            step_up=pl.when(pl.col("selected") & has_residual).then(1).cast(pl.UInt16),
            step_down=pl.when(pl.col("selected") & has_residual & (pl.col("dim") != 5)).then(3).cast(pl.UInt16),
        )
        frames = {
            "layers": self._layers(), "pairs": pairs, "dims": dims, "emergence": self._emergence(dims),
            "sensitivity": self._sensitivity(), "massive": self._massive(), "loss": self._loss(),
            "distribution": self._distribution(), "site_positions": self._site_positions(),
            "positions": self._positions(), "surface": self._surface(),
            "norms": self._norms(), "gains": self._gains(dims),
            "lifecycle": self._lifecycle(), "origin_shares": self._origin_shares(),
            "origin": self._origin(), "origin_neurons": self._origin_neurons(),
            "experts": self._experts(), "routing": self._routing(),
            "expert_load": self._expert_load(),
            "expert_balance": balance_rows(self._expert_load(), dict.fromkeys(POPULATIONS, 15)),
            "neurons": self._neurons(), "neuron_statistics": self._neuron_statistics(),
            "prefix_tokens": self._prefix_tokens(),
            "quantization": self._quantization(), "weight_outliers": self._weight_outliers(),
            **self._gallery(),
            "super_weights": self._super_weights(), **self._ablations(), **self._expert_ablations(),
            **(self._knock_outs() if self.knock_outs else {}),
            **(self._losses() if self.losses else {}),
            **(self._attribution() if self.attribution else {}),
        }  # fmt: skip
        write_tensors(directory / "neurons.safetensors", {}, self.provenance)
        write_tensors(directory / "channel_stats.safetensors", {}, self.provenance)
        nll = np.full((self.sequences, len(self.pieces)), self.nll / (len(self.pieces) - 1), np.float32)
        nll[:, 0] = np.nan
        write_tensors(directory / "token_losses.safetensors", {"nll": nll}, self.provenance)
        for name, frame in frames.items():
            write_table(
                directory / f"{name}.parquet", frame, public_tables()[name], self.provenance | self.expert_facts
            )

    def _layers(self) -> pl.DataFrame:
        rows = []
        for p, population in enumerate(POPULATIONS):
            empty = population == "without_first" and not self.rest
            for s, site in enumerate(self.sites):
                for layer in range(self.layers):
                    value = None if empty else (s + 1) * 10.0 ** (layer % 5) / (p + 1)
                    numbers = {
                        name: value and value / divisor
                        for name, divisor in (("top1", 1), ("top2", 2), ("top3", 3), ("median", 100), ("max", 0.5))
                    }
                    if not empty:
                        numbers |= {name: self.kurtosis(name, s, layer) for name in KURTOSES}
                    positions = 0 if empty else self.sequences * (len(self.pieces) - p)
                    numbers |= {"positions": positions, "positions_hit": min(positions, layer + s)}
                    rows.append({"population": population, "site": site, "layer": layer, **numbers})
        frame = (
            pl.DataFrame(rows, schema_overrides={"top1": pl.Float64}) if rows else pl.DataFrame(schema=LAYERS.schema)
        )
        missing = [pl.lit(None, dtype).alias(c) for c, dtype in LAYERS.schema.items() if c not in frame.columns]
        return frame.with_columns(missing)

    def kurtosis(self, name: str, site: int, layer: int) -> float:
        """Of all values it is negative in layer 0."""
        return (0 if name == "kurtosis_flat_excess" else 1) - 0.5 + (site + 1) * 10.0**layer - 2.5 * (layer == 0)

    def values(self, population: str, layer: int) -> dict[tuple[float, float], int]:
        """Values in each bin of |x|; in layer 1 some are 0, and those of layer 2 and up reach 12."""
        rest = population == "without_first"
        bins = {(2.0**-30, 1.5 * 2.0**-30): 1, (0.75, 1.0): 300 - 50 * rest, (1.0, 1.5): 600 - 100 * rest}
        if layer == 1:
            bins[0.0, 2.0**-126] = 40
        if layer > 1:
            bins[8.0, 12.0] = 2
        return bins

    def _distribution(self) -> pl.DataFrame:
        rows = [
            {"population": population, "site": site, "layer": layer, "low": low, "high": high, "values": values}
            for population in (POPULATIONS if self.rest else POPULATIONS[:1])
            for site in self.sites
            for layer in range(self.layers)
            for (low, high), values in self.values(population, layer).items()
        ]
        return pl.DataFrame(rows, schema=DISTRIBUTION.schema)

    def hits_at(self, site: str, token: int) -> int:
        """Sequences with a hit; by rule massive at one position."""
        return self.sequences if site != "resid_post" or token == self.position else 0

    def _site_positions(self) -> pl.DataFrame:
        rows = [
            {"population": population, "site": site, "layer": layer, "token": token, "sequences": self.sequences,
             "mean": 0.5 - token, "mean_square": 4.0 + token + layer}
            for population in (POPULATIONS if self.rest else POPULATIONS[:1])
            for site in self.sites
            for layer in range(self.layers)
            for token in range(population == "without_first", len(self.pieces))
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SITE_POSITIONS.schema)

    def _positions(self) -> pl.DataFrame:
        rules = {site: rule for rule, sites in self.rules.items() for site in sites.split("+")}
        rows = [
            {"population": population, "site": site, "rule": rules.get(site), "token": token,
             "threshold": {"dettmers": 6.0, "massive": 100.0}.get(rules.get(site), 4.0), "sequences": self.sequences,
             "sequences_hit": self.hits_at(site, token), "occurrences": 3 * self.hits_at(site, token),
             "max_abs": 200.0 + token if self.hits_at(site, token) else None}
            for population in (POPULATIONS if self.rest else POPULATIONS[:1])
            for site in self.sites
            for token in range(population == "without_first", len(self.pieces))
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=POSITIONS.schema)

    def reach(self, site: str, dim: int, layer: int) -> tuple[float, float]:
        """Smallest and largest x in the table of emergence; dim 5 is never above 0."""
        return -10.0 - layer - dim, 0.0 if dim == 5 else 2000.0 * (1 + layer) + len(site)

    def _pairs(self) -> pl.DataFrame:
        rows = []
        for population in POPULATIONS if self.rest else POPULATIONS[:1]:
            for rule, sites in self.rules.items():
                if rule == "massive" and population == "without_first" and self.position == 0:
                    continue
                chosen = self.outliers if rule == "dettmers" else self.massive
                others = self.hits if rule == "dettmers" else ()
                for dim in (*chosen, *others):
                    passes, share = dim in chosen, self.union if rule == "dettmers" else 0.04
                    for sequence in range(self.sequences):
                        rows.append({
                            "population": population, "rule": rule, "sites": sites, "sequence": sequence, "dim": dim,
                            "blocks": 0.5 if passes else 0.125, "pooled": 0.1,
                            "sites_share": self.sites_share - self.spread * sequence,
                            "union": share - self.spread * sequence * share,
                            "affected": 0.2, "occurrences": 10, "locations": 5, "positive": 10, "first_layer": 1,
                            "last_layer": 2, "max_abs": 10.0 + dim, "passes": passes,
                        })  # fmt: skip
        return pl.DataFrame(rows, schema=PAIRS.schema)

    def _emergence(self, dims: pl.DataFrame) -> pl.DataFrame:
        rows = [
            {"population": population, "site": site, "dim": dim, "layer": layer,
             "max_abs": self.magnitude(population, site, dim, layer), "low": self.reach(site, dim, layer)[0],
             "high": self.reach(site, dim, layer)[1], "mean": 0.0, "rms": 0.0}
            for population in POPULATIONS
            for site in self.sites
            if site in BASIS
            for dim in dims.filter(population=population)["dim"].unique().sort()
            for layer in range(self.layers)
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=EMERGENCE.schema)

    def _sensitivity(self) -> pl.DataFrame:
        rows = [
            {"population": population, "rule": "dettmers", "sites": self.rules["dettmers"],
             "layer_reading": layer_reading, "position_reading": position_reading, "threshold": threshold,
             "layer_share": layer_share, "position_share": position_share, "pairs": 100 + i,
             "dims": int(10 * threshold - 8 * layer_share) + i}
            for population in POPULATIONS
            for layer_reading in ("blocks", "sites_share")
            for i, position_reading in enumerate(("union", "pooled", "affected"))
            for threshold in GRID["threshold"]
            for layer_share in GRID["layer_share"]
            for position_share in GRID["position_share"]
            if "dettmers" in self.rules
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SENSITIVITY.schema)

    def _massive(self) -> pl.DataFrame:
        rows = [
            {"rule": "massive", "site": "resid_post", "sequence": sequence, "layer": layer, "token": self.position,
             "dim": dim, "value": -2000.0 - dim - layer, "median": 1.0, "ratio": 2000.0 + dim + layer,
             "massive_all": True, "median_without_first": 1.0,
             "ratio_without_first": None, "massive_without_first": self.position > 0,
             "excluded": self.position == 0, "token_id": self.position, "token_text": self.pieces[self.position]}
            for sequence in range(self.sequences)
            for layer in (1, 2)
            for dim in self.massive
            if "massive" in self.rules
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=MASSIVE.schema)

    def height(self, token: int, dim: int) -> float:
        """x in the surface: dims of rule massive stand out at their position."""
        return -2000.0 - dim if token == self.position and dim in self.massive else 1.0 + token + dim / 64

    def _surface(self) -> pl.DataFrame:
        rows = [
            {"site": site, "layer": 1, "sequence": 0, "token_first": token, "token_last": token,
             "excluded": token == 0 or not self.rest, "dim_first": dim, "dim_last": dim, "token": token, "dim": dim,
             "max_abs": abs(self.height(token, dim)), "value": self.height(token, dim), "token_text": text,
             "selected": dim in self.massive}
            for site in ["resid_post" if "resid_post" in self.sites else self.sites[0]] * bool(self.sites)
            for token, text in enumerate(self.pieces)
            for dim in range(64)
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SURFACE.schema)

    def gain(self, site: str, dim: int, layer: int) -> float:
        """The gain of a norm; in layer 1, before the MLP, that of dim 7 is exactly 0."""
        return 0.0 if (site, dim, layer) == ("mlp_norm", 7, 1) else -0.01 * (dim + 1) * 4.0**layer

    def _norms(self) -> pl.DataFrame:
        rows = [
            {"module": f"blocks.{layer}.{site}", "site": site, "layer": layer, "residual": True, "kind": "rms",
             "parameterization": "w", "tensor": f"blocks.{layer}.{site}.weight", "shape": "64", "size": 64,
             "dtype": "float32", "exactly_one": 3, "all_one": False, "min": -2.0, "max": 1.0, "mean": 0.5,
             "median": 0.6, "others_min": 0.1, "others_p05": 0.2, "others_median": 0.5, "others_p95": 0.9,
             "others_max": 1.0}
            for layer in range(self.layers)
            for site in self.sites
            if self.norms and site in ("attn_norm", "mlp_norm")
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=NORMS.schema)

    def _gains(self, dims: pl.DataFrame) -> pl.DataFrame:
        rows = [
            {"population": population, "rule": rule, "dim": dim, "module": norm["module"], "site": norm["site"],
             "layer": norm["layer"], "gain": self.gain(norm["site"], dim, norm["layer"]), "rank": 60, "size": 64,
             "ratio": abs(self.gain(norm["site"], dim, norm["layer"])) / norm["others_median"]}
            for population, rule, dim in dims.filter("selected").select("population", "rule", "dim").rows()
            for norm in self._norms().to_dicts()
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=GAINS.schema)

    def traced(self, dim: int) -> dict[str, object]:
        return {"target_dim": dim, "sequence": 1, "traced_token": self.position, "selection": "massive"}

    def _lifecycle(self) -> pl.DataFrame:
        """Dims rise in layer 1 by the MLP, and fall by half in layer 3 by attention."""
        rows = []
        for dim in self.massive if "massive" in self.rules else ():
            before = 1.0 + dim
            for layer in range(self.layers):
                attention, mlp = (-1200.0 if layer == 3 else 0.5), (2000.0 if layer == 1 else -0.25)
                after = before + attention + mlp
                parts = {"resid_pre": before, "attn_out": attention, "mlp_out": mlp, "resid_post": after}
                for part, value in parts.items():
                    added = part in ("attn_out", "mlp_out")
                    rows.append({
                        **self.traced(dim), "layer": layer, "token_id": self.position, "part": part, "value": value,
                        "token_text": self.pieces[self.position], "share": value / (after - before) if added else None,
                    })  # fmt: skip
                before = after
        return pl.DataFrame(rows, schema=LIFECYCLE.schema)

    def _origin_shares(self) -> pl.DataFrame:
        life = self._lifecycle()
        rows = [
            {**self.traced(dim), **row}
            for dim in life["target_dim"].unique(maintain_order=True)
            for row in shares_of_parts(life.filter(target_dim=dim))
        ]
        return pl.DataFrame(rows, schema=ORIGIN_SHARES.schema)

    def _origin(self) -> pl.DataFrame:
        """The MLP of layer 1, whose maximum grows most in mlp_down; layer 3 routes its tokens to experts."""
        checkpoints = ("mlp_norm", "mlp_pre", "mlp_act", "mlp_down")
        rows = [
            {**self.traced(dim), "layer": layer, "step": step, "checkpoint": name, "dims": 64, "token": 0, "dim": dim,
             "previous": checkpoints[i - 1] if i else None, "max_abs": size, "median_abs": size / 50,
             "ratio": 50.0, "change": size - sizes[i - 1] if i else None, "growth": size / sizes[i - 1] if i else None,
             "explosion": i == 3, "traced_max_abs": size / 2, "traced_dim": dim, "traced_median_abs": size / 40,
             "value": None, "share": None, "absent": None}
            if layer == 1 or i == 0 else
            {**self.traced(dim), "layer": layer, "step": step, "checkpoint": name, "explosion": False,
             "absent": "the MLP routes tokens to experts"}
            for dim in (self.massive if "massive" in self.rules else ())
            for layer, step in ((1, "up"), (3, "down"))
            for sizes in [(2.0, 30.0, 40.0, 2000.0)]
            for i, (name, size) in enumerate(zip(checkpoints, sizes, strict=True))
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=ORIGIN.schema)

    def _neurons(self) -> pl.DataFrame:
        rows = [
            {"population": population, "layer": layer, "neuron": neuron, "side": side, "rank": sequence + 1,
             "value": (1 if side == "max" else -1) * (2.0 - sequence), "sequence": sequence, "token": neuron}
            for population in NEURON_POPULATIONS
            for layer in range(self.layers)
            for neuron in range(2)
            for side in ("max", "min")
            for sequence in range(min(self.sequences, 2))
        ]  # fmt: skip
        return _filled(rows, NEURONS)

    def _neuron_statistics(self) -> pl.DataFrame:
        """Of values -2, -1, 1 and 2."""
        rows = [
            {"population": population, "layer": layer, "neuron": neuron, "tokens": 4, "active_share": 0.5, "mean": 0.0,
             "std": math.sqrt(2.5), "kurtosis": 1.36, "min": -2.0, "max": 2.0, "histogram_low": -2.0,
             "histogram_width": 1.0, "histogram": [1, 1, 0, 1, 1]}
            for population in NEURON_POPULATIONS
            for layer in range(self.layers)
            for neuron in range(2)
        ]  # fmt: skip
        return _filled(rows, NEURON_STATISTICS)

    def _prefix_tokens(self) -> pl.DataFrame:
        counted = {"count": 5, "sequences": 2, "layers": 3, "max_abs": 800.0}
        rows = [
            {"token_id": 3, "text": "\n", **counted, "appended": False},
            {"token_id": 0, "text": "The", "appended": True},
        ]
        return _filled([row | {"chosen": True, "prefix_position": n} for n, row in enumerate(rows)], PREFIX_TOKENS)

    def _quantization(self) -> pl.DataFrame:
        """What is exact takes nine tenths of the error, random dims nothing; four bits cost eight times as much."""
        remedies = [("none", None, 1.0)]
        if self.outliers or self.massive:
            remedies += [("exact_dims", "1 dim of massive", 0.1), ("exact_random", "seed 0", 0.99)]
            remedies += [("exact_random", "seed 1", 0.98)]
        remedies += [("exact_positions", None, 0.5), ("smooth", "alpha 0.5", 0.4), ("smooth", "alpha 0.75", 0.3)]
        remedies += [("hadamard", "seed 0", 0.2)]
        rows = []
        for layer in range(self.layers):
            for site, module in (("attn_norm", "self_attn.q_proj"), ("mlp_act", "mlp.down_proj")):
                for scheme, error, bits in (
                    ("int8_token", 0.02, 8),
                    ("int8_tensor_static", 0.04, 8),
                    ("mxfp4", 0.16, 4),
                ):
                    for remedy, setting, share in remedies if scheme == "int8_token" else remedies[:1]:
                        for quantized, part in (("x", 0.8), ("w", 0.6), ("xw", 1.0)):
                            of_all = error * share * part * (1 + layer / self.layers)
                            rows += [
                                {
                                    "layer": layer, "site": site, "module": f"model.layers.{layer}.{module}",
                                    "scheme": scheme, "remedy": remedy, "setting": setting, "quantized": quantized,
                                    "best": share == 0.3 if remedy == "smooth" else None, "population": population,
                                    "sqnr_db": None if quantized == "xw" else -20 * float(np.log10(of_all)),
                                    "output_error": of_all, "output_error_sd": of_all / 50,
                                    "tokens": 16, "output_tokens": 8, "bits": float(bits),
                                }
                                for population in POPULATIONS
                            ]  # fmt: skip
        return _filled(rows, QUANTIZATION)

    def _weight_outliers(self) -> pl.DataFrame:
        rows = [
            {
                "layer": layer, "site": "attn_norm", "module": f"model.layers.{layer}.self_attn.q_proj", "axis": "in",
                "dim": dim, "max_abs": 0.5, "ratio": 2.0 - rank / 10, "rank": rank, "activation_max_abs": 30.0,
                "activation_ratio": 9.0, "activation_rank": rank, "selected": dim in {*self.outliers, *self.massive},
            }
            for layer in range(self.layers)
            for rank, dim in enumerate(sorted({1, *self.outliers, *self.massive}), 1)
        ]  # fmt: skip
        return _filled(rows, WEIGHT_OUTLIERS)

    def _gallery(self) -> dict[str, pl.DataFrame]:
        """Of neuron 0 of layer 1, whose values are -2, -1, 1 and 2 and then 0, and of the massive dims there."""
        neuron = {"layer": 1, "neuron": 0}
        along = [-2.0, -1.0, 1.0, 2.0, 0.0, 0.0][: len(self.pieces)]
        rows: dict[Table, list[dict[str, Any]]] = {
            GALLERY_NEURONS: [neuron | {"reasons": ["kurtosis"]}],
            GALLERY_EXAMPLES: [
                neuron | {"interval": n, "low": -2.0 + 0.4 * n, "high": -1.6 + 0.4 * n, "in_interval": 0}
                for n in range(10)
            ],
            GALLERY_VALUES: [neuron | {"sequence": sequence, "values": along} for sequence in range(self.sequences)],
            GALLERY_DIMS: [{"layer": 1, "dim": dim, "sequence": 0, "values": along} for dim in (*self.massive, None)],
        }
        return {table.name: _filled(found, table) for table, found in rows.items()}

    def _origin_neurons(self) -> pl.DataFrame:
        """Neuron 3 writes 1,500 of 2,000, the other nine 50 each, and the bias the rest."""
        rows = [
            {**self.traced(dim), "layer": 1, "neuron": neuron, "activation": 10.0 if neuron == 3 else 1.0,
             "weight": 150.0 if neuron == 3 else 50.0, "contribution": 1500.0 if neuron == 3 else 50.0,
             "share": 0.75 if neuron == 3 else 0.025, "rank": rank, "weights_only_rank": rank}
            for dim in (self.massive if "massive" in self.rules else ())
            for rank, neuron in enumerate((3, 0, 1, 2, 4, 5, 6, 7, 8, 9), start=1)
        ] + [
            {**self.traced(dim), "layer": 1, "contribution": 50.0, "share": 0.025}
            for dim in (self.massive if "massive" in self.rules else ())
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=ORIGIN_NEURONS.schema)

    def _loss(self) -> pl.DataFrame:
        rows = [
            {"sequence": n, "tokens": len(self.pieces) - 1, "bytes": 20, "nll": self.nll + n * self.spread}
            for n in range(self.sequences)
        ]
        return pl.DataFrame(rows, schema=LOSS.schema)

    def sink_rate(self, layer: int, head: int, token: int) -> float:
        """Layer 0 has no sink; position 0 is one in later layers, less so in head 1."""
        return 0.0 if layer == 0 or token else 0.5 if head else 1.0

    def _write_attention(self, directory: Path) -> None:
        """Two heads, which share a KV head, where every query gives its own key and position 0 the same."""
        length = len(self.pieces)
        rows = [
            {"layer": layer, "head": head, "kv_head": 0, "token": token, "learned": False,
             "alpha": self.sink_rate(layer, head, token) / 2, "sink_rate": self.sink_rate(layer, head, token),
             "sequences": self.sequences, "excluded": self.sequences * (token == 0)}
            for layer in range(self.layers) if self.attention for head in range(2) for token in range(length)
        ]  # fmt: skip
        pattern = np.eye(length, dtype=np.float32) / 2
        pattern[:, 0] += 0.5
        kept = [layer for layer in (1, 2) if self.attention and layer < self.layers]
        self.provenance |= {
            "job": "a", "threshold": 0.3, "positions": length, "short_sequences": 0,
            "layers_without_patterns": [] if self.attention else list(range(self.layers)),
            "maps": {"layers": [{"layer": layer, "why": "chosen", "kv_heads": [0, 0]} for layer in kept],
                     "sequences": [0], "positions": [length]},
        }  # fmt: skip
        patterns = {f"pattern.{layer}": np.stack([[pattern, pattern]]) for layer in kept}
        write_tensors(directory / "attention.safetensors", patterns, self.provenance)
        sinks = pl.DataFrame(rows, schema=SINKS.schema)
        write_table(directory / "sinks.parquet", sinks, SINKS, self.provenance)

    @property
    def expert_facts(self) -> dict[str, object]:
        """By default a model without experts."""
        return {"has_experts": self.experts > 0, "experts_sequences": 2, "experts_targets": len(self.massive),
                "active_parameters": self.parameters - 1000 * self.experts}  # fmt: skip

    def _experts(self) -> pl.DataFrame:
        """The shared expert and the routed ones of layers 1 and up; expert 1 of layer 1 is a super expert."""
        rows = [
            {"layer": layer, "part": "shared" if expert is None else "expert", "expert": expert,
             "max_abs": self.expert_max(layer, expert), "max_abs_weighted": self.expert_max(layer, expert) / 2,
             "sequence": 0, "token": self.position, "dim": 7, "tokens_routed": 3, "mean_weight": 0.5,
             "above_percentile": (layer, expert) == (1, 1), "above_tenth": (layer, expert) == (1, 1),
             "forms_massive": layer == 1, "first_three_quarters": layer < 3,
             "super_expert": (layer, expert) == (1, 1), "above_percentile_code": (layer, expert) == (1, 1),
             "above_tenth_code": (layer, expert) == (1, 1), "first_three_quarters_code": layer < 3,
             "super_expert_code": (layer, expert) == (1, 1), "published": None}
            for layer in range(1, self.layers)
            for expert in (*range(self.experts), None)
            if self.experts
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=EXPERTS.schema)

    def expert_max(self, layer: int, expert: int | None) -> float:
        return 4000.0 if (layer, expert) == (1, 1) else 1.0 + layer + (0 if expert is None else expert)

    def _routing(self) -> pl.DataFrame:
        """In layer 1 expert 1 writes more than all, expert 0 takes some away, the shared one adds a little."""
        rows = [
            {"layer": 1, "sequence": 0, "token": self.position, "dim": dim, "part": "shared" if e is None else "expert",
             "expert": e, "weight": 0.5, "value": 2 * share * -1900.0, "weighted": share * -1900.0, "share": share,
             "whole": -1900.0, "mlp_out": -1900.0, "activation": -2000.0 - dim, "forms_massive": True, "steps_up": True}
            for dim in self.massive
            for e, share in ((1, 1.05), (0, -0.1), (None, 0.05))
            if self.experts
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=ROUTING.schema)

    def chosen(self, layer: int, expert: int) -> int:
        """Of fifteen positions in each population: the last expert of layer 1 is never chosen, else all alike, so that
        of three experts each position chooses two."""
        return 10 if layer > 1 else 0 if expert == self.experts - 1 else 15

    def _expert_load(self) -> pl.DataFrame:
        every = range(self.experts)
        rows = [
            {"population": population, "layer": layer, "expert": expert, "chosen": self.chosen(layer, expert),
             "share": self.chosen(layer, expert) / 15, "mean_weight": 0.5 if self.chosen(layer, expert) else None,
             "load": self.chosen(layer, expert) * self.experts / sum(map(self.chosen, [layer] * self.experts, every)),
             "weight_share": 1 / self.experts}
            for population in POPULATIONS for layer in range(1, self.layers) for expert in every
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=EXPERT_LOAD.schema)

    def _super_weights(self) -> pl.DataFrame:
        known = {(row["layer"], row["row"], row["col"]) for row in self.published}
        rows = [
            {"round": n, "layer": layer, "module": f"blocks.{layer}.down", "row": row, "col": col, "value": 1.5,
             "mlp_act": -200.0, "mlp_act_token": 0, "mlp_down": -300.0, "mlp_down_token": self.position,
             "published": (layer, row, col) in known if known else None}
            for n, (layer, row, col) in enumerate(self.super_weights, start=1)
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SUPER_WEIGHTS.schema)

    def perplexity(self, variant: int, sequence: int) -> float:
        """Of the ablated models."""
        return 10.0 * 3**variant + sequence

    def _ablations(self) -> dict[str, pl.DataFrame]:
        """Rule massive's first dim to zero and to its mean at the first position, a super weight to zero, two draws."""
        dims = {"site": "resid_post", "layers": "1", "number": 1, "positions": "excluded"}
        chosen = dims | {"target": "dims", "rule": "massive", "dims": str((*self.massive, 0)[0])}
        weight = {"target": "weight", "rule": "super_weight", "site": "mlp_down.weight", "layers": "1", "dims": "7",
                  "cols": "30", "number": 1, "positions": "all", "value": "zero"}  # fmt: skip
        variants: list[dict[str, object]] = [
            {"target": "baseline"}, chosen | {"value": "zero"}, chosen | {"value": "mean"}, weight,
            *(dims | {"target": "random", "dims": str(40 + seed), "seed": seed, "value": "zero"} for seed in range(2)),
        ]  # fmt: skip
        each = self._each(len(variants))
        return {
            "ablation": pl.DataFrame(self._scored(variants, each), schema=ABLATION.schema),
            "ablation_sequences": pl.DataFrame(each, schema=ABLATION_SEQUENCES.schema),
        }

    def _expert_ablations(self) -> dict[str, pl.DataFrame]:
        """Without expert 1 of layer 1, and without each of two others."""
        expert = {"site": "expert_out", "layers": "1", "number": 1, "positions": "all", "value": "zero"}
        variants: list[dict[str, object]] = [
            {"target": "baseline"}, expert | {"target": "expert", "rule": "super_expert", "experts": "1"},
            *(expert | {"target": "random", "experts": str(2 * seed), "seed": seed} for seed in range(2)),
        ] if self.experts else []  # fmt: skip
        each = self._each(len(variants))
        return {
            "expert_ablation": pl.DataFrame(self._scored(variants, each), schema=EXPERT_ABLATION.schema),
            "expert_ablation_sequences": pl.DataFrame(each, schema=EXPERT_ABLATION_SEQUENCES.schema),
        }

    def _each(self, variants: int) -> list[dict[str, float]]:
        return [
            {"variant": n, "sequence": sequence, "tokens": 5, "bytes": 20, "top1_probability": 0.5,
             "nll": 5 * math.log(self.perplexity(n, sequence))}
            for n in range(variants)
            for sequence in range(self.sequences)
        ]  # fmt: skip

    def _scored(self, variants: list[dict[str, object]], each: list[dict[str, float]]) -> list[dict[str, object]]:
        rows = []
        for n, variant in enumerate(variants):
            nll = sum(row["nll"] for row in each if row["variant"] == n) / 5 / self.sequences
            scores = {
                "nll": nll,
                "perplexity": math.exp(nll),
                "bits_per_byte": nll / math.log(2) / 4,
                "top1_probability": 0.5,
            }
            rows.append({"variant": n, "tokens": 5 * self.sequences, **variant, **scores})
        return rows

    def knocked_out_nll(self, variant: int) -> float:
        return 2.0 + 0.25 * variant

    def left(self, variant: int, dim: int, layer: int) -> float:
        """The mean of a massive dim; largest in layer 2."""
        return -(1000.0 + dim) * (layer + 1 if layer < 3 else 1) / (1 + variant)

    def _knock_outs(self) -> dict[str, pl.DataFrame]:
        """Attention and the MLP off everywhere and in each layer but 0; two heads; a super weight by degrees."""
        every = "+".join(map(str, range(self.layers)))
        off = {"positions": "all", "value": "zero"}
        weight = {"target": "weight", "layers": "1", "dims": "7", "cols": "30", "positions": "all"}
        variants: list[dict[str, object]] = [
            {"target": "baseline"},
            {"target": "attention", "layers": every, **off},
            {"target": "mlp", "layers": every, **off},
            *(
                {"target": kind, "layers": str(n), **off}
                for kind in ("attention", "mlp")
                for n in range(1, self.layers)
            ),
            {"target": "massive_tokens", "layers": "1", "dims": "7", "positions": "massive", "value": "mean"},
            *(weight | {"value": "scaled", "scale": scale} for scale in (0.0, 1.0, 3.0)),
            weight | {"value": "restored"},
            {"target": "baseline"},
            *({"target": "head", "layers": "1", "head": head, **off} for head in range(2)),
        ]
        rows, dims = [], []
        for n, variant in enumerate(variants):
            nll = self.knocked_out_nll(0 if variant["target"] == "baseline" else n)
            scores = {"nll": nll, "nll_change": nll - 2.0, "perplexity": math.exp(nll), "bits_per_byte": nll,
                      "top1_probability": 0.5, "tokens": 6}  # fmt: skip
            rows.append({"variant": n, **variant, **scores})
            for layer in range(self.layers):
                for dim in self.massive:
                    mean, before = (self.left(one, dim, layer) for one in (n, 0))
                    dims.append({"variant": n, "layer": layer, "dim": dim, "places": 2, "mean": mean, "max_abs": -mean,
                                 "unchanged_mean": before, "unchanged_max_abs": -before})  # fmt: skip
                dims.append({"variant": n, "layer": layer, "max_abs": 3000.0, "unchanged_max_abs": 3000.0})
        spikes = [
            {"layer": layer, "mlp_act": -200.0, "mlp_act_token": 0, "col": 30, "mlp_down": -300.0, "mlp_down_token": 0,
             "row": 7, "weight": 1.5, "spikes": layer == 1, "found": layer == 1}
            for layer in range(self.layers)
        ]  # fmt: skip
        return {
            "knock_outs": pl.DataFrame(rows, schema=KNOCK_OUTS.schema),
            "knock_out_dims": pl.DataFrame(dims, schema=KNOCK_OUT_DIMS.schema),
            "spikes": pl.DataFrame(spikes, schema=SPIKES.schema),
        }

    def _losses(self) -> dict[str, pl.DataFrame]:
        """All modules in 8 bits and in 4, and the first input of each layer alone, which costs the more the later."""
        of = {"remedy": "none", "quantized": "xw"}
        modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(self.layers)]
        variants: list[dict[str, object]] = [
            {"modules": 0},
            *(of | {"scheme": scheme, "what": "all", "modules": self.layers} for scheme in ("int8_token", "mxfp4")),
            *(of | {"scheme": "int8_token", "what": f"module:{name}", "modules": 1} for name in modules),
        ]
        changes = [0.0, 0.5, 2.0, *(0.01 * (layer + 1) for layer in range(self.layers))]
        scores = [
            {"nll": 2.0 + change, "nll_change": change, "low": change, "high": change, "kl": change / 2,
             "perplexity": math.exp(2.0 + change), "tokens": 6}
            for change in changes
        ]  # fmt: skip
        rows = [{"variant": n, **one, **score} for n, (one, score) in enumerate(zip(variants, scores, strict=True))]
        alone = [
            {"layer": layer, "site": "attn_norm", "module": name, "reads": name, "nll_change": 0.01 * (layer + 1),
             "kl": 0.005 * (layer + 1), "rank_kl": self.layers - layer, "kept": layer == self.layers - 1}
            for layer, name in enumerate(modules)
        ]  # fmt: skip
        each = [{"variant": row["variant"], "sequence": 0, "tokens": 6, "nll": 6.0, "kl": row["kl"]} for row in rows]
        return {
            "quantization_loss": _filled(rows, QUANTIZATION_LOSS),
            "quantization_loss_sequences": _filled(each, QUANTIZATION_LOSS_SEQUENCES),
            "quantization_sensitivity": _filled(alone, QUANTIZATION_SENSITIVITY),
            "quantization_signals": _filled([{"order": "kl", "inputs": self.layers, "kept": 1}], QUANTIZATION_SIGNALS),
            "prefix_trial": _filled([{"prefix": 0, "tokens": 6, "nll": 2.0, "massive": 1}], PREFIX_TRIAL),
        }

    def _attribution(self) -> dict[str, pl.DataFrame]:
        """Head 1 of layer 2 raises the logit of the token that comes next by 2, and nothing else does."""
        head = {"part": "head", "layer": 2, "index": 1}
        row = head | {"positions": 5, "mean": 2.0, "mean_abs": 2.0}
        for name in ("largest", "smallest"):
            row |= {name: 2.0, f"{name}_sequence": 0, f"{name}_token": 0, f"{name}_target": 1}
        place = {"sequence": 0, "token": 0, "target": 1, "centred_logit": 2.0}
        return {
            "logit_attribution": _filled([row], LOGIT_ATTRIBUTION),
            "logit_attribution_tokens": _filled([place | head | {"rank": 1, "value": 2.0}], LOGIT_ATTRIBUTION_TOKENS),
        }

    def _write_summary(self, directory: Path) -> None:
        write_json(
            directory / "model.json",
            {"kind": "pypi", "origin": self.origin, "revision": "0" * 8, "licence": None, "location": "."},
        )
        write_json(
            directory / "corpus.json",
            {"origin": "a file", "revision": None, "licence": "MIT", "sha256": "1" * 64, "documents": 1},
        )
        names = [*RUN_TABLES]
        names += KNOCK_OUT_TABLES if self.knock_outs else ()
        names += LOSS_TABLES if self.losses else ()
        names += ATTRIBUTION_TABLES if self.attribution else ()
        paths = {name: directory / f"{name}.parquet" for name in names}
        summarize_run(
            tokens=directory / "tokens.safetensors", model_source=directory / "model.json",
            corpus_source=directory / "corpus.json", tables=paths, summary=directory / "summary.json",
        )  # fmt: skip
