"""The bundle of byte code and the finder that the guest imports from it."""

import sys
from pathlib import Path

import pytest

from kata_runtime.image import bundle, launcher
from support.image import Tools

pytestmark = pytest.mark.skipif(sys.implementation.cache_tag != "cpython-311", reason="the guest's byte code")

SOURCES = {
    "bundled_package/__init__.py": "NAME = __name__",
    "bundled_package/inner.py": "from bundled_package import NAME\nVALUE = NAME + '!'\ndef fail():\n    raise KeyError",
}


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> launcher.Bundle:
    from kata_runtime.image import compiler

    root = tmp_path / "root"
    for name, source in SOURCES.items():
        (root / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "lib" / name).write_text(source)
    compiler.compile_tree(root, ["/lib"])
    tools = Tools(tmp_path / "bin")
    tools.add(
        "chroot",
        'echo \'[["bundled_package.inner", "/lib/bundled_package/inner.pyc", false],'
        ' ["bundled_package", "/lib/bundled_package/__init__.pyc", true]]\'',
    )
    monkeypatch.setenv("PATH", f"{tools.directory}:/usr/bin:/bin")
    (tmp_path / "bundle").write_bytes(bundle.build(root, "/usr/bin/python3.11", ["/lib"]))
    finder = launcher.Bundle(str(tmp_path / "bundle"))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


def test_modules_come_out_of_the_bundle(finder: launcher.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bundled_package", "bundled_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    inner = __import__("bundled_package.inner", fromlist=["VALUE"])
    assert inner.VALUE == "bundled_package!"
    assert inner.__file__ == "/lib/bundled_package/inner.pyc"
    loader: object = inner.__loader__
    assert loader is finder
    assert sys.modules["bundled_package"].__path__ == ["/lib/bundled_package"]
    with pytest.raises(KeyError) as caught:
        inner.fail()
    # Tracebacks name the file in the guest, and its line.
    assert str(caught.traceback[-1].path) == "/lib/bundled_package/inner.py"
    assert caught.traceback[-1].lineno == 3


def test_other_modules_are_left_to_others(finder: launcher.Bundle) -> None:
    assert finder.find_spec("json") is None


def test_it_imports_nothing_that_is_not_built_in() -> None:
    source = Path(launcher.__file__).read_text()
    imported = {line.split()[1] for line in source.splitlines() if line.startswith("import ")}
    assert imported <= set(sys.builtin_module_names)
    assert not any(line.startswith("from ") for line in source.splitlines())
