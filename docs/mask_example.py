import json

import torch

with open("results/smollm2-135m/python-docs/mask.json", encoding="utf-8") as file:
    mask = json.load(file)


def dims_of(rule: str, population: str = "all") -> list[int]:
    for part in mask["masks"]:
        if (part["rule"], part["population"]) == (rule, population) and part["basis"] == "residual":
            return [row["dim"] for row in part["dims"]]
    return []


keep = torch.ones(mask["d_model"], dtype=torch.bool)
keep[dims_of("dettmers") + dims_of("massive")] = False


def quantized(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """x (..., d_model) as absmax int8, a scale a position; other dims stay as they are, as in LLM.int8()."""
    scale = x[..., keep].abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    result = x.clone()
    result[..., keep] = (x[..., keep] / scale).round().to(torch.int8) * scale
    return result


# For a sparse autoencoder: every massive activation lies at a first position or special token, so these can be skipped.
massive = next(part["massive"] for part in mask["masks"] if (part["rule"], part["population"]) == ("massive", "all"))
skip_first_and_special = massive["positions"]["other"] == 0
