"""A generate call in another thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from contracts.protocols import Completion, Engine, Request


class Running:
    """Starts at once. `begun`: return only when the engine has made its first step for it."""

    def __init__(self, engine: Engine, asked: Sequence[Request], *, begun: bool = True) -> None:
        before = engine.stats()["busy_s"]
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(engine.generate, asked, timeout_s=60)
        while begun and engine.stats()["busy_s"] == before:
            time.sleep(0.001)

    @property
    def done(self) -> bool:
        return self._future.done()

    def result(self) -> list[Completion]:
        with self._pool:
            return self._future.result()
