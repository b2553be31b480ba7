"""Configuration: search order, drop-ins, errors that name file and key, and the cache of the validated result."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.config import Config, load
from kata_runtime.config.kata_keys import KATA_KEYS
from kata_runtime.config.model import QemuConfig
from kata_runtime.config.validate import KEYS, validate
from kata_runtime.errors import ConfigError

PACKAGED = Path(__file__).parents[3] / "configuration.toml"


class Files:
    """A machine's configuration files below a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.etc = root / "etc/configuration.toml"
        self.share = root / "share/configuration.toml"

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self, explicit: Path | None = None, **environ: str) -> Config:
        return load(explicit, environ=environ, default_paths=(self.etc, self.share), cache=self.cache)

    def error(self, text: str) -> ConfigError:
        path = self.write(self.root / "bad.toml", text)
        with pytest.raises(ConfigError) as caught:
            self.load(path)
        assert str(caught.value).startswith(str(path))
        return caught.value


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_no_file_is_the_default(files: Files) -> None:
    config = files.load()
    assert config == Config.default()
    assert config.describe_files() == "built-in defaults"
    assert not files.cache.exists()


def test_packaged_file_says_what_the_code_says(files: Files) -> None:
    assert replace(files.load(PACKAGED), files=()) == Config.default()


def test_packaged_file_has_every_key_with_a_comment() -> None:
    lines = PACKAGED.read_text().splitlines()
    table, seen, uncommented = "", {name: list[str]() for name in KEYS}, []
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("["):
            table = line.strip("[]")
        elif " = " in line and not line.startswith("#"):
            seen[table].append(line.split(" = ")[0])
            # One comment may introduce several keys that belong together (kernel, initrd, image).
            if not (above.startswith("#") or " = " in above):
                uncommented.append(line)
    assert {name: sorted(keys) for name, keys in seen.items()} == {name: sorted(keys) for name, keys in KEYS.items()}
    assert uncommented == []


def test_search_order(files: Files) -> None:
    files.write(files.share, "[runtime]\notlp_timeout = 1")
    assert files.load().runtime.otlp_timeout == 1
    files.write(files.etc, "[runtime]\notlp_timeout = 2")
    assert files.load().runtime.otlp_timeout == 2
    environment = files.write(files.root / "env.toml", "[runtime]\notlp_timeout = 3")
    assert files.load(KATA_CONF_FILE=str(environment)).runtime.otlp_timeout == 3
    explicit = files.write(files.root / "explicit.toml", "[runtime]\notlp_timeout = 4")
    config = files.load(explicit, KATA_CONF_FILE=str(environment))
    assert config.runtime.otlp_timeout == 4
    assert config.files == (str(explicit),)


def test_drop_ins_change_single_keys_in_order_of_their_names(files: Files) -> None:
    files.write(files.etc, '[hypervisor.qemu]\nkernel_params = "a"\ncpu_features = "x=on"')
    second = files.write(files.etc.parent / "config.d/20-b.toml", '[hypervisor.qemu]\nkernel_params = "c"')
    first = files.write(files.etc.parent / "config.d/10-a.toml", '[hypervisor.qemu]\nkernel_params = "b"')
    files.write(files.etc.parent / "config.d/README", "not read")
    config = files.load()
    assert (config.qemu.kernel_params, config.qemu.cpu_features) == ("c", "x=on")
    assert config.describe_files() == f"{files.etc}, {first}, {second}"


