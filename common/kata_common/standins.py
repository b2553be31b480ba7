"""Stand-ins for modules that somebody imports and hardly anybody uses: what is not loaded costs nothing.

They come before the first import of what they stand for, and change nothing where that is loaded already.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["absent", "fetch", "late", "unused"]


class _Late(ModuleType):
    """Stands for a module until one of its attributes is wanted."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import machinery looks for these
            raise AttributeError(name)
        return getattr(fetch(self.__name__), name)


class _Unused(ModuleType):
    """Has every name; none can be called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} was left out by this program (kata_common.standins)")

        placeholder = type(name, (), {"__init__": refuse})
        setattr(self, name, placeholder)
        return placeholder


def absent(name: str) -> bool:
    """Let `import name` fail, which is how some modules learn to do without; whether it was not loaded before."""
    if name in sys.modules:
        return False
    sys.modules[name] = None  # type: ignore[assignment] # documented: the import raises ImportError then
    return True


def late(name: str, **wanted: object) -> None:
    """The module is fetched when somebody asks it for something else than `wanted`, which importers want at once."""
    if sys.modules.get(name) is None:
        module = _Late(name)
        module.__dict__.update(wanted)
        sys.modules[name] = module


def unused(name: str) -> None:
    """Names asked of the module are placeholders that can't be called."""
    sys.modules.setdefault(name, _Unused(name))


def fetch(name: str) -> Any:  # noqa: ANN401 - a module, whose names are its own
    """The real module, which from now on is in everybody's way of importing it."""
    present = sys.modules.get(name)
    if present is None or isinstance(present, _Late):
        sys.modules.pop(name, None)
        real = import_module(name)
        if isinstance(present, _Late):
            # For those who hold the stand-in already: no detour from the second time on.
            present.__dict__.update({key: value for key, value in vars(real).items() if not key.startswith("__")})
        return real
    return present
