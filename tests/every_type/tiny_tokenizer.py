"""A tokenizer of bytes for the tiny models."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tiny_types import BOS, EOS, MASK, PAD

_SPECIAL = {"[PAD]": PAD, "[CLS]": BOS, "[SEP]": EOS, "[MASK]": MASK}


def save_tokenizer(directory: Path, template: bool) -> None:
    """Every byte is a token; with a template, [CLS] and [SEP] go around."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(_SPECIAL | {name: i + len(_SPECIAL) for i, name in enumerate(names)}, []))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        around = [(name, _SPECIAL[name]) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer.save(str(directory / "tokenizer.json"))
