"""Stand-ins for the tools that the image build runs, and small inputs in the real formats."""

import ctypes
import struct
from pathlib import Path

from kata_runtime.image.initramfs import BOOT_MODULES
from kata_runtime.image.tree import GUEST_MODULE_FOLDERS, GUEST_MODULES

# Debian's essential packages depend on it, so that every host has it.
LIBLZ4 = "liblz4.so.1"


class Tools:
    """Programs on a PATH of their own; each appends its command line to a log."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.log = directory / "log"

    def add(self, name: str, script: str = "") -> None:
        """A shell script that logs its call and then does `script`."""
        program = self.directory / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" | head -n 1 >>"{self.log}"\n{script}\n')
        program.chmod(0o755)

    def calls(self, name: str = "") -> list[str]:
        """The calls so far, all or those that begin with `name`."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(name)]


def kernel_module(**info: str) -> bytes:
    """What of a kernel module the build looks at: .modinfo."""
    return b"\x7fELF\0" + b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())


def bzimage(kernel: bytes) -> bytes:
    """A kernel image whose payload is `kernel`, compressed as Debian's cloud kernel is."""
    library = ctypes.CDLL(LIBLZ4)
    target = ctypes.create_string_buffer(len(kernel) + 1024)
    size = library.LZ4_compress_default(kernel, target, len(kernel), len(target))
    payload = struct.pack("<II", 0x184C2102, size) + target.raw[:size] + struct.pack("<I", len(kernel))
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload


BUSYBOX = '#!/bin/sh\nprintf "sh\\nls\\nmodprobe\\n"\n'
# apt's answer for a guest of two packages, one of them with an epoch in its version.
URIS = """\
'http://mirror/busybox.deb' busybox-static_1%3a1.35_amd64.deb 928188 SHA256:00
'http://mirror/tar.deb' tar_1.34_amd64.deb 836288 SHA256:00
'http://mirror/kernel.deb' linux-image-6.1.0-1-cloud-amd64_6.1.1-1_amd64.deb 26713492 SHA256:00
"""


def debian(tools: Tools, packages: Path) -> None:
    """Give `tools` an apt and a dpkg whose Debian is a kernel and busybox; unpacked they lie in `packages`."""
    kernel = packages / "linux-image-6.1.0-1-cloud-amd64"
    (kernel / "boot").mkdir(parents=True)
    (kernel / "boot/vmlinuz-6.1.0-1-cloud-amd64").write_bytes(bzimage(b"\x7fELF" + bytes(range(256)) * 40))
    modules = kernel / "lib/modules/6.1.0-1-cloud-amd64/kernel"
    modules.mkdir(parents=True)
    for name in (*BOOT_MODULES, *GUEST_MODULES):
        (modules / f"{name}.ko").write_bytes(kernel_module(depends=""))
    for folder in GUEST_MODULE_FOLDERS:
        (modules / folder).mkdir(parents=True)
        (modules / folder / f"one_of_{folder.replace('/', '_')}.ko").write_bytes(kernel_module(depends=""))
    busybox = packages / "busybox-static"
    (busybox / "bin").mkdir(parents=True)
    (busybox / "bin/busybox").write_text(BUSYBOX)
    (busybox / "bin/busybox").chmod(0o755)
    (busybox / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (busybox / "usr/lib/x86_64-linux-gnu/liblz4.so.1").symlink_to(_liblz4())

    tools.add("apt-config", """echo 'Acquire::http::Proxy "http://proxy:3128";'""")
    tools.add(
        "apt-get",
        f"""case "$1" in
        install) cat <<'EOF'\n{URIS}EOF\n;;
        download) shift 2; for name in "$@"; do
            touch "$(echo "${{name%%=*}}_${{name#*=}}_amd64.deb" | sed 's/:/%3a/')"; done;;
        esac""",
    )
    # dpkg-deb --extract FILE DIRECTORY
    tools.add("dpkg-deb", f"""name=$(basename "$2"); mkdir -p "$3"; cp -a "{packages}/${{name%%_*}}/." "$3/" """)
    tools.add(
        "mke2fs", 'for image in "$@"; do case "$image" in */rootfs.img) head -c 8192 /dev/zero >"$image";; esac; done'
    )
    tools.add("chroot", "echo '[]'")


def _liblz4() -> str:
    """Where the host has liblz4."""
    ctypes.CDLL(LIBLZ4)
    maps = Path("/proc/self/maps").read_text()
    return next(line.split()[-1] for line in maps.splitlines() if "liblz4.so" in line)
