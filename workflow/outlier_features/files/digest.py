"""SHA-256 of files."""

import hashlib
from pathlib import Path

from outlier_features.progress import byte_bar

_CHUNK = 1 << 22


def sha256_of(*paths: Path) -> str:
    """Hexadecimal digest of a file, or of several in a row; shows its progress where that takes long."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file, byte_bar(f"sha256 {path.name}", path.stat().st_size) as bar:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()
