"""`kata-runtime install`, `uninstall` and `completion`: to where people and containerd look, and away again."""

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from kata_common import places
from kata_common.text import told
from kata_runtime.errors import HostError, ProcessError
from kata_runtime.install import completion
from kata_runtime.install.commands import Command, Option, read
from kata_runtime.install.installer import Installer
from kata_runtime.install.items import PROGRAMS, Item, Layout, items
from kata_runtime.install.tree import Tree

__all__ = ["add_arguments", "documented"]

# Of the Debian package, whose files dpkg keeps.
_PACKAGED = "/opt/kata-python/"

# Where anybody finds an installation; below --root.
_IMAGE = places.IMAGE_DIR
_CACHE = "/var/cache/kata-containers"
# Made again by whoever wants it.
_GENERATED = (_IMAGE, f"{places.STATE_DIR}/.image.lock", _CACHE, "/run/kata-containers/config")
# What people may want to look at after all.
_KEPT = (places.TRACE_DIR, f"{places.STATE_DIR}/logs")
# Go if nothing is in them.
_EMPTY = (places.LAYERS_DIR, places.STATE_DIR, "/run/kata-containers", "/run/kata-runtime", places.RUN_DIR,
          "/etc/kata-containers/config.d", "/etc/kata-containers")  # fmt: skip


def add_arguments(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", whole: Callable[[], argparse.ArgumentParser]
) -> None:
    """The commands and their options; `whole` makes the parser of the whole command line."""
    install = commands.add_parser("install", help="put this installation where containerd and people look for it")
    _add_common(install)
    install.add_argument(
        "--prefix",
        metavar="DIR",
        default=Layout.prefix,
        help="for programs, manuals, completions (default: /usr/local)",
    )
    install.add_argument("--force", action="store_true", help="replace files that are there and not ours")
    install.add_argument("--no-containerd", action="store_true", help="leave containerd's configuration as it is")
    install.add_argument("--no-image", action="store_true", help="build no guest image: kata-runtime image build does")
    install.set_defaults(run=_install, whole=whole)
    uninstall = commands.add_parser("uninstall", help="remove what install has put there")
    _add_common(uninstall)
    uninstall.add_argument(
        "--purge", action="store_true", help="also traces, logs and a configuration that was changed"
    )
    uninstall.set_defaults(run=_uninstall)
    shell = commands.add_parser("completion", help="print a shell's completions of this command line")
    shell.add_argument("shell", choices=sorted(completion.SHELLS), metavar="SHELL", help="bash, zsh or fish")
    shell.set_defaults(run=_completion, whole=whole)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="of another system (default: /)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def documented(runtime: argparse.ArgumentParser) -> list[Command]:
    """The command lines of all programs; `runtime` is that of kata-runtime."""
    from kata_runtime.monitor.main import parser as monitor
    from kata_runtime.shim.arguments import FLAGS
    from kata_traces.forwarder.main import parser as forwarder

    flags = tuple(Option((f"-{name}",), value, says) for name, value, says in FLAGS)
    shim = Command(
        ("containerd-shim-kata-v2",),
        "containerd's runtime io.containerd.kata.v2; containerd starts it",
        "containerd-shim-kata-v2 FLAGS start|delete",
        options=flags,
    )
    return [read(runtime), read(forwarder()), read(monitor()), shim]


def _completion(options: argparse.Namespace) -> int:
    print(completion.SHELLS[options.shell](read(options.whole())), end="")
    return 0


def _require_root(options: argparse.Namespace) -> None:
    if os.geteuid() != 0 and not options.dry_run:
        raise HostError(f"kata-runtime {options.command} needs root", hint="sudo, or --dry-run to see what it would do")


def _say(text: str) -> None:
    print(told(text), flush=True)


