"""The test cluster's pure parts; no root, no cluster."""

import json
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .kube import layers, pip_config
from .kube.containerd import Containerd
from .kube.dns import addresses
from .kube.host import KubeError
from .kube.layout import Cluster
from .kube.storage import Image

OPTION = st.sampled_from(["cert", "find-links", "index-url", "extra-index-url", "timeout"])
VALUE = st.text()


@given(files=st.dictionaries(OPTION, VALUE), environment=st.dictionaries(OPTION, VALUE))
def test_pip_options_of_the_environment_win(files: dict[str, str], environment: dict[str, str]) -> None:
    listing = [f":env:.{option}={value!r}" for option, value in environment.items()]
    listing += [f"global.{option}={value!r}" for option, value in files.items()]
    assert pip_config.parse("\n".join(listing), {}) == files | environment


def test_a_build_gets_the_folders_and_files_that_pip_is_told_of(tmp_path: Path) -> None:
    bundle, wheels, index = tmp_path / "ca.pem", tmp_path / "wheels", tmp_path / "index" / "simple"
    bundle.touch()
    wheels.mkdir()
    index.mkdir(parents=True)
    options = {
        "cert": str(bundle),
        "find-links": f"{wheels} {tmp_path}/gone",
        "extra-index-url": f"file://{index} https://example.org/simple",
    }
    assert pip_config.local_paths(options) == [bundle, index.parent, wheels]


def test_a_certificate_bundle_of_the_environment_reaches_the_build() -> None:
    assert pip_config.parse("", {"REQUESTS_CA_BUNDLE": "/ca.pem"}) == {"cert": "/ca.pem"}


@pytest.mark.parametrize(
    ("name", "cidr", "root", "hint"),
    [
        ("Has-Capitals", "10.0.0.0/16", None, "lower-case"),
        ("muchtoolongname", "10.0.0.0/16", None, "1 to 10"),
        ("a", "10.0.0.0/24", None, "/16"),
        ("a", "10.0.0.1/16", None, "/16"),
        ("a", "10.0.0.0/16", Path("/run/a"), "/var/tmp"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_with_the_fix(name: str, cidr: str, root: Path | None, hint: str) -> None:
    with pytest.raises(KubeError, match=hint):
        Cluster.of(name, cidr, root)


@given(second=st.integers(0, 255))
def test_the_subnets_of_a_cluster_are_apart_and_its_own(second: int) -> None:
    cluster = Cluster.of("a", f"10.{second}.0.0/16")
    link = IPv4Network((cluster.host_address, 30), strict=False)
    parts = [link, cluster.pods, cluster.services]
    assert all(part.subnet_of(cluster.network) for part in parts)
    assert not any(a.overlaps(b) for a in parts for b in parts if a is not b)
    assert cluster.node_address in link


def service(cluster_ip: str) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(cluster_ip=cluster_ip))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web.shop.svc.cluster.local", ["10.0.2.7"]),
        ("pods.shop.svc.cluster.local", ["10.0.1.2", "10.0.1.3"]),
        ("first.pods.shop.svc.cluster.local", ["10.0.1.2"]),
        ("other.web.shop.svc.cluster.local", []),
        ("web.elsewhere.svc.cluster.local", []),
        ("web.shop", []),
        ("shop.svc.cluster.local", []),
        ("svc.cluster.local", []),
        ("example.com", []),
    ],
)
def test_names_of_services_and_of_their_pods_resolve(name: str, expected: list[str]) -> None:
    services = {("shop", "web"): service("10.0.2.7"), ("shop", "pods"): service("None")}
    pods = [SimpleNamespace(ip="10.0.1.2", hostname="first"), SimpleNamespace(ip="10.0.1.3", hostname=None)]
    endpoints = {("shop", "pods"): SimpleNamespace(subsets=[SimpleNamespace(addresses=pods)])}
    assert addresses(name, services, endpoints) == expected


LOG = """\
[1/2] STEP 1/2: FROM localhost/debian:bookworm AS one
[1/2] STEP 2/2: RUN make
--> Using cache 4e8b5bb2f76d8af09800e607c7a52aec881bfae1f91deee9f5d6a0ff2f6fa4e1
--> 4e8b5bb2f76
[2/2] STEP 2/2: COPY --from=one /a /b
--> f5fa0b037ef
Successfully tagged localhost/app:test
"""


class FakeStorage:
    """buildah's images by id, with their tag."""

    def __init__(self, **images: str) -> None:
        self.images, self.removed = images, list[str]()

    def tags(self) -> list[str]:
        return [tag for tag in self.images.values() if tag]

    def untagged(self) -> list[str]:
        return [image for image, tag in self.images.items() if not tag]

    def buildah(self, command: str, *ids: str) -> str:
        self.removed += ids if command == "rmi" else ()
        return ""


def test_layers_of_the_last_builds_stay_and_others_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = {"4e8b5bb2f76d": "", "f5fa0b037efb": "", "aaaaaaaaaaaa": "", "bbbbbbbbbbbb": "localhost/app:test"}
    storage: Any = FakeStorage(**images, cccccccccccc="")
    layers.note("localhost/app:test", LOG)
    layers.note("localhost/gone:test", "--> cccccccccccc"[:15])
    layers.sweep(storage)
    assert storage.removed == ["aaaaaaaaaaaa", "cccccccccccc"]

    layers.note("localhost/app:test", LOG.replace("f5fa0b037ef", "aaaaaaaaaaa"))
    storage.removed.clear()
    layers.sweep(storage)
    assert storage.removed == ["f5fa0b037efb", "cccccccccccc"], "of the last build only"


CTR = """\
#!/bin/sh
case "$*" in *import*) ;; *) exit 0 ;; esac
cat > /dev/null
read -r refusal < refusals || exit 0
sed -i 1d refusals
echo "$refusal"
exit 1
"""
SNAPSHOT = (
    'ctr: failed to prepare extraction snapshot "extract-1": parent snapshot sha256:80 does not exist: not found\n'
)
CONTENT = "ctr: content digest sha256:80: not found\n"


@pytest.mark.parametrize(
    ("refusals", "left"),
    [
        pytest.param(CONTENT + SNAPSHOT, None, id="layers were collected during the import"),
        pytest.param(SNAPSHOT * 4, SNAPSHOT, id="again and again"),
        pytest.param(f"no space\n{SNAPSHOT}", SNAPSHOT, id="another refusal"),
    ],
)
def test_an_image_is_brought_again_where_containerd_lost_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: str, left: str | None
) -> None:
    Path(tmp_path, "ctr").write_text(CTR)
    Path(tmp_path, "ctr").chmod(0o755)
    Path(tmp_path, "refusals").write_text(refusals)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    config = f"sha256:{'0' * 64}"
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"digest": config}, "layers": []}
    image = Image("localhost/app:test", json.dumps(manifest).encode(), b"{}", {})
    storage: Any = SimpleNamespace(image=lambda tag: image)
    daemon = Containerd(tmp_path / "containerd.sock")
    if left is None:
        assert daemon.load(storage, image.tag)
    else:
        with pytest.raises(KubeError, match="localhost/app:test: containerd refused the image"):
            daemon.load(storage, image.tag)
        assert Path(tmp_path, "refusals").read_text() == left
