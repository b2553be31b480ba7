"""Images that take more than they look like: each is refused by a bound that the error names, and costs little."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from kata_runtime.errors import ImageError
from kata_runtime.oci.archive import Bounds
from kata_runtime.oci.image import unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking keeps owners, which takes root")

MIB = 1 << 20
BLOCK = tarfile.BLOCKSIZE


def sh(*argv: object) -> None:
    done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}"


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    content = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        content += str(length).encode() + rest
    return header("pax", len(content), kind) + padded(content)


def zeros(count: int) -> Iterator[bytes]:
    for _ in range(count >> 20):
        yield bytes(MIB)


def big_file() -> Iterator[bytes]:
    yield header("zeros", 256 * MIB)
    yield from zeros(256 * MIB)


def long_pax_header() -> Iterator[bytes]:
    yield header("pax", 256 * MIB, tarfile.XHDTYPE)
    yield from zeros(256 * MIB)
    yield header("file")


def long_name() -> Iterator[bytes]:
    yield header("././@LongLink", 256 * MIB, tarfile.GNUTYPE_LONGNAME)
    yield from zeros(256 * MIB)
    yield header("file")


def many_files() -> Iterator[bytes]:
    yield b"".join(header(f"{number:05}") for number in range(12_000))


def headers_of_headers() -> Iterator[bytes]:
    """tarfile goes one level deeper for each."""
    yield pax({"comment": "x" * 60_000}) * 2000
    yield header("file")


def global_headers() -> Iterator[bytes]:
    for number in range(20):
        yield pax({f"key{number}.{part}": "x" * 1000 for part in range(1000)}, tarfile.XGLTYPE)
        yield header(f"file{number}")


def sparse() -> Iterator[bytes]:
    """A file of a TiB that is a hole (the old format of GNU)."""
    block = bytearray(header("sparse", 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    yield bytes(block)


def sparse_map() -> Iterator[bytes]:
    """A sparse file whose map of holes goes on and on."""
    block = bytearray(header("sparse", 0, tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    yield bytes(block)
    more = bytearray(BLOCK)
    for place in range(21):
        more[24 * place : 24 * place + 24] = b"00000000001\0" * 2
    more[504] = 1
    yield bytes(more) * (64 * MIB // BLOCK)


def sparse_pax() -> Iterator[bytes]:
    records = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"0,0,{1 << 40},0"}
    yield pax({**records, "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "holes"})
    yield header("holes")


def hidden_size() -> Iterator[bytes]:
    """A size in a global header, which one reader takes for the file's and another one does not."""
    yield pax({"size": "0"}, tarfile.XGLTYPE)
    yield from big_file()


def truncated() -> Iterator[bytes]:
    yield header("file", 8 * MIB)
    yield bytes(MIB)


LAYER = r"layer 2 of 2 \(sha256:[0-9a-f]+…\)"
BOUNDS = Bounds(layers=4, size=64 * MIB, entries=10_000, headers=MIB, seconds=60)
HOSTILE: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {
    "big file": (big_file, f"more than {64 * MIB} bytes unpacked"),
    "long pax header": (long_pax_header, f"headers of one entry that take more than {MIB} bytes"),
    "long name": (long_name, f"headers of one entry that take more than {MIB} bytes"),
    "many files": (many_files, "more than 10000 files and directories"),
    "headers of headers": (headers_of_headers, "headers of one entry that take more than|can't be read"),
    # umoci does not know these.
    "global headers": (global_headers, ".*"),
    "sparse": (sparse, f"more than {64 * MIB} bytes unpacked"),
    "sparse map": (sparse_map, f"headers of one entry that take more than {MIB} bytes"),
    "sparse by pax": (sparse_pax, f"more than {64 * MIB} bytes unpacked"),
    "hidden size": (hidden_size, f"more than {64 * MIB} bytes unpacked"),
    "truncated": (truncated, "can't be read"),
}


def compressed(parts: Iterator[bytes]) -> bytes:
    squeeze = zlib.compressobj(6, wbits=31)
    return b"".join([*map(squeeze.compress, parts), squeeze.flush()])


def layout_of(directory: Path, *layers: bytes, media: str = "tar+gzip") -> Path:
    """An OCI layout whose one image has these layers, and says of itself what is so."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    described = [blob(layer, f"layer.v1.{media}") for layer in layers]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{plain_digest(layer)}" for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": rootfs}
    manifest: dict[str, object] = {"schemaVersion": 2, "layers": described}
    manifest["config"] = blob(json.dumps(config).encode(), "config.v1+json")
    top = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": "box"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def plain_digest(layer: bytes) -> str:
    """Of what a layer is when it is unpacked, as long as that is little: nobody comes to look at others'."""
    unpacked = zlib.decompressobj(31).decompress(layer, MIB) if layer.startswith(b"\x1f\x8b") else layer
    return sha256(unpacked).hexdigest()


