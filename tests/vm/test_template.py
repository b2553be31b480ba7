"""Clones of a template: as good as a guest that has booted, told apart from each other, and never worse than none."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.kata import Kata, drop_in

# Many are for a run by hand: KATA_TEST_CLONES=100.
CLONES = int(os.environ.get("KATA_TEST_CLONES") or 30)
AT_ONCE = 4
# Where a start's own maker says why it has made none.
FAILED = Path("/run/kata/.template-failed")
# The system's own Python, of the host's /usr, and a line for each thing that it draws.
LIBRARIES = "/debian/lib/x86_64-linux-gnu"
PYTHON = f"{LIBRARIES}/ld-linux-x86-64.so.2 --library-path {LIBRARIES} /debian/bin/python3 -I -S -c"
RANDOM = "import os, random, uuid; print(hash('a string'), random.random(), os.urandom(16), uuid.uuid4(), sep='\\n')"


def start_path(kata: Kata, sandbox: str) -> str:
    (root,) = (span for span in kata.spans(sandbox) if span.name == "rootSpan")
    return str(root.attributes["kata.start.path"])


@pytest.fixture
def memory(artifacts: Path) -> Iterator[Path]:
    """A file system in memory of this test's own."""
    directory = artifacts / "memory"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g,mode=700", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)
    directory.rmdir()


@pytest.fixture
def own(kata: Kata, memory: Path) -> Kata:
    """A `kata-runtime` whose templates are this test's alone."""
    kata.configure("factory", enable_template=True, template_path=str(memory / "templates"), template_on_demand=False)
    (kata.directory / "config.d/factory.toml").unlink()
    FAILED.unlink(missing_ok=True)
    return kata


