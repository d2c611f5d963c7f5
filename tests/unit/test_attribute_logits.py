"""Direct contributions to logits, beside the same by hand in plain torch for architectures that are known by name."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from fake_run import FakeRun
from outlier_features.errors import InputError
from outlier_features.files.artifacts import write_json
from outlier_features.files.tables import read_table
from outlier_features.gallery.attribute_logits import attribute_logits
from outlier_features.gallery.attributed_logits import AttributedLogits
from outlier_features.gallery.attribution_schema import LOGIT_ATTRIBUTION, LOGIT_ATTRIBUTION_TOKENS
from outlier_features.gallery.attribution_sums import AttributionSums
from outlier_features.model.models import LoadedModel, load_model

IDS = torch.tensor([3, 50, 7, 7, 90, 12, 64, 33, 21, 100, 5, 77])


@dataclass(frozen=True)
class Names:
    """Where an architecture has what is summed up, by a block's number.

    one_plus   a norm multiplies by 1 + w
    behind     the norms of what attention and the MLP write, where it has such
    scale      of what they write
    logits     what the head's output is multiplied by
    """

    block: str
    attention: str
    mlp: str
    norm: str
    head: str = "lm_head"
    embedded: str | None = None
    one_plus: bool = False
    behind: tuple[str, str] | None = None
    scale: float = 1.0
    logits: float = 1.0


LLAMA = Names("model.layers.{}", "self_attn.o_proj", "mlp.down_proj", "model.norm")
GEMMA = Names(LLAMA.block, LLAMA.attention, LLAMA.mlp, LLAMA.norm, one_plus=True,
              behind=("post_attention_layernorm", "post_feedforward_layernorm"))  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, Names, dict[str, Any]]] = {
    "llama": ("llama", LLAMA, {}),
    "llama, tied": ("llama", LLAMA, {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", Names("transformer.h.{}", "attn.c_proj", "mlp.c_proj", "transformer.ln_f"), {}),
    "gemma3_text": ("gemma3_text", GEMMA, {}),
    "gemma2, soft-capped": ("gemma2", GEMMA, {"final_logit_softcapping": 0.2}),
    "gpt_neox": ("gpt_neox", Names("gpt_neox.layers.{}", "attention.dense", "mlp.dense_4h_to_h",
                                   "gpt_neox.final_layer_norm"), {}),
    "granite": ("granite", Names(LLAMA.block, LLAMA.attention, LLAMA.mlp, LLAMA.norm, scale=0.22, logits=0.25),
                {"logits_scaling": 4.0}),
    "cohere": ("cohere", Names(LLAMA.block, LLAMA.attention, LLAMA.mlp, LLAMA.norm, logits=0.0625),
               {"logit_scale": 0.0625}),
    "olmo2": ("olmo2", Names(LLAMA.block, LLAMA.attention, LLAMA.mlp, LLAMA.norm,
                             behind=("post_attention_layernorm", "post_feedforward_layernorm")), {}),
}  # fmt: skip


def built(name: str, **changes: Any) -> LoadedModel:
    if name in zoo.CONFIGS:
        return zoo.loaded(name, **changes)
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **zoo.CONFIGS["llama"] | {"tie_word_embeddings": True} | changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.config.use_cache = False
    return LoadedModel.of(model, torch.device("cpu"), "eager")


def frozen_norm(module: Any, read: torch.Tensor, part: torch.Tensor, one_plus: bool) -> torch.Tensor:
    """What a norm makes of a part (..., n, T, H) of what it reads (T, H), with the mean and the RMS of all of it."""
    gain, read = module.weight.double() + one_plus, read.double()
    eps = next(getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name))
    if type(module).__name__ in ("LayerNorm", "CohereLayerNorm"):
        read, part = read - read.mean(-1, keepdim=True), part - part.mean(-1, keepdim=True)
    return part / (read.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def bias_of(module: Any) -> torch.Tensor:
    bias = getattr(module, "bias", None)
    return torch.zeros(1).double() if bias is None else bias.double()


@torch.no_grad()
def by_hand(model: Any, names: Names, ids: torch.Tensor) -> tuple[dict[tuple[str, int | None], torch.Tensor], Any]:
    """Contributions (T - 1, parts) by part and layer, each part's whole vector followed to the end; and the centred
    logits (T - 1,), of the whole model."""
    reads: dict[str, torch.Tensor] = {}
    wrote: dict[str, torch.Tensor] = {}
    handles = []
    for path, module in model.named_modules():

        def keep(module: Any, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            read = args[0] if args else kwargs.get("hidden_states")
            if torch.is_tensor(read):
                reads[path] = read[0].clone()
            wrote[path] = (output if torch.is_tensor(output) else output[0]).clone()

        handles.append(module.register_forward_hook(keep, with_kwargs=True))  # fmt: skip
    model(ids[None])
    for handle in handles:
        handle.remove()
    final, head = model.get_submodule(names.norm), model.get_submodule(names.head)
    stream, targets = reads[names.norm], ids[1:]
    unembedding = head.weight.double() * names.logits

    def logits(parts: torch.Tensor) -> torch.Tensor:
        """(n, T, H) -> (T - 1, n)"""
        made = frozen_norm(final, stream, parts, names.one_plus)[:, :-1] @ unembedding.T
        at = targets.expand(len(parts), -1)[..., None]
        return (made.gather(2, at)[..., 0] - made.mean(2)).T

    found: dict[tuple[str, int | None], torch.Tensor] = {}
    found["embeddings", None] = logits(reads[names.block.format(0)].double()[None])
    count = model.config.num_attention_heads
    for layer in range(model.config.num_hidden_layers):
        block = names.block.format(layer)
        for part, own, number, behind in (
            ("head", names.attention, count, 0),
            ("neuron", names.mlp, model.get_submodule(f"{block}.{names.mlp}").weight.numel() // stream.shape[1], 1),
        ):
            module = model.get_submodule(f"{block}.{own}")
            weight = (module.weight.T if type(module).__name__ == "Conv1D" else module.weight).double()
            pieces = reads[f"{block}.{own}"].double().view(len(ids), number, -1).transpose(0, 1)
            vectors = torch.stack([
                piece @ some.T for piece, some in zip(pieces, weight.split(weight.shape[1] // number, 1), strict=True)
            ])  # fmt: skip
            bias = bias_of(module).expand(1, len(ids), stream.shape[1])
            if names.behind:
                norm, read = f"{block}.{names.behind[behind]}", wrote[f"{block}.{own}"][0]
                vectors = frozen_norm(model.get_submodule(norm), read, vectors, names.one_plus)
                bias = frozen_norm(model.get_submodule(norm), read, bias, names.one_plus)
            found[part, layer] = logits(vectors * names.scale)
            found[f"{('attention', 'mlp')[behind]}_bias", layer] = logits(bias * names.scale)
    ended = bias_of(final).expand(stream.shape[1]) @ unembedding.T + bias_of(head) * names.logits
    found["final_bias", None] = (ended.expand(len(unembedding))[targets] - ended.mean())[:, None]
    whole = head(final(stream[None]))[0, :-1].double() * names.logits
    return found, whole.gather(1, targets[:, None])[:, 0] - whole.mean(1)


def attributed(model: AttributedLogits, ids: torch.Tensor) -> tuple[dict[tuple[str, int | None], torch.Tensor], Any]:
    found: dict[tuple[str, int | None], torch.Tensor] = {}

    def receive(one: Any) -> None:
        found[one.part, one.layer] = one.values.double()

    _, logits = model.run(ids, torch.ones(len(ids), dtype=torch.bool), receive)
    return found, logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_part_is_what_it_is_by_hand_and_all_sum_to_the_logit(name):
    architecture, names, changes = ARCHITECTURES[name]
    loaded = built(architecture, **changes)
    expected, logits = by_hand(loaded.model, names, IDS)
    model = AttributedLogits(loaded)
    found, own = attributed(model, IDS)
    assert model.one_part == []
    torch.testing.assert_close(own, logits, rtol=1e-5, atol=1e-6)
    for key, values in expected.items():
        if key in found or float(values.abs().max()) > 1e-12:  # it has no such bias
            where = f"{key}: "
            torch.testing.assert_close(found[key], values, rtol=1e-4, atol=2e-7, msg=where.__add__)
    assert found.keys() - expected.keys() == {("rounding", None)}
    torch.testing.assert_close(sum(values.sum(1) for values in found.values()), logits, rtol=1e-5, atol=1e-6)
    assert float(found["rounding", None].abs().max()) < 1e-6 < float(logits.abs().max())


def test_logits_are_the_models_before_soft_capping_but_for_their_mean():
    loaded = built("gemma2", final_logit_softcapping=0.2)
    _, logits = attributed(AttributedLogits(loaded), IDS)
    with torch.no_grad():
        capped = loaded.model(IDS[None]).logits[0, :-1].double()
    raw = 0.2 * (capped / 0.2).atanh()
    expected = raw.gather(1, IDS[1:, None])[:, 0] - raw.mean(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["olmoe", "qwen3_next", "deepseek_v3"])
def test_what_cannot_be_told_apart_is_one_part_and_the_sum_holds(name):
    loaded = zoo.loaded(name)
    model = AttributedLogits(loaded)
    found, logits = attributed(model, IDS)
    assert any("routes tokens to experts" in reason for reason in model.one_part)
    assert any(part == "mlp" for part, _ in found)
    torch.testing.assert_close(sum(values.sum(1) for values in found.values()), logits, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_weights_on_disk_give_the_same_bit_by_bit(name, tmp_path):
    folder, made = zoo.save(name, tmp_path), []
    for placement, keep in (("one", None), ("layerwise", 0)):
        loaded = load_model(folder, dtype="float32", device="cpu", attention="eager", trust_remote_code=False,
                            placement=placement, keep=keep)  # fmt: skip
        made.append(attributed(AttributedLogits(loaded), IDS)[0])
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_in_bfloat16_what_the_stream_is_rounded_by_is_left_over(name):
    exact, _ = attributed(AttributedLogits(zoo.loaded(name)), IDS)
    found, logits = attributed(AttributedLogits(zoo.loaded(name, "bfloat16")), IDS)
    torch.testing.assert_close(sum(values.sum(1) for values in found.values()), logits, rtol=1e-6, atol=1e-7)
    for key in exact.keys() - {("rounding", None)}:
        size = float(exact[key].abs().max())
        torch.testing.assert_close(found[key], exact[key], rtol=0, atol=0.05 * size)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("bert", {}, "later"),
        ("opt", {"do_layer_norm_before": False}, "norms the stream itself"),
        ("granitemoeshared", {"residual_multiplier": 0.22}, "does not sum to what it adds"),
    ],
)
def test_a_model_whose_parts_do_not_sum_to_its_logits_is_refused(name, changes, why):
    with pytest.raises(InputError, match=why):
        AttributedLogits(zoo.loaded(name, **changes))


def test_what_a_model_adds_behind_the_probe_is_noticed():
    """A block that adds something else to the stream on longer sequences only: no probe sees it, the sum does."""
    loaded = zoo.loaded("llama")
    model = AttributedLogits(loaded)

    def add(module: Any, args: Any, output: Any) -> Any:
        return output + 0.05 if output.shape[1] > 40 else output

    handle = loaded.model.model.layers[1].register_forward_hook(add)
    attributed(model, IDS)
    long = torch.arange(50)
    with pytest.raises(InputError, match="sum to a centred logit of"):
        attributed(model, long)
    handle.remove()


def test_sums_are_those_of_all_positions_and_padding_is_none():
    loaded = zoo.loaded("gpt2")
    model, sums, values = AttributedLogits(loaded), AttributionSums(), defaultdict(list)
    places, tokens = [], []
    for sequence, (ids, length) in enumerate(((IDS, 9), (IDS.flip(0), 12), (IDS, 1))):

        def receive(one: Any) -> None:
            sums.take(one)
            values[one.part, one.layer].append(one.values.double())

        sums.begin()
        mask = torch.arange(len(ids)) < length
        positions, logits = model.run(ids, mask, receive)
        assert positions.tolist() == list(range(length - 1))
        tokens.append(sums.end(sequence, positions, ids[positions + 1], logits))
        places += [(sequence, token, int(ids[token + 1])) for token in positions.tolist()]
        alone, whole = attributed(model, ids[:length]) if length > 1 else ({}, logits)
        torch.testing.assert_close(logits, whole)
        for key, expected in alone.items():
            torch.testing.assert_close(values[key][-1], expected, rtol=1e-5, atol=1e-6)  # fmt: skip
    table = pl.concat(sums.rows())
    assert table.schema == LOGIT_ATTRIBUTION.schema and table["positions"].unique().to_list() == [19]
    assert len(table.filter(part="head")) == zoo.BLOCKS * zoo.HEADS
    assert len(table.filter(part="neuron")) == zoo.BLOCKS * 4 * zoo.D_MODEL
    for row in table.rows(named=True):
        column = torch.cat(values[row["part"], row["layer"]])[:, row["index"] or 0]
        assert row["mean"] == pytest.approx(float(column.mean()), abs=1e-12)
        assert row["mean_abs"] == pytest.approx(float(column.abs().mean()), abs=1e-12)
        for name, at in (("largest", int(column.float().argmax())), ("smallest", int(column.float().argmin()))):
            assert row[name] == pytest.approx(float(column[at]), rel=1e-6, abs=1e-12)
            assert (row[f"{name}_sequence"], row[f"{name}_token"], row[f"{name}_target"]) == places[at]
    found = pl.concat(tokens)
    assert found.schema == LOGIT_ATTRIBUTION_TOKENS.schema and len(found) == 19 * 2 * 5
    for part in ("head", "neuron"):
        all_of_them = torch.cat([torch.cat(values[part, layer]) for layer in range(zoo.BLOCKS)], dim=1)
        width = all_of_them.shape[1] // zoo.BLOCKS
        for n, (sequence, token, target) in enumerate(places):
            rows = found.filter(part=part, sequence=sequence, token=token)
            best = all_of_them[n].abs().topk(5).indices
            assert (rows["layer"] * width + rows["index"]).to_list() == best.tolist()
            assert rows["target"].unique().to_list() == [target] and rows["rank"].to_list() == [1, 2, 3, 4, 5]


def test_the_rule_takes_the_first_sequences(tmp_path):
    run = FakeRun(sequences=3).write(tmp_path / "run")
    record = {"kind": "path", "revision": "0" * 8, "location": str(zoo.save("llama", tmp_path / "model")), "files": {}}
    write_json(tmp_path / "source.json", record)
    loading = {"dtype": "float32", "device": "cpu", "attention": "sdpa", "trust_remote_code": False}
    made = {}
    for sequences in (2, 5):
        outputs = [tmp_path / f"{name}-{sequences}.parquet" for name in ("attribution", "tokens")]
        attribute_logits(tmp_path / "source.json", run / "tokens.safetensors", run / "dims.parquet", *outputs,
                         sequences=sequences, **loading)  # fmt: skip
        tables = [LOGIT_ATTRIBUTION, LOGIT_ATTRIBUTION_TOKENS]
        made[sequences] = [read_table(path, table) for path, table in zip(outputs, tables, strict=True)]
        assert {known["attribution"]["sequences"] for _, known in made[sequences]} == {min(sequences, 3)}
    (few, _), (few_tokens, _) = made[2]
    (every, _), (every_tokens, _) = made[5]
    assert few_tokens.equals(every_tokens.filter(pl.col("sequence") < 2))
    assert every_tokens["sequence"].unique().to_list() == [0, 1, 2]
    assert few["positions"].unique().to_list() == [10] and every["positions"].unique().to_list() == [15]
    # The means of all parts sum to the mean centred logit.
    logits = every_tokens.filter(part="head", rank=1)["centred_logit"]
    assert every["mean"].sum() == pytest.approx(logits.mean(), rel=1e-6)
