"""Dims in sentences: readers of text see none of the marks, pages make links of them."""

import pytest

from outlier_features.dim_marks import Sentence, dim_mark, replace_dims, unmarked
from outlier_features.figures.style import Drawing, label
from outlier_features.report.dim_places import DimPlaces
from outlier_features.report.page_template import Pages
from outlier_features.summary.fact import Fact

SAID = f"Dimension {dim_mark(507)} in layer 507, <b>{dim_mark('24')}</b>."
PLAIN = "Dimension 507 in layer 507, <b>24</b>."


def test_a_sentence_reads_as_if_nothing_were_marked():
    sentence = Sentence(SAID)
    assert sentence == PLAIN and len(sentence) == len(PLAIN)
    assert Sentence(sentence).marked == sentence.marked == SAID
    assert replace_dims(sentence.marked, lambda dim: f"[{dim}]") == "Dimension [507] in layer 507, <b>[24]</b>."
    assert unmarked(SAID) == unmarked(sentence) == unmarked(PLAIN) == PLAIN


def test_facts_and_captions_are_text_to_those_who_do_not_ask():
    fact = Fact(what="dim", topic="found", short=SAID, sites=SAID, rule="massive")
    assert (fact.text, fact.where) == (PLAIN, f"{PLAIN}; rule massive")
    assert fact.text.marked == SAID and fact.where.marked.startswith(SAID)
    drawing = Drawing("a", "A", "", "", "", SAID)
    assert drawing.text == PLAIN and drawing.empty(SAID).text.marked == SAID
    assert label(Sentence(SAID)) == "Dimension 507 in layer 507, &lt;b&gt;24&lt;/b&gt;."


@pytest.mark.parametrize("text", ["{{ said }}", "{{ said | unbroken }}", "{{ said | visible | unbroken }}"])
def test_a_template_makes_links_where_the_run_has_places_and_text_elsewhere(text):
    places = DimPlaces("tiny/text", "gallery/a%20b", frozenset({507}), {})
    template = Pages().environment.from_string(text)
    assert template.render(said=Sentence(SAID)) == "Dimension 507 in layer 507, &lt;b&gt;24&lt;/b&gt;."
    assert template.render(said=Sentence(SAID), section={"dim_places": places}) == (
        'Dimension <a class="dim" data-dim="507" href="gallery/a%20b/D507.html">507</a> in layer 507, '
        '&lt;b&gt;<a class="dim" data-dim="24" href="#tiny/text/tables">24</a>&lt;/b&gt;.'
    )


def test_what_only_looks_like_a_mark_stays():
    lone = dim_mark(5)[0]
    assert unmarked(f"{lone}x5") == f"{lone}x5"
    assert Pages().environment.from_string("{{ said }}").render(said=f"{lone}5") == f"{lone}5"
