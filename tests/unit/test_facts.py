"""The facts that a reader is told, and their sentences, from hand-made summaries."""

import pytest

from outlier_features.model.bases import NO_OTHER_MIXER
from outlier_features.summary.facts import facts_in
from outlier_features.summary.in_short import in_short
from outlier_features.visible_text import quoted, visible
from outlier_features.wording import count, layers, listing, number, percent, ranges

OUTLIER = {
    "dim": 247, "kind": "persistent", "sequences_passing": 16, "sequences": 16, "blocks_mean": 0.43958,
    "sites_share_mean": 0.21979, "union_mean": 0.970947, "first_layer": 10, "last_layer": 24, "step_up": 11,
    "step_down": 28, "max_abs": 11.93891, "one_sided": True,
}  # fmt: skip
MASSIVE = OUTLIER | {"dim": 507, "kind": "massive", "first_layer": 11, "last_layer": 27, "max_abs": 24727.5625}
LARGEST = {
    "dim": 507, "value": -24727.5625, "layer": 11, "sequence": 8, "token": 0, "token_text": '="\n', "median": 1.570508,
    "ratio": 15744.94, "excluded": True,
}  # fmt: skip


def rule(dims=(), **changes):
    found = {
        "sites": None, "dims_with_hit": len(dims), "dims_selected": len(dims), "dims_selected_majority": len(dims),
        "pairs_with_hit": 0, "pairs_passing": 0, "locations": 0, "occurrences": 0, "dims": list(dims),
    }  # fmt: skip
    return found | changes


NO_ACTIVATIONS = {
    "activations": 0, "layers": [], "positions": 0, "at_excluded_positions": 0, "dims": [], "tokens": 0, "by_token": [],
}  # fmt: skip


def population(dettmers=None, massive=None, activations=None, overlap=None, **others):
    return {
        "largest": [{"site": "resid_post", "layer": 11, "max": 24727.5625, "median": 1.65685}],
        "rules": {
            "dettmers": dettmers or rule(),
            "massive": (massive or rule()) | {"massive_activations": activations or NO_ACTIVATIONS},
        }
        | others,
        "overlaps": [overlap or {"rules": ["dettmers", "massive"], "common": [], "union": 0, "jaccard": None}],
    }


def effect(target, perplexity, ratio, sequences, random=(), **described):
    places = {"rule": None, "site": None, "layers": None, "dims": None, "cols": None, "number": None,
              "positions": None, "value": None}  # fmt: skip
    return places | {
        "target": target, "perplexity": perplexity, "ratio": ratio, "sequences": sequences, "tokens": 190,
        "ratios": [one / 20 for one in sequences], "bits_per_byte": 1.2, "top1_probability": 0.434,
        "random": [{"seed": seed, "perplexity": one} for seed, one in enumerate(random)],
    } | described  # fmt: skip


AT_OUTPUT = {"rule": "massive", "site": "resid_post", "layers": "11", "dims": "507", "number": 1}
ZERO_FIRST = effect("dims", 12345.0, 400.0, [9000.0, 15000.0], (31.0, 30.8), **AT_OUTPUT, positions="excluded",
                    value="zero")  # fmt: skip
MEAN_FIRST = effect("dims", 31.01, 1.001, [20.0, 20.0], (31.2, 31.0), **AT_OUTPUT, positions="excluded", value="mean")
ZERO_REST = effect("dims", 40.0, 1.3, [22.0, 50.0], **AT_OUTPUT, positions="rest", value="zero")
WEIGHT = effect("weight", 250.0, 8.0, [100.0, 400.0], (31.0,), rule="super_weight", site="mlp_down.weight", layers="11",
                dims="507", cols="1229", number=1, positions="all", value="zero")  # fmt: skip
FOUND = {
    "round": 1, "layer": 11, "row": 507, "col": 1229, "value": 5.875732, "mlp_act": 2944.4, "mlp_act_token": 0,
    "mlp_down": 23690.7, "mlp_down_token": 3,
}  # fmt: skip


