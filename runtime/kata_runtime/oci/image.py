"""Container images (OCI layout, OCI archive, docker archive) as root filesystems.

skopeo reads and verifies whatever form the image has, by the administrator's policy; umoci unpacks it safely. Here is
only what they don't do: bounds (`archive`), and a cache. An unpacked image is kept under its digest, so that a second
run starts at once:

    <cache>/<digest>/rootfs, image.json   an image, complete: it was renamed into place
    <cache>/sources/<hash>.json           which digest a file had when it looked as `stat` says
    <cache>/.new-*                        one being made; its maker holds a lock on it
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kata_common.documents import parse_json
from kata_common.files import exists
from kata_common.removal import remove_tree
from kata_common.threads import in_thread
from kata_runtime import process
from kata_runtime.errors import ImageError, ProcessError
from kata_runtime.oci.archive import UNREADABLE, Bounds, BoundsError, Meter, entries, gunzip, is_gzip, opened
from kata_telemetry.span import Site

__all__ = ["CACHE", "Image", "ImageConfig", "Kept", "hold", "kept_images", "prune", "unpack"]

_trace = Site(package="runtime", subsystem="image")
_log = logging.getLogger("kata.image")

CACHE = Path("/var/cache/kata-containers/images")
_TIMEOUT = 600.0  # seconds; for one tool on one image
_MAX_JSON = 4 << 20  # containerd's and docker's limit for manifests
_BOUNDS = Bounds()
# Bytes that an image leaves free on the cache's disk.
_SPARED = 64 << 20
# Whose signatures an image needs (containers-policy.json(5)). skopeo would take a policy in the caller's home for it.
POLICY = Path("/etc/containers/policy.json")
_LAYOUT_MARK, _DOCKER_MARK, _INDEX = "oci-layout", "manifest.json", "index.json"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about its containers (OCI image specification, config.md)."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""

    def args(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command line: a user's `argv` replaces Cmd and is given to the Entrypoint, as docker does.

        Raises:
            ImageError: neither image nor user names a command.
        """
        args = self.entrypoint + (tuple(argv) or self.cmd)
        if not args:
            raise ImageError("the image names no command", hint="give one: -- COMMAND [ARG…]")
        return args


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image. `rootfs` is shared by all its containers: put a writable layer above it."""

    digest: str
    rootfs: Path
    config: ImageConfig


async def unpack(image: str, cache: Path = CACHE, *, bounds: Bounds = _BOUNDS, policy: Path = POLICY) -> Image:
    """The image at `image`, `PATH[:TAG]` of an OCI layout directory, an OCI archive or a docker archive (root only).

    Unpacked once and then taken from `cache`, as long as neither image nor `policy` change. Where there is no policy,
    every image is accepted.

    Raises:
        ImageError: it is none of these, has no such tag, goes beyond `bounds`, the policy rejects it, or it can't be
            unpacked.
        HostError: skopeo or umoci is missing.
    """
    with _trace.span("unpackImage") as span:
        source = _Source.find(image, bounds)
        try:
            kept = _remembered(cache, source, policy)
            span.set(cached=kept is not None)
            # One that goes meanwhile (`prune`) is unpacked once more.
            while kept is None or hold(kept) is None:
                kept = await _unpack(source, cache, bounds, policy)
            return kept
        except OSError as error:
            hint = "make room on the disk" if error.errno == errno.ENOSPC else ""
            raise ImageError(f"{image} can't be unpacked: {error}", hint=hint) from error


# --- what the user named --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """An image's place: skopeo's name of the form it has, its path, and the tag or name in it (may be empty)."""

    transport: str
    path: Path
    reference: str

    @classmethod
    def find(cls, image: str, bounds: Bounds) -> "_Source":
        path, reference = _split(image)
        try:
            transport, references = _kind(path, bounds)
        except (BoundsError, *UNREADABLE) as error:
            raise ImageError(f"{path} can't be read as a container image: {error}") from error
        if not transport:
            raise ImageError(
                f"{path} is not a container image: neither an OCI layout nor an OCI or docker archive",
                hint="make one: skopeo copy docker://IMAGE oci-archive:FILE; for a root filesystem use --rootfs",
            )
        return cls(transport, path, _choose(path, reference, references))

    def state(self, policy: Path) -> list[int]:
        """What changes whenever the image does, or what the administrator says of images."""
        state: list[int] = []
        for path in (self.path / _INDEX if self.path.is_dir() else self.path, policy):
            if path != policy or path.exists():
                status = path.stat()
                state += [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]
        return state


def _split(image: str) -> tuple[Path, str]:
    """Path and reference: the longest part that ends before a colon, or at the end, and exists."""
    ends = [len(image), *(index for index in range(len(image) - 1, 0, -1) if image[index] == ":")]
    for end in ends:
        if image[:end] and exists(image[:end]):
            return Path(image[:end]).absolute(), image[end + 1 :]
    hint = "--image takes PATH or PATH:TAG"
    if not image.startswith((".", "/")):
        hint += f"; from a registry: skopeo copy docker://{image} oci-archive:FILE"
    raise ImageError(f"{image}: there is no such file or directory", hint=hint)


def _choose(path: Path, wanted: str, references: Sequence[str]) -> str:
    """The one of `references` that `wanted` means: whole, without its registry, or by its tag alone."""
    meant = [name for name in references if name == wanted] or [
        name for name in references if not wanted or name.endswith((f"/{wanted}", f":{wanted}"))
    ]
    shown = ", ".join(sorted(references)) or "none has a name"
    if wanted and not meant:
        raise ImageError(f"{path} has no image {wanted!r}", hint=f"its images are: {shown}")
    if len(meant) > 1:
        raise ImageError(f"{path} has several images", hint=f"append one of these after a colon: {shown}")
    return meant[0] if meant else ""


def _kind(path: Path, bounds: Bounds) -> tuple[str, list[str]]:
    """skopeo's transport for what is at `path` (empty: none) and the references in it."""
    if path.is_dir():
        if not (path / _LAYOUT_MARK).is_file():
            return "", []
        return "oci", _oci_references(_json((path / _INDEX).read_bytes()))
    found: dict[str, Any] = {}
    meter = Meter(bounds)
    try:
        with opened(path) as archive:
            for member, file in entries(archive, meter):
                name = member.name.removeprefix("./")
                if name in (_DOCKER_MARK, _INDEX, _LAYOUT_MARK) and member.isreg() and member.size <= _MAX_JSON:
                    file.left = member.size
                    found[name] = _json(file.read(member.size))
    except tarfile.ReadError:
        if meter.entries:
            raise
        return "", []
    # Docker 25 and later write both, and only manifest.json has the names that its users know.
    if _DOCKER_MARK in found:
        manifests = found[_DOCKER_MARK] if isinstance(found[_DOCKER_MARK], list) else []
        tags = [tag for manifest in manifests if isinstance(manifest, dict) for tag in manifest.get("RepoTags") or ()]
        return "docker-archive", [tag for tag in tags if isinstance(tag, str)]
    if _LAYOUT_MARK in found and _INDEX in found:
        return "oci-archive", _oci_references(found[_INDEX])
    return "", []


