"""One file with the byte code of all modules that the agent's start imports, in the order in which it does.

Format: the length of the index (8 bytes, little-endian), the index, then the code. The index is a marshalled dictionary
from the module's name to its file, whether it is a package, and offset (from the end of the index) and length of its
code, which is a .pyc file's without the header. `kata_runtime.image.launcher` reads it.
"""

import marshal
from collections.abc import Sequence
from pathlib import Path

from kata_common.documents import parse_json
from kata_runtime.image import tools

__all__ = ["build"]

PYC_HEADER = 16
# First in the bundle is what the agent's start imports.
ENTRY = "kata_agent.main"
# Then what it imports later, inside of functions, but nearly every guest needs: when it serves, when it sends spans,
# when a container ends.
LATE = (
    *("grpc", "kata_protos.agent_pb2_grpc", "opentelemetry.proto.collector.trace.v1.trace_service_pb2"),
    "kata_common.removal",
)
# Runs in the image's own Python; arguments are the directories to import from, then the modules to import. After the
# first one come all modules of its package, since their imports may be inside of functions too.
PROGRAM = """
import sys
sys.path[:] = sys.argv[1].split(":")
before = set(sys.modules)
names = sys.argv[2:]
__import__(names[0])
import importlib, json, pkgutil
package = names[0].partition(".")[0]
inner = pkgutil.walk_packages(sys.modules[package].__path__, package + ".")
names[1:1] = sorted(module.name for module in inner if not module.name.endswith("__main__"))
for name in names:
    importlib.import_module(name)
found = []
for name, module in sys.modules.items():
    spec = getattr(module, "__spec__", None)
    if name not in before and spec and spec.name == name and (spec.origin or "").endswith(".pyc"):
        found.append((name, spec.origin, spec.submodule_search_locations is not None))
print(json.dumps(found))
"""


def build(root: Path, python: str, path: Sequence[str]) -> bytes:
    """The bundle for the guest tree `root`, whose `python` imports from the directories `path` (all as in the guest).

    Importing is also a test: raises ImageError where the agent can't be imported with what is in the image.
    """
    found = tools.run(
        ["chroot", root, python, "-I", "-S", "-B", "-c", PROGRAM, ":".join(path), ENTRY, *LATE],
        doing="import the agent inside the image",
        hint="what it imports must be in the package image's requirements.txt and not among its pruned parts",
    )
    index: dict[str, tuple[str, bool, int, int]] = {}
    code = bytearray()
    for name, origin, is_package in parse_json(found.splitlines()[-1]):
        module = (root / origin[1:]).read_bytes()[PYC_HEADER:]
        index[name] = (origin, is_package, len(code), len(module))
        code += module
    header = marshal.dumps(index, 2)
    return len(header).to_bytes(8, "little") + header + code