def test_drop_ins_without_a_main_file(files: Files) -> None:
    files.write(files.etc.parent / "config.d/trace.toml", "[runtime]\nenable_tracing = true")
    assert files.load().runtime.enable_tracing


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[runtime]\nenable_tracin = true", "[runtime] enable_tracin: unknown key", "did you mean enable_tracing?"),
        ("[runtime]\ndial_timeout = 3", "[runtime] dial_timeout: unknown key", "belongs to [agent.kata]"),
        ("[agent.kata]\nzzz = 1", "[agent.kata] zzz: unknown key", "the keys of [agent.kata] are enable_tracing,"),
        ("[runtim]\n", "[runtim]: unknown table", "did you mean [runtime]?"),
        ("[hypervisor.kemu]\n", "[hypervisor.kemu]: unknown table", "did you mean [hypervisor.qemu]?"),
        ("[hypervisor.clh]\n", "[hypervisor.clh]: a table of Kata's", "remove [hypervisor.clh]"),
        (
            "[agent.kata.mem_agent]\nmem_agent_enable = true",
            "[agent.kata.mem_agent] mem_agent_enable = true can't be had here: the guest's memory is not",
            "",
        ),
        (
            '[hypervisor.qemu]\nmsize_9p = "1"',
            "[hypervisor.qemu] msize_9p: expected an integer, got a string ('1')",
            "",
        ),
        ("[hypervisor.qemu]\nenable_iommu = 1", "enable_iommu: expected true or false, got an integer (1)", ""),
        (
            '[runtime]\njaeger_endpoint = "http://j:1"',
            "[runtime] jaeger_endpoint = 'http://j:1' can't be had here: use [runtime] otlp_endpoint",
            "",
        ),
        ("[factory]\nvm_cache_numbr = 1", "[factory] vm_cache_numbr: unknown key", "did you mean vm_cache_number?"),
        ("[factory]\nzzz = 1", "[factory] zzz: unknown key", "the keys of [factory] are enable_template,"),
        ("[hypervisor.qemu]\nmemory_slot = 1", "memory_slot: unknown key", "did you mean memory_slots?"),
        (
            '[hypervisor.qemu]\nkernel_params = "quiet agent.devmode"',
            "kernel_params: agent.devmode is not read by this agent; use nothing: remove it",
            "",
        ),
        (
            '[hypervisor.qemu]\nkernel_params = "agent.trace=true"',
            "kernel_params: agent.trace is not read by this agent; use [agent.kata] enable_tracing",
            "",
        ),
        ('[hypervisor.qemu]\nkernel_params = "agent.log=loud"', "agent.log=loud is none of trace, debug,", ""),
        ("enable_tracing = true", "enable_tracing: this key is outside its table", "under [agent.kata]"),
        ("foo = 1", "foo: unknown key", "the tables are [hypervisor.qemu]"),
        ("runtime = 3", "runtime: expected a table, got an integer (3)", "write [runtime]"),
        ("hypervisor = 3", "hypervisor: expected a table, got an integer (3)", "write [hypervisor.qemu]"),
        ('[runtime]\nenable_tracing = "yes"', "expected true or false, got a string ('yes')", ""),
        ("[runtime]\nenable_debug = 1", "[runtime] enable_debug: expected true or false, got an integer (1)", ""),
        ("[runtime]\notlp_timeout = true", "expected a number, got true or false (true)", ""),
        ("[runtime]\notlp_timeout = -1", "expected at least 0, got an integer (-1)", ""),
        ("[agent.kata]\ndial_timeout = 0", "expected more than 0, got an integer (0)", ""),
        ("[runtime]\notlp_timeout = nan", "[runtime] otlp_timeout: expected", ""),
        ("[runtime]\notlp_headers = { a = 1 }", "otlp_headers.a: expected a string, got an integer (1)", ""),
        ("[runtime]\notlp_headers = 1979-05-27", "expected a table of strings, got date", ""),
        (
            '[runtime]\notlp_protocol = "none"',
            "expected one of '', 'grpc' or 'http/protobuf', got a string",
            "",
        ),
        ('[hypervisor.qemu]\nkernel = "vmlinuz"', "expected an absolute path, got a string ('vmlinuz')", ""),
        ("[hypervisor.qemu]\ndefault_memory = 1", "expected at least 64, got an integer (1)", ""),
        ("[hypervisor.qemu]\ndefault_memory = 512.0", "expected an integer, got a number (512.0)", ""),
        ('[agent.kata]\nkernel_modules = "a"', "expected an array of strings, got a string ('a')", ""),
        ("[agent.kata]\nkernel_modules = [1]", "kernel_modules[0]: expected a string, got an integer (1)", ""),
    ],
)
def test_bad_input_names_file_key_and_way_out(files: Files, text: str, said: str, hint: str) -> None:
    error = files.error(text)
    assert said in str(error)
    assert hint in error.hint
    assert len(str(error).splitlines()) == 1


def test_all_problems_are_told_at_once(files: Files) -> None:
    assert len(str(files.error("[runtime]\na = 1\n[agent.kata]\nb = 1\nenable_tracing = 1")).splitlines()) == 3


def test_wrong_value_names_the_file_it_is_in(files: Files) -> None:
    files.write(files.etc, "[runtime]\nenable_tracing = true")
    guilty = files.write(files.etc.parent / "config.d/a.toml", "[runtime]\nenable_tracing = 2")
    with pytest.raises(ConfigError, match=str(guilty)):
        files.load()


def test_no_toml_names_line_and_column(files: Files) -> None:
    assert "bad.toml:2:18: is not TOML" in str(files.error("[runtime]\nenable_tracing = \n"))


