"""The definitions as a page of the report."""

import re
from pathlib import Path

from outlier_features.report.definitions_page import anchors, definitions_page

DOCUMENT = Path(__file__).parents[2] / "docs/definitions.md"


def test_every_heading_can_be_linked_to():
    page, found = definitions_page(DOCUMENT), anchors(DOCUMENT)
    ids = re.findall(r'<h\d id="([^"]+)">', page)
    headings = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if re.match("#{2,} ", line)]
    assert len(ids) == len(set(ids)) == len(headings)
    for rule in ("dettmers", "massive", "location", "super_weight", "super_expert"):
        assert found[rule] in ids
    assert found["Sites"] == "definitions/sites" and found["Populations"] == "definitions/populations"


def test_tables_are_tables_and_html_in_the_document_is_text(tmp_path):
    assert definitions_page(DOCUMENT).count("<table>") >= 2
    document = tmp_path / "d.md"
    document.write_text("# Title\n\nfirst <script>x</script>\n\n## A `b<i>` c\n\n| x |\n|---|\n| <b>1</b> |\n")
    page = definitions_page(document)
    assert page.startswith("<p>first &lt;script&gt;x&lt;/script&gt;</p>")
    assert '<h3 id="definitions/a-b-i-c">A <code>b&lt;i&gt;</code> c</h3>' in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page and "<b>" not in page
