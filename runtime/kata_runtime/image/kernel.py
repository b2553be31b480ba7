"""What the boot takes out of Debian's kernel package: the plain ELF kernel, and modules with their indexes."""

import ctypes
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.errors import ImageError

__all__ = ["Module", "ModuleTree", "extract_vmlinux", "indexes"]

# linux/Documentation/arch/x86/boot.rst: offsets of the setup header's fields.
SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248
# The legacy frame of LZ4, which the kernel's build uses: this magic, then blocks of at most 8 MiB before compression,
# each after its compressed length; the kernel appends the uncompressed length (scripts/Makefile.lib, size_append).
LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_BLOCK = 8 << 20


def extract_vmlinux(bzimage: bytes, liblz4: Path) -> bytes:
    """The ELF kernel inside an LZ4-compressed bzImage.

    QEMU enters it directly (PVH), so that nothing is decompressed inside the guest. `liblz4` is the shared library that
    does it here. Raises ImageError where the kernel is compressed in another way.
    """
    if bzimage[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError("the kernel is no bzImage", hint="rebuild with --force")
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    # Zero sectors of setup code means four, for the sake of very old boot loaders.
    start = ((bzimage[SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if len(payload) < length or struct.unpack_from("<I", payload)[0] != LZ4_LEGACY_MAGIC:
        raise ImageError("the kernel's payload is not LZ4", hint="this version of kata-runtime can't take it apart")
    (size,) = struct.unpack_from("<I", payload, length - 4)
    library = ctypes.CDLL(str(liblz4))
    block = ctypes.create_string_buffer(LZ4_LEGACY_BLOCK)
    kernel = bytearray()
    position = 4
    while len(kernel) < size:
        (packed,) = struct.unpack_from("<I", payload, position)
        position += 4
        count = library.LZ4_decompress_safe(payload[position : position + packed], block, packed, LZ4_LEGACY_BLOCK)
        if count <= 0:
            raise ImageError("the kernel's payload is damaged", hint="rebuild with --force")
        kernel += block.raw[:count]
        position += packed
    return bytes(kernel)


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module: its file below `/lib/modules/VERSION/`, and what its own `.modinfo` says."""

    name: str
    path: str
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


class ModuleTree:
    """The modules of one kernel, `root` being its `/lib/modules/VERSION`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths = {_normal(path.stem): path for path in root.rglob("*.ko")}

    def module(self, name: str) -> Module:
        """The module `name`. Raises ImageError where this kernel does not have it."""
        path = self._paths.get(_normal(name))
        if path is None:
            raise ImageError(f"the kernel has no module {name}: {self.root}", hint="rebuild with --force")
        data = path.read_bytes()
        depends = ",".join(_modinfo(data, "depends"))
        return Module(
            name=_normal(name),
            path=str(path.relative_to(self.root)),
            depends=tuple(_normal(other) for other in depends.split(",") if other),
            aliases=tuple(_modinfo(data, "alias")),
        )

    def below(self, folder: str) -> list[str]:
        """The names of all modules in `folder` (below the kernel's). Raises ImageError where there are none."""
        names = sorted(_normal(path.stem) for path in (self.root / "kernel" / folder).rglob("*.ko"))
        if not names:
            raise ImageError(f"the kernel has no modules in {folder}: {self.root}", hint="rebuild with --force")
        return names

    def closure(self, names: Iterable[str]) -> dict[str, Module]:
        """The named modules and all they depend on, each after its own dependencies."""
        found: dict[str, Module] = {}

        def visit(name: str) -> None:
            if name not in found:
                module = self.module(name)
                for other in module.depends:
                    visit(other)
                found[name] = module

        for name in names:
            visit(_normal(name))
        return found

    def read(self, module: Module) -> bytes:
        """The file of `module`."""
        return (self.root / module.path).read_bytes()


def indexes(modules: Mapping[str, Module]) -> dict[str, str]:
    """The text files that modprobe reads (depmod's modules.dep and modules.alias) for exactly these modules."""
    dependencies = [
        f"{module.path}: {' '.join(modules[name].path for name in _all_dependencies(module, modules))}".rstrip()
        for module in modules.values()
    ]
    aliases = [f"alias {alias} {module.name}" for module in modules.values() for alias in module.aliases]
    return {
        "modules.dep": "".join(f"{line}\n" for line in sorted(dependencies)),
        "modules.alias": "".join(f"{line}\n" for line in sorted(aliases)),
    }


def _all_dependencies(module: Module, modules: Mapping[str, Module]) -> list[str]:
    """Direct and indirect ones, the one to load last first (depmod's order)."""
    order: dict[str, None] = {}

    def visit(current: Module) -> None:
        for name in current.depends:
            visit(modules[name])
            order.setdefault(name)

    visit(module)
    return list(reversed(order))


def _normal(name: str) -> str:
    # The kernel treats both characters alike and uses the underscore itself.
    return name.replace("-", "_")


def _modinfo(data: bytes, key: str) -> list[str]:
    """Values of `key` in a module's .modinfo, which is a run of NUL-terminated key=value strings."""
    return [value.decode() for value in re.findall(rb"(?<=\0)" + key.encode() + rb"=([^\0]*)(?=\0)", data)]
