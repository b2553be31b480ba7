"""`kata-trace-forwarder` on the kernel's AF_VSOCK: whose a span is, the context id says, and not the guest."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from kata_common.contract import Port
from kata_common.places import RUN_DIR
from kata_telemetry import otlp
from kata_telemetry.wire import NUMBER, frame
from kata_traces.read.trace import load_store
from kata_traces.store.announce import Announcement
from kata_traces.store.store import Store
from support.collectors import grpc_collector
from support.forwarder import batch
from support.forwarder_process import forwarder_process
from support.kata import Kata

pytestmark = pytest.mark.slow

PYTHON = Path("/usr/bin/python3.11")
# A process in a container: sends what it is given to the forwarder, and says what that answered.
LIAR = f"""
import socket, sys
print("up", flush=True)
while line := sys.stdin.buffer.readline():
    with socket.socket(socket.AF_VSOCK) as forwarder:
        forwarder.connect((socket.VMADDR_CID_HOST, {Port.FORWARDER}))
        forwarder.sendall(bytes.fromhex(line.decode()))
        print(forwarder.recv(8).hex(), flush=True)
"""
# Of a sandbox that does not exist.
DECOY = Announcement("decoy", "", since=1, clock_offset=0, cid=4242, trace_id="ab" * 16, root_id="cd" * 8)


def python_root(root: Path) -> Path:
    """A root file system with this host's Python, and `liar.py`."""
    skipped = shutil.ignore_patterns("test", "*-packages", "pydoc_data", "idlelib", "ensurepip", "config-*")
    shutil.copytree("/usr/lib/python3.11", root / "usr/lib/python3.11", ignore=skipped)
    libraries = subprocess.run(["ldd", PYTHON], check=True, capture_output=True, text=True).stdout
    for path in (str(PYTHON), *re.findall(r"(/\S+) \(0x", libraries)):
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (root / "liar.py").write_text(LIAR)
    return root


def lie(of: Announcement, name: str) -> bytes:
    """A batch of one span that says it is the decoy's, as a line for the liar."""
    request = otlp.parse(batch(bytes.fromhex(of.trace_id), name, parent=bytes.fromhex(of.root_id)))
    (resource,) = request.resource_spans
    for holder in (resource.resource, resource.scope_spans[0].spans[0]):
        for key in ("sandbox_id", "service.name"):
            holder.attributes.add(key=key).value.string_value = DECOY.sandbox_id
    return frame(request.SerializeToString()).hex().encode() + b"\n"


def test_the_context_id_says_whose_it_is(kata: Kata, artifacts: Path, tmp_path: Path, proof: Path) -> None:
    root, decoy = python_root(tmp_path / "root"), Path(RUN_DIR) / DECOY.sandbox_id
    with grpc_collector() as collected:
        kata.tracing(runtime=True, agent=True).configure("agent.kata", trace_transport="forwarder")
        kata.configure("runtime", otlp_endpoint=collected.endpoint)
        arguments = ("-l", "debug", "--vsock-cid", "2", "--vsock-port", str(Port.FORWARDER))
        log = artifacts / "forwarder.log"
        with forwarder_process(log, *arguments, "--otlp-endpoint", collected.endpoint) as forwarder:
            command = ("run", "-i", "--name", "honest", "--rootfs", str(root))
            python = (str(PYTHON), "-I", "-S", "/liar.py")
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            with kata.start(*command, "--", *python, **pipes) as run:
                try:
                    assert run.stdin is not None
                    assert run.stdout is not None
                    assert run.stdout.readline() == b"up\n", run.communicate()[1].decode()
                    said = Announcement.read(Path(RUN_DIR) / "honest")
                    assert said is not None
                    assert said.cid > 2
                    decoy.mkdir()
                    DECOY.write(decoy)
                    for line in (lie(DECOY, "foreign"), lie(said, "lie")):
                        run.stdin.write(line)
                        run.stdin.flush()
                        # It is taken from the liar's hands, whatever becomes of it.
                        assert run.stdout.readline() == NUMBER.pack(1).hex().encode() + b"\n"
                    _, errors = run.communicate(timeout=240)
                    assert run.returncode == 0, errors
                finally:
                    run.kill()
                    shutil.rmtree(decoy, ignore_errors=True)
            assert forwarder.stop() == 0
        trace = load_store(Store(kata.trace_dir / "honest"))
        assert trace is not None
        expected = Counter(span.span_id for span in trace.spans if span.name != "spansLost")
        collected.wait(lambda c: len(c.span_ids) >= len(expected), 120)
        assert collected.span_ids == expected
    assert trace.services == ["kata", "kata-agent"]
    assert trace.orphans == []
    # All of the agent's came by vsock, none by the runtime.
    assert b'"kata-agent"' not in (kata.trace_dir / "honest/spans.jsonl").read_bytes()
    agents = [span for span in trace.spans if span.service == "kata-agent" and span.name != "spansLost"]
    assert {"create_sandbox", "start_container", "destroy_sandbox", "lie"} <= {span.name for span in agents}
    assert {span.attributes["sandbox_id"] for span in agents} == {"honest"}
    # The other sandbox's trace can't be reached; what tried to is counted as this one's.
    assert "foreign" not in {span.name for span in trace.spans}
    assert sum(trace.meta.lost.values()) == 1, trace.meta.lost
    assert re.search(r"1 spans refused: another trace.*sandbox=honest", log.read_text())
    with proof.open("a") as report:
        print(f"forwarder: {len(agents)} agent spans by AF_VSOCK from CID {said.cid}, each once", file=report)
