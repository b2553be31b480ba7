"""Kata's own configuration files are taken as they are, with the paths of this machine."""

from typing import Any

import pytest

from kata_runtime.config.model import Config
from kata_runtime.config.validate import validate
from support.kata_templates import GO, RUST, Template

PATHS = {"@QEMUPATH@": "/bin/qemu", "@KERNELPATH@": "/k", "@IMAGEPATH@": "/i", "@DEFVIRTIOFSDAEMON@": "/bin/virtiofsd"}


def nested(template: Template) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for table, keys in template.items():
        place = document
        for name in table.split("."):
            place = place.setdefault(name, {})
        place |= {key: PATHS.get(value, value) if isinstance(value, str) else value for key, value in keys.items()}
    return document


@pytest.mark.parametrize("template", [GO, RUST], ids=["go", "runtime-rs"])
def test_a_template_is_taken(template: Template) -> None:
    config = validate([("configuration-qemu.toml", nested(template))])
    assert isinstance(config, Config)
    assert (config.qemu.kernel, config.qemu.virtio_fs_daemon) == ("/k", "/bin/virtiofsd")
    assert config.runtime.disable_guest_seccomp is True
    assert config.qemu.seccompsandbox == ""
    # What has another value than what is done here is told.
    assert any(note.startswith("[hypervisor.qemu] disable_image_nvdimm: ") for note in config.notes)


def test_how_many_keys_there_are() -> None:
    """As many as kata-facts counts in them: 103 and 116, with the tables of factory and memory agent."""
    assert (sum(map(len, GO.values())), sum(map(len, RUST.values()))) == (103, 116)
