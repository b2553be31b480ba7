"""`kata-runtime run --image` and `--bundle`: containers that tools other than ours made."""

import json
import subprocess
from pathlib import Path

import pytest

from support.kata import Kata

pytestmark = pytest.mark.vm

ROOTFS = Path("/var/lib/kata-containers/image/default-rootfs")


def sh(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, guest_image: None) -> Path:
    """An OCI layout by umoci: busybox with an entrypoint, a user, an environment and a working directory."""
    layout = tmp_path_factory.mktemp("image") / "layout"
    sh("umoci", "init", "--layout", layout)
    sh("umoci", "new", "--image", f"{layout}:box")
    sh("umoci", "insert", "--image", f"{layout}:box", ROOTFS, "/")
    settings = ["--config.entrypoint=/bin/sh", "--config.entrypoint=-c", "--config.workingdir=/etc"]
    settings += ["--config.cmd=id -u; pwd; echo $GREETING", "--config.env=GREETING=hi", "--config.user=1000:1000"]
    sh("umoci", "config", "--image", f"{layout}:box", *settings)
    return layout


def test_an_oci_layout_by_umoci(kata: Kata, layout: Path) -> None:
    done = kata("run", "--image", f"{layout}:box")
    assert (done.stdout, done.returncode) == (b"1000\n/etc\nhi\n", 0)


def test_what_the_command_line_says_wins(kata: Kata, layout: Path) -> None:
    options = ["--image", f"{layout}:box", "--env", "GREETING=hello", "--user", "0", "--cwd", "/"]
    done = kata.run("id -u; pwd; echo $GREETING; exit 9", options=options)
    assert (done.stdout, done.returncode) == (b"0\n/\nhello\n", 9)


def test_a_docker_archive_by_skopeo(kata: Kata, layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    sh("skopeo", "copy", f"oci:{layout}:box", f"docker-archive:{archive}:busy:box")
    assert kata("run", "--image", str(archive)).stdout == b"1000\n/etc\nhi\n"


def test_an_image_by_buildah(kata: Kata, tmp_path: Path) -> None:
    buildah = ["buildah", "--root", tmp_path / "storage", "--runroot", tmp_path / "run", "--storage-driver", "vfs"]
    container = sh(*buildah, "from", "scratch").strip()
    sh(*buildah, "copy", container, ROOTFS, "/")
    sh(*buildah, "config", "--cmd", "cat /etc/passwd", container)
    sh(*buildah, "commit", container, f"docker-archive:{tmp_path}/image.tar:localhost/b:1")
    done = kata("run", "--image", f"{tmp_path}/image.tar")
    assert done.stdout == (ROOTFS / "etc/passwd").read_bytes()


def test_an_image_stays_as_it_is(kata: Kata, layout: Path) -> None:
    options = ["--image", f"{layout}:box", "--user", "0"]
    assert kata.run("echo x > /left-behind", options=options).returncode == 0
    assert kata.run("test -e /left-behind", options=options).returncode == 1


def test_a_bundle_with_mounts_of_the_host(kata: Kata, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    sh("cp", "-a", f"{ROOTFS}/.", bundle / "rootfs")
    sh("crun", "spec", "--bundle", bundle)  # as every runtime writes it
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("from the host\n")
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["sh", "-c", "cat /data/file; echo from the guest > /data/answer; exit 3"]
    spec["mounts"].append(
        {"destination": "/data", "source": str(tmp_path / "data"), "type": "bind", "options": ["bind"]}
    )
    spec["root"]["readonly"] = True
    (bundle / "config.json").write_text(json.dumps(spec))
    done = kata("run", "--bundle", str(bundle))
    assert (done.stdout, done.returncode) == (b"from the host\n", 3), done.stderr.decode()
    assert (tmp_path / "data/answer").read_text() == "from the guest\n"


def test_a_bundle_without_a_mount_at_dev(kata: Kata, tmp_path: Path) -> None:
    """Nobody makes its devices in the root file system, which is the host's."""
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    sh("cp", "-a", f"{ROOTFS}/.", bundle / "rootfs")
    sh("crun", "spec", "--bundle", bundle)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["sh", "-c", "echo gone > /dev/null && stat -c %F /dev/null"]
    spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")]
    (bundle / "config.json").write_text(json.dumps(spec))
    done = kata("run", "--bundle", str(bundle))
    assert (done.stdout, done.returncode) == (b"character special file\n", 0), done.stderr.decode()
    assert list((bundle / "rootfs/dev").iterdir()) == []
