"""A template made by a process of its own, beside the start that has missed it and after it."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from kata_runtime.config.model import Config
from kata_runtime.errors import HostError
from kata_runtime.process import leave_behind

__all__ = ["make_in_background"]

_log = logging.getLogger("kata.template")


def make_in_background(config: Config, image_dir: Path) -> None:
    """Have the template of this configuration made, unless somebody does already; nobody waits for it.

    The process ends by itself within a bound, yields to everything else that runs, and is what the kernel ends first
    where memory is short.
    """
    request = json.dumps({"config": asdict(config), "image_dir": str(image_dir)}).encode()
    try:
        leave_behind("kata_runtime.sandbox.template.maker", request, keep=("KATA_LOGS_DIR",))
    except HostError as error:
        _log.warning("no template is made: %s", error)
