"""virtiofsd's command line, for both programs of that name."""

from pathlib import Path

import pytest

from kata_runtime.hypervisor import virtiofsd


@pytest.mark.parametrize(
    ("program", "modcaps"),
    [("/usr/lib/qemu/virtiofsd", ["-o", "modcaps=-mknod"]), ("/usr/libexec/virtiofsd", ["--modcaps=-mknod"])],
)
def test_virtiofsd_makes_no_device_nodes_unless_it_is_told_to(program: str, modcaps: list[str]) -> None:
    argv = virtiofsd.to_argv(program, 3, Path("/shared"), cache="auto", extra=())
    assert " ".join(modcaps) in " ".join(argv)
    extra = [modcaps[-1].replace("-mknod", "+mknod")]
    given = virtiofsd.to_argv(program, 3, Path("/shared"), cache="auto", extra=extra)
    assert [word for word in given if "modcaps" in word] == extra
