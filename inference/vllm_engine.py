"""The vLLM engine: continuous batching behind contracts.protocols.Engine.

vLLM's core is not thread-safe and, in-process, has no loop of its own. One thread here owns it; callers leave their
requests in a queue and wait.

    generate ──► waiting ──► running (in the core) ──► done         one turn of the thread: calls, admissions, one step
                    ▲            │
                    └── pause ───┘   CONTINUE: out of the core with the tokens they have; back on resume, where the
                                     prompt and those tokens are read again under the new weights

Taking the sequences out leaves the core empty, so a push can empty the prefix cache, and the guard's probes run alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import Engine as EngineSettings
from configs.schema import Lora
from contracts.errors import EngineError
from contracts.protocols import Completion, InFlight, Request, WeightSet
from contracts.records import Span, StopReason
from inference.requests import failed_completion, is_servable
from inference.weights import check_weights, network_tensors
from models.lora import AdaptedBase

if TYPE_CHECKING:
    from inference.vllm_core import Cures, VllmCore

_COUNTERS = ("requests", "prompt_tokens", "completion_tokens", "busy_s", "pushes")


@dataclass(eq=False)
class _Sequence:
    """A request on its way through the engine."""

    request: Request
    guard: bool
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    stop_reason: StopReason | None = None  # None: not done

    def completion(self) -> Completion:
        assert self.stop_reason is not None
        return Completion(
            request_id=self.request.request_id,
            token_ids=np.array(self.token_ids, dtype=np.int32),
            log_probs=np.array(self.log_probs, dtype=np.float32),
            spans=tuple(self.spans),
            stop_reason=self.stop_reason,
        )


class VllmEngine:
    """contracts.protocols.Engine over `model_folder`'s model in vLLM. Loads in the constructor.

    With `lora.rank` above 0 what is pushed are adapters; the engine merges them into its own copy of the base.
    `sleeps`: on a GPU `sleep` gives the memory back, which has to be known when vLLM takes it.
    `cures`: tests switch off what is done about vLLM's silent faults; None is all of them (vllm_core.Cures).
    """

    def __init__(
        self,
        model_folder: Path,
        settings: EngineSettings,
        *,
        version: int = 0,
        lora: Lora = Lora(),  # noqa: B008 (frozen)
        sleeps: bool = False,
        cures: Cures | None = None,
    ) -> None:
        self._settings = settings
        self._base = AdaptedBase(model_folder, lora) if lora.rank else None
        self._version = version
        self._state = threading.Condition()  # every field below changes under it
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[str, _Sequence] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # to run on the engine's thread
        self._paused: InFlight | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._num_admitted = 0
        self._counts = dict.fromkeys(_COUNTERS, 0.0)
        ready: Future[VllmCore] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(model_folder, sleeps, cures, ready), name="vllm-engine", daemon=True
        )
        self._thread.start()
        self._core = ready.result()
        from inference.vllm_core import checkpoint_shapes

        self._shapes = self._base.shapes if self._base else checkpoint_shapes(model_folder)
        tied = self._core.tied and self._base is None
        self._aliases = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
        for alias in self._aliases:
            self._shapes.pop(alias, None)

    @property
    def version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        limits = {"max_positions": self._core.max_positions, "vocab_size": self._core.vocab_size}
        sequences = [_Sequence(one, guard) if is_servable(one, **limits) else None for one in requests]
        mine = [one for one in sequences if one is not None]
        with self._state:
            self._waiting.extend(mine)
            self._state.notify_all()
            done = self._state.wait_for(lambda: self._broken or all(one.stop_reason for one in mine), timeout_s)
            if self._broken or not done:
                self._forget(mine)
                raise EngineError(self._trouble() if self._broken else f"no completion within {timeout_s:g} s")
            self._counts["requests"] += len(requests)
            self._counts["prompt_tokens"] += sum(len(one.request.prompt_ids) for one in mine)
        return [
            failed_completion(request, version=self._version) if sequence is None else sequence.completion()
            for request, sequence in zip(requests, sequences, strict=True)
        ]

    def pause(self, in_flight: InFlight, *, timeout_s: float) -> None:
        with self._state:
            self._paused = in_flight
            if in_flight is InFlight.FINISH:
                idle = self._state.wait_for(lambda: self._broken or not self._in_flight(), timeout_s)
                if not idle:
                    self._paused = None
                    self._state.notify_all()
                    raise EngineError(f"sequences in flight did not finish in {timeout_s:g} s")
                if self._broken:
                    raise EngineError(self._trouble())
        if in_flight is InFlight.CONTINUE:
            self._call(self._take_out, timeout_s)

    def push(self, weights: WeightSet) -> None:
        if self._paused is None:
            raise EngineError("push before pause: the engine is generating")
        check_weights(weights, self._shapes, aliases=self._aliases)
        self._call(lambda: self._load(weights), self._settings.timeout_s)

    def resume(self) -> None:
        with self._state:
            self._paused = None
            self._state.notify_all()

    def sleep(self, *, timeout_s: float) -> None:
        self.pause(InFlight.FINISH, timeout_s=timeout_s)
        self._call(self._core.sleep, timeout_s)

    def wake(self) -> None:
        self._call(self._core.wake, self._settings.timeout_s)
        self.resume()

    def stats(self) -> Mapping[str, float]:
        return dict(self._counts)

    def connect(self, rendezvous: Mapping[str, Any]) -> None:
        """With transport nccl: join the learner's group before the first push (needs GPUs: not run).

        A push then reads names, dtypes and shapes of its WeightSet and receives the values by the learner's broadcast.
        """
        self._call(lambda: self._core.connect(dict(rendezvous)), self._settings.timeout_s)

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.join()

    # ------------------------------------------------------------------------------------ the caller's side

    @property
    def _broken(self) -> bool:
        return self._closed or self._failure is not None

    def _trouble(self) -> str:
        return "the engine is closed" if self._closed else f"vLLM failed: {self._failure}"

    def _in_flight(self) -> dict[str, _Sequence]:
        return {core_id: one for core_id, one in self._running.items() if not one.guard}

    def _forget(self, sequences: Sequence[_Sequence]) -> None:
        """Nobody waits for these any more. Holds the lock."""
        gone = set(sequences)
        self._waiting = deque(one for one in self._waiting if one not in gone)
        core_ids = [core_id for core_id, one in self._running.items() if one in gone]
        for core_id in core_ids:
            del self._running[core_id]
        self._calls.append((lambda: self._core.drop(core_ids), Future()))
        self._state.notify_all()

    def _call(self, work: Callable[[], None], timeout_s: float) -> None:
        """Run `work` on the engine's thread, between two steps. Raises EngineError."""
        future: Future[None] = Future()
        with self._state:
            if self._broken:
                raise EngineError(self._trouble())
            self._calls.append((work, future))
            self._state.notify_all()
        try:
            future.result(timeout_s)
        except TimeoutError as error:
            raise EngineError(f"vLLM did not answer within {timeout_s:g} s") from error

    # ------------------------------------------------------------------------------------ the engine's thread

    def _run(self, model_folder: Path, sleeps: bool, cures: Cures | None, ready: Future[VllmCore]) -> None:
        try:
            from inference.vllm_core import Cures, VllmCore

            self._core = VllmCore(model_folder, self._settings, sleeps=sleeps, cures=cures or Cures())
        except BaseException as error:  # noqa: BLE001 the constructor's caller hears of it
            ready.set_exception(error)
            return
        ready.set_result(self._core)
        try:
            while not self._closed:
                self._turn()
        except Exception as error:  # noqa: BLE001 whatever vLLM raised: everyone who waits hears of it
            self._failure = error
        with self._state:
            for _, future in self._calls:
                future.set_exception(EngineError(self._trouble()))
            self._state.notify_all()
        self._core.close()

    def _turn(self) -> None:
        """Wait for something to do; then calls, admissions, one step."""
        with self._state:
            self._state.wait_for(lambda: self._closed or self._calls or self._running or self._admissible())
            calls, self._calls = self._calls, deque()
        for work, future in calls:
            try:
                future.set_result(work())
            except EngineError as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(EngineError(f"vLLM failed: {error}"))
                raise
        with self._state:
            self._admit()
            stepping = bool(self._running)
        if stepping:
            start = time.perf_counter()
            progress = self._core.step()
            with self._state:
                self._counts["busy_s"] += time.perf_counter() - start
                self._absorb(progress)

    def _admissible(self) -> list[_Sequence]:
        return [one for one in self._waiting if one.guard or self._paused is None]

    def _admit(self) -> None:
        for one in self._admissible():
            self._num_admitted += 1
            core_id = str(self._num_admitted)
            ids = [*one.request.prompt_ids.tolist(), *one.token_ids]
            self._running[core_id] = one
            try:
                self._core.add(core_id, token_ids=ids, sampling=one.request.sampling, done=len(one.token_ids))
            except ValueError:  # a sampling that vLLM does not take; the others of the call are not affected
                self._end(core_id, StopReason.ENGINE_ERROR)
                self._state.notify_all()
        self._waiting = deque(one for one in self._waiting if not one.guard and self._paused is not None)

    def _absorb(self, progress: Sequence[Any]) -> None:
        finished = False
        for news in progress:
            one = self._running.get(news.core_id)
            if one is None:  # given up by its caller during the step
                continue
            if news.token_ids and (not one.spans or one.spans[-1].version != self._version):
                one.spans.append(Span(start=len(one.token_ids), version=self._version))
            one.token_ids += news.token_ids
            one.log_probs += news.log_probs
            self._counts["completion_tokens"] += len(news.token_ids)
            if news.stop_reason is not None:
                self._end(news.core_id, news.stop_reason)
                finished = True
        if finished:
            self._state.notify_all()

    def _end(self, core_id: str, reason: StopReason) -> None:
        one = self._running.pop(core_id)
        one.spans = one.spans or [Span(start=0, version=self._version)]
        one.stop_reason = reason

    def _take_out(self) -> None:
        """Empty the core of everything but the guard's probes; what it held waits in front, tokens kept."""
        with self._state:
            taken = self._in_flight()
            if taken and self._core.remove(list(taken)):
                self._waiting.extendleft(reversed(taken.values()))
                for core_id in taken:
                    del self._running[core_id]
            else:
                for core_id in taken:
                    self._end(core_id, StopReason.ENGINE_ERROR)
                self._state.notify_all()

    def _load(self, weights: WeightSet) -> None:
        if self._running:
            raise EngineError("push while sequences are in flight")
        self._core.load(weights, network_tensors(weights, self._base))
        self._version = weights.version
        self._counts["pushes"] += 1
