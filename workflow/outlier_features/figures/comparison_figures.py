"""The figures of the comparison of runs, in the order of the report."""

from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.llm_int8 import llm_int8_figures
from outlier_features.figures.relative_depth import relative_depth
from outlier_features.figures.shares_by_size import shares_by_size
from outlier_features.figures.style import Drawing
from outlier_features.figures.training import training_figures


def comparison_figures(compared: Compared) -> list[Drawing]:
    return [
        *training_figures(compared),
        *shares_by_size(compared),
        *llm_int8_figures(compared),
        relative_depth(compared),
    ]
