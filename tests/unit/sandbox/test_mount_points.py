"""Where crun needs something to mount at."""

from kata_runtime.sandbox.rootfs import mount_points


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
