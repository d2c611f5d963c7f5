"""Write envs/outlier-features.yaml: what running the workflow needs, at the versions of requirements.lock.

The lock also has what tests and linters need, so the requirements of pyproject.toml are followed through what is
installed.
`--check` writes nothing and exits with 1 where the file is not what would be written.
"""

import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVIRONMENT = Path(__file__).with_name("outlier-features.yaml")
_UNLOCKED = {"pip", "setuptools"}  # what `pip freeze` leaves out


def environment() -> str:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = needed([*project["dependencies"], *project["optional-dependencies"]["slurm"]])
    pins = "\n".join(f"      - {locked[name]}" for name in sorted(wanted - _UNLOCKED))
    return f"""\
# conda env create -f envs/outlier-features.yaml, then `pip install --no-deps .` of a checkout in it.
# Made from requirements.lock by `make envs`; do not edit.
name: outlier-features
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pip
  - pip:
{pins}
"""


def needed(requirements: list[str]) -> set[str]:
    """Names of the distributions that meet `requirements`, directly or through others, on this platform."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(one) for one in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras}:
            if (name, extra) not in found:
                found.add((name, extra))
                further = map(Requirement, requires(name) or [])
                waiting += [other for other in further if not other.marker or other.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


if __name__ == "__main__":
    if "--check" not in sys.argv:
        ENVIRONMENT.write_text(environment(), encoding="utf-8")
    elif ENVIRONMENT.read_text(encoding="utf-8") != environment():
        sys.exit(
            f"error: {ENVIRONMENT}: found other versions than those of requirements.lock; `make envs` writes it anew"
        )
