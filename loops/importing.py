"""Puts experience that was made elsewhere into a run's store, as off-policy groups that its learner reads next.

    source ─► TASK with its origin as payload ─► EPISODEs under that lease ─► the queue, as any other group

Its producer is import:DIGEST, of the source's bytes: blame, query and rewind tell it from the run's own. The version
that it names is the learner's newest, since the log knows no other policy: staleness is counted from the import on.
Log-probs that came along are kept: importance weights then correct for the policy that made it. Where none came, the
newest version's own stand in their place: the weights start at 1, and correct only for what is learned from then on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from buffers.foreign import ForeignGroup, Try
from buffers.owner import episode_id
from contracts.errors import PromptTooLongError
from contracts.records import Ack, Episode, FloatArray, IntArray, Lease, Purpose, Span, Step, StopReason

CHUNK = 64  # groups handed to the store at once


class Intake(Protocol):
    """The part of the store's owner that an import needs."""

    def attach(self, producer: str) -> int: ...

    def adopt(self, tasks: Sequence[tuple[str, int, bytes]], *, producer: str, epoch: int) -> list[Lease]: ...

    def list_adopted(self, producer: str) -> set[str]: ...

    def append(self, episodes: Sequence[Episode]) -> list[Ack]: ...


class Encode(Protocol):
    """Text to token ids, as the policy's tokenizer does it; a completion ends with its end token."""

    def encode_prompt(self, text: str) -> IntArray: ...

    def encode_completion(self, text: str) -> IntArray: ...


Score = Callable[[Sequence[tuple[IntArray, IntArray]]], list[FloatArray]]  # (prompt, completion) ids → log-probs


@dataclass
class Imported:
    """What became of a source. `quarantined`: episodes that no learner may read; `ratchet store inspect` says why."""

    digest: str
    groups: int = 0
    episodes: int = 0
    known: int = 0  # groups that an earlier import of the same bytes brought
    quarantined: int = 0
    scored: int = 0  # episodes whose log-probs are the newest version's


def import_groups(
    store: Intake,
    groups: Iterable[ForeignGroup],
    *,
    digest: str,
    store_uuid: str,
    environment: str,
    version: int,
    encode: Encode,
    score: Score,
    max_tokens: int,
    on_chunk: Callable[[Imported], None] = lambda done: None,
) -> Imported:
    """Keep every group that is not there yet. Called again after a kill, it brings what is missing.

    A text of more than `max_tokens` with its prompt is kept without its tokens, in quarantine.
    """
    producer, done = f"import:{digest[:12]}", Imported(digest=digest)
    epoch, known, seq = store.attach(producer), store.list_adopted(producer), 0
    source = iter(groups)
    while chunk := list(islice(source, CHUNK)):
        fresh = [group for group in chunk if _name(digest, group) not in known]
        done.known += len(chunk) - len(fresh)
        offers = [(_name(digest, one), len(one.tries), json.dumps(one.origin).encode()) for one in fresh]
        leases = store.adopt(offers, producer=producer, epoch=epoch) if offers else []
        played = _play(fresh, encode=encode, score=score, max_tokens=max_tokens, done=done)
        episodes = []
        for lease, tries in zip(leases, played, strict=True):
            for member, (one, steps) in enumerate(tries):
                seq += 1
                episodes.append(
                    Episode(
                        episode_id=episode_id(store_uuid, lease.lsn, member),
                        lease=lease.lsn,
                        member=member,
                        task_id=lease.task.task_id,
                        environment=environment,
                        environment_version="imported",
                        purpose=Purpose.TRAIN,
                        steps=steps,
                        spans=(Span(start=0, version=version),),
                        stop_reason=one.stop_reason,
                        reward=one.reward if one.reward is not None or not _has_reward(one) else float("nan"),
                        producer=producer,
                        producer_epoch=epoch,
                        seq=seq,
                        wall_time=time.time(),
                    )
                )
        acks = store.append(episodes) if episodes else []
        done.groups += len(fresh)
        done.episodes += len(acks)
        done.quarantined += sum(ack.fault is not None for ack in acks)
        on_chunk(done)
    return done


def _play(
    groups: Sequence[ForeignGroup], *, encode: Encode, score: Score, max_tokens: int, done: Imported
) -> list[list[tuple[Try, tuple[Step, ...]]]]:
    """Each try with its steps; those that are texts are encoded, and scored together."""
    pairs = [_encode(group, one.text, encode) for group in groups for one in group.tries if one.text is not None]
    whole = [pair for pair in pairs if len(pair[0]) and len(pair[0]) + len(pair[1]) <= max_tokens]
    log_probs = iter(score(whole) if whole else [])
    encoded = iter(pairs)
    done.scored += len(whole)

    def steps_of(one: Try) -> tuple[Step, ...]:
        if one.text is None:
            return one.steps
        prompt, completion = next(encoded)
        if not len(prompt) or len(prompt) + len(completion) > max_tokens:
            nothing = np.empty(0, dtype=np.int32)
            return (Step(observation=prompt, action=nothing, log_probs=nothing.astype(np.float32)),)  # quarantined
        return (Step(observation=prompt, action=completion, log_probs=np.asarray(next(log_probs), dtype=np.float32)),)

    return [[(one, steps_of(one)) for one in group.tries] for group in groups]


def _encode(group: ForeignGroup, text: str, encode: Encode) -> tuple[IntArray, IntArray]:
    """Prompt and completion ids; nothing of a prompt that is refused as too long."""
    nothing = np.empty(0, dtype=np.int32)
    try:
        return encode.encode_prompt(group.prompt), encode.encode_completion(text)
    except PromptTooLongError:
        return nothing, nothing


def _name(digest: str, group: ForeignGroup) -> str:
    return f"import/{digest[:12]}/{group.key}"


def _has_reward(one: Try) -> bool:
    """Whether its ending is one that has a reward: without one it is no answer to learn from."""
    return one.stop_reason in (StopReason.TERMINATED, StopReason.TRUNCATED, StopReason.LENGTH)
