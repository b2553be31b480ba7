"""Debian 12 packages for the guest, whatever distribution the host is.

apt works on a configuration and state of its own in the cache directory, so the host's are neither read (but for its
mirror and proxy) nor changed. It resolves the exact list and verifies what it downloads: archive key, release file,
hashes. Maintainer scripts never run; packages are only unpacked.
"""

import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from kata_common.documents import parse_json
from kata_runtime.errors import ImageError
from kata_runtime.image import tools

__all__ = ["KERNEL", "Package", "Packages"]

RELEASE = "bookworm"
ARCHITECTURE = "amd64"
MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
KEYRINGS = tuple(Path("/usr/share/keyrings", f"debian-archive-keyring.{suffix}") for suffix in ("gpg", "pgp"))

KERNEL = re.compile(r"linux-image-[0-9].*-cloud-amd64")
# libstdc++6 is grpcio's (a manylinux wheel brings all but the C and C++ libraries); iptables is for GetIPTables.
WANTED = (
    "busybox-static",
    "crun",
    "iptables",
    "libpython3.11-stdlib",
    "libstdc++6",
    "linux-image-cloud-amd64",
    "python3.11-minimal",
)
# What these depend on for installing or for parts that the guest does not have; all else that apt finds comes in.
EXCLUDED = frozenset(
    {
        *("adduser", "coreutils", "cpio", "debconf", "dpkg", "kmod", "linux-base", "logsave", "passwd", "tar", "udev"),
        *("initramfs-tools", "initramfs-tools-core", "klibc-utils", "libklibc", "linux-image-cloud-amd64"),
        *("gcc-12-base", "libacl1", "libattr1", "libaudit-common", "libaudit1", "libblkid1", "libcap-ng0", "libgmp10"),
        *("libkmod2", "libmd0", "libpam-modules", "libpam-modules-bin", "libpam0g", "libpcre2-8-0", "libselinux1"),
        *("libsemanage-common", "libsemanage2", "libsepol2", "libudev1"),
        # ssl, nis, dbm, sqlite3, curses and readline of the standard library, which the agent does not use.
        *(
            "libcom-err2",
            "libdb5.3",
            "libgssapi-krb5-2",
            "libk5crypto3",
            "libkeyutils1",
            "libkrb5-3",
            "libkrb5support0",
        ),
        "netbase",
        *("libncursesw6", "libnsl2", "libreadline8", "libsqlite3-0", "libssl3", "libtinfo6", "libtirpc-common"),
        *("libtirpc3", "media-types", "readline-common"),
    }
)


@dataclass(frozen=True, slots=True)
class Package:
    """A package as it was downloaded; `file` is its name in the cache."""

    name: str
    version: str
    sha256: str
    file: str


