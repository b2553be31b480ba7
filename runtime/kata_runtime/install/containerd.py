"""containerd's configuration with our runtime in it, for 1.6 to 2.x; pure functions of its text.

containerd 2 merges what `imports` names table by table, so ours is a file of its own. In containerd 1 such a file would
replace all of the plugin's configuration, so there ours is a block at the end of config.toml, which goes as it came.
"""

import fnmatch
import tomllib
from dataclasses import dataclass
from typing import Any

from kata_runtime.errors import HostError

__all__ = ["DROP_IN", "Change", "change", "undo"]

CONFIG = "/etc/containerd/config.toml"
DROP_IN = "/etc/containerd/conf.d/kata-python.toml"
_BEGIN = "# --- kata-runtime install: begin. `kata-runtime uninstall` takes this out again. ---"
_END = "# --- kata-runtime install: end ---"
_MADE = "# Made by `kata-runtime install`.\nversion = 2\n"
_IMPORT = 'imports = ["/etc/containerd/conf.d/*.toml"] # kata-runtime install'
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}


@dataclass(frozen=True)
class Change:
    """What is to be in config.toml (None: it stays as it is) and in our own file ("": there is none)."""

    config: str | None
    drop_in: str


def change(text: str | None) -> Change:
    """Add the runtime `kata` to the text of config.toml, None where there is no such file.

    Raises:
        HostError: it can't be added to this text, and how a person can.
    """
    if text is None:
        # Any containerd takes version 2.
        return Change(f"{_MADE}{_block(2)}", "")
    text = undo(text)
    found = _parsed(text)
    version = found.get("version", 1)
    if version not in _PLUGINS:
        raise HostError(
            f"{CONFIG} has version {version}; 2 and 3 are known here",
            hint=f"containerd config migrate >{CONFIG}.new, or --no-containerd",
        )
    known = found.get("plugins", {}).get(_PLUGINS[version], {}).get("containerd", {}).get("runtimes", {})
    if "kata" in known:
        raise HostError(
            f"{CONFIG} has a runtime named kata already: {known['kata'].get('runtime_type', 'of no type')}",
            hint="--no-containerd leaves it as it is",
        )
    if version == 2:
        changed = f"{text}{'' if text.endswith(chr(10)) else chr(10)}{_block(2)}"
        _parsed(changed)
        return Change(changed, "")
    imports = found.get("imports", [])
    if any(fnmatch.fnmatch(DROP_IN, pattern) for pattern in imports):
        return Change(None, f"version = 3\n\n{_table(3)}")
    if imports:
        raise HostError(f"{CONFIG} imports other files: {', '.join(imports)}", hint=f'add "{DROP_IN}" to its imports')
    return Change(f"{_IMPORT}\n{text}", f"version = 3\n\n{_table(3)}")


def undo(text: str) -> str:
    """The text without what is ours; "" where nothing but ours was in it."""
    text = text.removeprefix(f"{_IMPORT}\n")
    before, begin, rest = text.partition(f"{_BEGIN}\n")
    if begin:
        _, _, after = rest.partition(f"{_END}\n")
        text = before + after
    return "" if text == _MADE else text


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HostError(
            f"{CONFIG}: {error}", hint="mend it, or add the runtime by hand (docs/containerd.md) and --no-containerd"
        ) from error


def _block(version: int) -> str:
    return f"{_BEGIN}\n{_table(version)}{_END}\n"


def _table(version: int) -> str:
    plugin = f'[plugins."{_PLUGINS[version]}".containerd.runtimes.kata'
    options = '    TypeUrl = "runtimeoptions.v1.Options"\n' if version == 3 else ""
    return (
        f'{plugin}]\n  runtime_type = "io.containerd.kata.v2"\n  privileged_without_host_devices = true\n'
        f'  pod_annotations = ["io.katacontainers.*"]\n  {plugin}.options]\n{options}'
        '    ConfigPath = "/etc/kata-containers/configuration.toml"\n'
    )
