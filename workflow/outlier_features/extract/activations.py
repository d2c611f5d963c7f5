"""A chunk of a run's activations, in a file that was extracted or in a range of sequences of a dump."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import Dump, DumpRange
from outlier_features.files.artifacts import holds_sequences, require_same_run
from outlier_features.files.tensorfile import TensorFile
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.tokens.tokens import Tokens


@dataclass(frozen=True)
class Activations:
    """Tensors by site; the provenance has `start` and `stop`, the sequences of the run that they hold."""

    sites: dict[str, SiteTensors]
    provenance: dict[str, Any]

    @classmethod
    def open(cls, path: Path, run: Tokens, dump: DumpRange | None = None) -> "Activations":
        """Raises `InputError` where the file is damaged or belongs to another run."""
        if dump is not None:
            count = dump.stop - dump.start
            sites = Dump.open([path], run.provenance["keys"]).sites
            tensors = {site: one.rows(dump.row, dump.row + count) for site, (one,) in sites.items()}
            return cls(tensors, {**run.provenance, "start": dump.start, "stop": dump.stop})
        file = TensorFile(path)
        require_same_run(run.provenance, file.provenance, path)
        names = file.provenance["sites"] if holds_sequences(file.provenance) else []
        found = {site: SiteTensors.per_layer(file, site) for site in names}
        return cls({site: one for site, one in found.items() if one is not None}, file.provenance)
