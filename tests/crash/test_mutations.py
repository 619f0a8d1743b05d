"""The faults of tests/crash/mutations.py fit the source; a fault that nothing notices is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash import mutations


def test_every_fault_fits_the_source() -> None:
    assert mutations.find_misfits() == []
    assert len({fault.name for fault in mutations.FAULTS}) == len(mutations.FAULTS) >= 15
    for fault in mutations.FAULTS:
        file, _, name = fault.test.partition("::")
        assert f"def {name}(" in (mutations.ROOT / file).read_text()
        assert fault.old != fault.new


def test_a_fault_without_a_place_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lost = replace(mutations.FAULTS[0], old="what nobody wrote")
    monkeypatch.setattr(mutations, "FAULTS", (lost,))
    monkeypatch.setattr("sys.argv", ["mutations"])
    assert mutations.main() == 2
    assert f"{lost.name}: its text is 0 times in {lost.file}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fault_is_noticed_and_a_change_that_is_none_is_not(tmp_path: Path) -> None:
    mutations.copy_source(tmp_path)
    real = next(fault for fault in mutations.FAULTS if fault.name == "the epoch is not raised")
    assert mutations.try_fault(real, tmp_path)
    assert not mutations.try_fault(replace(real, new=real.old), tmp_path)
