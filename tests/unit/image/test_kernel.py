"""What the build does to the kernel and its modules."""

from pathlib import Path

import pytest

from kata_runtime.errors import ImageError
from kata_runtime.image import kernel
from support.image import LIBLZ4, bzimage, kernel_module

ELF = b"\x7fELF" + bytes(range(256)) * 40
# A first token that promises more literals than there are.
DAMAGED = bzimage(ELF).replace(b"\xf5\x7fELF", b"\xff" * 5)


def test_the_elf_kernel_comes_out_of_the_bzimage() -> None:
    assert kernel.extract_vmlinux(bzimage(ELF), Path(LIBLZ4)) == ELF


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (bytes(4096), "no bzImage"),
        (bzimage(ELF).replace(b"\x02\x21\x4c\x18", b"\x1f\x8b\x08\x00"), "not LZ4"),
        (bzimage(ELF)[:1200], "not LZ4"),
        (DAMAGED, "damaged"),
    ],
    ids=["other file", "other compression", "cut off", "damaged"],
)
def test_a_kernel_that_is_not_as_expected_is_refused(image: bytes, complaint: str) -> None:
    with pytest.raises(ImageError, match=complaint) as caught:
        kernel.extract_vmlinux(image, Path(LIBLZ4))
    assert caught.value.hint


@pytest.fixture
def modules(tmp_path: Path) -> kernel.ModuleTree:
    for path, info in {
        "kernel/drivers/virtio/virtio.ko": {"depends": "virtio_ring"},
        "kernel/drivers/virtio/virtio_ring.ko": {"depends": ""},
        "kernel/fs/fuse/fuse.ko": {"alias": "fs-fuse", "depends": ""},
        "kernel/fs/fuse/virtiofs.ko": {"alias": "fs-virtiofs", "depends": "virtio_ring,virtio,fuse"},
        "kernel/net/vmw-vsock.ko": {"depends": "", "alias": "net-pf-40"},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(kernel_module(**info))
    return kernel.ModuleTree(tmp_path)


def test_dependencies_come_before_what_needs_them(modules: kernel.ModuleTree) -> None:
    assert list(modules.closure(["virtiofs", "virtio"])) == ["virtio_ring", "virtio", "fuse", "virtiofs"]


def test_hyphen_and_underscore_are_the_same(modules: kernel.ModuleTree) -> None:
    assert modules.module("vmw_vsock").path == "kernel/net/vmw-vsock.ko"


def test_a_module_that_is_not_there(modules: kernel.ModuleTree) -> None:
    with pytest.raises(ImageError, match="no module floppy"):
        modules.closure(["floppy"])


def test_indexes_for_modprobe(modules: kernel.ModuleTree) -> None:
    indexes = kernel.indexes(modules.closure(["virtiofs"]))
    virtio = "kernel/drivers/virtio/virtio"
    assert indexes["modules.dep"].splitlines() == [
        f"{virtio}.ko: {virtio}_ring.ko",
        f"{virtio}_ring.ko:",
        "kernel/fs/fuse/fuse.ko:",
        f"kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko {virtio}.ko {virtio}_ring.ko",
    ]
    assert indexes["modules.alias"].splitlines() == ["alias fs-fuse fuse", "alias fs-virtiofs virtiofs"]