def test_clones_differ_where_guests_do(kata: Kata) -> None:
    """No two have the same ids, random numbers, hash seeds, names or times of their own."""
    kata.tracing(runtime=True, agent=True)
    kata.command()  # writes the configuration
    command = kata.command("run")
    script = (
        "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum;"
        f' hostname; date +%s; {PYTHON} "$0"'
    )

    def one(number: int) -> list[str]:
        argv = [*command, "--name", f"clone-{number}", "-v", "/usr:/debian:ro", "--", "sh", "-c", script, RANDOM]
        done = subprocess.run(argv, capture_output=True, check=False, env=kata.env(), stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outputs = list(pool.map(one, range(CLONES)))
    for what in (0, 1, 2, 3, 5, 6, 7, 8):
        assert len({lines[what] for lines in outputs}) == CLONES, outputs
    assert {lines[3] for lines in outputs} == {f"clone-{number}" for number in range(CLONES)}
    now = time.time()
    assert all(abs(int(lines[4]) - now) < 600 for lines in outputs)
    traces, spans = Counter[str](), Counter[str]()
    for number in range(CLONES):
        found = kata.spans(f"clone-{number}")
        assert start_path(kata, f"clone-{number}") == "template"
        traces.update({span.trace_id for span in found})
        spans.update(span.span_id for span in found)
        agents = [span for span in found if span.service == "kata-agent"]
        assert {"create_sandbox", "create_container"} <= {span.name for span in agents}
        # The template's boot, and its rehearsals, are not the clone's.
        assert not [span.name for span in found if span.name.startswith("boot.")]
        assert {str(span.attributes["sandbox_id"]) for span in found} == {f"clone-{number}"}
    assert set(traces.values()) == {1}
    assert set(spans.values()) == {1}


def test_a_clone_tells_restore_and_hotplug_as_stages_of_one_trace(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=True)
    assert kata.run("true", options=("--name", "stages")).returncode == 0
    spans = {span.name: span for span in kata.spans("stages")}
    assert {"findTemplate", "copyMemory", "restoreVM", "HotplugDevices", "ResumeVM", "waitVM"} <= set(spans)
    assert len({span.trace_id for span in spans.values()}) == 1
    root = spans["rootSpan"]
    assert all(root.start <= span.start and span.end <= root.end for span in spans.values())


def test_factory_commands(own: Kata) -> None:
    status = json.loads(own("factory", "status", "--json").stdout)
    assert status["templates"] == []
    own.tracing(runtime=True, agent=True)
    assert own.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(own, "cold") == "cold"
    made = own("factory", "init", "--trace")
    assert made.returncode == 0, made.stderr
    assert b"is there" in own("factory", "init").stdout
    (template,) = json.loads(own("factory", "status", "--json").stdout)["templates"]
    assert template["stale"] is False
    assert own.run("true", options=("--name", "warm")).returncode == 0
    assert start_path(own, "warm") == "template"
    # The trace of the template's own boot is there, and the clone's root says which it is.
    stores = [path for path in own.trace_dir.iterdir() if path.name.startswith("template-")]
    assert len(stores) == 1
    boot = next(iter({span.trace_id for span in own.spans(stores[0].name)}))
    raw = (own.trace_dir / "warm/spans.jsonl").read_text()
    assert boot in raw
    assert boot not in {span.trace_id for span in own.spans("warm")}
    assert own("factory", "destroy").stdout == b"1 template removed\n"
    assert own.run("true", options=("--name", "again")).returncode == 0
    assert start_path(own, "again") == "cold"


def test_the_first_start_has_one_made_and_later_ones_use_it(own: Kata, memory: Path) -> None:
    own.configure("factory", template_on_demand=True).tracing(runtime=True, agent=True)
    assert own.run("true", options=("--name", "first")).returncode == 0
    assert start_path(own, "first") == "cold"
    wait_for(lambda: json.loads(own("factory", "status", "--json").stdout)["templates"] != [])
    assert own.run("true", options=("--name", "second")).returncode == 0
    assert start_path(own, "second") == "template"


def reason(kata: Kata, sandbox: str) -> str:
    (root,) = (span for span in kata.spans(sandbox) if span.name == "rootSpan")
    return str(root.attributes["kata.start.reason"])


def test_a_host_without_room_in_memory_boots_and_says_why_in_the_trace_alone(kata: Kata, tmp_path: Path) -> None:
    (kata.directory / "config.d/factory.toml").unlink()
    kata.configure("factory", enable_template=True, template_path="/var/lib/kata-containers/template")
    kata.tracing(runtime=True, agent=True)
    done = kata.run("true", options=("--name", "cold"))
    assert done.returncode == 0
    assert b"template" not in done.stderr
    assert reason(kata, "cold") == "templates belong in memory, and /var/lib/kata-containers/template is no tmpfs"


def test_other_sizes_boot(kata: Kata) -> None:
    kata.tracing(runtime=True, agent=False)
    done = kata.run("sh", "-c", "grep MemTotal /proc/meminfo", options=("--name", "sized", "--memory", "640M"))
    assert done.returncode == 0
    assert int(done.stdout.split()[1]) < 640 * 1024
    assert start_path(kata, "sized") == "cold"
    assert reason(kata, "sized").startswith("it is of another size")


def test_a_clone_that_is_larger_than_its_template(kata: Kata) -> None:
    """It gets the rest when it runs."""
    kata.tracing(runtime=True, agent=True)
    script = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo"
    assert kata.run("true", options=("--name", "plain")).returncode == 0
    assert start_path(kata, "plain") == "template"
    done = kata.run("sh", "-c", script, options=("--name", "larger", "--memory", "3G", "--cpus", "2"))
    assert done.returncode == 0, done.stderr
    cpus, memory = done.stdout.decode().splitlines()
    assert cpus == "2"
    assert int(memory.split()[1]) > 2800 << 10
    assert start_path(kata, "larger") == "template"


@pytest.mark.parametrize("harm", ["memory", "state", "json", "content"])
def test_a_broken_template_is_no_error(own: Kata, memory: Path, harm: str) -> None:
    """`content` is a memory that has the right looks and nothing in it."""
    own.tracing(runtime=True, agent=True)
    assert own("factory", "init").returncode == 0
    (path,) = (memory / "templates").glob(f"*.{'json' if harm == 'content' else harm}")
    if harm == "content":
        (content,) = (memory / "templates").glob("*.memory")
        size = content.stat().st_size
        content.unlink()
        content.touch(mode=0o400)
        os.truncate(content, size)
        looks = content.stat()
        meta = json.loads(path.read_text())
        meta |= {"memory_looks": [looks.st_ino, looks.st_mtime_ns, looks.st_ctime_ns]}
        path.write_text(json.dumps(meta))
    else:
        os.truncate(path, 100)
    done = own.run("echo", "fine", options=("--name", "cold"), timeout=200)
    assert (done.returncode, done.stdout) == (0, b"fine\n")
    assert b"the guest boots, because it could not be cloned" in done.stderr
    assert start_path(own, "cold") == "cold"
    # It is made again.
    assert own("factory", "init").returncode == 0
    assert own.run("echo", "fine", options=("--name", "warm")).returncode == 0
    assert start_path(own, "warm") == "template"


def test_a_full_file_system_is_no_error(own: Kata, memory: Path) -> None:
    own.configure("factory", template_on_demand=True).tracing(runtime=True, agent=True)
    (memory / "ballast").write_bytes(bytes(900 << 20))
    made = own("factory", "init")
    assert made.returncode == 125
    assert b"there is no room for a template" in made.stderr
    assert own.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(own, "cold") == "cold"
    wait_for(lambda: not makers())
    # No start tries again for a while.
    assert "there is no room for a template" in FAILED.read_text()
    (memory / "ballast").unlink()
    assert own.run("true", options=("--name", "again")).returncode == 0
    assert makers() == []
    FAILED.unlink()


# Where a maker is killed: before it calls this. The last two have given names already.
_STEPS = {
    "start": "kata_runtime.hypervisor.qemu.hypervisor.Qemu.launch",
    "rehearse": "kata_runtime.sandbox.template.maker._rehearse",
    "save": "kata_runtime.hypervisor.qemu.machine.QemuMachine.save",
    "saved": "kata_runtime.sandbox.template.store.TemplateStore.publish",
    "name": "kata_runtime.sandbox.template.store.TemplateStore._describe",
    "tidy": "kata_runtime.sandbox.template.store.TemplateStore._remove_parts",
}


@pytest.mark.parametrize("step", _STEPS)
def test_a_maker_that_is_killed_leaves_nothing(own: Kata, memory: Path, step: str) -> None:
    own.tracing(runtime=True, agent=True)
    place, _, name = _STEPS[step].rpartition(".")
    own.prologue = (
        f"import os, signal, pkgutil\nplace = pkgutil.resolve_name({place!r})\ngetattr(place, {name!r})\n"
        f"setattr(place, {name!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    assert own("factory", "init").returncode == -signal.SIGKILL
    own.prologue = ""
    left = sorted(path.suffix for path in (memory / "templates").iterdir())
    assert left == {"name": ["", ".memory", ".state"], "tidy": ["", ".json", ".memory", ".state"]}.get(step, [""])
    # Its QEMU has ended with it; what it had in /run goes with the next start.
    assert own.run("true", options=("--name", "next")).returncode == 0
    assert start_path(own, "next") == ("template" if step == "tidy" else "cold")
    if step == "name":
        assert own("factory", "init").returncode == 0
        assert len(list((memory / "templates").iterdir())) == 4


def test_a_file_system_that_fills_up_meanwhile_is_no_error(own: Kata, memory: Path) -> None:
    """Its guest's memory can't grow: the maker's QEMU dies of that, and nothing of it stays."""
    own.tracing(runtime=True, agent=True)
    own.prologue = (
        "from kata_runtime.sandbox.template import maker\nrehearse = maker._rehearse\n"
        "async def full(*arguments):\n"
        f"    ballast = open({str(memory / 'ballast')!r}, 'wb', buffering=0)\n"
        "    try:\n"
        "        while ballast.write(bytes(1 << 16)): pass\n"
        "    except OSError: pass\n"
        "    await rehearse(*arguments)\n"
        "maker._rehearse = full\n"
    )
    made = own("factory", "init")
    assert made.returncode == 125, made.stderr
    own.prologue = ""
    assert [path.name for path in (memory / "templates").iterdir()] == ["lock"]
    assert own.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(own, "cold") == "cold"


def test_two_first_starts_at_once_have_one_made(own: Kata) -> None:
    own.configure("factory", template_on_demand=True).tracing(runtime=True, agent=True)
    with (
        own.start("run", "--name", "one", "--", "true") as one,
        own.start("run", "--name", "other", "--", "true") as two,
    ):
        assert (one.wait(120), two.wait(120)) == (0, 0)
    wait_for(lambda: not makers())
    assert len(json.loads(own("factory", "status", "--json").stdout)["templates"]) == 1
    assert own.run("true", options=("--name", "warm")).returncode == 0
    assert start_path(own, "warm") == "template"


def test_a_host_that_has_booted_another_kernel_has_no_template(own: Kata, memory: Path, tmp_path: Path) -> None:
    """As where /dev/shm outlived it: kexec, or a directory that somebody has kept."""
    own.tracing(runtime=True, agent=True)
    assert own("factory", "init").returncode == 0
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    own.prologue = (
        "from pathlib import Path\nfrom kata_runtime.sandbox.template import meta\n"
        f"meta._BOOT_ID = Path({str(other)!r})\n"
    )
    assert own.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(own, "cold") == "cold"
    # The next one that is made takes the place of the other.
    assert [template["stale"] for template in json.loads(own("factory", "status", "--json").stdout)["templates"]] == [
        True
    ]
    assert own("factory", "init").returncode == 0
    assert len(json.loads(own("factory", "status", "--json").stdout)["templates"]) == 1


def test_two_makers_at_once(own: Kata) -> None:
    with (
        own.start("factory", "init", stderr=subprocess.PIPE) as one,
        own.start("factory", "init", stderr=subprocess.PIPE) as other,
    ):
        said = one.communicate()[1] + other.communicate()[1]
    assert sorted((one.returncode, other.returncode)) == [0, 125]
    assert b"somebody else makes a template" in said
    assert len(json.loads(own("factory", "status", "--json").stdout)["templates"]) == 1


def test_another_image_is_another_template(own: Kata, memory: Path) -> None:
    own.tracing(runtime=True, agent=True)
    images = Path(os.environ.get("KATA_IMAGE_DIR") or "/var/lib/kata-containers/image")
    # Where QEMU's own user may read.
    memory.chmod(0o755)
    copy = memory / "rootfs.img"
    copy.write_bytes((images / "rootfs.img").read_bytes())
    own.configure("hypervisor.qemu", image=str(copy))
    assert own("factory", "init").returncode == 0
    assert own.run("true", options=("--name", "warm")).returncode == 0
    assert start_path(own, "warm") == "template"
    # Rebuilt at the same path, of the same size.
    copy.write_bytes((images / "rootfs.img").read_bytes())
    assert own.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(own, "cold") == "cold"


def makers() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"kata_runtime.sandbox.template.maker" in command:
            found.append(int(entry.name))
    return found


def wait_for(condition: "object", seconds: float = 120) -> None:
    """What another process does by itself tells nobody when it has."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_cold_path_can_be_had(kata: Kata) -> None:
    drop_in(kata.directory, template=False)
    kata.tracing(runtime=True, agent=True)
    assert kata.run("true", options=("--name", "cold")).returncode == 0
    assert start_path(kata, "cold") == "cold"
