"""What an episode must be before a learner may read it; what is not is kept in quarantine, with the reason."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from operator import attrgetter
from typing import Any, NamedTuple, cast

import numpy as np

from buffers.codec import decode, encode
from buffers.log.frames import MAX_FRAME_BYTES
from buffers.plain import LAST_S, MAX_INT, find_misfits
from contracts.errors import StoreError
from contracts.records import Episode, Fault, FloatArray, IntArray, Kind, Purpose, Quarantined, Span, Step, StopReason

_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)
_FARTHEST_S = float(1 << 43)  # in microseconds a number of 64 bits
_TEXTS = ("episode_id", "task_id", "environment", "environment_version", "reward_code", "producer")
_WHOLE = ("lease", "member", "producer_epoch", "seq", "retries")
_values_of = attrgetter(
    *_WHOLE, *_TEXTS, "purpose", "stop_reason", "wall_time", "reward_parts", "steps", "spans", "reward",
    "reward_deadline",
)  # fmt: skip
_NUMBER_OR_NONE: tuple[type, type] = (float, type(None))
# The types of these in an episode that is as its record says, as nearly all are.
_PLAIN: frozenset[tuple[type, ...]] = frozenset(
    (*[int] * len(_WHOLE), *[str] * len(_TEXTS), Purpose, StopReason, float, dict, tuple, tuple, *rewards)
    for rewards in product(_NUMBER_OR_NONE, repeat=2)
)
# What stands in the place of a value that is none.
_INSTEAD: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, ""), **dict.fromkeys(_WHOLE, -1), "purpose": Purpose.TRAIN, "producer_epoch": 0,
    "stop_reason": StopReason.ENV_INVALID, "wall_time": 0.0, "reward_parts": {}, "steps": (), "spans": (),
    "reward": None, "reward_deadline": None, "retries": 0,
}  # fmt: skip


class Flaw(NamedTuple):
    """Why no learner may read an episode. `detail` is one sentence."""

    fault: Fault
    detail: str


def examine(episode: Episode) -> tuple[Episode, bytes | Flaw]:
    """The episode in plain values, as everyone will read it, with its record or what is wrong with it by itself."""
    if _is_plain(episode):
        return episode, find_flaw(episode) or encode_checked(episode)
    episode, flaw = _make_plain(episode)
    return episode, flaw or find_flaw(episode) or encode_checked(episode)


def find_flaw(episode: Episode) -> Flaw | None:
    """The first flaw in what an episode of plain values itself says; None where there is none."""
    return _check_head(episode) or _check_reward(episode) or _check_steps(episode) or _check_spans(episode)


def encode_checked(episode: Episode) -> bytes | Flaw:
    """The episode's record, or why it has none that fits into a frame."""
    try:
        payload = encode(episode)
    except StoreError as error:
        return Flaw(Fault.UNREADABLE, str(error))
    if len(payload) > MAX_FRAME_BYTES:
        return Flaw(Fault.OVERSIZED, f"its record has {len(payload)} bytes; a frame holds {MAX_FRAME_BYTES}")
    return payload


def quarantine(episode: Episode, flaw: Flaw) -> Quarantined:
    """What is kept in its place. A record that just fits into a frame goes without its payload."""
    try:
        payload = encode(episode)
    except StoreError:
        payload = b""
    room = MAX_FRAME_BYTES - (64 << 10)  # for what stands around it
    return Quarantined(
        fault=flaw.fault,
        detail=_to_text(flaw.detail[:1000]),
        episode_id=_to_text(episode.episode_id),
        lease=episode.lease,
        member=episode.member,
        task_id=_to_text(episode.task_id),
        producer=_to_text(episode.producer),
        producer_epoch=episode.producer_epoch,
        seq=episode.seq,
        wall_time=episode.wall_time if abs(episode.wall_time) <= LAST_S else 0.0,
        num_bytes=len(payload),
        payload=np.frombuffer(payload if len(payload) <= room else b"", dtype=np.uint8),
    )


def _to_text(text: str) -> str:
    """What UTF-8 can hold of it."""
    return text.encode(errors="replace").decode()


# ---------------------------------------------------------------------------------------------- plain values


def _is_plain(episode: Episode) -> bool:
    """Whether memory has what the log will give back. Every episode is asked, so nothing is called that need not be."""
    values = _values_of(episode)
    if tuple(map(type, values)) not in _PLAIN or max(values[: len(_WHOLE)]) > MAX_INT:
        return False
    for span in episode.spans:
        if type(span) is not Span or type(span.start) is not int or type(span.version) is not int:
            return False
        if span.version > MAX_INT or span.start > MAX_INT:
            return False
    for step in episode.steps:
        if type(step) is not Step or (step.end is not None and type(step.end) is not StopReason):
            return False
    return all(type(name) is str and type(part) in (float, int) for name, part in episode.reward_parts.items())


def _make_plain(episode: Episode) -> tuple[Episode, Flaw | None]:
    """The episode as it will be read back, and what of it could not be kept, if anything."""
    misfits = find_misfits(episode)
    flaw = Flaw(Fault.UNREADABLE, f"its {next(iter(misfits.values()))}") if misfits else None
    plain = replace(episode, **{name: _INSTEAD[name] for name in misfits})
    try:
        return cast(Episode, decode(Kind.EPISODE, encode(plain))), flaw
    except StoreError as error:
        return plain, flaw or Flaw(Fault.UNREADABLE, str(error))


