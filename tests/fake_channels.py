"""A small run's channel statistics, made from chosen inputs of linear layers, so what a file must say is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.files.artifacts import write_json
from outlier_features.files.tensorfile import write_tensors
from outlier_features.tokens.tokens import Tokens

SEQUENCES, TOKENS = 3, 8


@dataclass
class Layer:
    """As `linear_layers` of the provenance names one; `reads` is its own name where another is not given."""

    name: str
    layer: int | None
    site: str | None = None
    rows: int = 4
    width: int = 6
    experts: int = 0
    reads: str = ""
    transposed: bool = False

    def __post_init__(self) -> None:
        self.reads = self.reads or self.name


def llama_layers(blocks: int = 2, width: int = 8, inner: int = 10) -> list[Layer]:
    """As transformers names them."""
    layers = []
    for n in range(blocks):
        attention, mlp = f"model.layers.{n}.self_attn", f"model.layers.{n}.mlp"
        query, gate = f"{attention}.q_proj", f"{mlp}.gate_proj"
        layers += [
            *(Layer(f"{attention}.{one}_proj", n, "attn_norm", width, width, reads=query) for one in "qkv"),
            Layer(f"{attention}.o_proj", n, "attn_heads", width, width),
            *(Layer(f"{mlp}.{one}_proj", n, "mlp_norm", inner, width, reads=gate) for one in ("gate", "up")),
            Layer(f"{mlp}.down_proj", n, "mlp_act", width, inner),
        ]
    return [*layers, Layer("lm_head", None, None, 50, width)]


def norm_rows(blocks: int = 2, **changes: Any) -> list[dict[str, Any]]:
    """Of the norms of such a model, as the table of norms has them."""
    return [
        {"module": f"model.layers.{n}.{name}", "site": site, "layer": n, "residual": True, "kind": "rms",
         "parameterization": "w", **changes}
        for n in range(blocks)
        for name, site in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm"))
    ]  # fmt: skip


@dataclass
class FakeChannels:
    """`absent`: by name, why nothing is known of a layer."""

    layers: Sequence[Layer]
    absent: dict[str, str]
    folder: Path

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.inputs: dict[str, list[np.ndarray[Any, Any]]] = {}
        for one in self.layers:
            if one.reads not in self.inputs:
                counts = [SEQUENCES * TOKENS] if not one.experts else [5 * n for n in range(one.experts)]
                self.inputs[one.reads] = [rng.normal(n, 3, (count, one.width)) for n, count in enumerate(counts)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_tokens()
        self._write_channels()

    def read_by(self, name: str) -> list[np.ndarray[Any, Any]]:
        """What a layer reads, (tokens, width), by expert if it has some."""
        return self.inputs[next(one.reads for one in self.layers if one.name == name)]

    @property
    def provenance(self) -> dict[str, Any]:
        return {**Tokens.read(self.folder / "tokens.safetensors").provenance, "dtype": "float32"}

    def _write_tokens(self) -> None:
        ids = np.arange(SEQUENCES * TOKENS, dtype=np.int32).reshape(SEQUENCES, TOKENS)
        mask = np.ones(ids.shape, bool)
        facts = {"model": self.folder.parent.name, "model_revision": "0" * 8, "corpus": self.folder.name,
                 "corpus_sha256": "1" * 64, "sample": {"sequences": SEQUENCES, "tokens": TOKENS}}  # fmt: skip
        tokens = Tokens(ids, ~mask, mask, np.zeros((*ids.shape, 2), np.int32), facts)
        tokens.write(self.folder / "tokens.safetensors", self.folder / "texts.parquet", ["x"] * SEQUENCES)

    def _write_channels(self) -> None:
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for one in self.layers:
            of_experts = [_statistics(x) for x in self.inputs[one.reads]]
            found = {key: np.stack([each[key] for each in of_experts]) for key in of_experts[0]}
            for key, values in found.items():
                arrays[f"{one.name}.{key}"] = values if one.experts or key == "count" else values[0]
        facts = {"linear_layers": [asdict(one) for one in self.layers], "absent_layers": self.absent}
        write_tensors(self.folder / "channel_stats.safetensors", arrays, {**self.provenance, **facts})

    def write_model(self, folder: Path, **config: Any) -> Path:
        """Its record, beside a config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        record = {"kind": "path", "location": ".", "revision": "0" * 8, "files": {}, "trust_remote_code": False}
        write_json(folder / "source.json", record)
        return folder / "source.json"


def _statistics(x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Of (tokens, width); NaN where there are no tokens."""
    some = x.astype(np.float32) if len(x) else np.full((1, x.shape[1]), np.float32(np.nan))
    wide = some.astype(np.float64)
    return {
        "absmax": np.abs(some).max(0), "min": some.min(0), "max": some.max(0), "mean": wide.mean(0),
        "mean_square": np.square(wide).mean(0), "count": np.int64(len(x)),
    }  # fmt: skip
