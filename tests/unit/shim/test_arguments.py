"""The command line, in the forms that Go's flag package allows."""

import pytest

from kata_runtime.shim.arguments import UsageError, parse

IDS = ["-namespace", "ns", "-id", "one"]


def test_what_containerd_16_says() -> None:
    found = parse(
        [
            "-namespace", "default", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd",
            "-id", "one", "-debug", "start",
        ]
    )  # fmt: skip
    assert (found.namespace, found.address, found.publish_binary) == ("default", "/run/c.sock", "/usr/bin/containerd")
    assert (found.id, found.debug, found.action, found.bundle) == ("one", True, "start", "")


def test_what_containerd_23_says() -> None:
    found = parse([*IDS, "-bundle", "/b", "delete", "more", "-things"])
    assert (found.bundle, found.action) == ("/b", "delete")


@pytest.mark.parametrize(
    ("argv", "debug"),
    [
        (["--debug"], True),
        (["-debug=true"], True),
        (["-debug=0"], False),
        (["--debug=F"], False),
        ([], False),
    ],
)
def test_switches(argv: list[str], debug: bool) -> None:
    assert parse([*argv, "--namespace=ns", "-id=one", "start"]).debug is debug


def test_values_may_look_like_anything() -> None:
    assert parse([*IDS, "-address", "-start", "--", "start"]).address == "-start"
    assert parse([*IDS, "-address=", "start"]).address == ""
    assert parse([*IDS, "-socket", "/s", "-debug-socket=/d", "start"]).action == "start"


@pytest.mark.parametrize("flag", ["-v", "-version", "-info", "-h", "--help"])
def test_what_needs_no_action(flag: str) -> None:
    found = parse([flag])
    assert found.version or found.info or found.help


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*IDS], "the action is '', it must be one of: start, delete"),
        ([*IDS, "stop"], "the action is 'stop'"),
        ([*IDS, "-frobnicate", "start"], "unknown flag -frobnicate; known are -namespace, -id"),
        ([*IDS, "-address"], "-address needs a value"),
        ([*IDS, "-debug=maybe", "start"], "-debug is a switch: true or false, not 'maybe'"),
        (["-id", "one", "start"], "-namespace is missing"),
        (["-namespace", "ns", "start"], "-id is missing"),
        (["-namespace", "ns", "-id", "../one", "start"], "-id '../one' can't be a name of a directory"),
        (["-namespace", "..", "-id", "one", "delete"], "-namespace '..' can't be"),
    ],
)
def test_mistakes(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert said in str(caught.value)
