"""What is told once."""

from pathlib import Path

from kata_runtime.told import first_time


def test_once_until_it_changes(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert [first_time("kvm", "a", directory), first_time("kvm", "a", directory)] == [True, False]
    assert [first_time("kvm", "b", directory), first_time("kvm", "b", directory)] == [True, False]
    assert first_time("other", "b", directory)


def test_where_nothing_can_be_noted_all_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert first_time("kvm", "a", tmp_path / "file")
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / ".told-kvm").symlink_to(precious)
    assert first_time("kvm", "a", tmp_path)
    assert precious.read_text() == "x"