@pytest.fixture
def summary():
    return {
        "model": {"name": "tiny", "kind": "path", "d_model": 576, "blocks": 30},
        "corpus": {"name": "text", "sequences": 16, "sample": {"tokens": 256},
                   "positions": {"all": 4096, "without_first": 4080}},
        "sites": {"present": ["attn_norm", "mlp_norm", "resid_post"], "absent": {}, "dense": {}},
        "rules": {
            "dettmers": {"kind": "systematic", "sites": ["attn_norm", "mixer_norm", "mlp_norm"]},
            "dettmers_heads": {"kind": "systematic", "sites": ["attn_heads"]},
            "massive": {"kind": "massive"},
            "location": {"kind": "location"},
            "super_weight": {"kind": "super_weight"},
        },
        "norms": {"norms": 0, "with_gain": 0, "undecided": 0, "all_one": 0, "all_exactly_one": None, "gains": 0,
                  "gains_exactly_one": 0, "dims": []},
        "location": None,
        "experts": None,
        "tables": ["super_weights", "loss", "ablation"],
        "missing": {},
        "loss": {"tokens": 4080, "bytes": 17139, "nats_per_token": 2.943896, "perplexity": 18.989696,
                 "bits_per_byte": 1.011047},
        "super_weights": {"threshold": 50.0, "rounds": 20, "tokens": 96, "not_searched": {},
                          "published": [], "found": []},
        "ablation": {"sequences": 2, "tokens": 96, "seeds": 3, "only_first_excluded": True, "weights_searched": True,
                     "effects": [effect("baseline", perplexity=31.0, ratio=1.0, sequences=[20.0, 48.0])]},
        "populations": {
            "all": population(
                rule([OUTLIER], pairs_with_hit=48, pairs_passing=16, locations=7960, occurrences=41373),
                rule([MASSIVE], pairs_passing=16),
                {"activations": 272, "layers": list(range(11, 28)), "positions": 16, "at_excluded_positions": 272,
                 "tokens": 1, "by_token": [{"token": 0, "activations": 272}],
                 "dims": [LARGEST]},
                {"rules": ["dettmers", "massive"], "common": [], "union": 2, "jaccard": 0.0},
            ),
            "without_first": population(),
        },
    }  # fmt: skip


def said(summary, topic):
    return [line.text for fact in facts_in(summary) if fact.topic == topic for line in fact.flat]


def told(summary, what, **where):
    """The only fact of a sort and place."""
    (fact,) = (
        one
        for fact in facts_in(summary)
        for one in fact.flat
        if one.what == what and all(getattr(one, name) == value for name, value in where.items())
    )
    return fact


def holds(text, *parts):
    assert [part for part in parts if part not in text] == []


def test_what_a_rule_with_shares_selects(summary):
    fact = told(summary, "selected", rule="dettmers", population="all")
    assert (fact.topic, fact.sites, fact.values["dims"]) == ("found", "attn_norm + mlp_norm", [247])
    holds(fact.text, "1 dimension of 576", "41,373 occurrences", "7,960 locations", "16 of 48")
    dim = told(summary, "dim", dim=247)
    assert dim.text.startswith("Dimension 247") and dim.short in dim.text
    holds(dim.short, "44 % of the layers", "layers 10 to 24", "97.1 % of the positions", "16 of 16", "11.94")
    holds(dim.text, "persistent", "up in layer 11 and down in 28")


def test_what_a_rule_that_lists_its_hits_finds_and_at_which_token(summary):
    fact = told(summary, "selected", rule="massive", population="all")
    assert (fact.sites, fact.values["dims"]) == ("resid_post", [507])
    holds(
        fact.text,
        "272 massive activations",
        "16 positions",
        "272 of 272",
        "layers 11 to 27",
        "1 dimension of 576",
        "position 0",
    )
    dim = told(summary, "dim", dim=507)
    holds(dim.short, "-24,728 in layer 11", "15,745 times", "1.571", "position 0 of sequence 8", '“="⏎”', "16 of 16")
    holds(told(summary, "largest", population="all").text, "24,728 on resid_post in layer 11", "1.657")


