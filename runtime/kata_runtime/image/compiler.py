"""Byte code for the guest's Python 3.11, whatever Python builds the image."""

import sys
from collections.abc import Iterable
from pathlib import Path

from kata_runtime.image import tools

__all__ = ["compile_tree"]

# Runs in the compiling interpreter: argv is the root that file names are relative to, then the directories in it.
# Each source is replaced by a .pyc in its place: the guest then neither looks for sources nor for __pycache__.
PROGRAM = """
import os, py_compile, sys
root = sys.argv[1].rstrip("/")
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for top in sys.argv[2:]:
    for directory, names, files in os.walk(root + top):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in sorted(files):
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                py_compile.compile(path, path + "c", path[len(root):], doraise=True, invalidation_mode=mode)
                os.unlink(path)
"""
# Without the columns of every instruction byte code is a third smaller; tracebacks keep their lines.
OPTIONS = ("-s", "-S", "-P", "-B", "-X", "no_debug_ranges")


def compile_tree(root: Path, directories: Iterable[str]) -> None:
    """Replace every source below `directories` (absolute, in the guest) of the tree `root` by its byte code.

    Raises ImageError where a source does not compile, or where the image's own Python can't run.
    """
    if sys.implementation.cache_tag == "cpython-311":
        argv = [sys.executable, *OPTIONS, "-c", PROGRAM, str(root), *directories]
    else:
        argv = ["chroot", str(root), "/usr/bin/python3.11", *OPTIONS, "-c", PROGRAM, "/", *directories]
    # A fixed seed: the order of a set's elements goes into the byte code.
    tools.run(
        argv,
        doing="byte-compile the guest's Python code",
        env={"PYTHONHASHSEED": "0"},
        hint="the image's packages may be damaged: build with --force",
    )
