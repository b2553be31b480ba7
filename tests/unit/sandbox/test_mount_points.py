"""Where crun needs something to mount at."""

from kata_runtime.sandbox.rootfs import mount_points, protect_mounts
from kata_runtime.sandbox.volumes import Shown


def test_mount_points_of_a_specification() -> None:
    places = ["/proc", "/dev", "/dev/pts", "/developer", "relative/x", "/var//run/secrets/", "/var/run/secrets/sub"]
    spec = {"mounts": [{"destination": place} for place in places], "process": {"cwd": "/work/dir"}}
    made = ("/proc", "/dev", "/developer", "/relative/x", "/var/run/secrets", "/work/dir")
    assert mount_points(spec) == made


def test_a_working_directory_that_is_in_a_mount() -> None:
    mounts = [{"destination": "/data"}]
    for cwd in ("/data/sub", "/data", "/", ""):
        wanted = ("/data", "/") if cwd in ("/", "") else ("/data",)
        assert mount_points({"mounts": mounts, "process": {"cwd": cwd}}) == wanted


def test_who_may_only_read_reads_below_as_well_where_that_is_asked() -> None:
    """But for a file, below which nothing can be: crun refuses `rro` of one."""
    mounts = [
        {"source": source, "options": options}
        for source, options in (
            ("/m/directory", ["rbind", "ro"]),
            ("/m/directory", ["rbind", "rro"]),
            ("/m/directory", ["rbind", "rw"]),
            ("/m/file", ["bind", "ro"]),
            ("/m/file", ["bind", "rro"]),
            ("/elsewhere/directory", ["ro"]),
            ("proc", None),
        )
    ]
    found = protect_mounts({"mounts": mounts}, "/m", Shown({"directory"}))["mounts"]
    assert [mount["options"] for mount in found] == [
        ["rbind", "ro"],
        ["rbind", "ro", "rro"],
        ["rbind", "rw"],
        ["bind", "ro"],
        ["bind", "ro"],
        ["ro"],
        None,
    ]
