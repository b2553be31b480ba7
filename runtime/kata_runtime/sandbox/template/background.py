"""A template made by a process of its own, beside the start that has missed it and after it."""

import json
import logging
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from kata_common import places
from kata_runtime.config.model import Config
from kata_runtime.errors import HostError
from kata_runtime.process import leave_behind

__all__ = ["make_in_background", "not_again"]

_log = logging.getLogger("kata.template")

# Written when one could not be made, with the reason: no start tries again for a while (seconds).
_FAILED = Path(places.RUN_DIR, ".template-failed")
_PAUSE = 600.0


def make_in_background(config: Config, image_dir: Path) -> None:
    """Have the template of this configuration made, unless somebody does already; nobody waits for it.

    The process ends by itself within a bound, yields to everything else that runs, and is what the kernel ends first
    where memory is short. After one that has failed there is none for ten minutes.
    """
    with suppress(OSError):
        if abs(time.time() - _FAILED.stat().st_mtime) < _PAUSE:
            return
    request = json.dumps({"config": asdict(config), "image_dir": str(image_dir)}).encode()
    try:
        leave_behind("kata_runtime.sandbox.template.maker", request, keep=("KATA_LOGS_DIR",))
    except HostError as error:
        _log.warning("no template is made: %s", error)


def not_again(why: str) -> None:
    """The next one would fail as well."""
    with suppress(OSError):
        _FAILED.write_text(f"{why}\n")
