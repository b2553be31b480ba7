"""First Python code of the guest: imports from the image's bundle, then runs the agent.

The image build compiles this file into the image; it runs with -I -S, so with neither environment nor site. On the host
only tests import it. It keeps to modules that the interpreter has built in, because each other one costs a millisecond
or more before anything is gained.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    # Its usual place would have to be imported.
    ModuleSpec = type(sys.__spec__)

__all__ = ["Bundle", "main"]

BUNDLE = "/usr/lib/kata-agent/bundle"
PATH = ["/usr/lib/python3.11", "/usr/lib/kata-agent", "/usr/lib/python3.11/lib-dynload"]
# Length of the index in front of the bundle, in bytes.
HEADER = 8


class Bundle:
    """Finder and loader (importlib.abc) of the modules in a bundle, one pread(2) for each.

    The ordinary way takes half a dozen system calls and a good deal of Python code per module, a third of the agent's
    start in an emulated guest. What is not in the bundle is found in the ordinary way. The format is that of
    `kata_runtime.image.bundle`.
    """

    def __init__(self, path: str) -> None:
        self._file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        length = int.from_bytes(posix.read(self._file, HEADER), "little")
        self._start = HEADER + length
        # Marshalled data is as trustworthy as byte code, and both come from the image.
        self._index: dict[str, tuple[str, bool, int, int]] = marshal.loads(posix.read(self._file, length))  # noqa: S302

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The specification of a module of the bundle; `path` and `target` are the protocol's."""
        entry = self._index.get(name)
        if entry is None:
            return None
        origin, is_package, _, _ = entry
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type] # a loader by duck
        # This is what gives the module its __file__.
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec

    def create_module(self, spec: object) -> None:
        """Modules are made in the default way."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run a module's code."""
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102 - it is a module's loader

    def get_code(self, name: str) -> "CodeType":
        """The code of a module of the bundle."""
        _, _, offset, length = self._index[name]
        code: CodeType = marshal.loads(posix.pread(self._file, length, self._start + offset))  # noqa: S302
        return code


def main() -> None:
    """Become the agent."""
    sys.path[:] = PATH
    sys.meta_path.insert(0, Bundle(BUNDLE))
    agent = __import__("kata_agent.main", fromlist=["main"])
    sys.exit(agent.main())


if __name__ == "__main__":
    main()
