"""One pass of token ids through the blocks, as every stage that runs a model makes it."""

import torch

from outlier_features.errors import InputError
from outlier_features.model.models import LoadedModel


@torch.inference_mode()
def run_blocks(loaded: LoadedModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Run the model without its head on ids int64 (B, T), with mask bool (B, T), both on its device.

    Raises `InputError` where the sequences are longer than the model can take.
    """
    # Padding follows the tokens, so a causal model never sees it; without a mask, a sequence's numbers are the same
    # beside a padded one.
    needs_mask = sees_padding(loaded) and not bool(mask.all())
    try:
        loaded.base(ids, **({"attention_mask": mask.long()} if needs_mask else {}))
    except (IndexError, RuntimeError) as error:
        positions = getattr(loaded.config, "max_position_embeddings", None)
        if positions is not None and ids.shape[1] > positions:
            raise InputError(
                f"sample.tokens: found {ids.shape[1]}, expected at most {positions}, all that {loaded.model_type} has"
            ) from error
        raise


def sees_padding(loaded: LoadedModel) -> bool:
    """Whether a token's values depend on what follows it, so that padding must be masked."""
    return not loaded.causal or loaded.part is not None  # a decoder's encoder sees all of its text
