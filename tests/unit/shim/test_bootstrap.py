"""Bootstrap without protobuf, held against protobuf."""

import json

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kata_protos.containerd.bootstrap_pb2 import LOG_LEVEL_DEBUG, LOG_LEVEL_WARN, BootstrapParams, BootstrapResult
from kata_protos.containerd.runtimeoptions_pb2 import Options
from kata_protos.containerd.task_pb2 import DeleteResponse
from kata_runtime.shim.arguments import UsageError
from kata_runtime.shim.bootstrap import Bootstrap, encode_delete_response, parse_input, reply

OPTIONS = Options(config_path="/etc/kata.toml", config_body=b"\0\xff")
ANY = Any(type_url="runtimeoptions.v1.Options", value=OPTIONS.SerializeToString())
ADDRESS = "unix:///run/containerd/s/" + "0123456789abcdef" * 4


def parse(data: bytes) -> Bootstrap:
    return parse_input(data, container_id="one", namespace="default")


def parameters() -> BootstrapParams:
    given = BootstrapParams(
        instance_id="one",
        namespace="default",
        log_level=LOG_LEVEL_DEBUG,
        containerd_version="v2.3.4",
        containerd_ttrpc_address="/run/c.ttrpc",
        containerd_grpc_address="/run/c.sock",
        containerd_binary="/usr/bin/containerd",
        socket_dir="/run/s",
    )
    given.extensions.add().value.CopyFrom(ANY)
    return given


def test_nothing_on_stdin() -> None:
    found = parse(b"")
    assert (found.parameters, found.options, found.ttrpc_address) == (False, [], "")


def test_runtime_options_up_to_22() -> None:
    found = parse(ANY.SerializeToString())
    assert not found.parameters
    ((kind, value),) = found.options
    assert kind == "runtimeoptions.v1.Options"
    assert Options.FromString(value) == OPTIONS


def test_bootstrap_parameters_from_23() -> None:
    found = parse(parameters().SerializeToString())
    assert found.parameters
    assert found.debug
    assert (found.version, found.ttrpc_address, found.socket_dir) == ("v2.3.4", "/run/c.ttrpc", "/run/s")
    assert found.options == [(ANY.type_url, ANY.value)]


def test_other_log_levels_are_not_debug() -> None:
    given = parameters()
    given.log_level = LOG_LEVEL_WARN
    assert not parse(given.SerializeToString()).debug
    given.ClearField("log_level")
    assert not parse(given.SerializeToString()).debug


def test_parameters_of_somebody_else_are_taken_for_an_any() -> None:
    given = parameters()
    given.instance_id = "two"
    found = parse(given.SerializeToString())
    assert not found.parameters
    assert found.options == [("two", b"default")]


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\x0b", b"\0", b"\x10\x80", b"\x12\x01x", b"\x0a\x02\xff\xfe"])
def test_nonsense_on_stdin(data: bytes) -> None:
    with pytest.raises(UsageError, match="neither runtime options nor bootstrap parameters of one"):
        parse(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    try:
        found = parse(data)
    except UsageError:
        return
    if data and not found.parameters:
        assert found.options


def test_the_reply_is_an_address_to_containerd_up_to_22() -> None:
    assert reply(ADDRESS, version_3=False) == ADDRESS


@pytest.mark.parametrize("version_3", [False, True])
def test_containerd_23_does_not_take_the_reply_for_a_protobuf(version_3: bool) -> None:
    # It tries that first, and what parsed by accident would have no address.
    with pytest.raises(DecodeError):
        BootstrapResult.FromString(reply(ADDRESS, version_3=version_3).encode())


def test_the_reply_to_containerd_23() -> None:
    said = json.loads(reply(ADDRESS, version_3=True))
    assert said == {"version": 3, "address": ADDRESS, "protocol": "ttrpc"}


@given(st.integers(0, 2**31), st.integers(0, 255), st.integers(0, 2**61))
def test_delete_response(pid: int, status: int, time_ns: int) -> None:
    expected = DeleteResponse(pid=pid, exit_status=status)
    expected.exited_at.FromNanoseconds(time_ns)
    assert DeleteResponse.FromString(encode_delete_response(pid, status, time_ns)) == expected
