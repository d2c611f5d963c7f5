"""A page of a neuron or dim of a run's tables, for which the gallery need not have one."""

import os
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from outlier_features.dim_marks import dim_name
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.gallery.dim_page import dim_page, values_along_text, values_name
from outlier_features.gallery.gallery_pages import GalleryPages
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.names import Neuron, sequence_name
from outlier_features.gallery.neuron_page import NeuronRows, neuron_page
from outlier_features.gallery.render_gallery import MANIFEST, text_of


def page_of_neuron(run: GalleryRun, rows: NeuronRows, folder: Path) -> Path:
    """The page of a neuron: the gallery's where it has one, else one made in `folder`."""
    name = str(rows.neuron)
    if page := _in_gallery(run, name):
        return page
    values = next((values for _, values in run.values_of([rows.neuron])), {})
    listed = run.neurons_with_page
    place = bisect_left([*map(_order, listed)], _order(rows.neuron))
    after = place + (place < len(listed) and listed[place] == rows.neuron)
    around = (listed[place - 1] if place else None, listed[after] if after < len(listed) else None)
    data, whole = neuron_page(run, rows, values, around)
    pages = _pages(run, folder)
    pages.page("neuron", name, data, f"Neuron {name}, {run.name}")
    if whole is not None:
        pages.data(f"{name}W", whole)
    for sequence in dict.fromkeys(data["places"]["sequence"]):
        pages.data(f"{sequence_name(sequence)}T", text_of(run, sequence))
    return folder / f"{name}.html"


def page_of_dim(run: GalleryRun, dim: int, folder: Path) -> Path:
    """The page of a dim: the gallery's where it has one, else one made in `folder`."""
    name = dim_name(dim)
    if page := _in_gallery(run, name):
        return page
    pages = _pages(run, folder)
    pages.page("dim", name, dim_page(run, dim), f"Dimension {dim}, {run.name}")
    recorded = run.recorded.filter(dim=dim)
    for (layer,), rows in recorded.partition_by("layer", as_dict=True).items():
        pages.data(values_name(dim, layer), values_along_text(rows))
    for sequence in recorded["sequence"].unique().sort():
        pages.data(f"{sequence_name(sequence)}T", text_of(run, sequence))
    return folder / f"{name}.html"


def _gallery(run: GalleryRun) -> Path | None:
    """The gallery of a run, if it was made of these tokens."""
    folder = run.directory.absolute().parents[1] / "gallery" / run.directory.absolute().parent.name / run.directory.name
    if not (folder / MANIFEST).is_file():
        return None
    manifest: Mapping[str, Any] = read_json(folder / MANIFEST, "tokens_sha256")
    same = manifest["tokens_sha256"] == run.tokens.provenance["tokens_sha256"]
    return folder if same else None


def _in_gallery(run: GalleryRun, name: str) -> Path | None:
    gallery = _gallery(run)
    page = gallery and gallery / f"{name}.html"
    return page if page and page.is_file() else None


def _pages(run: GalleryRun, folder: Path) -> GalleryPages:
    """A folder for pages whose links lead to the gallery; without one they lead nowhere."""
    gallery = _gallery(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        home = None if gallery is None else f"{quote(os.path.relpath(gallery, folder.absolute()))}/"
        return GalleryPages(folder, home)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written, {error.strerror}; --output-dir names another place") from error


def _order(neuron: Neuron) -> tuple[int, int, int]:
    return neuron.layer, -1 if neuron.expert is None else neuron.expert, neuron.neuron
