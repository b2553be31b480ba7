"""What fuzzing has found; the inputs are in tests/fuzz/corpus, so that every run tries them again."""

from typing import NamedTuple

__all__ = ["FINDINGS", "Finding"]


class Finding(NamedTuple):
    """By which target; what it was; what mends its kind."""

    target: str
    what: str
    mended: str


_DEEP = "every parser of JSON goes through `kata_common.documents.parse_json`; a test finds those that don't"
_LONG = "paths that others give are looked at by `kata_common.files`"
_TIME = "times of OTLP, Jaeger's and Perfetto's files that do not fit 64 bits are none"
FINDINGS = (
    Finding("annotations", "RecursionError for a config.json with a value that is nested some thousand times", _DEEP),
    Finding("pool", "the same, in the pool's server: one message ended it", _DEEP),
    Finding("otlp-received", "the same, where a collector's sender writes to `trace serve`", _DEEP),
    Finding(
        "qmp", "UnicodeDecodeError where QEMU's monitor says what is no UTF-8", "`Qmp` translates it (HypervisorError)"
    ),
    Finding(
        "agent-exec",
        "TypeError for a scheduler's policy or flags, or an I/O class, of another type",
        "types come first (InvalidError)",
    ),
    Finding("agent-resources", "TypeError for a page size that is a list", "the same"),
    Finding(
        "oci-bundle",
        "TypeError for a device whose number is a list",
        "devices, annotations and sysctls have shapes that are checked",
    ),
    Finding("oci-bundle", "OSError for a root file system or resolv.conf whose path is too long for any file", _LONG),
    Finding(
        "addresses",
        "ValueError for a prefix length of more than 4,300 digits; the same in signals, fd:// and Content-Length",
        "`kata_common.text.is_number` has a bound",
    ),
    Finding("export-settings", "ValueError for an endpoint with a bracket too many", "it is told as no URL"),
    Finding("management-http", "status 500 for a query of more than twenty words", "refused as a bad request"),
    Finding("trace-meta", "UnicodeEncodeError in metrics for a lone surrogate in meta.json", "read as a question mark"),
    Finding(
        "rtnetlink",
        "ValueError for an address of another family's length, or a number of hundreds of bits",
        "such an address is none; numbers have 64 bits",
    ),
    Finding("otlp-json", "SystemError out of protobuf for a name with a lone surrogate", "such a line is no OTLP/JSON"),
    Finding("trace-lines", "OverflowError in views where a time has hundreds of digits", _TIME),
    Finding("jaeger-file", "the same", _TIME),
    Finding("perfetto-file", "the same, and from floats", _TIME),
    Finding(
        "export-settings",
        "an endpoint with blanks in its host's name meant another one for the exporter's process",
        "such an endpoint is refused",
    ),
)
