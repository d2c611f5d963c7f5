"""Rule render_gallery: a folder of pages for a run, that opens from disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.dim_marks import dim_name
from outlier_features.files.artifacts import SAME_RUN, replacing_directory, write_json
from outlier_features.files.missing import MISSING, missing_sentence
from outlier_features.files.tables import provenance_of
from outlier_features.gallery.dim_page import NORM, dim_page, values_along_text, values_name
from outlier_features.gallery.gallery_pages import GalleryPages
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.gallery_schema import GALLERY_NEURONS
from outlier_features.gallery.names import THE_NEURON, Neuron, sequence_name
from outlier_features.gallery.neuron_page import NeuronRows, neuron_page
from outlier_features.gallery.packed_values import floats, halves, integers
from outlier_features.progress import item_bar
from outlier_features.tokens.tokens import Tokens

MANIFEST = "manifest.json"
NEURON_COLUMNS = ("active_share", "mean", "std", "kurtosis", "min", "max")


def render_gallery(run: Path, folder: Path, *, source: Path | None = None, published: Path | None = None) -> None:
    """Write the gallery of a run into `folder`, all of it or nothing:

    index.html        the run, its neurons, dims and sequences
    L11N1229.html     a page for each neuron, dim (`D507.html`) and sequence (`S3.html`) of the run's tables
    data/             what the pages show: small scripts, each loaded when a page asks for it
    page/             style and scripts of the pages
    manifest.json     which pages there are, and of which run; written last

    run         the run's directory
    source      the record of the model's fetch, whose tokenizer says what tokens are; without it some are numbers
    published   the table of published examples, which stand on the pages of their neurons
    """
    read = GalleryRun.read(run, source, published)
    with replacing_directory(folder) as temporary:
        pages = GalleryPages(temporary)
        shown = _write_neurons(read, pages)
        dims = read.dims_with_page
        for dim in item_bar(dims, "dims", "dim"):
            pages.page("dim", dim_name(dim), dim_page(read, dim), f"Dimension {dim}, {read.name}")
        _write_values(read, pages)
        sequences = read.sequences_with_page
        for sequence in sequences:
            title = f"Sequence {sequence}, {read.name}"
            pages.page("sequence", sequence_name(sequence), _sequence_page(read, sequence), title)
        for sequence in sorted(shown | {*sequences}):
            pages.data(f"{sequence_name(sequence)}T", text_of(read, sequence))
        _write_index(read, pages)
    _write_manifest(folder, read.tokens, neurons=len(read.neurons_with_page), dims=dims, sequences=sequences)


def leave_out_gallery(run: Path, folder: Path, why: str) -> None:
    """Write a gallery without pages: an index that says why there are none."""
    tokens = Tokens.read(run / "tokens.safetensors")
    title = f"{tokens.provenance['model']} on {tokens.provenance['corpus']}"
    with replacing_directory(folder) as temporary:
        GalleryPages(temporary).write(
            "index.html", "index.html.j2", kind="index", name="index", title=title, blocks=[], neurons=0, first=None,
            dims=[], sequences=[], missing=why,
        )  # fmt: skip
    _write_manifest(folder, tokens, neurons=0, dims=[], sequences=[])


def _write_manifest(folder: Path, tokens: Tokens, **pages: Any) -> None:
    record = {key: value for key, value in tokens.provenance.items() if key in SAME_RUN}
    write_json(folder / MANIFEST, {**record, **pages})


def text_of(run: GalleryRun, sequence: int) -> dict[str, Any]:
    """The tokens of a sequence, and what each cost the model where that is known."""
    return {"pieces": run.pieces(sequence), "losses": None if (one := run.losses_of(sequence)) is None else halves(one)}


def _write_neurons(run: GalleryRun, pages: GalleryPages) -> set[int]:
    """A page for each neuron, one block after the other; returns the sequences whose text they show."""
    shown: set[int] = set()
    around = dict(_neighbours(run.neurons_with_page))
    recorded = run.values_of(run.neurons_with_page)
    coming = next(recorded, None)
    bar = iter(item_bar(run.neurons_with_page, "neurons", "neuron"))
    for _, block in groupby(run.neurons_with_page, key=lambda one: one.layer):
        for rows in NeuronRows.of(run, [*block]):
            next(bar)
            values: Mapping[int, pl.Series] = {}
            if coming and coming[0] == rows.neuron:
                values, coming = coming[1], next(recorded, None)
            data, whole = neuron_page(run, rows, values, around[rows.neuron])
            pages.page("neuron", str(rows.neuron), data, f"Neuron {rows.neuron}, {run.name}")
            if whole is not None:
                pages.data(f"{rows.neuron}W", whole)
            shown.update(data["places"]["sequence"])
    next(bar, None)
    return shown


def _neighbours(neurons: Sequence[Neuron]) -> Iterator[tuple[Neuron, tuple[Neuron | None, Neuron | None]]]:
    """Of each neuron the one before and the one after it."""
    row = [None, *neurons, None]
    for (before, one), (_, after) in pairwise(pairwise(row)):
        assert one is not None
        yield one, (before, after)


def _write_values(run: GalleryRun, pages: GalleryPages) -> None:
    parts = run.recorded.partition_by("dim", "layer", as_dict=True, maintain_order=True)
    for (dim, layer), rows in parts.items():
        pages.data(values_name(dim, layer), values_along_text(rows))


def _sequence_page(run: GalleryRun, sequence: int) -> dict[str, Any]:
    rows = run.recorded.filter(sequence=sequence)
    sequences = run.sequences_with_page
    place = sequences.index(sequence)
    of = [
        [NORM if dim is None else dim_name(dim), one["layer"].unique().sort().to_list()]
        for (dim,), one in rows.group_by("dim", maintain_order=True)
    ]
    return {
        "name": sequence_name(sequence),
        "around": [
            sequence_name(sequences[place + step]) if 0 <= place + step < len(sequences) else None for step in (-1, 1)
        ],
        "tokens": run.length(sequence),
        "of": of,
        "has_losses": run.losses_of(sequence) is not None,
    }


def _write_index(run: GalleryRun, pages: GalleryPages) -> None:
    """The list of pages, a table of all neurons of each block, and the page that shows them."""
    pages.data("pages", columns_of(run.neurons_with_page))
    with_page = {*run.neurons_with_page}
    blocks = []
    for (layer,), rows in run.statistics.partition_by("layer", as_dict=True, maintain_order=True).items():
        neurons = [Neuron(*row) for row in rows.select(THE_NEURON).rows()]
        pages.data(
            f"L{layer}",
            {
                **columns_of(neurons),
                **{name: floats(rows[name].fill_null(float("nan")).to_numpy()) for name in NEURON_COLUMNS},
                "pages": [place for place, one in enumerate(neurons) if one in with_page],
            },
        )  # fmt: skip
        blocks.append(
            {"layer": layer, "neurons": len(rows), "experts": rows["expert"].drop_nulls().n_unique(),
             "pages": sum(one in with_page for one in neurons)}
        )  # fmt: skip
    record = provenance_of(run.path(GALLERY_NEURONS), GALLERY_NEURONS).get(MISSING)
    pages.data("index", {"blocks": blocks})
    pages.write(
        "index.html", "index.html.j2", kind="index", name="index", title=run.name, blocks=blocks,
        neurons=len(run.neurons_with_page), first=next(iter(run.neurons_with_page), None), dims=run.dims_with_page,
        sequences=run.sequences_with_page, missing=record and missing_sentence("gallery", record),
    )  # fmt: skip


def columns_of(neurons: Iterable[Neuron]) -> dict[str, Any]:
    """Neurons as columns of numbers; `expert` is one more than it is, and 0 where there is none."""
    listed = [*neurons]
    return {
        "rows": len(listed),
        "layer": integers([one.layer for one in listed]),
        "expert": integers([0 if one.expert is None else one.expert + 1 for one in listed]),
        "neuron": integers([one.neuron for one in listed]),
    }
