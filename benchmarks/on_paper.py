"""What the twelve models of the published sweep cost, on paper: the tables of docs/costs.md.

Sizes are of the models' configs, built without weights. Rates of a CPU core are measured (`--measure` measures them
anew), those of GPUs and disks are assumed. `--write` puts the tables into the page, where the formulas stand.
"""

import argparse
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from outlier_features.model import placement
from outlier_features.model.memory import APART, SHARE
from outlier_features.model.neuron_count import neurons_of_blocks
from outlier_features.neurons import store_size

PAGE = Path(__file__).parents[1] / "docs/costs.md"

SEQUENCES, TOKENS = 16, 2048
SITES = 3  # a block has resid_post, mlp_norm, and attn_norm or mixer_norm
BFLOAT16 = 2
MXFP4 = 17 / 32  # bytes of a weight: 4 bits, and 8 for each 32
HIT = 5  # bytes of a row of hits, and the largest share of a site's values that is listed (detect.max_density)
DENSITY = 0.02

# Measured on one core of a 2-core virtual machine (AMD EPYC with AVX-512 and bfloat16 instructions), 2026-11-29.
MULTIPLY_ADD = 0.015e-9  # s in bfloat16, dense 0.014 to 0.015, experts 0.015; float32 0.024 to 0.033
DETECTION = 8.3e-9  # s a value, the larger of 6.0 and 8.3, with medians and hits against both RMS, all written
RANKING = 2.5e-9  # s a neuron's value
ROUNDED_INPUT = 19e-9  # s a value that a linear layer reads, by ten schemes; float32, 2026-11-30
ROUNDED_WEIGHT = 184e-9  # s a weight of a linear layer, by ten schemes, with every remedy on two
START = 6.5  # s of a job that runs a model, until it loads it
PLANNED = 3.8e-3  # s a job of a dry run, of 21 jobs and of 2,017
# Assumed.
UTILISATION = 0.2  # of a GPU's peak, in a pass
DISK = 3e9  # B/s, reading and writing

# Passes over the run's tokens at most, by rule: numbers of config.yaml.
FOLLOW_UPS = {
    "ablate_dims": 1.0,  # ablate.cost, the search for super weights among it
    "map_attention": 17 * 64 / (SEQUENCES * TOKENS),  # sequences, those kept again, positions
    "trace_origin": 1 + 3 * 2 / SEQUENCES,  # all sequences where no dim is massive; two passes a dim on its sequence
    "record_examples": 1.0,  # all sequences: of more neurons than a gigabyte holds, some in passes of their own
    "quantize_sites": 1.0,
}
EXAMPLES = min(20, SEQUENCES)  # neurons.examples, one a sequence
RANK_EXPERTS = 1.0  # experts.sequences
# How often a job reads the blocks where weights stay on disk and none is kept: counted on the default model and run
# (98 variants of ablate_dims); of rank_experts and record_examples not counted: what extraction proves, and a pass a
# sequence.
READS = {
    "extract_activations": 15,
    "map_attention": 23,
    "ablate_dims": 100,  # at most: counted of its two analyses, each with a load of its own
    "trace_origin": 12,
    "record_examples": 14 + SEQUENCES,
    "quantize_sites": 13,
    "rank_experts": 14 + SEQUENCES,
}


