"""Two programs by the name of virtiofsd, and one configuration for both."""

from pathlib import Path

import pytest

from kata_runtime.hypervisor.virtiofsd import is_c_program, to_argv

SHARED = Path("/shared")
C, RUST = "/opt/kata/virtiofsd", "/usr/lib/qemu/virtiofsd"  # places say nothing
# Kata 4.1's own, of its Go runtime and of runtime-rs.
KATAS = (["--thread-pool-size=1", "--announce-submounts"], ["--thread-pool-size=1", "-o", "announce_submounts"])


def argv(*extra: str, c: bool, cache: str = "auto") -> list[str]:
    return to_argv(C if c else RUST, 5, SHARED, cache=cache, extra=extra, c=c)


def test_by_default() -> None:
    assert argv(c=False)[2:] == [
        "--shared-dir", "/shared", "--cache", "auto", "--sandbox", "namespace", "--modcaps=-mknod", "--xattr",
        "--announce-submounts", "--thread-pool-size=1",
    ]  # fmt: skip
    assert argv(c=True)[2:] == [
        "-f", "-o", "source=/shared", "-o", "cache=auto", "-o", "sandbox=namespace", "-o", "xattr",
        "-o", "announce_submounts", "-o", "log_level=info", "-o", "modcaps=-mknod", "--thread-pool-size=1",
    ]  # fmt: skip


@pytest.mark.parametrize("extra", KATAS)
@pytest.mark.parametrize("c", [False, True])
def test_katas_own_arguments(extra: list[str], c: bool) -> None:
    words = argv(*extra, c=c)
    assert [word for word in words if word.startswith("--thread-pool-size")] == ["--thread-pool-size=1"]
    if c:
        assert words[-2:] == ["-o", "announce_submounts"]
        assert "--announce-submounts" not in words
    else:
        assert words[-len(extra) :] == extra


@pytest.mark.parametrize(
    ("cache", "options"),
    [("never", {"cache=none"}), ("metadata", {"cache=none", "timeout=86400"}), ("auto", {"cache=auto"}),
     ("always", {"cache=always"})],
)  # fmt: skip
def test_every_cache(cache: str, options: set[str]) -> None:
    words = argv(c=True, cache=cache)
    assert {word for word in words if word.startswith(("cache=", "timeout="))} == options
    assert argv(c=False, cache=cache)[4:6] == ["--cache", cache]


def test_what_the_rust_one_takes_once_is_said_once() -> None:
    assert argv("--xattr", c=False).count("--xattr") == 1
    assert argv("--xattr", c=True)[-2:] == ["-o", "xattr"]


@pytest.mark.parametrize(
    ("says", "c"),
    [
        ("virtiofsd version 7.2.22 (Debian 1:7.2)\nusing FUSE kernel interface version 7.36", True),
        ("virtiofsd 1.13.2", False),
        ("virtiofsd backend 1.4.0", False),
    ],
)
async def test_they_are_asked(tmp_path: Path, says: str, c: bool) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}"\n')
    program.chmod(0o755)
    assert await is_c_program(str(program)) is c


@pytest.mark.parametrize(
    ("program", "modcaps"),
    [("/usr/lib/qemu/virtiofsd", ["-o", "modcaps=-mknod"]), ("/usr/libexec/virtiofsd", ["--modcaps=-mknod"])],
)
def test_virtiofsd_makes_no_device_nodes_unless_it_is_told_to(program: str, modcaps: list[str]) -> None:
    argv = to_argv(program, 3, Path("/shared"), cache="auto", extra=())
    assert " ".join(modcaps) in " ".join(argv)
    extra = [modcaps[-1].replace("-mknod", "+mknod")]
    given = to_argv(program, 3, Path("/shared"), cache="auto", extra=extra)
    assert [word for word in given if "modcaps" in word] == extra
