"""Container images made by umoci, skopeo and buildah become root filesystems; hostile ones stay where they belong."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from kata_runtime.errors import HostError, ImageError
from kata_runtime.oci.image import Image, ImageConfig, unpack
from kata_runtime.oci.pull import file_of, pull

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking keeps owners, which takes root")


def sh(*argv: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}"
    return done.stdout


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the images `one` and `two`, by umoci."""
    directory = tmp_path_factory.mktemp("image")
    files = directory / "files"
    (files / "etc").mkdir(parents=True)
    (files / "etc/passwd").write_text("www:x:33:33::/var/www:/bin/sh\n")
    (files / "owned").touch()
    os.chown(files / "owned", 33, 34)
    layout = directory / "layout"
    sh("umoci", "init", "--layout", layout)
    sh("umoci", "new", "--image", f"{layout}:one")
    sh("umoci", "insert", "--image", f"{layout}:one", files, "/")
    entry = ["--config.entrypoint=/bin/sh", "--config.entrypoint=-c", "--config.cmd=echo hi"]
    rest = ["--config.env=A=b", "--config.user=www", "--config.workingdir=/etc"]
    sh("umoci", "config", "--image", f"{layout}:one", *entry, *rest)
    sh("umoci", "config", "--image", f"{layout}:one", "--tag", "two", "--config.cmd=echo two")
    return layout


CONFIG = ImageConfig(("A=b",), ("/bin/sh", "-c"), ("echo hi",), "/etc", "www")


def check(image: Image) -> None:
    assert image.config == CONFIG
    assert (image.rootfs / "etc/passwd").read_text().startswith("www:")
    status = (image.rootfs / "owned").stat()
    assert (status.st_uid, status.st_gid) == (33, 34)


async def test_oci_layout(layout: Path, cache: Path) -> None:
    check(await unpack(f"{layout}:one", cache))
    assert (await unpack(f"{layout}:two", cache)).config.cmd == ("echo two",)


async def test_several_images_need_a_tag(layout: Path, cache: Path) -> None:
    with pytest.raises(ImageError, match="has several images") as caught:
        await unpack(str(layout), cache)
    assert "one, two" in caught.value.hint
    with pytest.raises(ImageError, match="has no image 'three'"):
        await unpack(f"{layout}:three", cache)


async def test_oci_archive_by_skopeo(layout: Path, cache: Path, tmp_path: Path) -> None:
    sh("skopeo", "copy", f"oci:{layout}:one", f"oci-archive:{tmp_path}/image.tar:tagged")
    check(await unpack(f"{tmp_path}/image.tar", cache))
    check(await unpack(f"{tmp_path}/image.tar:tagged", cache))


@pytest.mark.parametrize("name", ["", ":docker.io/library/busy:box", ":busy:box", ":box"])
async def test_docker_archive_by_skopeo(layout: Path, cache: Path, tmp_path: Path, name: str) -> None:
    sh("skopeo", "copy", f"oci:{layout}:one", f"docker-archive:{tmp_path}/image.tar:busy:box")
    check(await unpack(f"{tmp_path}/image.tar{name}", cache))


@pytest.mark.slow
async def test_docker_archive_by_buildah(cache: Path, tmp_path: Path) -> None:
    buildah = ["buildah", "--root", tmp_path / "storage", "--runroot", tmp_path / "run", "--storage-driver", "vfs"]
    (tmp_path / "file").write_text("content")
    container = sh(*buildah, "from", "scratch").strip()
    sh(*buildah, "copy", container, tmp_path / "file", "/")
    sh(*buildah, "config", "--cmd", "/file", "--env", "X=y", container)
    sh(*buildah, "commit", container, f"docker-archive:{tmp_path}/image.tar:localhost/b:1")
    image = await unpack(f"{tmp_path}/image.tar:1", cache)
    assert (image.rootfs / "file").read_text() == "content"
    assert (image.config.cmd, image.config.env) == (("/file",), ("X=y",))


