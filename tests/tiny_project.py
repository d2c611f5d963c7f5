"""What a tiny run of the workflow is made of: models with planted dims, and what Snakemake said."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from planted_experts import planted_moe

PERSISTENT, MASSIVE = 5, 7  # planted dims


def byte_tokenizer(path: Path, template: bool) -> None:
    """Every byte is a token; with a template, [CLS] and [SEP] go around."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: i + 2 for i, name in enumerate(names)} | {"[CLS]": 0, "[SEP]": 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
        )
    tokenizer.save(str(path / "tokenizer.json"))


def tiny_llama(path: Path) -> None:
    """A random Llama with an outlier dim behind every norm before attention, and a massive value at the letter z."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[PERSISTENT] = 20
        model.model.embed_tokens.weight.mul_(5)
        z = 2 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("z")
        model.model.embed_tokens.weight[z, MASSIVE] = 3000
    model.save_pretrained(path)
    byte_tokenizer(path, template=False)


def tiny_bert(path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    AutoModel.from_config(config).save_pretrained(path)
    byte_tokenizer(path, template=True)


def tiny_moe(path: Path) -> None:
    """An OLMoE with a super expert, at the letter z."""
    planted_moe(path, token=2 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("z"))
    byte_tokenizer(path, template=False)


@dataclass
class Run:
    """What a Snakemake run said."""

    status: int
    output: str

    @property
    def nothing_to_do(self) -> bool:
        return "Nothing to be done" in self.output

    def errors(self) -> list[str]:
        """Lines that begin with `error: `, without it."""
        return [line.removeprefix("error: ") for line in self.output.splitlines() if line.startswith("error: ")]

    def jobs(self) -> set[str]:
        """Rules in the table of jobs of a dry run."""
        table = re.search(r"^job +count\n-+ +-+\n(.*?)\ntotal ", self.output, re.DOTALL | re.MULTILINE)
        rules = {line.split()[0] for line in table.group(1).splitlines()} if table else set()
        return rules - {"all", "tables", "report"}

    def jobs_with_other_parameters(self) -> set[str]:
        """First two words of the message of each job of a dry run that is to run since its parameters changed."""
        found = re.findall(r"^Job \d+: (\S+ \S+).*\nReason: (.*)$", self.output, re.MULTILINE)
        return {words for words, reason in found if "Params have changed" in reason}