def _qwen3(width: int, inner: int, blocks: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=tied,
    )  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of the sweep; what its config does not say is transformers' default for its type.

    mxfp4   its checkpoint holds the experts in MXFP4
    """

    name: str
    config: PreTrainedConfig
    mxfp4: bool = False

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the weights by name; one that is tied is there once."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return {name: weight.shape for name, weight in model.named_parameters()}

    def _count(self, wanted: Callable[[str], bool] = lambda name: True) -> int:
        return sum(shape.numel() for name, shape in self.shapes.items() if wanted(name))

    @property
    def blocks(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def heads(self) -> int:
        """Width of all heads of a block together."""
        width = getattr(self.config, "head_dim", None) or self.width // self.config.num_attention_heads
        return int(self.config.num_attention_heads * width)

    @property
    def has_experts(self) -> bool:
        return self.experts > 0

    @cached_property
    def total(self) -> int:
        return self._count()

    @cached_property
    def experts(self) -> int:
        """Parameters of the experts that are chosen from."""
        return self._count(lambda name: ".experts." in name)

    @cached_property
    def chosen(self) -> Fraction:
        """Of the experts, the share that a token meets."""
        config = self.config.to_dict()
        number = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)
        return Fraction(int(config["num_experts_per_tok"]), int(number))

    @cached_property
    def active(self) -> int:
        """Parameters that a token meets: of the experts the chosen ones."""
        if not self.has_experts:
            return self.total
        return self.total - self.experts + int(self.experts * self.chosen)

    @cached_property
    def neurons(self) -> list[int]:
        """Of each block, in all experts."""
        return neurons_of_blocks(self.shapes, self.width)

    @property
    def ranked(self) -> float:
        """Values of neurons in a pass."""
        return SEQUENCES * TOKENS * sum(self.neurons) * float(self.chosen if self.has_experts else 1)

    @property
    def stores(self) -> float:
        """Bytes on disk: the chunk's, the run's, and their tables."""
        count = sum(self.neurons)
        return 2.0 * store_size.written(count, EXAMPLES) + store_size.tables(count, EXAMPLES, 3)

    @cached_property
    def multiply_adds(self) -> float:
        """Of a pass over the run's tokens, with the head: all weights but a table that is only looked up, and in each
        block with attention every query times every key, twice."""
        config = self.config
        looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        mixers = getattr(config, "layer_types", None) or ["full_attention"] * self.blocks
        attention = sum(kind != "linear_attention" for kind in mixers)
        scores = 2 * TOKENS * self.heads * attention
        return float(SEQUENCES * TOKENS * (self.active - looked_up + scores))

    @property
    def rounding(self) -> float:
        """Seconds of a core that rounds what linear layers of blocks read, and their weights."""
        config = self.config
        readers = 1 + (config.num_experts_per_tok if self.has_experts else 1)  # of the stream: attention, and MLPs
        read = SEQUENCES * TOKENS * self.blocks * (readers * self.width + self.heads) + self.ranked
        return read * ROUNDED_INPUT + self._count(lambda name: ".layers." in name) * ROUNDED_WEIGHT

    @property
    def weights(self) -> float:
        """Bytes in bfloat16."""
        return float(self.total * BFLOAT16)

    @property
    def checkpoint(self) -> float:
        """Bytes as they are published."""
        return self.weights - self.experts * (BFLOAT16 - MXFP4) * self.mxfp4

    @cached_property
    def layerwise(self) -> float:
        """Bytes of weights in memory, at least: what is outside of blocks, and two blocks."""
        outside = self._count(lambda name: ".layers." not in name)
        largest = max(self._count(lambda name, n=n: f".layers.{n}." in name) for n in range(self.blocks))
        return float((outside + 2 * largest) * BFLOAT16)

    @property
    def values(self) -> int:
        return SITES * self.blocks * SEQUENCES * TOKENS * self.width

    @property
    def activations(self) -> float:
        return float(self.values * BFLOAT16)

    @property
    def jobs(self) -> list[str]:
        """The rules that load the model, each once: one chunk has all sequences."""
        return ["extract_activations", *FOLLOW_UPS, *(["rank_experts"] if self.has_experts else [])]

    @property
    def passes(self) -> float:
        return 1 + sum(FOLLOW_UPS.values()) + RANK_EXPERTS * self.has_experts


MODELS = [
    Model("OLMoE-1B-7B", OlmoeConfig(intermediate_size=1024)),
    Model("GPT-OSS-20B", GptOssConfig(num_hidden_layers=24, num_local_experts=32), mxfp4=True),
    Model("Qwen3-30B", Qwen3MoeConfig(num_hidden_layers=48, head_dim=128)),
    Model("Mixtral-8x7B", MixtralConfig()),
    Model("Qwen3-Next-80B", Qwen3NextConfig()),
    Model("GLM-4.5-Air", Glm4MoeConfig(head_dim=128, attention_bias=True)),
    Model("GPT-OSS-120B", GptOssConfig(), mxfp4=True),
    Model("Qwen3-0.6B", _qwen3(1024, 3072, 28, 16, tied=True)),
    Model("Qwen3-1.7B", _qwen3(2048, 6144, 28, 16, tied=True)),
    Model("Qwen3-4B", _qwen3(2560, 9728, 36, 32, tied=True)),
    Model("Qwen3-8B", _qwen3(4096, 12288, 36, 32, tied=False)),
    Model("Qwen3-14B", _qwen3(5120, 17408, 40, 40, tied=False)),
]


@dataclass(frozen=True)
class Machine:
    """memory in bytes: of each GPU, or of the CPU where there is none; peak: of a GPU in bfloat16, FLOP/s."""

    memory: float
    cores: int
    gpus: int = 0
    peak: float = 0.0

    @property
    def room(self) -> float:
        """Bytes that weights may take: of one GPU, or of the CPU."""
        return SHARE * self.memory - (0 if self.gpus else APART)

    @property
    def second(self) -> float:
        """Multiply-adds."""
        return self.peak * UTILISATION / 2 if self.gpus else self.cores / MULTIPLY_ADD


A100 = 80e9, 312e12
ONE = Machine(A100[0], 16, 1, A100[1])
EIGHT = Machine(A100[0], 16, 8, A100[1])
WORKSTATION = Machine(24 * 2**30, 8, 1, 165e12)
CPU = Machine(64 * 2**30, 8)


@dataclass(frozen=True)
class Run:
    model: Model
    machine: Machine

    @property
    def gpus(self) -> int:
        """That the weights need."""
        return math.ceil(self.model.weights / self.machine.room)

    @property
    def placement(self) -> str:
        if self.gpus == 1:
            return "one"
        return f"spread, {self.gpus}" if self.gpus <= self.machine.gpus else "layerwise"

    @property
    def from_disk(self) -> bool:
        return self.placement == "layerwise"

    @property
    def memory(self) -> float:
        return self.model.layerwise if self.from_disk else self.model.weights

    @property
    def ranking(self) -> float:
        """Bytes of a CPU's memory for neurons while they are ranked, at most."""
        neurons = self.model.neurons
        return float(store_size.held_while_ranking(max(neurons) if self.from_disk else sum(neurons), EXAMPLES))

    @property
    def disk(self) -> float:
        copies = 2 if self.from_disk else 1
        activations = copies * self.model.activations + DENSITY * HIT * self.model.values
        return self.model.checkpoint + activations + self.model.stores

    @property
    def read(self) -> float:
        """Bytes of weights that all jobs read."""
        if not self.from_disk:
            return len(self.model.jobs) * self.model.checkpoint
        again = 1 - min(1.0, placement._KEPT_SHARE * self.machine.room / self.model.weights)
        return sum(1 + max(0.0, READS[job] - 1) * again for job in self.model.jobs) * self.model.checkpoint

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of what a run does."""
        moved = 4 if self.from_disk else 2  # times that activations are written and read
        return {
            "weights": self.read / DISK + len(self.model.jobs) * START,
            "passes": self.model.passes * self.model.multiply_adds / self.machine.second,
            "detection": self.model.values * DETECTION / self.machine.cores,
            "ranking": self.model.ranked * RANKING / self.machine.cores,
            "rounding": 0.0 if self.machine.gpus else self.model.rounding / self.machine.cores,
            "activations": moved * self.model.activations / DISK,
        }

    @property
    def hours(self) -> float:
        return sum(self.parts.values()) / 3600


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 10e9 else f"{size / 1e9:,.0f}"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}"


def models_table() -> str:
    head = ("model", "blocks x d", "parameters, 1e9", "active", "checkpoint, GB", "in bfloat16, GB",
            "multiply-adds of a pass, 1e12", "activations, GB", "neurons, 1e6", "stores, GB", "loads")  # fmt: skip
    return _table(head, [
        (
            m.name, f"{m.blocks} x {m.width:,}", f"{m.total / 1e9:.2f}", f"{m.active / 1e9:.2f}", _gb(m.checkpoint),
            _gb(m.weights), f"{m.multiply_adds / 1e12:,.0f}", _gb(m.activations),
            f"{sum(m.neurons) / 1e6:.2f}", _gb(m.stores), str(len(m.jobs)),
        )
        for m in MODELS
    ])  # fmt: skip


MACHINES = {"one 80 GB GPU": ONE, "eight": EIGHT, "a 24 GiB GPU": WORKSTATION, "a CPU, 64 GiB": CPU}


def runs_table() -> str:
    rows = []
    for model in MODELS:
        runs = [Run(model, machine) for machine in MACHINES.values()]
        memory = [f"{_gb(run.memory)} + {_gb(run.ranking)}" for run in runs]
        cells = [
            f"{r.placement}: {held}, {_gb(r.disk)}, {_hours(r.hours)}" for r, held in zip(runs, memory, strict=True)
        ]
        rows.append((model.name, *cells))
    return _table(("placement: weights + neurons in memory and disk in GB, hours", *MACHINES), rows)


def _cell(run: Run) -> str:
    memory = f"{_gb(run.memory)} + {_gb(run.ranking)}"
    return f"{run.placement}: {memory}, {_gb(run.disk)}, {_hours(run.hours)}"


def parts_table() -> str:
    """Where the hours of all twelve go."""
    rows = []
    for name, machine in MACHINES.items():
        runs = [Run(model, machine) for model in MODELS]
        parts = [sum(run.parts[part] for run in runs) / 3600 for part in runs[0].parts]
        rows.append((name, *(_hours(part) if part else "-" for part in parts), _hours(sum(parts))))
    return _table(("all twelve in turn, h", *runs[0].parts, "together"), rows)


def limits_table() -> str:
    """What grows with the number of models, and what with that of tokens."""
    model, per_run = next(one for one in MODELS if one.name == "Qwen3-8B"), SEQUENCES * TOKENS
    columns = []
    for models, tokens in ((1000, per_run), (1, 10**9)):
        share = models * tokens / per_run
        chunks = models * math.ceil(tokens / per_run)
        jobs = 18 * models + 2 * chunks
        columns.append(
            (
                _tb(models * model.checkpoint),
                _tb(share * model.activations),
                _tb(share * model.values * DENSITY * HIT),
                _days(share * model.multiply_adds / ONE.second),
                _days(share * model.values * DETECTION / ONE.cores),
                _days(share * model.ranked * RANKING / ONE.cores),
                _days(models * len(model.jobs) * (model.checkpoint / DISK + START)),
                f"{jobs:,}",
                f"{jobs * PLANNED / 60:,.0f}",
            )
        )
    names = (
        "checkpoints, TB",
        "activations, where all are kept, TB",
        "hits, at most, TB",
        "a pass on one GPU, days",
        "detection on 16 cores, days",
        "ranking neurons on 16 cores, days",
        "a load by each of six jobs, days",
        "jobs, of 16 sequences a chunk",
        "planning them, min",
    )
    head = ("", "1,000 models, 32,768 tokens each", "one model, 10^9 tokens")
    return _table(head, [(name, *cells) for name, *cells in zip(names, *columns, strict=True)])


def _tb(size: float) -> str:
    return f"{size / 1e12:,.2g}" if size < 10e12 else f"{size / 1e12:,.0f}"


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.2f}"


TABLES = {"models": models_table, "runs": runs_table, "parts": parts_table, "limits": limits_table}


def with_tables(page: str) -> str:
    """The page with the tables as they are computed, each between its two marks."""
    for name, table in TABLES.items():
        marks = f"<!-- {name} -->", f"<!-- {name} ends -->"
        text = f"{marks[0]}\n{table()}\n{marks[1]}"
        page, found = re.subn(f"{marks[0]}.*?{marks[1]}", lambda _, text=text: text, page, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"error: {PAGE}: found {found} places for the table {name!r}, expected one")
    return page


def core_seconds(config: PreTrainedConfig, dtype: torch.dtype) -> float:
    """CPU seconds of a multiply-add, of a pass over one sequence with random weights on one thread."""
    model = Model("", config)
    loaded = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    ids = torch.randint(0, config.vocab_size, (1, TOKENS))
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.process_time()
            loaded(ids, use_cache=False)
            taken.append(time.process_time() - start)
    return statistics.median(taken) * SEQUENCES / model.multiply_adds


def measure() -> None:
    import detection

    torch.set_num_threads(1)
    small = {"num_attention_heads": 16, "head_dim": 128, "vocab_size": 64}
    dense = Qwen3Config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=4, num_key_value_heads=8, **small)
    experts = Qwen3MoeConfig(hidden_size=2048, num_hidden_layers=1, num_experts=128, num_key_value_heads=4, **small)
    for name, config in {"dense": dense, "experts": experts}.items():
        for dtype in (torch.bfloat16, torch.float32):
            print(f"multiply-add, {name}, {dtype}: {core_seconds(config, dtype) * 1e9:.4f} ns", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.safetensors"
        detection.plant(path, 512)
        values = 512 * detection.LAYERS * detection.TOKENS * detection.DIMS
        for mode in ("with medians and token kurtosis", "and both RMS, all hits written"):
            work = detection.MODES[mode]
            work(path, Path(folder))
            taken = [detection.seconds(work, path, Path(folder))[0] for _ in range(3)]
            print(f"detection, {mode}: {statistics.median(taken) / values * 1e9:.2f} ns a value", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/costs.md")
    parser.add_argument("--measure", action="store_true", help="measure the rates of a core, instead of the tables")
    options = parser.parse_args()
    if options.measure:
        measure()
    elif options.write:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for name, table in TABLES.items():
            print(f"{name}\n\n{table()}\n")


if __name__ == "__main__":
    main()
