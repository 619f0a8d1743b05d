"""The engine of control runs: a small policy network that acts for many environments in one forward pass.

Callers that wait at the same time are served together: whoever holds the engine answers everyone (dynamic
micro-batching). The draw comes from the request's own noise: an action depends on weights, observation and noise alone.
The last bits of its log-prob may depend on how many rows shared the pass: matrix products are cut by their size.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.schema import Engine as EngineSettings
from contracts.errors import EngineError
from contracts.protocols import Actions, ActRequest, InFlight, WeightSet
from inference.weights import as_tensor, check_weights
from models.actor_critic import load_policy

_COUNTERS = ("requests", "prompt_tokens", "completion_tokens", "busy_s", "pushes", "passes")


@dataclass
class _Call:
    """One caller's requests, and the answers once somebody made them."""

    requests: Sequence[ActRequest]
    guard: bool
    answers: list[Actions] | None = None
    error: str = ""


class TorchPolicyEngine:
    """contracts.protocols.PolicyEngine. Counters: a request is one observation, and so are its "tokens"."""

    def __init__(self, model_folder: Path, settings: EngineSettings, *, version: int = 0) -> None:
        if settings.device == "cpu":
            torch.set_num_threads(settings.threads)
        self._settings, self._version = settings, version
        self._network = load_policy(model_folder).to(settings.device).requires_grad_(False)
        self._discrete = self._network.spaces.num_actions > 0
        self._calls: deque[_Call] = deque()
        self._state = threading.Condition()  # held during a forward pass
        self._paused = self._closed = False
        self._counts = dict.fromkeys(_COUNTERS, 0.0)

    @property
    def version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[ActRequest], *, timeout_s: float, guard: bool = False) -> list[Actions]:
        self._check(requests)
        deadline = time.monotonic() + timeout_s
        call = _Call(requests, guard)
        self._calls.append(call)
        with self._state:
            while call.answers is None:
                if self._closed or call.error:
                    raise EngineError(call.error or "the engine is closed")
                if guard or not self._paused:
                    self._serve()
                elif not self._state.wait(deadline - time.monotonic()) and call.answers is None:
                    self._calls.remove(call)
                    raise EngineError("no action within the time allowed")
        return call.answers

    def pause(self, in_flight: InFlight, *, timeout_s: float) -> None:
        with self._state:
            self._paused = True

    def push(self, weights: WeightSet) -> None:
        with self._state:
            if not self._paused:
                raise EngineError("push before pause: the engine is acting")
            state = self._network.state_dict()
            check_weights(weights, {name: tuple(tensor.shape) for name, tensor in state.items()}, aliases={})
            for name, tensor in state.items():
                tensor.copy_(as_tensor(weights.tensors[name], weights.dtypes[name]))
            self._version = weights.version
            self._counts["pushes"] += 1

    def resume(self) -> None:
        with self._state:
            self._paused = False
            self._state.notify_all()

    def sleep(self, *, timeout_s: float) -> None:
        self.pause(InFlight.FINISH, timeout_s=timeout_s)  # a few kilobytes: nothing to free

    def wake(self) -> None:
        self.resume()

    def stats(self) -> Mapping[str, float]:
        return dict(self._counts)

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()

    def _serve(self) -> None:
        """Answer everyone who waits and may be answered, at most `max_sequences` rows a pass."""
        served: list[_Call] = []
        kept: list[_Call] = []
        rows = 0
        while self._calls:
            call = self._calls.popleft()
            size = sum(len(request.observations) for request in call.requests)
            may = call.guard or not self._paused
            if may and (not served or rows + size <= self._settings.max_sequences):
                served.append(call)
                rows += size
            else:
                kept.append(call)
        self._calls.extendleft(reversed(kept))
        try:
            answers = iter(self._act([request for call in served for request in call.requests]))
        except RuntimeError as error:  # torch; nobody may wait for ever because of it
            for call in served:
                call.error = f"the policy could not act: {error}"
        else:
            for call in served:
                call.answers = [next(answers) for _ in call.requests]
        self._state.notify_all()

    def _act(self, requests: Sequence[ActRequest]) -> list[Actions]:
        if not requests:
            return []
        began = time.perf_counter()
        device = self._settings.device
        observations_ND = torch.from_numpy(np.concatenate([one.observations for one in requests])).to(device)
        with torch.no_grad():
            distribution = self._network.act(observations_ND)
            drawn = distribution.likeliest()
            places = np.cumsum([0, *(len(one.observations) for one in requests)])
            if any(one.noise is not None for one in requests):
                drawn = drawn.clone()
                sampled = distribution.draw(self._noise(requests).to(device))
                for one, start, end in zip(requests, places[:-1], places[1:], strict=True):
                    if one.noise is not None:
                        drawn[start:end] = sampled[start:end]
            log_probs_N = distribution.log_probs(drawn).cpu().numpy()
        drawn = drawn.int() if self._discrete else drawn.float()
        actions = drawn.cpu().numpy()
        self._counts["busy_s"] += time.perf_counter() - began
        self._counts["passes"] += 1
        for counter in ("requests", "prompt_tokens", "completion_tokens"):
            self._counts[counter] += len(actions)
        return [
            Actions(
                request_id=one.request_id,
                actions=actions[start:end],
                log_probs=log_probs_N[start:end],
                version=self._version,
            )
            for one, start, end in zip(requests, places[:-1], places[1:], strict=True)
        ]

    def _noise(self, requests: Sequence[ActRequest]) -> torch.Tensor:
        """The rows' noise; rows without any get the middle of the distribution, which is not used."""
        size = self._network.spaces.action_size
        parts = [
            np.zeros((len(one.observations), *(() if self._discrete else (size,))), np.float32)
            if one.noise is None
            else one.noise
            for one in requests
        ]
        return torch.from_numpy(np.concatenate(parts))

    def _check(self, requests: Sequence[ActRequest]) -> None:
        spaces = self._network.spaces
        for one in requests:
            rows = len(one.observations)
            wanted = (rows,) if self._discrete else (rows, spaces.action_size)
            if one.observations.shape != (rows, spaces.observation_size) or one.observations.dtype != np.float32:
                raise EngineError(
                    f"request {one.request_id}: observations are {one.observations.dtype} {one.observations.shape}, "
                    f"the policy takes float32 [N, {spaces.observation_size}]"
                )
            if one.noise is not None and one.noise.shape != wanted:
                raise EngineError(f"request {one.request_id}: its noise has shape {one.noise.shape}, not {wanted}")
