"""A view sees what is durable, of a live store and of a dead one, and owns nothing."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from buffers.view import StoreView
from contracts.errors import StoreIdentityError
from contracts.records import Kind
from tests.unit.buffers.bench import opened


def test_a_view_of_a_live_store_follows_it(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        view = StoreView.open(tmp_path, uuid=str(bench.owner.uuid))
        assert view.ledger().handed == 0
        bench.serve(0)
        acks = bench.play(bench.lease())
        bench.cut(1)
        assert view.ledger().handed == 0
        view.refresh()
        assert view.ledger() == bench.owner.ledger()
        assert view.fold == bench.owner._state.fold
        assert view.decisions() == bench.owner.decisions()
        assert [episode.member for episode in view.episodes([ack.lsn for ack in acks[:2]])] == [0, 1]
        view.refresh()
        assert view.fold == bench.owner._state.fold


def test_a_view_of_a_dead_store_is_its_last_state(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        bench.serve(0)
        bench.play(bench.lease())
        ledger = bench.owner.ledger()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with StoreView.open(tmp_path) as view:
        assert view.ledger() == ledger
        assert [record.KIND for _, record in view.decisions(kinds=[Kind.SERVED])] == [Kind.SERVED]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_view_of_no_store_or_another_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreIdentityError, match="no store"):
        StoreView.open(tmp_path / "nothing")
    with opened(tmp_path / "store"):
        pass
    with pytest.raises(StoreIdentityError, match="which was asked for"):
        StoreView.open(tmp_path / "store", uuid=uuid4())
