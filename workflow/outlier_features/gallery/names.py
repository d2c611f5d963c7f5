"""What neurons, dims and sequences are called in files, links and commands: `L11N1229`, `L11E3N1229`, `D507`, `S3`."""

import re
from typing import NamedTuple

from outlier_features.errors import InputError

_NEURON = re.compile(r"L(\d+)(?:E(\d+))?N(\d+)", re.IGNORECASE)


class Neuron(NamedTuple):
    """A neuron of a block or, of a mixture of experts, of one of its experts."""

    layer: int
    expert: int | None
    neuron: int

    def __str__(self) -> str:
        return f"L{self.layer}{'' if self.expert is None else f'E{self.expert}'}N{self.neuron}"

    @classmethod
    def parse(cls, name: str) -> "Neuron":
        """Raises `InputError` where `name` is not that of a neuron."""
        found = _NEURON.fullmatch(name)
        if not found:
            raise InputError(
                f"neuron: found {name!r}, expected a block and a neuron such as L11N1229, of an expert L11E3N1229"
            )
        layer, expert, neuron = found.groups()
        return cls(int(layer), None if expert is None else int(expert), int(neuron))


THE_NEURON = Neuron._fields  # in the order of a table's columns


def sequence_name(sequence: int) -> str:
    return f"S{sequence}"
