"""Names of pods, from whoever speaks CRI: containerd, or CRI-O."""

import logging
import os
from dataclasses import dataclass

__all__ = ["Pod", "pods"]

_log = logging.getLogger("kata.monitor")
_METHOD = "/runtime.v1.RuntimeService/ListPodSandbox"
# Seconds; without names metrics are still metrics.
_TIMEOUT = 2.0
# Of Kubernetes' names.
_MAX_NAME = 253


@dataclass(frozen=True)
class Pod:
    """What Kubernetes calls a pod."""

    uid: str = ""
    name: str = ""
    namespace: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """Kata's labels for it."""
        return {"cri_uid": self.uid, "cri_name": self.name, "cri_namespace": self.namespace}


async def pods(endpoint: str) -> dict[str, Pod]:
    """The pods of the unix socket `endpoint` by their sandboxes' ids; none where nobody answers there."""
    if not os.path.exists(endpoint):  # noqa: PTH110, ASYNC240 - a socket in memory
        return {}
    import grpc
    import grpc.aio

    from kata_protos import pods_pb2 as pb

    options = [("grpc.default_authority", "localhost"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"unix:{endpoint}", options=options) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=pb.ListPodSandboxRequest.SerializeToString,
            response_deserializer=pb.ListPodSandboxResponse.FromString,
        )
        try:
            answer = await call(pb.ListPodSandboxRequest(), timeout=_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            _log.debug("no pods", extra={"endpoint": endpoint, "error": error.details()})
            return {}
    return {pod.id: Pod(*(getattr(pod.metadata, name)[:_MAX_NAME] for name in ("uid", "name", "namespace")))
            for pod in answer.items}  # fmt: skip