class Packages:
    """The packages below the cache directory `cache`."""

    def __init__(self, cache: Path, progress: Callable[[str], None]) -> None:
        self._apt = cache / "apt"
        self.directory = cache / "packages"
        self._progress = progress
        self._list = cache / "packages.json"

    @staticmethod
    def key() -> str:
        """Changes when this module asks for other packages."""
        return hashlib.sha256(repr((RELEASE, ARCHITECTURE, WANTED, sorted(EXCLUDED))).encode()).hexdigest()

    def known(self) -> list[Package] | None:
        """What was resolved and downloaded earlier, or None where there is nothing, or not for what is asked today."""
        try:
            stored = parse_json(self._list.read_text())
            packages = [Package(**fields) for fields in stored["packages"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        complete = all((self.directory / package.file).is_file() for package in packages)
        return packages if complete and stored.get("key") == self.key() else None

    def update(self) -> list[Package]:
        """Ask the mirror for today's versions and download what is missing.

        Raises ImageError where there is no network, no archive key or no apt.
        """
        self._progress("resolving Debian packages")
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self._configure()
        offline = "it needs the network, once; behind a proxy set http_proxy, or Acquire::http::Proxy in apt's settings"
        self._run(configuration, ["apt-get", "update", "-qq", "--error-on=any"], "read Debian's package lists", offline)
        chosen = self._resolve(configuration)
        missing = [f"{name}={version}" for name, version, file in chosen if not (self.directory / file).is_file()]
        if missing:
            self._progress(f"downloading {len(missing)} Debian packages")
            self._run(configuration, ["apt-get", "download", "-qq", *missing], "download Debian packages", offline)
        packages = [Package(name, version, self._digest(file), file) for name, version, file in sorted(chosen)]
        stored = {"key": self.key(), "packages": [asdict(package) for package in packages]}
        self._list.write_text(json.dumps(stored, indent=1) + "\n")
        for stale in {path.name for path in self.directory.iterdir()} - {package.file for package in packages}:
            (self.directory / stale).unlink()
        return packages

    def _resolve(self, configuration: Path) -> list[tuple[str, str, str]]:
        """Names, versions and file names of all packages that the guest gets."""
        uris = self._run(
            configuration,
            ["apt-get", "install", "-qq", "--yes", "--print-uris", "--no-install-recommends", *WANTED],
            "resolve Debian packages",
            "the mirror may be in the middle of an update; try again",
        )
        chosen = []
        for line in uris.splitlines():
            # 'URI' name_version_architecture.deb size hash
            file = line.split()[1]
            name, version, _ = file.split("_")
            if name not in EXCLUDED:
                chosen.append((name, urllib.parse.unquote(version), file))
        if not any(KERNEL.fullmatch(name) for name, _, _ in chosen):
            raise ImageError(f"Debian's package lists name no cloud kernel: {self._apt}", hint="try again later")
        return chosen

    def _digest(self, file: str) -> str:
        path = self.directory / file
        try:
            with path.open("rb") as package:
                return hashlib.file_digest(package, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise ImageError(f"apt did not download {file}", hint="try again with --force") from error

    def _run(self, configuration: Path, argv: list[str], doing: str, hint: str) -> str:
        # apt-get download writes into the current directory.
        return tools.run(argv, doing=doing, env={"APT_CONFIG": str(configuration)}, cwd=self.directory, hint=hint)

    def _configure(self) -> Path:
        """Write apt's configuration and return its path."""
        keyring = next((path for path in KEYRINGS if path.is_file()), None)
        if keyring is None:
            raise ImageError(
                f"Debian's archive key is missing: {KEYRINGS[0]}",
                hint="install it: apt-get install debian-archive-keyring",
            )
        for name in ("etc", "state/lists/partial", "cache/archives/partial", "log"):
            (self._apt / name).mkdir(parents=True, exist_ok=True)
        # An empty status file: nothing is installed, so apt resolves everything.
        (self._apt / "state/status").write_text("")
        mirror, security = host_mirrors(Path("/etc/apt"))
        options = f"[arch={ARCHITECTURE} signed-by={keyring}]"
        (self._apt / "etc/sources.list").write_text(
            f"deb {options} {mirror} {RELEASE} main\n"
            f"deb {options} {mirror} {RELEASE}-updates main\n"
            f"deb {options} {security} {RELEASE}-security main\n"
        )
        configuration = self._apt / "apt.conf"
        configuration.write_text("".join(f"{line}\n" for line in [*self._settings(), *host_transport()]))
        return configuration

    def _settings(self) -> Iterable[str]:
        yield f'Dir "{self._apt}/";'
        yield 'Dir::State "state/";'
        yield f'Dir::State::status "{self._apt}/state/status";'
        yield 'Dir::Cache "cache/";'
        yield 'Dir::Etc "etc/";'
        yield 'Dir::Log "log/";'
        for part in ("main", "parts", "preferences", "preferencesparts", "sourceparts", "trusted", "trustedparts"):
            yield f'Dir::Etc::{part} "/dev/null";'
        yield f'APT::Architecture "{ARCHITECTURE}";'
        yield f'APT::Architectures {{ "{ARCHITECTURE}"; }};'
        yield 'Acquire::Languages "none";'
        yield 'Acquire::Retries "3";'


# apt-transport-https(1), apt.conf(5); `Acquire::https::HOST::NAME` and `Acquire::http::Proxy::HOST` are for one host.
_TRANSPORT = re.compile(
    r"Acquire::https?::(?:[^\s:]+::)?(?:Proxy|CaInfo|CaPath|SslCert|SslKey|Timeout|User-Agent)(?:::[^\s:]+)?"
    r" \"[^\"]+\";",
    re.IGNORECASE,
)


def host_mirrors(etc_apt: Path) -> tuple[str, str]:
    """Mirrors for the release and for its security updates: the host's own where it is a Debian 12, else Debian's.

    Both formats of apt's sources are read (sources.list(5)).
    """
    mirrors = {"": MIRROR, "-security": SECURITY_MIRROR}
    for address, suites in reversed(list(_sources(etc_apt))):
        for suffix in mirrors:
            if f"{RELEASE}{suffix}" in suites:
                mirrors[suffix] = address
    return mirrors[""], mirrors["-security"]


def _sources(etc_apt: Path) -> Iterable[tuple[str, list[str]]]:
    """Addresses and suites of the sources of Debian packages (component main) that the host has enabled."""
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            for line in text.splitlines():
                match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(https?://\S+)\s+(\S+)\s.*\bmain\b", line)
                if match:
                    yield match[1].rstrip("/"), [match[2]]
        elif path.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
                fields = {key.lower(): value.split() for key, value in re.findall(r"(?m)^([\w-]+):(.*)$", stanza)}
                enabled = fields.get("enabled", ["yes"]) != ["no"]
                address = next((uri for uri in fields.get("uris", []) if uri.startswith("http")), None)
                if address and enabled and "deb" in fields.get("types", []) and "main" in fields.get("components", []):
                    yield address.rstrip("/"), fields.get("suites", [])


def host_transport() -> list[str]:
    """Lines of the host's own apt configuration that say how to reach a mirror (proxies, certificates).

    Whatever else is set there is the host's own affair: above all what turns a verification off.
    """
    return transport_of(tools.run(["apt-config", "dump"], doing="read apt's configuration"))


def transport_of(dump: str) -> list[str]:
    """The same of the output of `apt-config dump`."""
    return [line for line in dump.splitlines() if _TRANSPORT.fullmatch(line)]
