"""The tables that rule quantize_model writes."""

import polars as pl

from outlier_features.files.columns import LAYER, SITE
from outlier_features.files.quantization_columns import MODULE, QUANTIZED, REMEDY, SCHEME, SETTING
from outlier_features.files.score_columns import SCORES, VARIANT, scores_by_sequence
from outlier_features.files.tables import Column, Table

_KL = Column(
    "kl",
    pl.Float64,
    "KL(unchanged || quantized) of the predictions of the next token, mean over predicted tokens; null where it is "
    "not finite",
    "nats per token",
)
_CHANGE = (
    Column("nll_change", pl.Float64, "nll less that of the unchanged model", "nats per token"),
    Column("low", pl.Float64, "2.5 % of that over resampled sequences; null of one sequence", "nats per token"),
    Column("high", pl.Float64, "97.5 % of it", "nats per token"),
)

QUANTIZATION_LOSS = Table(
    "quantization_loss",
    "variant of the model: which linear layers are quantized, how, and how well it then predicts the sample",
    (
        VARIANT,
        SCHEME,
        REMEDY,
        SETTING,
        QUANTIZED,
        Column(
            "what",
            pl.String,
            "the linear layers: `all` of the blocks; `site:` those that read the site; `module:` those that read the "
            "input of that layer; `kept:<order>:<k>` all but the first k inputs of an order, see "
            "`quantization_signals`; null of the unchanged model",
        ),
        Column("modules", pl.UInt32, "linear layers that are quantized; those of all experts in one tensor are one"),
        *SCORES,
        _KL,
        *_CHANGE,
    ),
)

_BY_SEQUENCE = scores_by_sequence("quantization_loss")
QUANTIZATION_LOSS_SEQUENCES: Table = Table(_BY_SEQUENCE.name, _BY_SEQUENCE.row, (*_BY_SEQUENCE.columns, _KL))

QUANTIZATION_SENSITIVITY = Table(
    "quantization_sensitivity",
    "linear layer: what it costs that those which read its input are quantized alone, and what foretells it",
    (
        LAYER,
        SITE,
        MODULE,
        Column("reads", pl.String, "the first layer that reads the same input: all these have the same numbers"),
        Column("nll_change", pl.Float64, "nll with these alone quantized, less the unchanged one", "nats per token"),
        _KL,
        Column("output_error", pl.Float64, "mean of theirs in `quantization`, of the same scheme", "share"),
        Column("kurtosis", pl.Float64, "excess kurtosis of the site in `layers`; null where it was not extracted"),
        Column("kurtosis_channel_rms", pl.Float64, "mean_h(s_h^4) / mean_h(s_h^2)^2, s_h the RMS of channel h; 1..d"),
        Column("absmax_over_median", pl.Float64, "largest of the channels' largest abs(x), over their median"),
        Column("channel_spread", pl.Float64, "the same over their mean"),
        *(
            Column(f"rank_{name}", pl.UInt32, f"place by `{name}`, the largest 1; null where that is")
            for name in ("nll_change", "kl", "output_error", "kurtosis", "kurtosis_channel_rms", "absmax_over_median",
                         "channel_spread")
        ),
        Column("kept", pl.Boolean, "left in 16 bits, so that the rest costs no more than `quantize.budget`"),
    ),
)  # fmt: skip

QUANTIZATION_SIGNALS = Table(
    "quantization_signals",
    "order in which inputs are kept in 16 bits: how well it goes with what each costs alone, and how many it takes",
    (
        Column(
            "order",
            pl.String,
            "`nll_change`, `kl`: what each costs alone; a column of `quantization_sensitivity` that is had without "
            "such passes; or `random`",
        ),
        Column("inputs", pl.UInt32, "inputs for which the signal is there", "inputs"),
        Column("spearman", pl.Float64, "rank correlation of the signal with `nll_change` over these inputs"),
        Column("spearman_kl", pl.Float64, "the same with `kl`"),
        Column(
            "kept",
            pl.UInt32,
            "fewest inputs, of the numbers that were tried, that must be kept in this order so that perplexity rises "
            "by no more than `quantize.budget`; null where the order was not tried",
            "inputs",
        ),
    ),
)

PREFIX_TRIAL = Table(
    "prefix_trial",
    "with or without the prefix, what is quantized: the loss on the same tokens, and what stands out in resid_post",
    (
        Column("prefix", pl.UInt16, "tokens that are put before each sequence; 0: none", "tokens"),
        SCHEME,
        QUANTIZED,
        Column(
            "exact", pl.Boolean, "the prefix is of full precision; without one, the first position and special tokens"
        ),
        *SCORES,
        _KL,
        *_CHANGE,
        LAYER,
        Column("max_abs", pl.Float64, "largest abs(x) of resid_post in the block, at the sequences' own tokens"),
        Column("median", pl.Float64, "median of abs(x) over the same", "activation"),
        Column("ratio", pl.Float64, "their quotient; the block is the one where that is largest"),
        Column("massive", pl.UInt32, "tokens of the sequences whose largest abs(x) is above 1000 medians and 100"),
    ),
)