def _programs(root: Path) -> str:
    """The directory of this installation's programs, as it is called in `root`."""
    directory = Path(sys.argv[0]).resolve().parent
    lacking = [name for name in PROGRAMS if not (directory / name).exists()]
    if lacking:
        raise HostError(f"{directory} has no {lacking[0]}", hint="run the kata-runtime that pip has installed")
    inside = directory.is_relative_to(root.resolve())
    return f"/{directory.relative_to(root.resolve())}" if inside else str(directory)


def _install(options: argparse.Namespace) -> int:
    _require_root(options)
    tree = Tree(options.root)
    if not options.prefix.startswith("/"):
        raise HostError(f"--prefix {options.prefix}: is no absolute path", hint="--prefix /usr/local")
    release = version("kata-python")
    installer = Installer(tree, _say, dry_run=options.dry_run, version=release)
    wanted = _wanted(options, release)
    if not options.no_containerd:
        installer.check_containerd()
    installer.install(wanted, force=options.force)
    if not options.no_containerd:
        installer.configure_containerd()
    _reload_units(options)
    if not options.no_image:
        _build_image(options)
    _say("done. containerd reads its configuration when it starts: systemctl restart containerd")
    return 0


def _wanted(options: argparse.Namespace, release: str) -> list[Item]:
    programs = _programs(options.root)
    if f"{programs}/".startswith(_PACKAGED):
        _say("is there   programs, units, manuals, completions: of the package kata-python")
        return []
    layout = Layout(prefix=options.prefix.rstrip("/"))
    found = items(layout, programs, documented(options.whole()), release)
    # A system-wide installation of pip has put them there itself.
    return [item for item in found if item.link != item.path]


def _reload_units(options: argparse.Namespace) -> None:
    if options.root.resolve() != Path("/") or not Path("/run/systemd/system").is_dir():
        return
    _say("told systemd of its units: daemon-reload")
    if not options.dry_run:
        from kata_runtime.process import run

        try:
            asyncio.run(run(["systemctl", "daemon-reload"]))
        except ProcessError as error:
            _say(f"systemd does not answer: {error}")


def _build_image(options: argparse.Namespace) -> None:
    output, cache = (options.root / path.lstrip("/") for path in (_IMAGE, _CACHE))
    if options.dry_run:
        _say(f"built      {_IMAGE}")
        return
    from kata_runtime import image

    manifest = image.build(output, cache=cache, progress=lambda line: _say(f"image: {line} ..."))
    _say(f"built      {_IMAGE}: {manifest.digest[:12]}, kernel {manifest.kernel_version}")


def _uninstall(options: argparse.Namespace) -> int:
    from kata_runtime.sandbox import reach

    _require_root(options)
    tree = Tree(options.root)
    installer = Installer(tree, _say, dry_run=options.dry_run, version=version("kata-python"))
    if options.root.resolve() == Path("/") and (running := reach.running()):
        raise HostError(f"sandboxes are running: {', '.join(running[:10])}", hint="kata-runtime stop SANDBOX")
    installer.uninstall()
    for path in _GENERATED if not options.purge else (*_GENERATED, *_KEPT, "/etc/kata-containers"):
        _remove(tree, path, dry_run=options.dry_run)
    if not options.dry_run:
        for path in _EMPTY:
            tree.remove_directory(path)
    _reload_units(options)
    for path in _left(tree):
        _say(f"kept       {path}: --purge removes it, too")
    return 0


def _remove(tree: Tree, path: str, *, dry_run: bool) -> None:
    real = tree.find(path)
    if real is None or not os.path.lexists(real):
        return
    _say(f"removed    {path}")
    if dry_run:
        return
    if real.is_dir() and not real.is_symlink():
        shutil.rmtree(real)
    else:
        real.unlink()


def _left(tree: Tree) -> Iterator[str]:
    for path in (*_KEPT, "/etc/kata-containers"):
        with suppress(OSError):
            if (real := tree.find(path)) is not None and any(real.iterdir()):
                yield path