# ---------------------------------------------------------------------------------------------- one part each


def _check_head(episode: Episode) -> Flaw | None:
    if not episode.episode_id:
        return Flaw(Fault.IDENTITY, "it has no episode_id")
    if episode.seq < 0:
        return Flaw(Fault.IDENTITY, f"its sequence number is {episode.seq}")
    if episode.purpose is not Purpose.TRAIN:
        return Flaw(Fault.PURPOSE, f"its purpose is {episode.purpose.value}; only training episodes belong to a lease")
    if not abs(episode.wall_time) <= LAST_S:
        return Flaw(Fault.UNREADABLE, f"its wall_time is {episode.wall_time}, not seconds since 1970")
    return None


def _check_reward(episode: Episode) -> Flaw | None:
    deadline = episode.reward_deadline
    if deadline is not None and not abs(deadline) <= _FARTHEST_S:
        return Flaw(Fault.REWARD, f"its reward_deadline is {deadline}, not seconds since 1970")
    if episode.reward is None:
        if episode.valid and deadline is None:
            return Flaw(Fault.REWARD, "it has neither a reward nor a deadline for one")
        return None
    if not episode.valid:
        return Flaw(Fault.REWARD, f"it has a reward although it ended with {episode.stop_reason.value}")
    if not math.isfinite(episode.reward):
        return Flaw(Fault.REWARD, f"its reward is {episode.reward}")
    return None


def _check_steps(episode: Episode) -> Flaw | None:
    if not episode.steps:
        return Flaw(Fault.EMPTY, "it has no step")
    for number, step in enumerate(episode.steps):
        flaw = _check_text(step) if step.rewards is None else _check_stretch(step, step.rewards)
        if flaw is None and not _is_finite(step.log_probs):
            flaw = Flaw(Fault.LOG_PROB, "a log-probability is not finite")
        if flaw is not None:
            return Flaw(flaw.fault, f"step {number}: {flaw.detail}")
    if episode.valid and not any(step.action.size for step in episode.steps):
        return Flaw(Fault.EMPTY, "no step has an action")
    return None


def _check_text(step: Step) -> Flaw | None:
    for name, column, dtype in (
        ("observation", step.observation, _INT32),
        ("action", step.action, _INT32),
        ("log_probs", step.log_probs, _FLOAT32),
    ):
        if (flaw := _check_array(name, column)) is not None:
            return flaw
        if column.dtype != dtype:
            return Flaw(Fault.DTYPE, f"{name} is {column.dtype}, not {dtype}")
        if column.ndim != 1:
            return Flaw(Fault.SHAPE, f"{name} has {column.ndim} dimensions, not one")
    if len(step.log_probs) != len(step.action):
        return Flaw(Fault.SHAPE, f"{len(step.action)} action tokens have {len(step.log_probs)} log_probs")
    return None


def _check_array(name: str, column: object) -> Flaw | None:
    if isinstance(column, np.ndarray):
        return None
    return Flaw(Fault.DTYPE, f"{name} is a {type(column).__name__}, not an array")


def _check_stretch(step: Step, rewards: FloatArray) -> Flaw | None:
    columns = {"observation": step.observation, "action": step.action, "log_probs": step.log_probs, "rewards": rewards}
    for name, column in columns.items():
        if (flaw := _check_array(name, column)) is not None:
            return flaw
    if step.action.ndim == 0:
        return Flaw(Fault.SHAPE, "action is one number, not one for each step of the stretch")
    num = len(step.action)
    for name, column in (("observation", step.observation), ("log_probs", step.log_probs), ("rewards", rewards)):
        if column.dtype != np.float32:
            return Flaw(Fault.DTYPE, f"{name} is {column.dtype}, not float32")
    if step.action.dtype not in (np.int32, np.float32):
        return Flaw(Fault.DTYPE, f"action is {step.action.dtype}, neither int32 nor float32")
    if step.observation.ndim != 2 or len(step.observation) != num + 1:
        return Flaw(Fault.SHAPE, f"observation is {step.observation.shape}; {num} actions need ({num + 1}, size)")
    for name, column in (("log_probs", step.log_probs), ("rewards", rewards)):
        if column.shape != (num,):
            return Flaw(Fault.SHAPE, f"{name} is {column.shape}; {num} actions need ({num},)")
    if not _is_finite(step.observation) or not _is_finite(rewards):
        return Flaw(Fault.OBSERVATION, "an observation or a reward is not finite")
    return None


def _is_finite(column: IntArray | FloatArray) -> bool:
    return b"\0" not in np.isfinite(column).tobytes()  # `all` takes twice as long


def _check_spans(episode: Episode) -> Flaw | None:
    if len(episode.spans) == 1 and episode.spans[0].start == 0:
        return None
    starts = [span.start for span in episode.spans]
    if not starts or starts[0] != 0:
        return Flaw(Fault.SPANS, f"its version spans start at {starts[:1]}, not at 0")
    if any(later <= earlier for earlier, later in pairwise(starts)):
        return Flaw(Fault.SPANS, f"its version spans do not rise: {starts}")
    num_tokens = sum(step.action.size for step in episode.steps)
    if starts[-1] and starts[-1] >= num_tokens:
        return Flaw(Fault.SPANS, f"a version span starts at token {starts[-1]} of {num_tokens}")
    return None
