"""The model that a job changes and runs again, loaded and looked into once for all of the job's analyses."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Unpack

from outlier_features.files.model_source import source_of
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import Block, find_sites


class Subject:
    """A model, its blocks, and what its passes may begin with: each is had when it is first asked for."""

    def __init__(self, load: Callable[[], LoadedModel]):
        self._load = load

    @classmethod
    def fetched(cls, source: Path, **loading: Unpack[Loading]) -> "Subject":
        """The model that `source` records."""
        return cls(lambda: load_model(Path(source_of(source)["location"]), **loading))

    @cached_property
    def loaded(self) -> LoadedModel:
        return self._load()

    @cached_property
    def blocks(self) -> list[Block]:
        return find_sites(self.loaded)

    @cached_property
    def prefixes(self) -> Prefixes:
        return Prefixes(self.loaded)
