"""What quantizers read of a small run, exported as rule export_quantization does."""

import json

import numpy as np
import polars as pl
import yaml
from gguf import GGUFReader
from transformers import BitsAndBytesConfig

from fake_channels import FakeChannels, llama_layers, norm_rows
from outlier_features.files.tables import write_table
from outlier_features.norms.norms_schema import NORMS
from outlier_features.quantize.export_quantization import export_quantization
from outlier_features.quantize.quantization_schema import QUANTIZATION

FILES = {
    "scales": "smoothquant_scales.safetensors",
    "imatrix": "imatrix.gguf",
    "llmcompressor": "llmcompressor_recipe.yaml",
    "bitsandbytes": "bitsandbytes.json",
    "prefix": "prefix.json",
}
LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 10, "vocab_size": 50, "tie_word_embeddings": False}  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj"


class Exported:
    """The five files of a run of these layers."""

    def __init__(
        self, folder, layers=None, absent=None, config=LLAMA, norms=(), scheme="int8_token", model="tiny", **tables
    ):
        self.run = folder / "results" / model / "text"
        self.channels = FakeChannels(layers or llama_layers(), absent or {}, self.run)
        if norms is not None:
            rows = pl.DataFrame([*norms] or norm_rows(), schema=NORMS.schema, strict=False)
            write_table(self.run / "norms.parquet", rows, NORMS, self.channels.provenance)
            tables["norms"] = self.run / "norms.parquet"
        self.paths = {name: self.run / "quantization" / file for name, file in FILES.items()}
        export_quantization(
            source=self.channels.write_model(folder / "resources/models/tiny", **config),
            tokens=self.run / "tokens.safetensors",
            channel_stats=self.run / "channel_stats.safetensors",
            tables=tables,
            scheme=scheme,
            **self.paths,
        )

    @property
    def imatrix(self):
        reader = GGUFReader(self.paths["imatrix"])
        return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}, {
            key: field.contents() for key, field in reader.fields.items()
        }

    @property
    def recipe(self):
        return yaml.safe_load(self.paths["llmcompressor"].read_text())["quantization_stage"]["quantization_modifiers"]

    @property
    def bitsandbytes(self):
        return BitsAndBytesConfig(**json.loads(self.paths["bitsandbytes"].read_text()))


def quantization_table(channels_of, folder, errors, **changes):
    row = {"scheme": "int8_token", "remedy": "none", "quantized": "xw", "population": "all", **changes}
    rows = [{**row, "module": module, "output_error": error} for module, error in errors.items()]
    path = folder / "quantization.parquet"
    write_table(path, pl.DataFrame(rows, schema=QUANTIZATION.schema, strict=False), QUANTIZATION, channels_of)
    return path


def provenance_of_run(folder):
    return FakeChannels(llama_layers(), {}, folder / "results/tiny/text").provenance