def test_what_was_not_found_is_said(summary):
    facts = {(fact.what, fact.rule) for one in facts_in(summary) for fact in one.flat if fact.topic == "not found"}
    none = {("none selected by several", ""), ("none selected", "dettmers"), ("none selected", "massive")}
    assert {("overlap", ""), ("not applied", "dettmers_heads"), ("super weights", "super_weight"), *none} <= facts
    holds(told(summary, "none selected", rule="dettmers").text, "without first tokens", "No value there has |x| >= 6")
    holds(told(summary, "none selected by several").text, "without first tokens", "dettmers and massive")


def test_dims_that_a_gain_hides_are_named(summary):
    summary["sites"]["gains_left_out"] = {"mlp_norm": {"0": [400], "1": [97, 400], "2": [400]}}
    assert not [fact for fact in facts_in(summary) if fact.what == "hidden dims"]  # no rule divides by a gain
    summary["rules"]["gain"] = {"kind": "systematic", "sites": ["mlp_norm"], "scale": "gain"}
    fact = told(summary, "hidden dims")
    assert fact.rule == "gain" and fact.sites == "mlp_norm"
    holds(fact.text, "2 dimensions", "97 (layer 1)", "400 (layers 0 to 2)")


def test_rules_that_select_the_same_are_told_together(summary):
    """Eight rules: three that select the same dim, three that select nothing, one of 300 dims, one on another basis."""
    summary["sites"]["present"].append("mlp_act")
    names = ("same", "again", "none", "nothing", "wide", "neurons")
    for name in names:
        site, scale = {"neurons": ("mlp_act", None), "wide": ("resid_post", "token_rms")}.get(name, ("mlp_norm", None))
        summary["rules"][name] = {"kind": "systematic", "sites": [site], "scale": scale, "follow_up": name != "wide"}
    dims = {"same": [247], "again": [247], "wide": range(300), "neurons": [247]}
    summary["populations"]["all"]["rules"] |= {
        name: rule([OUTLIER | {"dim": dim} for dim in dims.get(name, ())]) for name in names
    }
    group = told(summary, "selected by several", population="all")
    assert {part.rule for part in group.parts} == {"dettmers", "same", "again"}
    none = told(summary, "none selected by several", population="all")
    assert {part.rule for part in none.parts} == {"none", "nothing"}
    assert told(summary, "selected", rule="neurons").sites == "mlp_act"
    assert len(told(summary, "selected", rule="wide").text) < 400
    differ = told(summary, "scales", population="all")
    assert differ.values == {"fixed": [247], "scale_free": list(range(300)), "common": [247]}
    holds(differ.text, "1 by both (247)", "0 by a fixed threshold alone", "299 by a scale-free rule alone")
    assert not any(fact.leading for one in facts_in(summary) for fact in one.flat if fact.rule == "wide")
    short = in_short(summary, facts_in(summary))
    assert [profile.dim for profile in short.profiles] == [507, 247]
    assert (
        sum(fact.what == "dim" for fact in short.profiles[1].facts) == 2 and "again" in short.profiles[1].facts[2].short
    )


def test_what_ablations_did(summary):
    (unchanged,) = said(summary, "effect")
    holds(unchanged, "first 96 tokens of the first 2 sequences", "190 predicted tokens", "perplexity 31 (20 to 48 in",
          "43.4 %", "No dimension is selected", "no super weight was found, so nothing was ablated")  # fmt: skip
    summary["ablation"]["effects"] += [ZERO_FIRST, MEAN_FIRST, ZERO_REST, WEIGHT]
    _, dim, weight = said(summary, "effect")
    holds(dim, "Dimension 507 on resid_post of layer 11 (rule massive)", "from 31 to 12,345 (400 times)",
          "zero at the first position", "to 31.01 (1.001 times) when set to the mean", "1 random dimension",
          "2 draws: 30.8 to 31.")  # fmt: skip
    holds(weight, "Weight W_down[507, 1229] of layer 11 (rule super_weight)", "from 31 to 250 (8 times)",
          "1 random weight", "1 draw: 31.")  # fmt: skip


