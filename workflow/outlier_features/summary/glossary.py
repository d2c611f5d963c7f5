"""The words of a report, each explained once: its page of definitions has them all, other pages what they need."""

from outlier_features.wording import capital, with_article

_TERMS = """
Token: A piece of text, often a word or a part of one. A model reads text token by token.

Sequence: A stretch of text that the model reads at once, some hundreds of tokens here.

Hidden dimension: One of the d_model numbers that a model holds for a token between its blocks; dim for short.

Layer: A block of the model: attention or another part that mixes tokens, and MLP. Layers, positions, sequences and
dimensions are counted from 0.

Attention, MLP: The two parts of a layer. By attention a token reads the tokens before it, in encoders all others; the
MLP works on each token by itself.

Site: Where in a block a tensor is taken: resid_pre, resid_mid and resid_post are the residual stream before the block,
between attention and MLP, and after the block; attn_norm, mixer_norm and mlp_norm are the outputs of the norms, gain
included, which the linear layers of attention, of another part that mixes tokens and of the MLP read; attn_heads is
what attention's output projection reads; attn_out, mixer_out and mlp_out are what they add.

Population: The positions that count: those of all tokens (all in tables), or without first tokens (without_first), that
is without the first position of each sequence and special tokens. Padding never counts. Where nothing would be left
out, all is the only one.

Rule: What selects dimensions: how large a value must be, at which sites, in how many layers and at how many positions.
A dimension is selected if at least one sequence passes; how many do is given beside it.

Hit: A value that is large enough for a rule.

Occurrence, location, pair: What is counted: an occurrence is one hit (sequence, layer, site, position, dimension); a
location leaves out layer and site; a pair is (sequence, dimension).

Outlier feature: A dimension that is large in many layers and at many tokens.

Massive activation: A single value that is thousands of times larger than those around it, usually at a few tokens only.

Scale-free rule: A rule that divides a value by the size of those around it, or by a norm's learned gain, before it
compares it with a threshold, so that the threshold means the same in every model.

Kind of a dimension: From the share of positions with a hit, averaged over the sequences that pass: persistent (at least
50 %), massive (at most 5 %) or mixed. It is not the kind of a rule.

Step up, step down: A dimension steps up in the first layer where its largest |x| on resid_post reaches half of its
maximum over layers, and down in the first later layer where it is below that half.

Gain: What a norm multiplies its normalised input by, dimension by dimension. A gain near 0 hides a dimension from the
linear layers that read the norm, however large it is in the residual stream.

Super weight: A single weight of an MLP's last linear layer that makes a massive activation.

Super expert: An expert of a mixture-of-experts model that makes a massive activation.

Attention sink: A position to which many heads give much of their attention, whatever it says.

Perplexity, bits per byte: How badly the model predicts the text: the exponential of the mean loss per token, and the
same loss in bits for each byte of text, which models with other tokenizers can be compared by. Lower is better.

Top-1 probability: The largest that the model gives to any next token, whether it is right or not.

Ablation: A run of the model with some values set to zero or to their mean, to see what they do. Dimensions selected in
population all are changed in the output of the layer where they step up, at some positions or all (the mean is that
of the unchanged model over the same positions), or set to zero in all inputs of linear layers as in LLM.int8(). Where
zero does harm and the mean does not, it is the value that the model needs and not how it varies.
"""

# In the order in which a newcomer needs them.
TERMS = dict(" ".join(term.split()).split(": ", 1) for term in _TERMS.split("\n\n"))

# What stands for a term in a sentence, in the singular.
WORDS = {
    **{name.strip().lower(): term for term in TERMS for name in term.split(",")},
    "dimension": "Hidden dimension",
    "sink": "Attention sink",
    "kind": "Kind of a dimension",
}

LIMITS = (
    "They hold for this sample of this text, in this number format; another text can have other outliers.",
    "A large value does not show that the model needs it; only an ablation speaks of that.",
    "Thresholds are conventions. 6.0, 25 % and 6 % were calibrated on one model of 125 million parameters; the "
    "sensitivity figure shows how the counts depend on them.",
    "Rules look at different tensors, so their counts are not of one kind: some at the inputs of linear layers, others "
    "at the residual stream after a block.",
    "Dimension numbers of two models have nothing to do with each other.",
)


def explained(noun: str) -> str:
    """A sentence on what a rule looks for, `outlier feature`; nothing where the glossary does not have it."""
    text = TERMS.get(noun.capitalize(), "")
    return f"{capital(with_article(noun))} is {text[0].lower()}{text[1:]}" if text else ""


WHY_THEY_MATTER = (
    "They matter to whoever rounds activations to few bits, since one such value stretches the scale that others must "
    "share (Dettmers et al. 2022, Sun et al. 2024). Without some of them a model fails."
)
WHAT_THEY_ARE = " ".join(map(explained, ("outlier feature", "massive activation")))
FOR_NEWCOMERS = (
    "A transformer language model holds a list of numbers for each token, one for each hidden dimension; every layer "
    "reads the list and adds to it. In most trained models a few dimensions hold numbers far larger than all others. "
    f"{WHAT_THEY_ARE} {WHY_THEY_MATTER} The page of each run says which dimensions they are, where, by which rule, "
    "where they come from and what happens without them."
)
