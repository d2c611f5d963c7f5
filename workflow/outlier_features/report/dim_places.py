"""Where the dims of a run lead in its report, and what the report's toolbox knows of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outlier_features.dim_marks import dim_name
from outlier_features.model.bases import RESIDUAL, RESIDUAL_BASIS
from outlier_features.summary.report_run import Run
from outlier_features.summary.run_rules import run_rules, selected_dims


@dataclass(frozen=True)
class DimPlaces:
    """Of each dim of the residual stream its page in the gallery, or the run's tables, whose rows of it a panel shows.

    facts   for the scripts: the gallery and its dims, what each rule selects in each population, and which sites and
            rules have dims of the residual stream
    """

    run: str
    gallery: str | None
    pages: frozenset[int]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run, gallery: Mapping[str, Any] | None) -> "DimPlaces":
        rules = {name: rule.basis for name, rule in run_rules(run.summary).items()}
        path, pages = (gallery["path"], gallery["dims"]) if gallery else (None, [])
        selected = [
            [rule, population, selected_dims(part, rule)]
            for rule, basis in rules.items()
            for population, part in run.summary["populations"].items()
            if basis == RESIDUAL and selected_dims(part, rule)
        ]
        facts = {
            "run": run.name,
            "width": run.summary["model"]["d_model"],
            "gallery": path,
            "pages": pages,
            "selected": selected,
            "sites": RESIDUAL_BASIS,
            "otherRules": [name for name, basis in rules.items() if basis != RESIDUAL],
        }
        return cls(run.name, path, frozenset(pages), facts)

    def place(self, dim: int) -> str:
        return f"{self.gallery}/{dim_name(dim)}.html" if dim in self.pages else f"#{self.run}/tables"

    @property
    def json(self) -> str:
        return json.dumps(self.facts, separators=(",", ":"))