def test_special_tokens_are_named_where_there_are_some(summary):
    summary["ablation"] |= {"only_first_excluded": False}
    summary["ablation"]["effects"] += [ZERO_FIRST]
    assert "set to zero at the first position and special tokens" in said(summary, "effect")[1]


def test_a_loss_that_is_not_finite_is_said(summary):
    broken = ZERO_FIRST | {"perplexity": None, "ratio": None, "ratios": [None, None], "random": []}
    summary["ablation"]["effects"] += [broken]
    holds(said(summary, "effect")[1], "from 31 to a value that is not finite", "zero at the first position")


def test_what_is_missing_is_said_and_nothing_is_said_of_it(summary):
    """Nor is it said that nothing was found where nothing was looked for."""
    log = {"log": "logs/rule/tiny/text.log", "tables": []}
    summary["missing"] = {
        "norms": {"cause": "off", "reason": "`skip` names norms", **log},
        "loss": {"cause": "model", "reason": "positions see\u202e later ones.", **log},
        "super_weights": {"cause": "fault", "reason": "KeyError: 'x'", **log},
        "ablation": {"cause": "model", "reason": "the head is lost", **log},
    }
    summary |= dict.fromkeys(summary["missing"])
    off, loss, weights, ablation = said(summary, "missing")
    assert off == "The check of the norms' gains is turned off: `skip` names norms."
    assert loss == "The loss cannot be had: positions see‹U+202E› later ones."
    assert "by a fault of outlier-features (KeyError: 'x')" in weights and "logs/rule/tiny/text.log" in weights
    assert ablation.endswith("cannot be had: the head is lost.")
    assert said(summary, "prediction") == said(summary, "effect") == []
    others = [*said(summary, "found"), *said(summary, "not found")]
    assert not [line for line in others if "super weight" in line or "loss" in line or "ablated" in line]


def test_weights_that_were_not_searched_are_not_said_to_be_none(summary):
    assert "no super weight was found, so nothing was ablated" in said(summary, "effect")[0]
    summary["ablation"]["weights_searched"] = False
    assert "super weights were not searched, so nothing was ablated" in said(summary, "effect")[0]


def test_super_weights_in_their_order(summary):
    summary["super_weights"]["found"] = [FOUND | {"round": n, "layer": 10 + n} for n in range(1, 10)]
    found = said(summary, "found")
    text, *details = found[next(n for n, line in enumerate(found) if line.startswith("Rule super_weight")) :]
    holds(text, "|x| > 50 on both mlp_act and mlp_down", "first 96 tokens of sequence 0", "9 super weights")
    holds(details[0], "Round 1: layer 11, W_down[507, 1229] = 5.876", "mlp_act 2,944 in neuron 1229 at position 0",
          "mlp_down 23,691 in dimension 507 at position 3")  # fmt: skip
    assert details[6] == "And 3 more, in layers 17 to 19."
    summary["super_weights"]["rounds"] = 9
    assert any("it stopped at its limit of 9 rounds" in line for line in said(summary, "found"))


def test_published_super_weights_are_compared(summary):
    listed = [{"hub_id": "some/<b>", "layer": layer, "row": 507, "col": 1229} for layer in (11, 11, 3)]
    summary["super_weights"] |= {"found": [FOUND], "published": listed}
    found = said(summary, "found")
    (line,) = [text for text in found if "published" in text]
    holds(line, "Of 2 published for some/<b>", "found here: 11: [507, 1229];", "not found here: 3: [507, 1229].")


def test_layers_that_were_not_searched(summary):
    summary["super_weights"] |= {"not_searched": {"the MLP routes tokens to experts": [1, 2, 3]}}
    assert "Not searched: layers 1 to 3 (the MLP routes tokens to experts)." in said(summary, "not found")


def test_hits_that_do_not_pass_are_counted(summary):
    some = rule(dims_with_hit=1, pairs_with_hit=1, locations=1, occurrences=1)
    summary["populations"]["all"] = population(some)
    text = told(summary, "none selected", rule="dettmers", population="all").text
    holds(text, "1 occurrence at 1 location in 1 dimension", "0 of 1")