def _oci_references(index: Any) -> list[str]:  # noqa: ANN401 -- JSON of unknown shape
    manifests = index.get("manifests") if isinstance(index, dict) else None
    names = (
        (entry.get("annotations") or {}).get("org.opencontainers.image.ref.name")
        for entry in manifests or ()
        if isinstance(entry, dict)
    )
    return [name for name in names if isinstance(name, str)]


def _json(content: bytes) -> Any:  # noqa: ANN401 -- JSON of unknown shape
    if len(content) > _MAX_JSON:
        raise ValueError(f"its index is longer than {_MAX_JSON} bytes")
    try:
        return parse_json(content)
    except RecursionError:
        raise ValueError("its index is nested too deeply") from None


# --- the cache ------------------------------------------------------------------------------------------------------


def _remembered(cache: Path, source: _Source, policy: Path) -> Image | None:
    # Root's alone: images bring setuid programs and device nodes of their own.
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        noted = parse_json(_note(cache, source).read_bytes())
        if noted["state"] != source.state(policy):
            return None
        return _load(cache, noted["digest"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _note(cache: Path, source: _Source) -> Path:
    key = hashlib.sha256(os.fsencode(f"{source.path}\0{source.reference}")).hexdigest()
    return cache / "sources" / f"{key}.json"


def _load(cache: Path, digest: str) -> Image:
    kept = parse_json((cache / digest / "image.json").read_bytes())
    config: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Image(digest, cache / digest / "rootfs", ImageConfig(**config))


def hold(image: Image) -> int | None:
    """Keep `prune` from an image until this descriptor is closed, if only by our end; None where it has gone."""
    place = image.rootfs.parent
    descriptor = -1
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.path.samestat(place.stat(), os.fstat(descriptor)):
            return descriptor
    except (FileNotFoundError, BlockingIOError):
        pass
    if descriptor >= 0:
        os.close(descriptor)
    return None


@dataclass(frozen=True, slots=True)
class Kept:
    """An unpacked image: `used` says that a container has it; `unpacked` in seconds since the epoch."""

    digest: str
    unpacked: float
    used: bool


def kept_images(cache: Path = CACHE) -> list[Kept]:
    """The unpacked images, the newest first."""
    found = []
    for note in cache.glob("*/image.json"):
        if note.parent.name.startswith("."):
            continue
        with suppress(FileNotFoundError):
            used = False
            try:
                with _locked(note.parent):
                    pass
            except BlockingIOError:
                used = True
            found.append(Kept(note.parent.name, note.stat().st_mtime, used))
    return sorted(found, key=lambda kept: -kept.unpacked)


def prune(cache: Path = CACHE) -> list[str]:
    """Remove the unpacked images that no container has; their digests.

    Raises:
        ImageError: something of one can't be removed.
    """
    gone = []
    for kept in kept_images(cache):
        place = cache / kept.digest
        with suppress(FileNotFoundError, BlockingIOError), _locked(place):
            away = place.rename(cache / f".new-{kept.digest}")
            if left_over := remove_tree(away):
                raise ImageError(f"what is left of {kept.digest} can't be removed: {left_over}")
            gone.append(kept.digest)
    return gone


async def _unpack(source: _Source, cache: Path, bounds: Bounds, policy: Path) -> Image:
    state = source.state(policy)
    with _workplace(cache) as work:
        most = min(bounds.size + _MAX_JSON, _room(work))
        await in_thread("source", lambda: _place(source, work / "source", Meter(bounds, _room(work))))
        reference = f":{source.reference}" if source.reference else ""
        skopeo = [process.find_program("skopeo", package="skopeo"), accepted(policy), f"--tmpdir={work}", "copy"]
        layout = work / "layout"
        await _tool(source, [*skopeo, f"{source.transport}:{work}/source{reference}", f"oci:{layout}:image"], most)
        digest, config, layers = _read_layout(source, layout)
        with suppress(FileNotFoundError):
            image = _load(cache, digest)
            _remember(cache, source, state, digest)
            return image
        if _has_zstd(layout, digest):
            layout = await _without_zstd(source, work, layout, most)
            _, _, layers = _read_layout(source, layout)
        with _trace.span("measureLayers", layers=len(layers)):
            await in_thread("layers", lambda: _measure(source, layers, Meter(bounds, _room(work))))
        umoci = process.find_program("umoci", package="umoci")
        done = work / "done"
        done.mkdir()
        await _tool(source, [umoci, "raw", "unpack", "--image", f"{layout}:image", str(done / "rootfs")], most)
        (done / "image.json").write_text(json.dumps(asdict(config)))
        try:
            done.rename(cache / digest)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another run was faster
                raise
    _remember(cache, source, state, digest)
    return _load(cache, digest)


def _place(source: _Source, place: Path, meter: Meter) -> None:
    """Have the image at a path without a colon, which would separate path and reference."""
    # skopeo 1.9 can't read these.
    if source.transport != "docker-archive" or not is_gzip(source.path):
        place.symlink_to(source.path)
        return
    try:
        gunzip(source.path, place, meter)
    except (BoundsError, *UNREADABLE) as error:
        raise ImageError(f"{source.path} can't be read as a container image: {error}") from error


def _measure(source: _Source, layers: Sequence[Path], meter: Meter) -> None:
    """Refuse layers that would take too much, before anything of them is unpacked."""
    if len(layers) > meter.bounds.layers:
        raise ImageError(f"{source.path}: it has {len(layers)} layers, more than {meter.bounds.layers}")
    for number, layer in enumerate(layers, 1):
        what = f"{source.path}: layer {number} of {len(layers)} (sha256:{layer.name[:12]}…)"
        try:
            with opened(layer) as archive:
                for _ in entries(archive, meter):
                    pass
        except BoundsError as error:
            raise ImageError(f"{what}: {error}", hint="it was not unpacked") from error
        except UNREADABLE as error:
            raise ImageError(f"{what} can't be read: {error}") from error


async def _without_zstd(source: _Source, work: Path, layout: Path, file_size: int) -> Path:
    """A layout of the same image whose layers are compressed by gzip: umoci 0.4 knows no zstd, nor does `archive`."""
    # skopeo knows it, but takes it apart only on the way into a directory. The image has passed the policy already.
    copy = [process.find_program("skopeo", package="skopeo"), "--insecure-policy", f"--tmpdir={work}", "copy"]
    await _tool(source, [*copy, "--dest-decompress", f"oci:{layout}:image", f"dir:{work}/plain"], file_size)
    await _tool(source, [*copy, f"dir:{work}/plain", f"oci:{work}/gzip:image"], file_size)
    return work / "gzip"


def _room(directory: Path) -> int:
    return max(shutil.disk_usage(directory).free - _SPARED, 0)


def accepted(policy: Path) -> str:
    """skopeo's option for the administrator's policy; where there is none, images of anybody are accepted."""
    return f"--policy={policy}" if policy.exists() else "--insecure-policy"


async def _tool(source: _Source, argv: list[str], file_size: int) -> None:
    try:
        await process.run(argv, timeout=_TIMEOUT, file_size=file_size)
    except ProcessError as error:
        raise ImageError(f"{source.path} can't be used as a container image: {error}") from error


def _remember(cache: Path, source: _Source, state: list[int], digest: str) -> None:
    note = _note(cache, source)
    note.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
        json.dump({"state": state, "digest": digest}, file)
    Path(file.name).replace(note)


@contextmanager
def _workplace(cache: Path) -> Iterator[Path]:
    """A directory for one unpacking, removed afterwards; those of killed processes, too."""
    for left in cache.glob(".new-*"):
        with suppress(OSError), _locked(left):
            remove_tree(left)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    with _locked(work):
        try:
            yield work
        finally:
            if left_over := remove_tree(work):
                _log.warning("what unpacking an image leaves can't be removed: %s", left_over)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. Raises BlockingIOError where somebody else holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


# --- the image's own words ------------------------------------------------------------------------------------------


def _read_layout(source: _Source, layout: Path) -> tuple[str, ImageConfig, list[Path]]:
    """Digest of the one manifest in a layout that skopeo wrote, the image's configuration, and its layers."""
    try:
        [descriptor] = _json((layout / _INDEX).read_bytes())["manifests"]
        digest = descriptor["digest"].removeprefix("sha256:")
        manifest = _blob(layout, digest)
        layers = [_blob_path(layout, layer["digest"].removeprefix("sha256:")) for layer in manifest["layers"]]
        config = _blob(layout, manifest["config"]["digest"].removeprefix("sha256:")).get("config") or {}
        image = ImageConfig(
            env=_strings(config.get("Env")),
            entrypoint=_strings(config.get("Entrypoint")),
            cmd=_strings(config.get("Cmd")),
            cwd=str(config.get("WorkingDir") or "/"),
            user=str(config.get("User") or ""),
        )
        return digest, image, layers
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{source.path}: its manifest or configuration can't be read: {error}") from error


def _has_zstd(layout: Path, digest: str) -> bool:
    """Whether a layer of that manifest is compressed so (OCI's media type `….tar+zstd`); `_read_layout` has read it."""
    layers = _blob(layout, digest).get("layers")
    kinds = [layer.get("mediaType") for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    return any(str(kind).endswith("+zstd") for kind in kinds)


def _blob_path(layout: Path, digest: str) -> Path:
    # Of hexadecimal digits only: it becomes a path, here and in the cache.
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest")
    return layout / "blobs/sha256" / digest


def _blob(layout: Path, digest: str) -> dict[str, Any]:
    content = _json(_blob_path(layout, digest).read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{digest} is not an object")
    return content


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"expected a list of strings, got {value!r:.80}")
    return tuple(value)
