"""The recipes of envs/ install the versions of requirements.lock, and what the package is made of."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CONDA = (ROOT / "envs/outlier-features.yaml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKER = (ROOT / "envs/Dockerfile").read_text(encoding="utf-8")


def pins(lines: list[str]) -> dict[str, str]:
    """Versions by name; a requirement without exactly one `==` is none."""
    found = {}
    for line in lines:
        (pin,) = Requirement(line).specifier
        assert pin.operator == "==" and "*" not in pin.version
        found[canonicalize_name(Requirement(line).name)] = pin.version
    assert len(found) == len(lines)
    return found


def of_lock(text: str) -> dict[str, str]:
    return pins([line for line in text.splitlines() if line and not line.startswith("#")])


def of_conda(text: str) -> dict[str, str]:
    *packages, with_pip = yaml.safe_load(text)["dependencies"]
    assert set(with_pip) == {"pip"} and "pip" in packages
    return pins(with_pip["pip"])


def differing(conda: str, lock: str) -> set[str]:
    return {name for name, version in of_conda(conda).items() if of_lock(lock).get(name) != version}


def test_conda_installs_the_locked_versions():
    assert differing(CONDA, LOCK) == set()
    optional = PROJECT["project"]["optional-dependencies"]["slurm"]
    for one in map(Requirement, [*PROJECT["project"]["dependencies"], *optional]):
        assert one.specifier.contains(of_conda(CONDA)[canonicalize_name(one.name)]), one


@pytest.mark.parametrize("name", ["torch", "snakemake", "polars"])
def test_a_pin_that_differs_is_seen(name):
    changed, count = re.subn(rf"(- {name}==)(\S+)", r"\g<1>\g<2>.1", CONDA)
    assert count == 1 and differing(changed, LOCK) == {name}
    assert differing(CONDA, re.sub(rf"(?m)^{name}==.*\n", "", LOCK)) == {name}


def test_conda_and_the_container_have_a_python_that_the_package_allows():
    (conda,) = re.findall(r"(?m)^  - python=(\S+)$", CONDA)
    (docker,) = re.findall(r"(?m)^FROM python:(\S+)-slim$", DOCKER)
    assert conda == docker
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(f"{conda}.0")


def test_the_container_is_given_all_that_a_wheel_is_made_of():
    """Copied from the checkout to the same place below /src, which is what `pip install /src` builds from."""
    copied = set()
    for line in re.findall(r"(?m)^COPY (.+)$", DOCKER):
        *sources, target = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            place = Path(target) / (Path(source).name if target.endswith("/") else "")
            copied.add(place.relative_to("/src"))
            assert place == Path("/src") / source
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], PROJECT["project"]["readme"], "pyproject.toml"]
    needed += [*PROJECT["project"]["license-files"], *re.findall(r"--constraint /src/(\S+)", DOCKER)]
    assert "requirements.lock" in needed
    for path in map(Path, needed):
        assert copied & {path, *path.parents}, path