def test_the_overlap_of_the_rules(summary):
    pair = {"rules": ["dettmers", "massive"], "common": [247], "union": 2, "jaccard": 0.5}
    summary["populations"]["all"]["overlaps"] = [pair]
    fact = told(summary, "overlap", population="all")
    assert (fact.topic, fact.values) == ("found", pair)
    holds(fact.text, "dimension 247", "dettmers and massive", "0.5", "1 of 2 dimensions")


def test_the_loss_in_words(summary):
    (text,) = said(summary, "prediction")
    holds(text, "perplexity 18.99 and 1.011 bits per byte", "2.944 nats", "4,080 predicted tokens", "17,139 bytes")
    summary["loss"] |= {"bits_per_byte": None, "tokens": 1, "bytes": 0}
    (text,) = said(summary, "prediction")
    holds(text, "perplexity 18.99 (2.944 nats per token)", "1 predicted token ", "0 bytes")


def test_an_encoder_without_a_norm_before_attention(summary):
    summary["loss"] = None
    summary["sites"] = {"present": ["mlp_norm", "resid_post"], "absent": {"attn_norm": "no norm\u202e of the block"},
                        "dense": {}}  # fmt: skip
    lines = said(summary, "not found")
    (line,) = [line for line in lines if line.startswith("Site attn_norm is absent from this model")]
    holds(line, "no norm‹U+202E› of the block", "It is a site of rule dettmers.")
    assert "There is no loss: no token of the text has one before it." in lines
    assert said(summary, "found")[0].startswith("Rule dettmers on mlp_norm selects")


def test_a_site_that_only_some_layers_lack(summary):
    summary["sites"]["absent"] = {"mlp_norm": "blocks 1,2: no norm"}
    assert "mlp_norm is absent from a part of the layers: blocks 1,2: no norm." in " ".join(said(summary, "not found"))


def test_sites_whose_hits_are_counted(summary):
    assert not any("too many to list" in line for line in said(summary, "found"))
    summary["sites"]["dense"] = {"attn_norm": {"floor": 4.0, "share": 0.12345, "sequences": 3}}
    lines = [line for line in said(summary, "found") if "too many to list" in line]
    assert len(lines) == 1
    assert "resid_post" not in lines[0]
    for words in ("12.3 % of the values on attn_norm are at or above 4", "3 of 16 sequences", "counted exactly"):
        assert words in lines[0]


def test_a_rule_whose_sites_are_missing_is_not_applied(summary):
    summary["sites"] = {"present": ["resid_post"], "absent": {"attn_norm": "none"}, "dense": {}}
    del summary["populations"]["all"]["rules"]["dettmers"], summary["populations"]["without_first"]["rules"]["dettmers"]
    for population in summary["populations"].values():
        population["overlaps"] = []
    lines = said(summary, "not found")
    absent = "attn_norm is absent (none), mixer_norm was not recorded and mlp_norm was not recorded"
    assert f"Rule dettmers was not applied: {absent}." in lines
    assert not any("both rules" in line or "passes rule dettmers" in line for line in lines)


def test_two_numbers_of_one_name_are_told_apart(summary):
    """Perplexity of a sample beside that of all tokens; a dim's largest massive activation beside its largest value."""
    sample = told(summary, "ablation").text
    holds(sample, "the unchanged model has perplexity", f"it is {number(summary['loss']['perplexity'])}")
    holds(sample, f"all of the run's {summary['loss']['tokens']:,} predicted tokens", "the sample is a part of them")
    summary["loss"] = None
    assert "predicted tokens it is" not in told(summary, "ablation").text


def test_a_population_without_positions(summary):
    summary["corpus"]["positions"]["without_first"] = 0
    lines = said(summary, "not found")
    assert "Without first tokens there are no positions, so nothing is said of them." in lines
    assert not any("massive activation without first tokens" in line for line in lines)


