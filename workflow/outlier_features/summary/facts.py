"""Everything that a run computed and that its reader is told: one list, which each page tells at its own length."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from outlier_features.dim_marks import joined
from outlier_features.files.missing import missing_sentence
from outlier_features.norms.gain_summary import NOTABLE, dim_sentence, is_notable, ones_sentence
from outlier_features.origin.origin_findings import ladder_sentences, ladders, lifecycle_sentences
from outlier_features.summary.ablation_facts import ablation_facts, pruning_facts, super_weight_facts
from outlier_features.summary.expert_facts import expert_facts
from outlier_features.summary.fact import Fact
from outlier_features.summary.knock_out_facts import knock_out_facts
from outlier_features.summary.quantization_facts import quantization_facts
from outlier_features.summary.quantization_loss_facts import quantization_loss_facts
from outlier_features.summary.rule_facts import DIMS_IN_FULL, rule_facts
from outlier_features.visible_text import visible
from outlier_features.wording import count, number

Part = Mapping[str, Any]


def facts_in(summary: Part, tables: Mapping[str, pl.DataFrame] | None = None) -> list[Fact]:
    """The facts of a run, from its summary.json and, of traced dims, from its `tables` on origins, by name."""
    had = [name for name in summary["tables"] if name not in summary["missing"]]
    loss = summary["loss"] if "loss" in had else None
    return [
        *(
            Fact(what="missing", topic="missing", values=why, short=visible(missing_sentence(analysis, why)))
            for analysis, why in summary["missing"].items()
        ),
        *rule_facts(summary),
        *expert_facts(summary["experts"], summary["rules"]),
        *_gains(summary["norms"]),
        *(super_weight_facts(summary["super_weights"], summary["rules"]) if "super_weights" in had else ()),
        *_origin(tables or {}),
        *(_loss(summary["loss"]) if "loss" in had else ()),
        *(ablation_facts(summary["ablation"], loss) if "ablation" in had else ()),
        *(pruning_facts(summary["expert_ablation"], summary["rules"], loss) if summary.get("expert_ablation") else ()),
        *(knock_out_facts(summary["knock_outs"], loss) if summary.get("knock_outs") else ()),
        *(quantization_facts(summary["quantization"]) if summary.get("quantization") else ()),
        *(quantization_loss_facts(summary["quantization_losses"]) if summary.get("quantization_losses") else ()),
    ]


def is_dump(summary: Part) -> bool:
    """Whether the activations were saved by some other program, so that there is no model to speak of."""
    return bool(summary["model"]["kind"] == "dump")


def _gains(norms: Part | None) -> Iterator[Fact]:
    if norms is None or not norms["norms"]:
        return
    notable = [row for row in norms["dims"] if is_notable(row)]
    dims = [
        Fact(what="gain of dim", topic="found", short=dim_sentence(row), values=row, dim=row["dim"])
        for row in notable[:DIMS_IN_FULL]
    ]
    yield Fact(what="gains", topic="found", short=ones_sentence(norms), values=norms, parts=tuple(dims))
    if norms["dims"] and not notable:
        text = (
            f"At every selected dimension |gain| is less than {number(NOTABLE)} times larger or smaller than the "
            "median |gain| of the unselected dimensions."
        )
        yield Fact(what="gains", topic="not found", short=text)


def _origin(tables: Mapping[str, pl.DataFrame]) -> Iterator[Fact]:
    """Of each traced dim what makes it and, of each MLP where it steps, where it grows and by which neurons."""
    if "lifecycle" not in tables:
        return
    where: Part = {"topic": "found", "rule": "trace_origin"}
    for dim in tables["lifecycle"]["target_dim"].unique(maintain_order=True):
        text = joined(lifecycle_sentences(tables["lifecycle"].filter(target_dim=dim)))
        neurons = tables["origin_neurons"].filter(target_dim=dim)
        parts = (
            Fact(what="ladder", sites="checkpoints of the MLP", dim=dim, **where,
                 short=joined(ladder_sentences(layer, rows, neurons.filter(layer=layer))))
            for layer, _, rows in ladders(tables["origin"], dim)
        )  # fmt: skip
        yield Fact(what="origin", sites="resid_post and its parts", dim=dim, short=text, leading=True,
                   parts=tuple(parts), **where)  # fmt: skip


def _loss(loss: Part | None) -> Iterator[Fact]:
    if loss is None:
        yield Fact(what="loss", topic="not found", short="There is no loss: no token of the text has one before it.")
        return
    bits = "" if loss["bits_per_byte"] is None else f" and {number(loss['bits_per_byte'])} bits per byte"
    text = (
        f"The model predicts the text with perplexity {number(loss['perplexity'])}{bits} "
        f"({number(loss['nats_per_token'])} nats per token), over {count(loss['tokens'], 'predicted token')} "
        f"({count(loss['bytes'], 'byte')} of UTF-8 text)."
    )
    yield Fact(what="loss", topic="prediction", values=loss, short=text)
