"""The passes of a module in hand, a sequence each."""

import uuid
from typing import Any

import torch
import transformers

from outlier_features import __version__
from outlier_features.extract.proven_sites import (
    Array,
    Done,
    ProvenSites,
    Write,
    as_stored,
    not_finite,
    require_finite,
)
from outlier_features.model.module_in_hand import ModuleInHand
from outlier_features.model.sites import hooked
from outlier_features.tokens.tokens import Tokens


class ModulePasses:
    """What `Passes` is of token ids: shapes, gains and provenance of the activations, and `run`.

    found   its sites
    """

    def __init__(self, module: ModuleInHand, run: Tokens, sites: list[str]):
        """Find and prove the sites. Raises `InputError` where there is none."""
        name = type(module.model).__name__
        self._module, self._shape = module, run.tokens.shape
        self.found = ProvenSites.of(module, sites, name)
        self.shapes = self.found.shapes(self._shape)
        self.gains: dict[str, Array] = self.found.gains
        config = module.config
        self.provenance: dict[str, Any] = run.provenance | {
            "architecture": getattr(config, "model_type", name),
            "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
            "blocks": len(module.stack),
            "d_model": module.stack.width,
            "vocab_size": None,
            "causal_head": False,
            "no_loss": "what the model's inputs mean is not known",
            "dtype": str(module.dtype).removeprefix("torch."),
            "device": module.device.type,
            "attention": getattr(config, "_attn_implementation", None),
            "threads": torch.get_num_threads(),
            "start": 0,
            "stop": self._shape[0],
            "sequences": self._shape[0],
            **self.found.facts,
            "job": uuid.uuid4().hex,
            "package_version": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @torch.inference_mode()
    def run(self, write: Write, write_losses: Write, done: Done) -> None:
        """As `Passes.run`; there are no losses. Raises `InputError` where an activation is not finite."""
        for row in range(self._shape[0]):
            nonfinite: dict[str, int] = {}

            def take(name: str, value: torch.Tensor, row: int = row, nonfinite: dict[str, int] = nonfinite) -> None:
                if count := not_finite(value):
                    nonfinite[name] = count
                write(name, row, as_stored(value, (1, self._shape[1])))

            with hooked(self.found.by_name.items(), take):
                self._module.inputs.rows(slice(row, row + 1)).run(self._module.model)
            require_finite(nonfinite, self._module.dtype, row)
            done(slice(row, row + 1))