def test_many_dimensions_are_listed_by_number(summary):
    dims = [OUTLIER | {"dim": dim} for dim in range(20)]
    summary["populations"]["all"]["rules"]["dettmers"] = rule(dims, dims_selected_majority=5)
    fact = told(summary, "selected", rule="dettmers", population="all")
    holds(fact.text, "20 dimensions of 576", "5 in more than half of the sequences")
    assert [part.dim for part in fact.parts] == [0, 1, 2, 3, None]
    holds(fact.parts[-1].text, "16 more dimensions: 4, 5, 6, 7, 8, 9, 10, 11 and 8 more")


@pytest.mark.parametrize(
    ("selected", "majority", "phrase"),
    [(1, 0, "1 dimension of 576 over all tokens (0 in more than half of the sequences)"),
     (2, 1, "2 dimensions of 576 over all tokens (1 in more than half of the sequences)")],
)  # fmt: skip
def test_how_many_sequences(summary, selected, majority, phrase):
    summary["populations"]["all"]["rules"]["dettmers"] = rule([OUTLIER] * selected, dims_selected_majority=majority)
    assert phrase in told(summary, "selected", rule="dettmers", population="all").text


@pytest.mark.parametrize(
    ("activations", "excluded", "phrase"),
    [(1, 1, "1 of 1 at the first"), (9, 1, "1 of 9 at the first"), (9, 0, "0 of 9 at the first")],
)
def test_where_massive_activations_lie(summary, activations, excluded, phrase):
    summary["populations"]["all"]["rules"]["massive"]["massive_activations"] |= {
        "activations": activations, "at_excluded_positions": excluded
    }  # fmt: skip
    assert phrase in told(summary, "selected", rule="massive", population="all").text


def test_no_step_is_no_claim(summary):
    summary["populations"]["all"]["rules"]["dettmers"]["dims"] = [OUTLIER | {"step_down": None}]
    assert "up in layer 11 and does not step down" in told(summary, "dim", dim=247).text
    summary["populations"]["all"]["rules"]["dettmers"]["dims"] = [OUTLIER | {"step_up": None, "step_down": None}]
    assert "resid_post" not in told(summary, "dim", dim=247).text


def test_every_selection_names_rule_site_and_population(summary):
    for fact in (fact for one in facts_in(summary) for fact in one.flat if fact.what in ("selected", "dim")):
        assert fact.rule and fact.sites and fact.population


def test_wording():
    assert [number(x) for x in (None, 0, 12345, 6.0, 0.0773187, 24727.56, 1e30)] == [
        "–", "0", "12,345", "6", "0.07732", "24,728", "1e+30"
    ]  # fmt: skip
    assert [percent(x) for x in (None, 0.0, 0.00390625, 0.25, 0.970947, 1.0)] == [
        "–", "0 %", "0.391 %", "25 %", "97.1 %", "100 %"
    ]  # fmt: skip
    assert [count(1, "layer"), count(0, "layer"), count(1000, "layer")] == ["1 layer", "0 layers", "1,000 layers"]
    assert [listing("a"), listing("ab"), listing("abc")] == ["a", "a and b", "a, b and c"]
    assert ranges([9, 2, 6, 5, 7, 5]) == "2, 5 to 7 and 9"
    assert [layers([3]), layers([3, 4])] == ["layer 3", "layers 3 to 4"]


def test_invisible_text_is_shown():
    assert visible("a\n\t\r\x00\x7f\x85\u202e\u2028\u200b\ufeff\u2066") == (
        "a⏎⇥␍␀␡‹U+0085›‹U+202E›‹U+2028›‹U+200B›‹U+FEFF›‹U+2066›"
    )
    assert visible("café שלום <b>") == "café שלום <b>"
    assert quoted("a\u202e") == "“a‹U+202E›”"
    assert quoted("שלום") == "“\u2068שלום\u2069”"


def place(site, layer, ratio, rank):
    return {"site": site, "layer": layer, "gain": -0.1, "ratio": ratio, "rank": rank, "size": 576}


GAINS = {"norms": 61, "with_gain": 61, "undecided": 0, "all_one": 0, "all_exactly_one": False, "gains": 35136,
         "gains_exactly_one": 4, "dims": []}  # fmt: skip


