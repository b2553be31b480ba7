"""A guest boots what was built, or nothing: any change of a file is found, and finding it out costs once."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from kata_common.files import Identity, identify
from kata_runtime.errors import ImageError
from kata_runtime.image import verify as module
from kata_runtime.image.verify import digest_of, verify

NAMES = ("vmlinux", "initrd.img", "rootfs.img")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory with three files and a manifest."""
    directory = tmp_path / "image"
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(name.encode() * 1000)
    digests = {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in NAMES}
    (directory / "manifest.json").write_text(json.dumps({"format": 1, "sha256": digests}))
    return directory


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "run/.image-digests"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read whole."""
    names: list[str] = []
    real = module._read

    def counted(path: Path) -> tuple[Identity, str]:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "_read", counted)
    return names


def paths(image: Path) -> list[Path]:
    return [image / name for name in NAMES]


def flip(path: Path) -> None:
    """Change a byte; size and time stay what they were."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_what_was_built_is_read_once(image: Path, memory: Path, read: list[str]) -> None:
    assert verify(paths(image), memory) == []
    assert read == list(NAMES)
    assert verify(paths(image), memory) == []
    assert read == list(NAMES)
    assert memory.stat().st_mode & 0o777 == 0o600
    assert memory.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", [False, True], ids=["first start", "later start"])
def test_a_byte_that_changed_is_found(image: Path, memory: Path, name: str, known: bool) -> None:
    if known:
        verify(paths(image), memory)
    flip(image / name)
    for _ in range(2):  # and it is remembered as well
        with pytest.raises(ImageError) as caught:
            verify(paths(image), memory)
        wanted = hashlib.sha256(name.encode() * 1000).hexdigest()
        message = str(caught.value)
        assert str(image / name) in message
        assert f"has sha256 {digest_of(image / name)}" in message
        assert f"{image}/manifest.json says {wanted}" in message
        assert caught.value.hint == f"build it again: kata-runtime image build --output {image}"
    flip(image / name)
    assert verify(paths(image), memory) == []


def test_another_file_in_its_place_is_read(image: Path, memory: Path, read: list[str]) -> None:
    verify(paths(image), memory)
    (image / "new").write_bytes(b"vmlinux" * 1000)
    (image / "new").rename(image / "vmlinux")
    read.clear()
    assert verify(paths(image), memory) == []
    assert read == ["vmlinux"]
    assert len(json.loads(memory.read_text())) == len(NAMES)


def test_a_link_is_what_it_leads_to(image: Path, memory: Path, tmp_path: Path) -> None:
    link = tmp_path / "kernel"
    link.symlink_to(image / "vmlinux")
    assert verify([link], memory) == []
    flip(image / "vmlinux")
    with pytest.raises(ImageError, match="not what was built"):
        verify([link], memory)


@pytest.mark.parametrize(
    "text",
    [None, "[]", "{}", '{"sha256": 5}', '{"sha256": {"other": "x"}}', '{"sha256": {"vmlinux": 5}}'],
    ids=["none", "list", "without", "number", "others", "no text"],
)
def test_nobody_knows_what_it_should_be(image: Path, memory: Path, text: str | None, read: list[str]) -> None:
    """A kernel of the administrator's own, or an image of an older version."""
    (image / "manifest.json").unlink()
    if text is not None:
        (image / "manifest.json").write_text(text)
    assert verify([image / "vmlinux"], memory) == [image / "vmlinux"]
    assert read == []


def test_a_damaged_manifest(image: Path, memory: Path) -> None:
    (image / "manifest.json").write_text('{"sha256": {')
    with pytest.raises(ImageError, match=r"manifest is damaged: .*manifest\.json"):
        verify(paths(image), memory)


def test_a_file_that_is_gone(image: Path, memory: Path) -> None:
    (image / "rootfs.img").unlink()
    with pytest.raises(ImageError, match=r"can't be read: .*rootfs\.img: No such file"):
        verify(paths(image), memory)


def test_a_file_that_is_being_written(image: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.file_digest

    def meanwhile(file: object, name: str) -> object:
        found = real(file, name)  # type: ignore[arg-type]
        flip(image / "vmlinux")
        return found

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    with pytest.raises(ImageError, match=r"is being written: .*vmlinux"):
        verify([image / "vmlinux"], memory)


@pytest.mark.parametrize("spoil", ["link", "writable", "text", "shape"])
def test_a_memory_that_is_not_ours_alone_is_not_believed(
    image: Path, memory: Path, read: list[str], spoil: str
) -> None:
    verify(paths(image), memory)
    believed = memory.read_text()
    flip(image / "vmlinux")
    lie = json.loads(believed)
    lie[0][0] = list(identify(image / "vmlinux"))
    match spoil:
        case "link":
            memory.with_name("lie").write_text(json.dumps(lie))
            memory.unlink()
            memory.symlink_to(memory.with_name("lie"))
        case "writable":
            memory.write_text(json.dumps(lie))
            memory.chmod(0o622)
        case "text":
            memory.write_text("{")
        case "shape":
            memory.write_text("[[1, 2], 3]")
    with pytest.raises(ImageError, match="not what was built"):
        verify(paths(image), memory)


def test_where_nothing_can_be_remembered(image: Path, tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert verify(paths(image), tmp_path / "file/memory") == []
    assert read == [*NAMES, *NAMES]


def test_so_many_are_remembered(image: Path, memory: Path, tmp_path: Path) -> None:
    for number in range(module._MOST + 10):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "vmlinux").write_text(str(number))
        (place / "manifest.json").write_text(json.dumps({"sha256": {"vmlinux": digest_of(place / "vmlinux")}}))
        verify([place / "vmlinux"], memory)
    assert len(json.loads(memory.read_text())) == module._MOST
