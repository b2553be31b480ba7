"""Modules that the agent's libraries import and the agent doesn't use, kept out of a guest's cold start.

An emulated guest imports at a tenth of a host's speed, so what nobody uses is half a second of every start. Three ways:

- `ssl` can't be imported; asyncio then does without it (asyncio.base_events, asyncio.sslproto).
- LATE modules are fetched when somebody asks them for something. `traceback` is wanted when something fails; protobuf's
  pure Python messages never, because its C implementation (upb) does all the work and imports them all the same.
- UNUSED modules are the client's half of grpc.aio. Names asked of them are placeholders that can't be called.

`apply` comes before the first import of any of them. It changes nothing where a module is already there. What it saves:
docs/decisions/0004.
"""

from kata_common.standins import absent, fetch, late, unused

__all__ = ["after", "apply"]

# Module: what importers want of it at once, which must not fetch it.
LATE: dict[str, dict[str, object]] = {
    "google.protobuf.internal.python_message": {},
    # Extra methods of messages like Timestamp, by message name; the contract has none of those.
    "google.protobuf.internal.well_known_types": {"WKTBASES": {}},
    # What asyncio and grpc.aio ask of handlers; inspect itself brings ast, dis and tokenize along. inspect.CO_*.
    "inspect": {
        "iscoroutinefunction": lambda function: bool(_code_flags(function) & 0x80),
        "isasyncgenfunction": lambda function: bool(_code_flags(function) & 0x200),
        # asyncio's repr of a task, which grpc.aio formats for a debug message.
        "isfunction": lambda thing: isinstance(thing, type(_code_flags)),
        "unwrap": lambda function: function,
    },
    # Wanted with the first container: fetched when the agent is ready and waits for the host anyway (`after`).
    "json": {},
    "linecache": {},
    # Asked by every server for its options; nobody has registered a plugin.
    "grpc._observability": {"create_server_call_tracer_factory_option": lambda xds: ()},
    "pkgutil": {},
    # logging takes hold of both for styles that nobody uses.
    "string": {
        "Template": lambda *args: fetch("string").Template(*args),
        "Formatter": lambda: _Formatter(),  # noqa: PLW0108 - defined below
    },
    # asyncio.subprocess copies the numbers; the agent starts processes itself (process.reaper).
    "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
    # _asyncio takes hold of the function when it is loaded.
    "traceback": {"extract_stack": lambda *args, **kwargs: fetch("traceback").extract_stack(*args, **kwargs)},
    # Names for annotations; 3.11 has no typing.override.
    "typing_extensions": {"Self": object, "override": lambda method: method},
    "asyncio.sslproto": {},
    "asyncio.staggered": {},
    # pathlib imports it for as_uri().
    "urllib.parse": {"quote_from_bytes": lambda data, safe="/": fetch("urllib.parse").quote_from_bytes(data, safe)},
}
UNUSED = (
    "grpc._typing",
    "grpc.aio._base_channel",
    "grpc.aio._call",
    "grpc.aio._channel",
    "grpc.aio._interceptor",
)


class _Formatter:
    """What logging keeps of string.Formatter: an instance."""

    def __getattr__(self, name: str) -> object:
        return getattr(fetch("string").Formatter(), name)


def _code_flags(function: object) -> int:
    return getattr(getattr(function, "__code__", None), "co_flags", 0)


def after() -> None:
    """Fetch what the first calls will want."""
    fetch("json")


def apply() -> None:
    """Put the stand-ins where the imports will look."""
    absent("ssl")
    for name, wanted in LATE.items():
        late(name, **wanted)
    for name in UNUSED:
        unused(name)
