"""The figures and sentences on origins show what the tables hold."""

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.run_figures import lifecycle, origin, origin_shares
from outlier_features.origin.origin_findings import explosion_sentence, lifecycle_sentences, neuron_sentence, selection
from outlier_features.origin.origin_schema import LIFECYCLE, ORIGIN_NEURONS
from outlier_features.origin.shares_of_parts import shares_of_parts

MASSIVE = ["massive"]


def read(directory, name):
    return pl.read_parquet(directory / f"{name}.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return FakeRun().write(tmp_path_factory.mktemp("runs") / "run")


def life(*layers, text="The"):
    """Rows of dim 7; a layer is (resid_pre, attn_out, mlp_out)."""
    rows = [
        {"target_dim": 7, "sequence": 3, "traced_token": 0, "selection": "massive", "layer": layer, "token_id": 11,
         "token_text": text, "part": part, "value": value, "share": None}
        for layer, (pre, attention, mlp) in enumerate(layers)
        for part, value in {"resid_pre": pre, "attn_out": attention, "mlp_out": mlp,
                            "resid_post": pre + attention + mlp}.items()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=LIFECYCLE.schema)


def test_the_lifecycle_figure_equals_the_table(run):
    rows = read(run, "lifecycle")
    figure = lifecycle(rows, MASSIVE).views["all"]
    for panel, dim in enumerate((7, 5), start=1):
        axis = "y" if panel == 1 else f"y{panel}"
        found = {trace.name: list(trace.y) for trace in figure.data if trace.yaxis == axis}
        expected = {
            name: rows.filter(target_dim=dim, part=part).sort("layer")["value"].to_list()
            for name, part in (
                ("attention adds", "attn_out"),
                ("the MLP adds", "mlp_out"),
                ("after the layer (resid_post)", "resid_post"),
            )
        }
        assert found == expected
    assert figure.layout.barmode == "relative"


def test_the_origin_figure_equals_the_tables(run):
    rows, neurons = read(run, "origin"), read(run, "origin_neurons")
    drawing = origin(rows, neurons, MASSIVE)
    ladder = rows.filter(target_dim=7, layer=1)
    shown = {trace.name: trace for trace in drawing.views["all"].data if trace.yaxis == "y"}
    for name, column in (
        ("max |x|, the sequence", "max_abs"),
        ("max |x|, the token", "traced_max_abs"),
        ("median |x|, the sequence", "median_abs"),
        ("median |x|, the token", "traced_median_abs"),
    ):
        assert list(shown[name].x) == ["mlp_norm", "mlp_pre", "mlp_act", "mlp_down"]
        assert list(shown[name].y) == ladder[column].to_list()
    (bars,) = [trace for trace in drawing.views["all"].data if trace.type == "bar" and trace.yaxis == "y2"]
    assert list(bars.x) == ["3", "0", "1", "2", "4", "5", "6", "7", "others", "bias"]
    assert list(bars.y) == [1500.0] + [50.0] * 7 + [100.0, 50.0]
    assert sum(bars.y) == 2000
    notes = [note.text for note in drawing.views["all"].layout.annotations]
    assert notes.count("the MLP has no neurons of its own here") == 2


def test_captions_name_site_rule_and_population(run):
    for drawing in (
        lifecycle(read(run, "lifecycle"), MASSIVE),
        origin(read(run, "origin"), read(run, "origin_neurons"), MASSIVE),
    ):
        assert drawing.rule == "massive (the selected dimensions)"
        assert drawing.population == "all tokens, in the 1 sequence traced"
    assert "resid_post" in lifecycle(read(run, "lifecycle"), MASSIVE).sites
    assert (
        origin(read(run, "origin"), read(run, "origin_neurons"), MASSIVE).sites
        == "mlp_norm, mlp_pre, mlp_act and mlp_down"
    )


def test_without_traced_dims_nothing_is_drawn(run):
    for drawing in (
        lifecycle(read(run, "lifecycle").clear(), MASSIVE),
        origin(read(run, "origin").clear(), read(run, "origin_neurons").clear(), MASSIVE),
    ):
        assert not drawing.views and drawing.text == "Nothing is drawn: no dimension was traced."


def test_the_part_that_makes_a_dim_and_those_that_change_it():
    rows = life((1, 2, 3), (6, 4, 990), (1000, -5, 1), (996, 0, -700), (296, -120, 4))
    made, changes, of_what = lifecycle_sentences(rows)
    assert made.startswith("The MLP of layer 1 writes 990 into dim 7 at position 0 of sequence 3 (“The”);")
    assert made.endswith("it has 1,000.")
    assert changes.endswith(
        "its largest |x|, 1,000: the MLP of layer 1 +990, the MLP of layer 3 -700 and attention of layer 4 -120."
    )
    assert of_what.startswith(
        "At this token it is largest after layer 1, 1,000, a hit of a rule or not, made up to there: "
        "99.3 % by the MLPs, "
    )
    assert of_what.endswith("0.6 % by attention and 0.1 % by the embeddings.")


def test_the_shares_of_a_dim_are_drawn_to_scale(run):
    rows = read(run, "origin_shares")
    drawing = origin_shares(rows, MASSIVE)
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in drawing.views["all"].data}
    dims = rows["target_dim"].unique(maintain_order=True).to_list()
    assert bars.keys() == {"The embeddings", "Attention", "The MLPs"}
    for part, name in (("embeddings", "The embeddings"), ("attn_out", "Attention"), ("mlp_out", "The MLPs")):
        assert [bars[name][at] for at in range(len(dims))] == rows.filter(part=part)["share"].to_list()
    assert [*drawing.views["all"].layout.yaxis.ticktext] == [f"dim {dim}, after layer 2" for dim in dims]
    assert not origin_shares(rows.clear(), MASSIVE).views


