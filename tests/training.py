"""A tiny Llama that is trained until it has outlier features of its own, with its checkpoints on disk.

It is wide and has two blocks: Adam with a large step lets a few dims of the stream grow, and a dim can be six times the
RMS of a position only where there are many others.
"""

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

BLOCKS, D_MODEL, TOKENS = 2, 256, 32


def train(folder: Path, steps: Sequence[int], *, seed: int = 0, text: str | None = None) -> str:
    """Leave a checkpoint in `folder/step<n>` at each of `steps`; returns the text, Python's help unless it is given."""
    text = text or "\n\n".join(topics.values())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    )
    ids = torch.tensor(tokenizer.encode(text).ids)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama", vocab_size=384, hidden_size=D_MODEL, num_hidden_layers=BLOCKS, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=D_MODEL, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    for step in range(max(steps) + 1):
        if step in steps:
            model.save_pretrained(folder / f"step{step}")
            tokenizer.save(str(folder / f"step{step}/tokenizer.json"))
        starts = torch.randint(0, len(ids) - TOKENS, (2,))
        batch = torch.stack([ids[start : start + TOKENS] for start in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return text
