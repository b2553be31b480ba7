"""What makes one guest of the clones of a template another."""

import random
from pathlib import Path

import pytest

from kata_agent.guest import machine


def test_random_numbers_and_machine_id_are_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[bytes] = []
    monkeypatch.setattr(machine, "reseed", given.append)
    monkeypatch.setattr(machine, "MACHINE_ID", tmp_path / "machine-id")
    before = random.getstate()
    drawn: set[object] = set()
    for entropy in (b"one", b"other"):
        random.setstate(before)
        machine.renew(entropy)
        drawn |= {random.getrandbits(64), (tmp_path / "machine-id").read_text()}
        # machine-id(5): 32 hexadecimal digits and a newline.
        assert int((tmp_path / "machine-id").read_text(), 16).bit_length() <= 128
        assert len((tmp_path / "machine-id").read_text()) == 33
    assert given == [b"one", b"other"]
    assert len(drawn) == 4