def small(name: str = "file") -> bytes:
    return compressed(iter([header(name, 1), padded(b"x"), bytes(2 * BLOCK)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_layer_that_takes_more_than_it_may(tmp_path: Path, name: str) -> None:
    make, why = HOSTILE[name]
    layout = layout_of(tmp_path / "layout", small(), compressed(make()))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=rf"{LAYER}(: {why}| can't be read)|typeflag") as caught:
            await unpack(f"{layout}:box", tmp_path / "cache", bounds=BOUNDS)
        assert len(str(caught.value)) < 500
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "truncated"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
async def test_an_archive_that_takes_more_than_it_may(tmp_path: Path, name: str, suffix: str) -> None:
    """The archive of the image itself, in which only names are looked for."""
    make, why = HOSTILE[name]
    path = tmp_path / f"image.tar{suffix}"
    if suffix:
        path.write_bytes(compressed(make()))
    else:
        with path.open("wb") as file:
            for part in make():
                file.write(part)
    tracemalloc.start()
    try:
        with pytest.raises(
            ImageError, match=rf"can't be read as a container image: ({why}|.*)|is not a container image"
        ):
            await unpack(str(path), tmp_path / "cache", bounds=BOUNDS)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


async def test_too_many_layers(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "layout", *(small(f"file{number}") for number in range(5)))
    with pytest.raises(ImageError, match="it has 5 layers, more than 4"):
        await unpack(f"{layout}:box", tmp_path / "cache", bounds=BOUNDS)


async def test_all_layers_count_together(tmp_path: Path) -> None:
    bounds = Bounds(size=1000)  # contents are counted as they lie in an archive, in blocks of 512 bytes
    layout = layout_of(tmp_path / "layout", small("a"))
    assert (await unpack(f"{layout}:box", tmp_path / "cache", bounds=bounds)).rootfs.is_dir()
    one = compressed(iter([header("a", 60), padded(b"x" * 60), bytes(2 * BLOCK)]))
    two = compressed(iter([header("b", 60), padded(b"y" * 60), bytes(2 * BLOCK)]))
    layout = layout_of(tmp_path / "other", one, two)
    with pytest.raises(ImageError, match=r"layer 2 of 2 .*more than 1000 bytes unpacked"):
        await unpack(f"{layout}:box", tmp_path / "cache", bounds=bounds)


async def test_time(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "layout", small())
    with pytest.raises(ImageError, match=r"layer 1 of 1 .*: reading it takes longer than 0 s"):
        await unpack(f"{layout}:box", tmp_path / "cache", bounds=Bounds(seconds=0))


async def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(tmp_path / "layout", compressed(iter([header("a", 9 * MIB), *zeros(9 * MIB), bytes(2 * BLOCK)])))
    monkeypatch.setattr("kata_runtime.oci.image._room", lambda _: 8 * MIB)
    with pytest.raises(ImageError, match=rf"layer 1 of 1 .*: more than the {8 * MIB} bytes that are free on the disk"):
        await unpack(f"{layout}:box", tmp_path / "cache")


def zstandard(start: bytes, zeros: int) -> bytes:
    """A frame of Zstandard (RFC 8878) of some bytes and many zeros: a block of four bytes for each 128 KiB of them."""
    blocks = [(len(start) << 3).to_bytes(3, "little") + start]
    blocks += [((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"] * (zeros // (128 << 10))
    return b"\x28\xb5\x2f\xfd\0\x50" + b"".join(blocks) + (1).to_bytes(3, "little")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "why"), [(256, "file too large"), (65, f"layer 1 of 1 .*more than {64 * MIB} bytes")])
async def test_a_layer_of_zstandard(tmp_path: Path, size: int, why: str) -> None:
    """It is taken apart by skopeo first, whose files are bounded; then it is one as others."""
    layer = zstandard(header("zeros", size * MIB), size * MIB)
    assert len(layer) < 10_000
    layout = layout_of(tmp_path / "layout", layer, media="tar+zstd")
    with pytest.raises(ImageError, match=why):
        await unpack(f"{layout}:box", tmp_path / "cache", bounds=BOUNDS)
    assert list((tmp_path / "cache").iterdir()) == []


SQUEEZERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("squeeze", SQUEEZERS)
async def test_compressed_archives_are_read(tmp_path: Path, squeeze: str) -> None:
    layout = layout_of(tmp_path / "layout", small())
    sh("skopeo", "copy", "--insecure-policy", f"oci:{layout}:box", f"docker-archive:{tmp_path}/image.tar:busy:box")
    squeezed = SQUEEZERS[squeeze]((tmp_path / "image.tar").read_bytes())
    (tmp_path / f"image.{squeeze}").write_bytes(squeezed)
    image = await unpack(f"{tmp_path}/image.{squeeze}:box", tmp_path / "cache")
    assert (image.rootfs / "file").read_bytes() == b"x"


async def test_xz_that_wants_gigabytes(tmp_path: Path) -> None:
    stream = lzma.compress(header("file") + bytes(2 * BLOCK), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": MIB}])
    # Byte 15 is the size of the dictionary (the .xz file format, 5.3.1), of which the header has a checksum.
    block = bytearray(stream[12:24])
    block[4] = 37  # 1.5 GiB
    block[8:12] = zlib.crc32(block[:8]).to_bytes(4, "little")
    (tmp_path / "image.tar.xz").write_bytes(stream[:12] + bytes(block) + stream[24:])
    with pytest.raises(ImageError, match=r"can't be read as a container image: .*[Mm]emory"):
        await unpack(f"{tmp_path}/image.tar.xz", tmp_path / "cache")


# --- the administrator's policy -------------------------------------------------------------------------------------


def policy(directory: Path, content: dict[str, object]) -> Path:
    path = directory / "policy.json"
    path.write_text(json.dumps(content))
    return path


ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]


async def test_a_policy_that_rejects(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "layout", small())
    with pytest.raises(ImageError, match="policy"):
        await unpack(f"{layout}:box", tmp_path / "cache", policy=policy(tmp_path, {"default": REJECT}))


async def test_a_policy_for_one_place(tmp_path: Path) -> None:
    """It is asked about the image's own path."""
    good, other = layout_of(tmp_path / "good", small()), layout_of(tmp_path / "other", small("b"))
    only = policy(tmp_path, {"default": REJECT, "transports": {"oci": {str(good): ACCEPT}}})
    assert (await unpack(f"{good}:box", tmp_path / "cache", policy=only)).rootfs.is_dir()
    with pytest.raises(ImageError, match="policy"):
        await unpack(f"{other}:box", tmp_path / "cache", policy=only)


async def test_a_policy_that_changes_holds_for_the_cache(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "layout", small())
    path = policy(tmp_path, {"default": ACCEPT})
    await unpack(f"{layout}:box", tmp_path / "cache", policy=path)
    policy(tmp_path, {"default": REJECT, "transports": {}})
    with pytest.raises(ImageError, match="policy"):
        await unpack(f"{layout}:box", tmp_path / "cache", policy=path)


async def test_a_users_policy_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo may leave HOME as it is, and skopeo looks there first."""
    home = tmp_path / "home/.config/containers"
    home.mkdir(parents=True)
    policy(home, {"default": ACCEPT})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    layout = layout_of(tmp_path / "layout", small())
    with pytest.raises(ImageError, match="policy"):
        await unpack(f"{layout}:box", tmp_path / "cache", policy=policy(tmp_path, {"default": REJECT}))


async def test_without_a_policy_all_are_accepted(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "layout", small())
    assert (await unpack(f"{layout}:box", tmp_path / "cache", policy=tmp_path / "none")).rootfs.is_dir()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
async def test_special_files_are_roots_alone(tmp_path: Path, kind: bytes) -> None:
    """A device of an image is made, as docker does, where only root comes; what of it is used is the mount's to say."""
    info = tarfile.TarInfo("special")
    info.type, info.devmajor, info.devminor, info.mode = kind, 1, 3, 0o666
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(info)
    layout = layout_of(tmp_path / "layout", compressed(iter([stream.getvalue()])))
    await unpack(f"{layout}:box", tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_the_last_of_two_entries_counts(tmp_path: Path) -> None:
    entries = [header("a", 1), padded(b"1"), header("a", 1), padded(b"2"), bytes(2 * BLOCK)]
    layout = layout_of(tmp_path / "layout", compressed(iter(entries)))
    image = await unpack(f"{layout}:box", tmp_path / "cache")
    assert (image.rootfs / "a").read_bytes() == b"2"
