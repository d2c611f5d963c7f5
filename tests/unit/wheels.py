"""Wheels for pip to find, in the folder of the fixture `index`."""

import hashlib
import zipfile
from pathlib import Path


def build_wheel(directory: Path, members: dict[str, bytes], name: str = "tiny_model") -> str:
    """Write `name`-1.0 as a wheel; returns its SHA-256."""
    info = f"{name}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n"
        "Requires-Dist: not-there==7\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(name, content)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
