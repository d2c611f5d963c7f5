"""The bound that docs/definitions.md states for 16-bit formats, on tiny models."""

import pytest
import torch

from sixteen_bit import SETTINGS, activations, bound
from zoo import D_MODEL, VOCABULARY, load


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_batch_and_threads_stay_within_the_bound(tmp_path, name, dtype):
    loaded = load(name, tmp_path, dtype)
    ids = torch.randint(0, VOCABULARY, (8, 96), generator=torch.Generator().manual_seed(1))
    reference = activations(loaded, ids, *SETTINGS[0])
    assert reference["resid_post", 0].shape == (8, 96, D_MODEL) and len(reference) == 3 * loaded.blocks
    for batch, threads in SETTINGS[1:]:
        for key, x in activations(loaded, ids, batch, threads).items():
            assert ((x - reference[key]).abs() <= bound(loaded, reference[key])).all(), (batch, threads, key)


def test_the_bound_is_one_that_another_computation_breaks(tmp_path):
    """Weights that are off by some units in the last place are beyond it."""
    loaded = load("llama", tmp_path, "bfloat16")
    ids = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    reference = activations(loaded, ids, 1, 1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.05)
    changed = activations(loaded, ids, 1, 1)
    last = ("resid_post", loaded.blocks - 1)
    assert ((changed[last] - reference[last]).abs() > bound(loaded, reference[last])).any()
