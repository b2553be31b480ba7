"""Which template fits a VM: all that shapes its guest, as one digest.

What it can't name it includes by what tells versions of a file apart. Two guests with equal keys are told apart by
nothing but what is said to them after they have started.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_common.files import Identity, identify
from kata_runtime.config.model import Config
from kata_runtime.errors import TemplateError
from kata_runtime.hypervisor.machine import Hypervisor
from kata_runtime.hypervisor.virtiofsd import find_virtiofsd
from kata_runtime.sandbox.template.meta import FORMAT, boot_id
from kata_runtime.sandbox.vm import VmRequest, machine_spec

__all__ = ["Key", "key_of"]


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is over all the rest; `settings` and `files` are what it was made of."""

    digest: str
    settings: dict[str, Any]
    files: tuple[Identity, ...]


def key_of(request: VmRequest, hypervisor: Hypervisor) -> Key:
    """The key of the template for a request; `hypervisor` has been prepared.

    Raises:
        HostError: a program is missing.
        TemplateError: a file can't be looked at.
    """
    spec = machine_spec(request)
    identity = hypervisor.identity(spec)
    settings = {
        "format": FORMAT,
        # Nothing outlives a boot of the host: neither its kernel nor the rate of its clocks need be the same then.
        "boot": boot_id(),
        "hypervisor": hypervisor.name,
        "machine": dict(identity.settings),
        "shared": _shared(request.config),
    }
    try:
        programs = (*identity.files, Path(find_virtiofsd(request.config.hypervisor.virtio_fs_daemon)))
        files = tuple(identify(os.path.realpath(path)) for path in programs)
    except OSError as error:
        raise TemplateError(f"{error.filename}: {error.strerror}") from error
    text = json.dumps([settings, files], sort_keys=True)
    return Key(hashlib.sha256(text.encode()).hexdigest(), settings, files)


def _shared(config: Config) -> list[object]:
    return [config.hypervisor.virtio_fs_cache, list(config.hypervisor.virtio_fs_extra_args)]
