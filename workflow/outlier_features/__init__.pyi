from outlier_features.errors import InputError
from outlier_features.notebook.measure import measure
from outlier_features.notebook.run import Run
from outlier_features.notebook.run import open_run as open

__all__ = ["InputError", "Run", "__version__", "measure", "open"]

__version__: str
