"""How one of our programs starts another Python: with this one's modules, and with nobody else's.

Python takes modules from the working directory (`-m`, `-c`), from `PYTHON*` variables and from the user's own packages,
and runs start-up code of `site`. Whoever can write to where root stands, or can give root a variable, would have root
run his code. `-I` and `-S` shut all of it out; what is to be found instead is said by arguments.
"""

import sys

__all__ = ["python_code", "python_module"]

# Arguments: how many directories, these, what else the code is to find in sys.argv[1:].
_START = "import sys; count = int(sys.argv[1]) + 2; sys.path[:] = sys.argv[2:count]; del sys.argv[1:count]; "
_MODULE = "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python_code(code: str, *arguments: str) -> list[str]:
    """The command that runs `code` in a Python like this: `sys` is imported, `arguments` are in its sys.argv[1:]."""
    # An empty entry would be the working directory, and so would a relative one be below it.
    path = [entry for entry in sys.path if entry.startswith("/")]
    return [sys.executable, "-I", "-S", "-c", _START + code, str(len(path)), *path, *arguments]


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` would."""
    return python_code(_MODULE, module, *arguments)
