"""The transformers engine: a batched sampler of our own over any Hugging Face causal LM, with a KV cache.

One call of `generate` is one unit: its requests are decoded together, step by step, in the order given, and no other
call's requests join them. The same calls in the same order therefore give the same bits. Between two steps the engine
is free: a push in `continue` mode happens there (the KV cache is kept, the spans say where).

Shapes: U distinct prompts, B rows, P prompt tokens after left padding, T tokens of a completion, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import Engine as EngineSettings
from configs.schema import Lora
from contracts.errors import EngineError
from contracts.protocols import Completion, InFlight, Request, WeightSet
from contracts.records import Span, StopReason
from inference.kv_cache import ATTENTION, BlockCache, make_cache
from inference.requests import failed_completion, is_servable
from inference.sampling import RowSampler
from inference.weights import check_weights, network_tensors
from models.lora import AdaptedBase

# Rows and prompt widths come in these steps, filled up with idle ones: on a CPU each new shape of a product is compiled
# (oneDNN), kept, and not all given back; rows that end one by one made hundreds of shapes, and a process that grew.
# Prompts are filled up only where they are many: an idle row costs as much as another prompt.
ROW_STEP, WIDTH_STEP, MANY_PROMPTS = 8, 8, 32
_COUNTERS = ("requests", "prompt_tokens", "completion_tokens", "busy_s", "pushes")


class TransformersEngine:
    """contracts.protocols.Engine over `model_folder`'s Hugging Face model. Loads in the constructor.

    With `lora.rank` above 0 what is pushed are adapters; the engine merges them into its own copy of the base.
    """

    def __init__(
        self,
        model_folder: Path,
        settings: EngineSettings,
        *,
        version: int = 0,
        lora: Lora = Lora(),  # noqa: B008 (frozen)
    ) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        if settings.device == "cpu":
            torch.set_num_threads(settings.threads)
        self._model = _load_model(model_folder, settings)
        self._parameters = dict(self._model.named_parameters())
        self._base = AdaptedBase(model_folder, lora) if lora.rank else None
        self._aliases = {} if self._base else _tied_names(self._model)
        self._version = version
        self._random = np.random.default_rng(0)
        self._state = threading.Condition()  # held during a decoding step; every field below changes under it
        self._paused: InFlight | None = None
        self._busy = False  # a unit is being decoded, guard units aside
        self._closed = False
        self._counts = dict.fromkeys(_COUNTERS, 0.0)

    @property
    def version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[Request], *, timeout_s: float, guard: bool = False) -> list[Completion]:
        deadline = time.monotonic() + timeout_s
        size = self._settings.max_sequences
        completions: list[Completion] = []
        for start in range(0, len(requests), size):
            with self._turn(guard=guard, deadline=deadline):
                completions += self._decode(requests[start : start + size], guard=guard, deadline=deadline)
        return completions

    def pause(self, in_flight: InFlight, *, timeout_s: float) -> None:
        self._paused = in_flight  # seen by the running unit at its next step, even if it never lets us have the lock
        with self._state:
            if in_flight is InFlight.CONTINUE or self._state.wait_for(lambda: not self._busy, timeout_s):
                return
            self._paused = None
            self._state.notify_all()
        raise EngineError(f"sequences in flight did not finish in {timeout_s:g} s")

    def push(self, weights: WeightSet) -> None:
        with self._state:
            if self._paused is None:
                raise EngineError("push before pause: the engine is generating")
            own = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
            check_weights(weights, self._base.shapes if self._base else own, aliases=self._aliases)
            with torch.no_grad():
                for name, tensor in network_tensors(weights, self._base):
                    if name in self._parameters:  # else a second name of a tied one
                        self._parameters[name].copy_(tensor)
            self._version = weights.version
            self._counts["pushes"] += 1

    def resume(self) -> None:
        with self._state:
            self._paused = None
            self._state.notify_all()

    def sleep(self, *, timeout_s: float) -> None:
        self.pause(InFlight.FINISH, timeout_s=timeout_s)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the weights stay; the cache of what was generated goes (not run)

    def wake(self) -> None:
        self.resume()

    def stats(self) -> Mapping[str, float]:
        return dict(self._counts)

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._state.notify_all()

    @contextmanager
    def _turn(self, *, guard: bool, deadline: float) -> Iterator[None]:
        """Hold the engine for one unit. Guard units neither wait for others nor are waited for."""
        with self._state:
            self._wait(lambda: guard or (self._paused is None and not self._busy), deadline)
            self._busy = self._busy or not guard
        try:
            yield
        finally:
            with self._state:
                self._busy = self._busy and guard
                self._state.notify_all()

    def _wait(self, ready: Callable[[], bool], deadline: float) -> None:
        """Wait, holding the lock, until `ready`. Raises EngineError at the deadline or when the engine closes."""
        in_time = self._state.wait_for(lambda: self._closed or ready(), max(0.0, deadline - time.monotonic()))
        if self._closed:
            raise EngineError("the engine is closed")
        if not in_time or time.monotonic() > deadline:
            raise EngineError("no completion within the time allowed")

    def _decode(self, requests: Sequence[Request], *, guard: bool, deadline: float) -> list[Completion]:
        config = self._model.config
        room, vocabulary = config.max_position_embeddings, config.vocab_size
        good = [one for one in requests if is_servable(one, max_positions=room, vocab_size=vocabulary)]
        unit = _Unit(good, random=self._random, device=self._device) if good else None
        while unit is not None and not unit.done:
            with self._state:
                self._wait(lambda: guard or self._paused is not InFlight.CONTINUE, deadline)
                start = time.perf_counter()
                try:
                    unit.step(self._model, self._version)
                except RuntimeError as error:  # torch's root of out-of-memory and kernel errors
                    raise EngineError(f"a decoding step failed: {error}") from error
                self._counts["busy_s"] += time.perf_counter() - start
        answers = {id(one): answer for one, answer in zip(good, unit.completions() if unit else (), strict=True)}
        with self._state:
            self._counts["requests"] += len(requests)
            self._counts["prompt_tokens"] += sum(len(request.prompt_ids) for request in good)
            self._counts["completion_tokens"] += sum(len(answer.token_ids) for answer in answers.values())
        return [answers.get(id(one)) or failed_completion(one, version=self._version) for one in requests]


class _Unit:
    """The requests of one call, decoded in lockstep: at step t every live row gets its token t."""

    def __init__(self, requests: Sequence[Request], *, random: np.random.Generator, device: torch.device) -> None:
        self._requests, self._device = requests, device
        samplings = [request.sampling for request in requests]
        self._sampler = RowSampler(samplings, shared=random, device=device)
        self._limit_B = torch.tensor([one.max_tokens for one in samplings], device=device)
        num_stops = max(len(one.stop_token_ids) for one in samplings)
        self._stop_BS = torch.tensor(
            [[*one.stop_token_ids] + [-1] * (num_stops - len(one.stop_token_ids)) for one in samplings], device=device
        )
        shape = (len(requests), int(self._limit_B.max()))
        self._tokens_BT = torch.zeros(shape, dtype=torch.int64, device=device)
        self._log_probs_BT = torch.zeros(shape, dtype=torch.float32, device=device)
        self._length_B = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._stopped_B = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self._rows = torch.arange(shape[0], device=device)  # which rows the cache still holds
        self._live = torch.ones(shape[0], dtype=torch.bool, device=device)  # which of those still generate
        self._step = 0
        self._spans: list[Span] = []
        self._cache: Any = None
        self._mask_BP = self._position_B1 = torch.empty(0)  # set by the prompt

    @property
    def done(self) -> bool:
        return not bool(self._live.any())

    @torch.inference_mode()
    def step(self, model: Any, version: int) -> None:
        """One token for each live row."""
        if not self._spans or self._spans[-1].version != version:
            self._spans.append(Span(start=self._step, version=version))
        logits_BV = self._prefill(model) if self._cache is None else self._extend(model)
        token_B, log_prob_B = self._sampler.draw(logits_BV, self._rows, self._step)
        rows, live = self._rows[self._live], self._live
        self._tokens_BT[rows, self._step] = token_B[live]
        self._log_probs_BT[rows, self._step] = log_prob_B[live]
        self._step += 1
        self._length_B[rows] = self._step
        self._stopped_B[rows] = (token_B[live][:, None] == self._stop_BS[rows]).any(dim=1)
        self._live = live & ~self._stopped_B[self._rows] & (self._step < self._limit_B[self._rows])
        self._drop_finished()

    def completions(self) -> list[Completion]:
        tokens_BT = self._tokens_BT.cpu().numpy().astype(np.int32)
        log_probs_BT, lengths = self._log_probs_BT.cpu().numpy(), self._length_B.tolist()
        return [
            Completion(
                request_id=request.request_id,
                token_ids=tokens_BT[i, : lengths[i]].copy(),
                log_probs=log_probs_BT[i, : lengths[i]].copy(),
                spans=tuple(span for span in self._spans if span.start < lengths[i]),
                stop_reason=StopReason.TERMINATED if stopped else StopReason.LENGTH,
            )
            for i, (request, stopped) in enumerate(zip(self._requests, self._stopped_B.tolist(), strict=True))
        ]

    def _prefill(self, model: Any) -> torch.Tensor:
        """Read each distinct prompt once (a group asks the same one many times) and copy its cache to every row."""
        prompts = [request.prompt_ids for request in self._requests]
        places: dict[bytes, int] = {}
        place_B = torch.tensor([places.setdefault(ids.tobytes(), len(places)) for ids in prompts], device=self._device)
        width = _round_up(max(len(ids) for ids in prompts), WIDTH_STEP)
        num_rows = _round_up(len(places), ROW_STEP) if len(places) >= MANY_PROMPTS else len(places)
        ids_UP = np.zeros((num_rows, width), dtype=np.int64)
        mask_UP = np.zeros_like(ids_UP)
        mask_UP[len(places) :, -1] = 1  # of rows that nobody asked for: a row that sees nothing is not a number
        for ids in prompts:
            ids_UP[places[ids.tobytes()], width - len(ids) :] = ids
            mask_UP[places[ids.tobytes()], width - len(ids) :] = 1
        mask = torch.from_numpy(mask_UP).to(self._device)
        output = model(
            input_ids=torch.from_numpy(ids_UP).to(self._device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=make_cache(model),
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        if len(ids_UP) != len(prompts) or len(places) < len(prompts):
            self._cache.batch_select_indices(place_B)
        self._mask_BP = mask[place_B]
        self._position_B1 = self._mask_BP.sum(dim=1, keepdim=True)
        return output.logits[place_B, -1]  # type: ignore[no-any-return]

    def _extend(self, model: Any) -> torch.Tensor:
        output = model(
            input_ids=self._tokens_BT[self._rows, self._step - 1][:, None],
            attention_mask=self._next_mask(),
            position_ids=self._position_B1,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._position_B1 = self._position_B1 + self._live[:, None]
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _next_mask(self) -> torch.Tensor:
        """What the next token may look at: padding and, in a BlockCache, room that is not written yet are hidden."""
        self._mask_BP = torch.cat([self._mask_BP, torch.ones_like(self._position_B1)], dim=1)
        if not isinstance(self._cache, BlockCache):
            return self._mask_BP
        rows, seen = self._mask_BP.shape
        hidden = torch.full((rows, 1, 1, self._cache.make_room(1)), -torch.inf, device=self._device)
        hidden[:, 0, 0, :seen].masked_fill_(self._mask_BP.bool(), 0.0)
        return hidden

    def _drop_finished(self) -> None:
        """Live rows from the end take the places of finished ones, so that no more is copied than has ended.

        A cache of the library's own is copied whole, about a step's cost: worth it once half of the rows are idle.
        """
        num_live, num_rows = int(self._live.sum()), len(self._rows)
        num_kept = _round_up(num_live, ROW_STEP)
        if not 0 < num_kept < (num_rows if isinstance(self._cache, BlockCache) else num_rows // 2 + 1):
            return
        order = torch.arange(num_kept, device=self._device)
        movers = num_kept + self._live[num_kept:].nonzero()[:, 0]
        holes = (~self._live[:num_kept]).nonzero()[: len(movers), 0]
        order[holes] = movers
        self._cache.batch_select_indices(order)
        self._rows, self._live = self._rows[order], self._live[order]
        self._position_B1, self._mask_BP = self._position_B1[order], self._mask_BP[order]


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _load_model(folder: Path, settings: EngineSettings) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, settings.dtype), attn_implementation=ATTENTION, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise EngineError(f"no model could be loaded from {folder}: {error}") from error
    return model.to(settings.device).eval()


def _tied_names(model: Any) -> dict[str, str]:
    """Second names of shared parameters, to the first: lm_head.weight where embeddings are tied."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    return {name: known for name, one in every if (known := first.setdefault(id(one), name)) != name}
