"""A service with every kind of streaming, made without a .proto file."""

from collections.abc import AsyncIterator

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

__all__ = ["DESCRIPTOR", "Echo"]

_METHODS = {"Unary": (False, False), "Collect": (True, False), "Count": (False, True), "Chat": (True, True)}


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="kata_test/echo.proto",
        package="kata.test",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="Echo")
    for name, (client, server) in _METHODS.items():
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client,
            server_streaming=server,
        )
    return file


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_describe().SerializeToString())
DESCRIPTOR = _pool.FindServiceByName("kata.test.Echo")


class Echo:
    """Says back what it hears; tests replace single methods."""

    async def unary(self, request: StringValue) -> StringValue:
        return StringValue(value=request.value)

    async def collect(self, requests: AsyncIterator[StringValue]) -> StringValue:
        return StringValue(value="+".join([request.value async for request in requests]))

    async def count(self, request: StringValue) -> AsyncIterator[StringValue]:
        for number in range(int(request.value)):
            yield StringValue(value=str(number))

    async def chat(self, requests: AsyncIterator[StringValue]) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=request.value.upper())