def test_parts_of_every_kind_sum_to_the_value():
    """The stream is changed between blocks 0 and 1; what rounding leaves is a part of its own."""
    rows = life((1, 2, 3), (16, 4, 990), (1010, -500, 1))
    found = {row["part"]: (row["layer"], row["value"], row["share"]) for row in shares_of_parts(rows)}
    assert {part: value for part, (_, value, _) in found.items()} == {
        "embeddings": 1, "attn_out": 6, "mlp_out": 993, "between_blocks": 10, "rounding": 0,
    }  # fmt: skip
    assert {layer for layer, *_ in found.values()} == {1} and found["mlp_out"][2] == 993 / 1010
    off = rows.with_columns(value=pl.when(part="resid_post", layer=1).then(1011.0).otherwise("value"))
    assert {row["part"]: row["value"] for row in shares_of_parts(off)}["rounding"] == 1


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([(3000, -1, 2), (3001, 5, 5)], "The embeddings give dim 7 3,000 at"),
        ([(0, -800, -1), (-801, 5, 5)], "Attention of layer 0 writes -800 into dim 7 at"),
        ([(0, 900, -300), (600, 5, 5)], "Attention of layer 0 writes 900 into dim 7 at"),
        ([(0, 9, 20), (29, 5, 6), (40, 30, 30)], "Dim 7 reaches 100 after layer 2 at"),
    ],
)
def test_who_makes_a_dim(rows, sentence):
    assert lifecycle_sentences(life(*rows))[0].startswith(sentence)


def test_text_of_the_corpus_is_made_visible_in_sentences():
    assert "“⏎‹U+202E›”" in lifecycle_sentences(life((1, 2, 3), text="\n\u202e"))[0]
    assert "(a token without text)" in lifecycle_sentences(life((1, 2, 3), text=""))[0]


def neurons(*contributions, bias=0.0):
    total = sum(contributions) + bias
    order = sorted(range(len(contributions)), key=lambda i: -abs(contributions[i]))
    rows = [
        {"target_dim": 7, "layer": 1, "neuron": i, "activation": value / 2, "weight": 2.0, "contribution": value,
         "share": value / total, "rank": order.index(i) + 1, "weights_only_rank": 1}
        for i, value in enumerate(contributions)
    ]  # fmt: skip
    rows.append({"target_dim": 7, "layer": 1, "contribution": bias, "share": bias / total})
    return pl.DataFrame(rows, schema=ORIGIN_NEURONS.schema)


def test_the_neurons_are_named_until_they_give_the_whole():
    assert neuron_sentence(neurons(5.0, 980.0, 10.0, bias=5.0)) == (
        "Of the 1,000 that the last linear of layer 1's MLP writes into dim 7, neuron 1 gives 98 % (activation 490 x "
        "weight 2)."
    )
    sentence = neuron_sentence(neurons(400.0, 300.0, 200.0, 60.0, 40.0))
    assert "neuron 0 gives 40 %" in sentence and "neuron 2 gives 20 %" in sentence and "neuron 3" not in sentence
    assert sentence.endswith("the first 4 neurons by |contribution| give 96 % together.")


def test_neurons_that_overshoot_are_not_the_whole_yet():
    """The first gives all of it, the second twice as much, the third takes that away again."""
    sentence = neuron_sentence(neurons(900.0, 800.0, -700.0))
    assert sentence.endswith("the first 3 neurons by |contribution| give 100 % together.")


def test_the_explosion_point_in_words(run):
    ladder = read(run, "origin").filter(target_dim=7, layer=1).to_dicts()
    assert explosion_sentence(1, ladder) == (
        "In the MLP of layer 1 the largest |x| over the sequence grows most at mlp_down: from 40 (mlp_act) to 2,000, "
        "50 times."
    )
    routed = read(run, "origin").filter(target_dim=7, layer=3).to_dicts()
    assert explosion_sentence(3, routed).endswith(
        "mlp_pre, mlp_act and mlp_down are absent (the MLP routes tokens to experts), so the ladder has mlp_norm alone."
    )


def test_how_dims_were_chosen():
    auto = {"dims": "auto", "max_dims": 3}
    assert "that rule massive selects" in selection(life((1, 2, 3)), auto, MASSIVE, ["resid_post"])
    other = life((1, 2, 3)).with_columns(selection=pl.lit("largest_rise"))
    assert "By rule massive no dim" in selection(other, auto, MASSIVE, ["resid_post"])
    assert "No rule" in selection(other, auto, [], ["resid_post"])
    assert "applied to resid_post" in selection(other, auto, MASSIVE, [])
    assert selection(other, {"dims": [7], "max_dims": 3}, MASSIVE, ["resid_post"]).startswith(
        "Traced are the dims that `trace_origin.dims`"
    )
    assert selection(other.clear(), {"dims": [], "max_dims": 3}, MASSIVE, []) == "No dim is traced."
