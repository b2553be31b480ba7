import pytest

from kata_common.text import printable, told

# What a terminal, or whoever reads a log, would take for more than text.
HOSTILE = {
    "escape": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "title": ("\x1b]0;root@host\x07", r"\x1b]0;root@host\x07"),
    "8-bit control": ("\x9b31m", r"\x9b31m"),
    "backspace": ("ok\b\bno", r"ok\x08\x08no"),
    "carriage return": ("error\rfine ", r"error\rfine "),
    "new line": ("one\nkata-runtime: two", r"one\nkata-runtime: two"),
    "nul": ("a\0b", r"a\x00b"),
    "delete": ("a\x7f", r"a\x7f"),
    "direction": ("\u202ecod\u2066\u2069\u200f", r"\u202ecod\u2066\u2069\u200f"),
    "other lines": ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    "invisible": ("a\u200bb\ufeff\U000e0041", r"a\u200bb\ufeff\U000e0041"),
    "lone surrogate": ("a\udcffb", r"a\udcffb"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_text_is_shown(name: str) -> None:
    text, shown = HOSTILE[name]
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_text_stays_as_it_is() -> None:
    text = r"C:\temp: Größe 10 µs 容器 😀 naïve"
    assert printable(text) is text


def test_a_message_of_several_lines_can_not_begin_another() -> None:
    message = "agent: it said: oh\nkata-runtime: all is well\r\n  | quoted\n\ttab\x1b\n\n"
    shown = "agent: it said: oh\n  kata-runtime: all is well\\r\n  | quoted\n  tab\\x1b"
    assert told(message) == shown
    assert told("\x1b" * 10, 4).splitlines()[1] == "  … (6 more characters)"
    assert told("") == ""


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hostile_is_told(name: str) -> None:
    text, _ = HOSTILE[name]
    assert all(line.isprintable() for line in told(f"error: {text}").split("\n"))


@pytest.mark.parametrize("character", ["x", "\x1b", "\U000e0041"])
def test_its_length_is_bounded(character: str) -> None:
    shown = printable(character * 1_000_000, 100)
    assert shown.endswith("… (999900 more characters)")
    assert len(shown) < 100 * 10 + 40
    assert printable("x" * 100, 100) == "x" * 100
