"""What a file's provenance says besides the run's identity: typed, so that who writes it and who reads it agree."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Facts:
    """What a stage found that is no row of its tables; a subclass has fields of what JSON has, keys of a provenance."""

    @property
    def kept(self) -> dict[str, Any]:
        """The part of a provenance that says them."""
        return asdict(self)

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Self:
        """What `kept` left. Of a file's `Provenance` that lacks one of them, raises `DamagedFile`."""
        return cls(**{field.name: provenance[field.name] for field in fields(cls)})
