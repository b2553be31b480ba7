"""Where packages come from: mirrors, pins, tools."""

import re
import sys
from pathlib import Path

import pytest

from kata_runtime.errors import ImageError
from kata_runtime.image import tools
from kata_runtime.image.packages import MIRROR, SECURITY_MIRROR, host_mirrors, transport_of
from kata_runtime.image.wheels import REQUIREMENTS

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian/ bookworm main contrib
deb http://mirror.example/security bookworm-security main
deb-src http://sources.example/debian bookworm main
"""
DEB822 = """\
Types: deb deb-src
# a comment
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware

Types: deb
URIs: https://mirror.example/security
Suites: bookworm-security
Components: main
"""
OTHER_RELEASE = "deb http://mirror.example/debian trixie main\ndeb http://archive.ubuntu.com/ubuntu noble main\n"
DISABLED = "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"
THIRD_PARTY = "deb https://third.example/apt cloud-sdk-bookworm main\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (MIRROR, SECURITY_MIRROR)),
        ({"sources.list": ONE_LINE}, ("http://mirror.example/debian", "http://mirror.example/security")),
        (
            {"sources.list.d/debian.sources": DEB822},
            ("https://mirror.example/debian", "https://mirror.example/security"),
        ),
        ({"sources.list": OTHER_RELEASE}, (MIRROR, SECURITY_MIRROR)),
        ({"sources.list.d/off.sources": DISABLED}, (MIRROR, SECURITY_MIRROR)),
        ({"sources.list.d/third.list": THIRD_PARTY}, (MIRROR, SECURITY_MIRROR)),
        (
            {"sources.list": ONE_LINE, "sources.list.d/debian.sources": DEB822},
            ("http://mirror.example/debian", "http://mirror.example/security"),
        ),
    ],
    ids=["none", "one-line", "deb822", "other release", "disabled", "third party", "the first wins"],
)
def test_the_mirror_is_the_hosts_own_where_it_has_one(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_mirrors(tmp_path) == expected


def test_every_wheel_is_pinned_with_its_hash() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+ --hash=sha256:[0-9a-f]{64}", line), line
    # Neither OpenTelemetry's SDK nor anything of the host's configuration belongs into a guest.
    names = {line.partition("==")[0] for line in lines}
    assert names == {"grpcio", "opentelemetry-proto", "protobuf", "typing-extensions"}


def test_a_tools_output_comes_back() -> None:
    assert tools.run([sys.executable, "-c", "print('out')"], doing="try") == "out\n"


def test_a_failed_tool_is_quoted() -> None:
    program = "import sys; sys.exit('no space')"
    with pytest.raises(ImageError, match=r"can't try: .* failed with status 1: no space") as caught:
        tools.run([sys.executable, "-c", program], doing="try", hint="do this")
    assert caught.value.hint == "do this"


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda *_, **__: None)
    with pytest.raises(ImageError, match="mke2fs is missing") as caught:
        tools.run(["mke2fs"], doing="make a file system")
    assert "e2fsprogs" in caught.value.hint


def test_a_tool_that_hangs_is_ended() -> None:
    with pytest.raises(ImageError, match=r"did not end within 0.05 s"):
        tools.run([sys.executable, "-c", "import time; time.sleep(60)"], doing="try", timeout=0.05)


def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("https_proxy", "http://proxy")
    program = "import os; print(os.environ.get('PYTHONPATH'), os.environ['https_proxy'], os.environ['MORE'])"
    assert tools.run([sys.executable, "-c", program], doing="try", env={"MORE": "1"}) == "None http://proxy 1\n"


def test_of_apts_settings_only_the_way_to_a_mirror_is_taken() -> None:
    taken = [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::http::Proxy::mirror.example "DIRECT";',
        'Acquire::https::CaInfo "/etc/ssl/own.pem";',
        'Acquire::https::mirror.example::SslCert "/etc/ssl/me.pem";',
        'acquire::https::timeout "20";',
    ]
    left = [
        'Acquire::https::Verify-Peer "false";',
        'Acquire::https::Verify-Host "false";',
        'Acquire::https::mirror.example::Verify-Peer "false";',
        'Acquire::AllowInsecureRepositories "1";',
        'Acquire::http::AllowRedirect "true";',
        'Acquire::https::Proxy "";',
        'APT::Get::AllowUnauthenticated "true";',
        'Acquire::http::Proxy-Auto-Detect "/tmp/program";',
    ]
    assert transport_of("\n".join(left + taken)) == taken