def test_not_utf8(files: Files) -> None:
    (files.root / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 \(byte 5\)"):
        files.load(files.root / "latin.toml")


@pytest.mark.parametrize("name", ["missing.toml", "cache", "/dev/zero"])
def test_unreadable(files: Files, name: str) -> None:
    files.cache.mkdir()
    with pytest.raises(ConfigError, match=r"can't be read: No such file|is not a regular file"):
        files.load(files.root / name)
    with pytest.raises(ConfigError, match=r"can't be read: No such file|is not a regular file"):
        files.load(KATA_CONF_FILE=str(files.root / name))


@pytest.mark.parametrize("apart", [False, True], ids=["second start", "validated apart"])
def test_neither_pydantic_nor_tomli(files: Files, apart: bool) -> None:
    path = files.write(files.etc, '[runtime]\notlp_headers = { a = "b" }\n[agent.kata]\nkernel_modules = ["m"]')
    first = files.load(path)
    if apart:
        shutil.rmtree(files.cache)
    # A process of its own, because this one has both loaded.
    code = (
        "import sys; from pathlib import Path; from kata_runtime.config import load;"
        f"c = load(Path({str(path)!r}), cache=Path({str(files.cache)!r}), apart={apart});"
        "print(c); print('pydantic' in sys.modules, 'tomli' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines() == [repr(first), "False False"]


def test_what_is_wrong_is_told_also_where_it_is_validated_apart(files: Files) -> None:
    path = files.write(files.etc, "[runtime]\nenable_tracing = 3")
    with pytest.raises(ConfigError, match="enable_tracing"):
        load(path, environ={}, default_paths=(), cache=files.cache, apart=True)


def test_cache_gives_the_same_configuration_and_sees_changes(files: Files) -> None:
    path = files.write(files.etc, '[hypervisor.qemu]\nvirtio_fs_extra_args = ["--a"]')
    first = files.load(path)
    assert files.load(path) == first
    [kept] = files.cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    files.write(path, '[hypervisor.qemu]\nvirtio_fs_extra_args = ["--bc"]')
    assert files.load(path).qemu.virtio_fs_extra_args == ("--bc",)
    kept.write_text("{ not json")
    assert files.load(path).qemu.virtio_fs_extra_args == ("--bc",)


def test_cache_that_others_can_write_to_is_not_used(files: Files) -> None:
    files.cache.mkdir()
    files.cache.chmod(0o777)
    path = files.write(files.etc, "[runtime]\nenable_tracing = true")
    assert files.load(path).runtime.enable_tracing
    assert list(files.cache.iterdir()) == []
    target = files.root / "elsewhere"
    files.cache.rmdir()
    target.mkdir(mode=0o700)
    files.cache.symlink_to(target)
    assert files.load(path).runtime.enable_tracing
    assert list(target.iterdir()) == []


def test_cache_that_cannot_be_made_is_no_error(files: Files) -> None:
    path = files.write(files.etc, "")
    files.cache.write_text("a file")
    assert files.load(path).files == (str(path),)


def test_values_that_may_be_secret_are_not_shown(files: Files) -> None:
    path = files.write(files.etc, '[runtime]\notlp_headers = { authorization = "Bearer tulip" }')
    assert "tulip" not in repr(files.load(path))


@pytest.mark.parametrize(
    ("default_vcpus", "host", "vcpus"), [(1.0, 2, 1), (1.2, 4, 2), (8, 2, 2), (-1, 6, 6), (0, 2, 1), (-0.5, 2, 1)]
)
def test_vcpus(default_vcpus: float, host: int, vcpus: int) -> None:
    assert QemuConfig(default_vcpus=default_vcpus).vcpus(host) == vcpus


def test_table_of_foreign_keys_has_none_of_ours() -> None:
    assert {table: set(keys) & set(KEYS.get(table, ())) for table, keys in KATA_KEYS.items()} == {
        table: set() for table in KATA_KEYS
    }


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table, keys in KATA_KEYS.items() for key in keys], ids="-".join
)
def test_what_is_done_here_anyway_is_taken(table: str, key: str) -> None:
    rule = KATA_KEYS[table][key]
    *above, last = table.split(".")
    for value in rule.taken:
        document: dict[str, Any] = {last: {key: value}}
        for name in reversed(above):
            document = {name: document}
        config = validate([("f.toml", document)])
        assert (config.notes, replace(config, files=())) == ((), Config.default())


def test_noted_keys_are_told(files: Files) -> None:
    path = files.write(files.etc, "[hypervisor.qemu]\nmsize_9p = 4096\n[runtime]\nuse_passfd_io = false")
    config = files.load(path)
    assert config.notes == (
        "[hypervisor.qemu] msize_9p: for 9p, which is not used",
        "[runtime] use_passfd_io: stdio is a vsock stream",
    )
    assert files.load(path) == config  # also from the cache


def test_keys_by_another_name(files: Files) -> None:
    text = '[hypervisor.qemu]\nseccomp_sandbox = "on"\n[agent.kata]\ncreate_container_timeout = 7'
    config = files.load(files.write(files.etc, text))
    assert (config.qemu.seccompsandbox, config.runtime.create_container_timeout) == ("on", 7)


def test_error_of_the_system_is_told(files: Files) -> None:
    path = files.write(files.etc, "")
    with pytest.raises(ConfigError, match="can't be read: Not a directory"):
        files.load(path / "below")