async def test_second_time_is_from_the_cache(
    layout: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sh("skopeo", "copy", f"oci:{layout}:one", f"oci-archive:{tmp_path}/image.tar")
    first = await unpack(f"{tmp_path}/image.tar", cache)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setattr("kata_runtime.process.find_program", None)
        assert await unpack(f"{tmp_path}/image.tar", cache) == first
    sh("skopeo", "copy", f"oci:{layout}:two", f"oci-archive:{tmp_path}/image.tar")
    assert (await unpack(f"{tmp_path}/image.tar", cache)).config.cmd == ("echo two",)


async def test_same_image_in_another_form_is_unpacked_once(layout: Path, cache: Path, tmp_path: Path) -> None:
    sh("skopeo", "copy", f"oci:{layout}:one", f"oci-archive:{tmp_path}/image.tar")
    assert await unpack(f"{tmp_path}/image.tar", cache) == await unpack(f"{layout}:one", cache)


async def test_cache_is_roots_alone_and_holds_no_remains(layout: Path, cache: Path) -> None:
    (cache / ".new-killed").mkdir(parents=True)
    cache.chmod(0o700)
    (cache / ".new-killed/file").touch()
    image = await unpack(f"{layout}:one", cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted([image.digest, "sources"])
    assert cache.stat().st_mode & 0o777 == 0o700


async def test_missing_tool_names_its_package(layout: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *, package: str) -> str:
        raise HostError(f"{name} was not found", hint=f"apt install {package}")

    monkeypatch.setattr("kata_runtime.process.find_program", missing)
    with pytest.raises(HostError, match="skopeo was not found"):
        await unpack(f"{layout}:one", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8bbroken", b"\xfd7zXZ\0broken"])
async def test_no_image(cache: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ImageError, match=r"is not a container image|can't be read as a container image"):
        await unpack(str(tmp_path / "file"), cache)
    with pytest.raises(ImageError, match="is not a container image"):
        await unpack(str(tmp_path), cache)
    with pytest.raises(ImageError, match="there is no such file"):
        await unpack(f"{tmp_path}/missing:tag", cache)


@pytest.mark.parametrize("index", ["[]", '{"manifests": 3}', '{"manifests": [{"annotations": 1}]}', "{", "[" * 99999])
async def test_broken_index(cache: Path, tmp_path: Path, index: str) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ImageError):
        await unpack(str(tmp_path), cache)


async def test_truncated_archive(layout: Path, cache: Path, tmp_path: Path) -> None:
    sh("skopeo", "copy", f"oci:{layout}:one", f"docker-archive:{tmp_path}/image.tar:a:b")
    whole = (tmp_path / "image.tar").read_bytes()
    (tmp_path / "image.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError):
        await unpack(str(tmp_path / "image.tar"), cache)
    assert [path.name for path in cache.glob("*") if path.name != "sources"] == []


async def test_blob_that_is_not_what_its_digest_says(layout: Path, cache: Path, tmp_path: Path) -> None:
    """Else one image could put its files into the cache under another's digest."""
    sh("cp", "-a", layout, tmp_path / "copy")
    index = json.loads((tmp_path / "copy/index.json").read_text())
    manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
    blobs = tmp_path / "copy/blobs/sha256"
    layer = json.loads((blobs / manifest).read_text())["layers"][0]["digest"].removeprefix("sha256:")
    content = bytearray((blobs / layer).read_bytes())
    content[-1] ^= 1
    (blobs / layer).write_bytes(content)
    with pytest.raises(ImageError, match=r"(?i)digest"):
        await unpack(f"{tmp_path}/copy:one", cache)


def member(name: str, *, link: str = "", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, content = kind, link, b"evil" if kind == tarfile.REGTYPE else b""
    info.size = len(content)
    return info, content


@pytest.mark.parametrize(
    "members",
    [
        [member("../../../../../../../../{outside}/file")],
        [member("/{outside}/file")],
        [member("link", link="/{outside}", kind=tarfile.SYMTYPE), member("link/file")],
        [member("link", link="../../../../../../../..{outside}", kind=tarfile.SYMTYPE), member("link/file")],
        [member("hard", link="/{outside}/victim", kind=tarfile.LNKTYPE), member("hard")],
        [member("link", link="/{outside}", kind=tarfile.SYMTYPE), member("link/.wh.victim")],
    ],
    ids=["dots", "absolute", "symlink", "relative symlink", "hardlink", "whiteout"],
)
async def test_layers_do_not_reach_outside(
    cache: Path, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("unharmed")
    with tarfile.open(tmp_path / "layer.tar", "w") as layer:
        for info, content in members:
            info.name = info.name.replace("{outside}", str(outside).lstrip("/"))
            info.linkname = info.linkname.replace("/{outside}", str(outside)).replace("{outside}", str(outside))
            layer.addfile(info, io.BytesIO(content))
    sh("umoci", "init", "--layout", tmp_path / "layout")
    sh("umoci", "new", "--image", f"{tmp_path}/layout:evil")
    sh("umoci", "raw", "add-layer", "--image", f"{tmp_path}/layout:evil", tmp_path / "layer.tar")
    try:
        image = await unpack(f"{tmp_path}/layout:evil", cache)
    except ImageError:
        assert list(cache.glob("*/rootfs")) == []
    else:
        assert image.rootfs.is_dir()
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "unharmed"


@pytest.mark.parametrize(
    ("config", "argv", "args"),
    [
        (ImageConfig(cmd=("a",)), (), ("a",)),
        (ImageConfig(cmd=("a",)), ("b", "c"), ("b", "c")),
        (ImageConfig(entrypoint=("e",), cmd=("a",)), (), ("e", "a")),
        (ImageConfig(entrypoint=("e",), cmd=("a",)), ("b",), ("e", "b")),
        (ImageConfig(entrypoint=("e",)), (), ("e",)),
    ],
)
def test_command_line_replaces_cmd_and_keeps_the_entrypoint(
    config: ImageConfig, argv: tuple[str, ...], args: tuple[str, ...]
) -> None:
    assert config.args(argv) == args


def test_image_without_a_command() -> None:
    with pytest.raises(ImageError, match="names no command"):
        ImageConfig().args(())


def zstd(data: bytes) -> bytes:
    """A frame of Zstandard (RFC 8878) whose blocks are stored as they are."""
    parts = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    frame = b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little")
    for number, part in enumerate(parts, 1):
        frame += (len(part) << 3 | (number == len(parts))).to_bytes(3, "little") + part
    return frame


def layer() -> bytes:
    """A tar with an entry for the root itself, as `tar -C ROOT -c .` writes it."""
    content = io.BytesIO()
    entries = [("./", 33, 0o710, None), ("./etc/", 0, 0o755, None), ("./etc/x", 5, 0o640, b"x" * 99999)]
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, uid, mode, data in entries:
            entry = tarfile.TarInfo(name)
            entry.uid = entry.gid = uid
            entry.mode, entry.type = mode, tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            entry.size = len(data or b"")
            tar.addfile(entry, io.BytesIO(data or b""))
    return content.getvalue()


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
async def test_every_compression_of_a_layer(tmp_path: Path, cache: Path, kind: str) -> None:
    data, layout = layer(), tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)

    def blob(content: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest}", "size": len(content)}

    packed = {"": data, "+gzip": gzip.compress(data), "+zstd": zstd(data)}[kind]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "config": blob(config, "config.v1+json"),
        "layers": [blob(packed, f"layer.v1.tar{kind}")],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    image = await unpack(str(layout), cache)
    assert (image.rootfs / "etc/x").read_bytes() == b"x" * 99999
    for path, uid, mode in ((image.rootfs, 33, 0o710), (image.rootfs / "etc/x", 5, 0o640)):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (uid, uid, mode)
    assert image.config.cmd == ("sh",)
    assert (await unpack(str(layout), cache)).rootfs == image.rootfs


async def test_what_is_pulled_can_be_run(layout: Path, cache: Path, tmp_path: Path) -> None:
    """From where skopeo finds one; a registry is not to be had here."""
    file = tmp_path / "pulled:odd.tar"
    await pull(f"oci:{layout}:one", file)
    moved = file.rename(tmp_path / "pulled.tar")
    check(await unpack(f"{moved}:one", cache=cache))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".kata-pull")] == []


async def test_what_can_not_be_pulled(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    file.write_text("kept")
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:1/nothing can't be pulled: .*refused") as caught:
        await pull("127.0.0.1:1/nothing", file)
    assert caught.value.hint
    assert file.read_text() == "kept"
    with pytest.raises(ImageError, match="no place for an image"):
        await pull("x", tmp_path / "nowhere/image.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["image.tar"]


def test_names_of_files() -> None:
    names = {
        "alpine": "alpine.tar",
        "docker.io/library/alpine:3": "alpine-3.tar",
        "..": "image.tar",
        "a/../b@x": "b-x.tar",
    }
    assert {image: str(file_of(image)) for image in names} == names
