"""A chunk of a run's activations, in a file that was extracted or in a range of sequences of a dump."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import Dump, DumpRange
from outlier_features.errors import DamagedFile, InputError
from outlier_features.files.artifacts import holds_sequences
from outlier_features.files.layer_keys import GAIN
from outlier_features.files.numpy_archive import open_tensors
from outlier_features.norms.gains_in_file import gains_of_site
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import Array
from outlier_features.tokens.tokens import Tokens


@dataclass(frozen=True)
class Activations:
    """Tensors by site; the provenance has `start` and `stop`, the sequences of the run that they hold.

    gains   of sites that are the output of norms: what these multiply by, (L, H) for the site's layers, NaN in a layer
            whose norm is not known; or why none is
    """

    sites: dict[str, SiteTensors]
    provenance: dict[str, Any]
    gains: dict[str, Array | str] = field(default_factory=dict)

    @classmethod
    def open(cls, where: Path | DumpRange, run: Tokens, gain_keys: Mapping[str, str] | None = None) -> "Activations":
        """Open a chunk.

        gain_keys   under which the gains of a dump are looked up, see `named_gains`; None: not at all

        Raises `InputError` where the file is damaged or belongs to another run, or the dump has changed.
        """
        if isinstance(where, DumpRange):
            dump = Dump.open(where.source)
            if dump.lengths.tolist() != run.mask.sum(axis=1).tolist():
                raise InputError(f"{where}: has other sequences than when the run began; run it again")
            tokens = run.tokens.shape[1]
            sites = {site: one.rows(where.start, where.stop).padded(tokens) for site, one in dump.sites.items()}
            gains = {} if gain_keys is None else _gains_of_dump(dump, gain_keys)
            return cls(sites, {**run.provenance, "start": where.start, "stop": where.stop}, gains)
        file = run.files.tensors(where)
        names = file.provenance["sites"] if holds_sequences(file.provenance) else []
        found = {site: SiteTensors.per_layer(file, site) for site in names}
        gains = {site: file.array(GAIN + site) for site in found if GAIN + site in file.entries}
        return cls({site: one for site, one in found.items() if one is not None}, file.provenance, gains)


def _gains_of_dump(dump: Dump, keys: Mapping[str, str]) -> dict[str, Array | str]:
    file = open_tensors(dump.files[0])
    gains: dict[str, Array | str] = {}
    for site, tensors in dump.sites.items():
        try:
            gains[site] = gains_of_site(file, keys, site, tensors.layers, tensors.dims)
        except DamagedFile:
            raise
        except InputError as error:
            gains[site] = str(error)
    return gains
