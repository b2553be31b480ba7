"""Modules that the agent's libraries import and the agent never uses, kept out of a guest's cold start.

- `ssl`: asyncio imports it for TLS, and does without where it can't be imported (asyncio.base_events,
  asyncio.sslproto).
- `google.protobuf.internal.python_message`: the pure Python messages, with decoder, encoder, text format and datetime
  behind them; protobuf imports them even where its C implementation (upb) does all the work. A module stands in for it
  that fetches the real one when somebody does ask for anything in it.

`apply` must come before the first import of either; measured effect: docs/decisions/0004.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

__all__ = ["apply"]

_LAZY: Final = "google.protobuf.internal.python_message"


class _Lazy(ModuleType):
    """Becomes the real module when one of its attributes is wanted."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a module
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def apply() -> None:
    """Stand in for what isn't used. Harmless where a library has changed: then it imports more."""
    if "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment] # documented: makes `import ssl` raise ImportError
    if _LAZY not in sys.modules:
        sys.modules[_LAZY] = _Lazy(_LAZY)
