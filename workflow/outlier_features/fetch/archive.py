"""A zip file, such as a wheel, read without installing it."""

import shutil
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import BinaryIO

from outlier_features.errors import InputError
from outlier_features.fetch.card import Licence
from outlier_features.model.model_files import require_inside


class Archive:
    """The content of a zip file. Raises `InputError` where it is none."""

    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"pypi: expected a zip file in {path.name}, found {error}") from error
        self.name = path.name
        self.members = [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def licence(self) -> Licence:
        """The licence in a wheel's metadata, if it is named in one line."""
        for member in self.members:
            if member.count("/") == 1 and member.endswith(".dist-info/METADATA"):
                headers = HeaderParser().parsestr(self.read_text(member))
                lines = str(headers.get("License-Expression") or headers.get("License") or "").strip().splitlines()
                return Licence(lines[0] if lines and lines[0] != "UNKNOWN" else None)
        return Licence(None)

    def below(self, path: str) -> list[str]:
        """Names of the members in the directory `path`, relative to it.

        Raises `InputError` if one of them points outside.
        """
        prefix = path.rstrip("/") + "/"
        names = [member.removeprefix(prefix) for member in self.members if member.startswith(prefix)]
        require_inside(names, f"path: {path!r} in {self.name}")
        return names

    def read_bytes(self, member: str) -> bytes:
        return self._zip.read(member)

    def read_text(self, member: str) -> str:
        return self.read_bytes(member).decode("utf-8", errors="replace")

    def extract(self, member: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            self.append(member, file)

    def append(self, member: str, file: BinaryIO) -> None:
        """Write the content of a member to an open file."""
        with self._zip.open(member) as source:
            shutil.copyfileobj(source, file, 1 << 22)
