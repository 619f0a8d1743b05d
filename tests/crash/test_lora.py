"""A run with adapters that loses its power between two checkpoints: it goes on with the same bits."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.run import DRAIN_S, Run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.mark.slow
def test_adapters_are_rebuilt_bit_for_bit(tmp_path: Path) -> None:
    """Dropout on: what it drew in the steps that are computed again must be drawn again."""
    with closing(Run(tmp_path)) as run:
        run.launch(model__lora__rank=4, model__lora__dropout=0.1, learner__kl_coefficient=0.01)
        run.wait_for_step(13)
        run.kill_all()
        before = run.step()
        run.launch()
        run.wait_to_go_on()
        run.interrupt()
        assert run.wait_end(timeout_s=DRAIN_S)[1] == 130, run.read_output()
        heard, lost, doubled, balanced, equal = run.check_store()
        assert heard > 0
        assert (lost, doubled, balanced, equal) == (0, 0, True, True)
        assert run.step() > before
        replay = run.ratchet("replay", str(run.folder))
        assert replay.returncode == 0, replay.stdout + replay.stderr