def test_what_the_gains_do_at_a_selected_dim(summary):
    row = {
        "dim": 507,
        "smallest": place("mlp_norm", 21, 4.1e-5, 576),
        "largest": place("resid_mid+mlp_norm", 29, 4.2, 1),
    }
    summary["norms"] = GAINS | {"dims": [row]}
    found = said(summary, "found")
    assert "Not all gains of the norms are exactly 1: 4 of 35,136 gains are 1, and in 0 of 61 norms all are." in found
    (text,) = [text for text in found if text.startswith("Gain of dimension 507")]
    holds(text, "smallest 4.1e-05 on mlp_norm in layer 21 (rank 576 of 576)",
          "largest 4.2 on resid_mid = mlp_norm in layer 29 (rank 1 of 576)")  # fmt: skip


@pytest.mark.parametrize(("low", "high", "notable"), [(0.51, 1.99, False), (0.5, 1, True), (1, 2, True)])
def test_a_gain_twice_or_half_the_median_is_notable(summary, low, high, notable):
    row = {"dim": 5, "smallest": place("attn_norm", 0, low, 9), "largest": place("attn_norm", 1, high, 1)}
    summary["norms"] = GAINS | {"dims": [row]}
    assert any("Gain of dimension 5" in text for text in said(summary, "found")) == notable
    assert any("At every selected dimension" in text for text in said(summary, "not found")) == (not notable)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"all_exactly_one": True}, "All gains of the norms are exactly 1 (35,136 gains of 61 norms)."),
        ({"with_gain": 0, "all_exactly_one": None}, "None of the 61 norms has a gain."),
        (
            {"with_gain": 60, "undecided": 1, "all_exactly_one": None},
            "in 0 of 61 norms all are. The gain of 1 norm could not be told.",
        ),
    ],
)
def test_the_answer_about_ones(summary, changes, sentence):
    summary["norms"] = GAINS | changes
    assert any(sentence in text for text in said(summary, "found"))


def test_rule_location_by_site(summary):
    top = [{"dim": 7, "count": 30, "share": 0.75, "positive": 0, "negative": 30, "one_sided": True}]
    some = {"occurrences": 40, "locations": 8, "location_rate": 0.001, "dims": 2, "top": top}
    none = {"occurrences": 0, "locations": 0, "location_rate": 0.0, "dims": 0, "top": []}
    summary["location"] = {"threshold": 6.0, "inclusive": False, "layer_share": 0.25, "rule": "location",
                           "populations": {"all": {"attn_norm": some, "mlp_norm": none}}}  # fmt: skip
    kept, without = (told(summary, "location", sites=site) for site in ("attn_norm", "mlp_norm"))
    holds(kept.text, "|x| > 6", "25 % of the layers", "40 occurrences", "8 locations", "0.1 % of all", "2 dimensions")
    (dim,) = kept.parts
    holds(dim.text, "Dimension 7", "75 %", "0 % of these positive")
    assert without.topic == "not found"


def test_without_kept_activations_rule_location_is_said_not_to_be_applied(summary):
    before = said(summary, "not found")
    summary["rules"]["located"] = {"kind": "location", "threshold": 6.0, "sites": ["attn_norm"]}
    (more,) = [text for text in said(summary, "not found") if text not in before]
    holds(more, "located was not applied", "no activations")
    summary["rules"]["located"]["sites"] = []
    assert said(summary, "not found") == before


def test_a_dump_has_no_loss_to_speak_of(summary):
    summary["tables"] = []
    summary["model"]["kind"], summary["loss"], summary["norms"] = "dump", None, None
    assert not [fact for fact in facts_in(summary) if "loss" in fact.text or "predict" in fact.text]


def test_that_most_models_have_no_mixer_is_no_finding(summary):
    summary["sites"]["absent"] = {"mixer_norm": NO_OTHER_MIXER, "attn_heads": "none"}
    lines = said(summary, "not found")
    assert not any("mixer_norm" in line for line in lines) and any("attn_heads" in line for line in lines)
