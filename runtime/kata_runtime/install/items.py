"""What an installation consists of, each file with its place: pure, so that a package is made of the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from kata_runtime.install import completion, manual
from kata_runtime.install.commands import Command

__all__ = ["CONFIGURATION", "PROGRAMS", "Item", "Layout", "items"]

PROGRAMS = ("kata-runtime", "containerd-shim-kata-v2", "kata-trace-forwarder", "kata-monitor")
CONFIGURATION = "/etc/kata-containers/configuration.toml"
_DATA = Path(__file__).with_name("data")
_DEFAULTS = Path(__file__).parent.parent / "config" / "configuration.toml"


@dataclass(frozen=True)
class Layout:
    """Where things go: `prefix` as in /usr/local, `units` the directory of systemd's units."""

    prefix: str = "/usr/local"
    units: str = "/etc/systemd/system"

    @property
    def binaries(self) -> str:
        """Where programs are looked for."""
        return f"{self.prefix}/bin"


@dataclass(frozen=True)
class Item:
    """A file, or a symlink to `link`. `settings` are the administrator's once they are there."""

    path: str
    content: bytes = b""
    link: str = ""
    settings: bool = False

    @property
    def state(self) -> str:
        """What tells one content from another."""
        return f"link:{self.link}" if self.link else sha256(self.content).hexdigest()


def items(layout: Layout, programs: str, commands: Sequence[Command], version: str) -> list[Item]:
    """Everything that is written; `programs` is the directory in which the links find the programs."""
    return [
        *(Item(f"{layout.binaries}/{name}", link=f"{programs}/{name}") for name in PROGRAMS),
        Item(CONFIGURATION, _DEFAULTS.read_bytes(), settings=True),
        *_units(layout),
        *_manuals(layout, commands, version),
        *_completions(layout, commands),
    ]


def _units(layout: Layout) -> Iterator[Item]:
    for path in sorted(_DATA.iterdir()):
        yield Item(f"{layout.units}/{path.name}", path.read_bytes().replace(b"@BIN@", layout.binaries.encode()))


def _manuals(layout: Layout, commands: Sequence[Command], version: str) -> Iterator[Item]:
    for command in commands:
        section = 1 if command.name == "kata-runtime" else 8
        for name, text in manual.pages(command, section, version).items():
            yield Item(f"{layout.prefix}/share/man/man{section}/{name}", text.encode())


def _completions(layout: Layout, commands: Sequence[Command]) -> Iterator[Item]:
    share = f"{layout.prefix}/share"
    # zsh looks into /usr/local/share itself, and into Debian's own directory below /usr.
    zsh = "zsh/vendor-completions" if layout.prefix == "/usr" else "zsh/site-functions"
    places = {
        "bash": f"{share}/bash-completion/completions/{{}}",
        "zsh": f"{share}/{zsh}/_{{}}",
        "fish": f"{share}/fish/vendor_completions.d/{{}}.fish",
    }
    for shell, write in completion.SHELLS.items():
        for command in commands:
            yield Item(places[shell].format(command.name), write(command).encode())
