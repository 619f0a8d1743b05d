"""The learner protocol: batches are decided first, computed after, and never computed from anything but the log.

    genesis:  prepare (warm start) ─► files ─► VERSION 0 ─► CHECKPOINT ─► publish
    a step:   BATCH ─► compute ─► files ─► VERSION ─► publish (SERVED | GUARD) ─► CHECKPOINT every so often
    recover:  newest CHECKPOINT ─► the BATCH records after it again, hashes compared, nothing appended ─► publish

In `async` mode a version is published while the next step is computed: it is settled (SERVED | GUARD) before that step
changes a weight, and so before the next VERSION. In `sync` mode nothing happens meanwhile.

A crash between any two arrows leaves a log from which `recover` goes on; tests/unit/loops/test_protocol.py stops at
each of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import pstdev
from threading import Event
from typing import Protocol

from configs.schema import RunConfig
from contracts.errors import LearnerError, RatchetError, RunFolderError
from contracts.protocols import BatchRequest, Learner, StepResult, Store, WeightSet
from contracts.records import (
    Batch,
    Checkpoint,
    ControlRecord,
    Decision,
    Episode,
    Evaluation,
    Failure,
    Guard,
    Priority,
    Served,
    Session,
    Skip,
    Version,
)
from loops.ancestry import TRUNK, Ancestry
from loops.checksums import checksums
from loops.tasks import derive_seed
from telemetry.spans import span

log = logging.getLogger(__name__)
WAIT_S = 0.5  # how long the store may wait for a full queue; a loop that is told to stop notices after it
IDLE_S = 0.005  # between two such calls
FAILURES_TO_SKIP = 2
SCALE, HIGHEST = 1 << 16, (1 << 31) - 1  # of a priority: a deviation of 1, and the most there is


class Publish(Protocol):
    def publish(self, weights: WeightSet) -> Served | Guard: ...


@dataclass(frozen=True, kw_only=True)
class UpdatePorts:
    """What the loop is wired to."""

    store: Store
    learner: Learner
    publisher: Publish
    prepare: Callable[[], Mapping[str, float]]  # base weights to genesis weights: the warm start, or nothing
    save_version: Callable[[WeightSet], object]  # durable when it returns
    prune: Callable[[], None]  # forget files of versions and checkpoints that no recovery needs
    evaluate: Callable[[int, int], Evaluation]  # (version, step): scores of the version that is served now
    beside: Executor  # what is to happen while a step is computed, one thing at a time
    on_step: Callable[[Progress], None] = lambda progress: None
    sleep: Callable[[], None] = lambda: None  # engines that share the learner's device make room for a step
    wake: Callable[[], None] = lambda: None  # before a publication, for the first time before the first: born asleep


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step did, and how many seconds each part took since the report before (telemetry/catalogue.py has the
    parts): a checkpoint counts with the step after it."""

    step: int
    version: int
    phase: str  # "recover", "genesis", "step", "evaluate"
    stats: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    staleness: float = 0.0
    evaluation: Evaluation | None = None


@dataclass
class Position:
    """Where the fold stands."""

    version: int = -1
    step: int = 0
    last_number: int = -1  # the highest version number ever used
    records: list[tuple[int, ControlRecord]] = field(default_factory=list)


class UpdateLoop:
    """`recover`, then `run`, from one thread."""

    def __init__(self, ports: UpdatePorts, *, config: RunConfig, folder: Path, session: Session) -> None:
        self._ports, self._config, self._folder = ports, config, folder
        self._session_record = session
        self._session = -1
        self._at = Position()
        self._ancestry = Ancestry.of([])
        self._recovering = False
        self._versions: dict[int, Version] = {}
        self._seconds: dict[str, float] = {}
        self._publishing: Future[None] | None = None
        # Colocated engines sleep while a step is computed: there is nothing to publish to.
        self._overlaps = config.mode == "async" and config.cluster.mode != "colocated"

    @property
    def step(self) -> int:
        return self._at.step

    @property
    def version(self) -> int:
        return self._at.version

    # ------------------------------------------------------------------------------------------ recovery

    def recover(self) -> None:
        """From whatever the log says to a learner that stands at its end, and engines that serve it."""
        store, learner = self._ports.store, self._ports.learner
        self._session = store.open_session(self._session_record)
        records = store.decisions()
        self._compare_fingerprints(records)
        self._at.records, self._recovering = records, True
        self._ancestry = Ancestry.of(records)
        for _, record in records:
            if isinstance(record, Version):
                self._remember(record)
        checkpoint = self._load_checkpoint()
        if checkpoint is None:
            self._genesis()
        else:
            self._at.version, self._at.step = checkpoint.version, checkpoint.step
            log.info("checkpoint loaded", extra={"version": checkpoint.version, "step": checkpoint.step})
            self._fold_again(after_step=checkpoint.step)
        self._publish(learner.weights(self._at.version), self._at.step)
        self._catch_up_evaluation()
        self._at.records, self._recovering = [], False

    def _compare_fingerprints(self, records: Sequence[tuple[int, ControlRecord]]) -> None:
        """Before anything is computed: say what the bits depend on and is another than it was in the last session.

        Raises RunFolderError where the base weights are others: nothing that was learned from them could be rebuilt.
        """
        earlier = [r for lsn, r in records if isinstance(r, Session) and r.role == "learner" and lsn != self._session]
        if not earlier:
            return
        if earlier[-1].base_weights != self._session_record.base_weights:
            raise RunFolderError(
                f"resume {self._folder.name}",
                f"its base model is another than the one it began with: {self._session_record.base_weights[:16]}, "
                f"not {earlier[-1].base_weights[:16]}",
                f"put the old one back at {self._folder / 'model'}, or start a new run",
            )
        was, now = earlier[-1].fingerprint, self._session_record.fingerprint
        changed = {name: f"{was.get(name)} -> {now.get(name)}" for name in was | now if was.get(name) != now.get(name)}
        if changed:
            log.warning(
                "the learner may compute other bits: a step that does gets a new version number",
                extra={"changed": changed},
            )

    def _load_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint whose files are whole."""
        for _, record in reversed(self._at.records):
            if isinstance(record, Checkpoint) and self._ancestry.has(record):
                try:
                    self._ports.learner.load(str(self._folder / record.folder), record.state_hash)
                except (OSError, RatchetError, ValueError) as error:
                    log.warning("checkpoint not usable, taking an older one", extra={"detail": repr(error)})
                else:
                    return record
        return None

    def _genesis(self) -> None:
        with span("warm_start"):
            stats = self._ports.prepare()
        root_hash = self._ports.learner.root_hash()
        known = self._versions.get(0)
        number = 0 if known is None or known.root_hash == root_hash else self._at.last_number + 1
        if known is not None and known.root_hash != root_hash:
            log.warning("the warm start gave other bits than before", extra={"version": number})
        self._at.version, self._at.step = number, 0
        with self._part("save", step=0):
            weights = self._ports.learner.weights(number)
            self._ports.save_version(weights)
        genesis = Version(
            version=number, parent=-1, branch=TRUNK, step=0, root_hash=root_hash, checksums=checksums(weights)
        )
        self._decide_version(genesis)
        self._checkpoint()
        self._report("genesis", stats=stats)
        self._fold_again(after_step=0)

    def _fold_again(self, *, after_step: int) -> None:
        """Compute again what the log says was decided after the checkpoint; finish what was left open."""
        skipped = {record.batch_lsn: record for _, record in self._at.records if isinstance(record, Skip)}
        made: dict[int, list[Version]] = {}
        for version in self._versions.values():
            made.setdefault(version.batch_lsn, []).append(version)
        for lsn, batch in self._at.records:
            if not isinstance(batch, Batch) or batch.step <= after_step or not self._ancestry.has(batch):
                continue
            if lsn in skipped:
                self._at.step = batch.step
            elif lsn in made:
                self._repeat(lsn, batch, made[lsn])
            else:
                self._compute(lsn, batch)

    def _repeat(self, lsn: int, batch: Batch, versions: list[Version]) -> None:
        """A step whose version is in the log: compute it, compare, append nothing unless the bits differ."""
        episodes = self._read(batch)
        with self._part("update", step=batch.step):
            result = self._ports.learner.step(batch, episodes)
        latest = max(versions, key=lambda version: version.version)
        same = [version for version in versions if version.root_hash == result.root_hash]
        if same:
            self._at.version, self._at.step = same[-1].version, batch.step
            self._report("recover", stats=result.stats)
            return
        log.warning(
            "this machine computes other bits than the log has: a new version number",
            extra={"step": batch.step, "logged": latest.root_hash, "computed": result.root_hash},
        )
        self._new_version(lsn, batch, result)

    # ------------------------------------------------------------------------------------------ going on

    def run(self, stop: Event) -> None:
        """Steps until the configured number is done or `stop` is set; a checkpoint ends both."""
        while self._at.step < self._config.steps and not stop.is_set():
            request = self._batch_request()
            with self._part("wait", step=request.step):
                got = self._ports.store.append_batch(request, wait_s=WAIT_S)
                while got is None and not stop.wait(IDLE_S):
                    got = self._ports.store.append_batch(request, wait_s=WAIT_S)
            if got is None:
                break
            self._compute(*got)
            self._after_step()
        self._settle()
        if self._at.step % self._config.checkpoint.every_steps:
            self._checkpoint()

    def _batch_request(self) -> BatchRequest:
        config = self._config
        step = self._at.step + 1
        return BatchRequest(
            session=self._session,
            branch=self._ancestry.branch,
            step=step,
            parent_version=self._at.version,
            num_groups=config.learner.groups_per_step,
            max_staleness=config.max_staleness,
            seed=derive_seed(config.seed, "batch", self._ancestry.branch, step),
            coefficients={},
            with_spread=config.learner.formula().dynamic_sampling,
        )

    def _compute(self, lsn: int, batch: Batch) -> None:
        """One fresh step; after two failures, in this process or in ones that it killed, the batch is skipped."""
        failures = sum(isinstance(r, Failure) and r.batch_lsn == lsn for _, r in self._at.records)
        if not self._recovering:  # else they sleep already
            with span("sleep", step=batch.step):
                self._ports.sleep()
        while failures < FAILURES_TO_SKIP:
            try:
                episodes = self._read(batch)
                self._prioritise(batch, episodes)
                with self._part("update", step=batch.step):
                    result = self._ports.learner.step(batch, episodes, before_change=self._settle)
            except LearnerError as error:
                failures += 1
                log.error("a learner step failed", extra={"step": batch.step, "detail": str(error)})
                self._decide(Failure(role="learner", detail=str(error), batch_lsn=lsn))
                continue
            self._new_version(lsn, batch, result, staleness=self._staleness(batch, episodes))
            return
        self._settle()
        reason = f"failed {failures} times"
        log.error("batch skipped", extra={"step": batch.step, "reason": reason})
        self._decide(Skip(batch_lsn=lsn, step=batch.step, branch=batch.branch, reason=reason))
        self._at.step = batch.step
        if not self._recovering:
            self._ports.wake()

    def _prioritise(self, batch: Batch, episodes: Sequence[Episode]) -> None:
        """Say how often the batch's new groups are to be learned from again: in proportion to their rewards' deviation.

        Before anything is computed, so that whoever computes the batch again says it again, and the next one is cut
        from the same priorities.
        """
        if self._config.store.sampler != "prioritised":
            return
        rewards: dict[int, list[float]] = {}
        for row, episode in zip(batch.rows, episodes, strict=True):
            if not row.replayed and episode.reward is not None:
                rewards.setdefault(row.lease, []).append(episode.reward)
        self._decide(
            Priority(
                leases=tuple(rewards),
                priorities=tuple(min(HIGHEST, round(SCALE * pstdev(one))) for one in rewards.values()),
                producer="learner",
                wall_time=time.time(),
            )
        )

    def _new_version(self, lsn: int, batch: Batch, result: StepResult, *, staleness: float = 0.0) -> None:
        number = self._at.last_number + 1
        with self._part("save", step=batch.step):
            weights = self._ports.learner.weights(number)
            self._ports.save_version(weights)
        self._decide_version(
            Version(
                version=number,
                parent=self._at.version,
                branch=batch.branch,
                step=batch.step,
                root_hash=result.root_hash,
                batch_lsn=lsn,
                stats=dict(result.stats),
                wall_time=time.time(),
                checksums=checksums(weights),
            )
        )
        self._at.version, self._at.step = number, batch.step
        if not self._recovering:  # of what is recovered, only the last version is published
            self._publishing = self._ports.beside.submit(self._publish, weights, batch.step)
            if not self._overlaps:
                self._settle()
        self._report("step", stats=result.stats, staleness=staleness)

    def _after_step(self) -> None:
        config = self._config
        if self._at.step % config.checkpoint.every_steps == 0:
            self._settle()
            self._checkpoint()
        last = self._at.step >= config.steps
        every = config.evaluate.every_steps
        if last or (every and self._at.step % every == 0):
            self._settle()
            self._evaluate()

    # ------------------------------------------------------------------------------------------ decisions

    def _settle(self) -> None:
        """Wait until what is being published is served or refused. Raises what the publisher raised."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            start = time.monotonic()
            with span("settle"):
                publishing.result()
            self._seconds["publish"] = self._seconds.get("publish", 0.0) + time.monotonic() - start

    def _publish(self, weights: WeightSet, step: int) -> None:
        with span("publish", step=step):
            with span("wake"):
                self._ports.wake()
            outcome = self._ports.publisher.publish(weights)
        self._ports.store.decide(outcome, self._session)
        if isinstance(outcome, Guard):
            log.error("push refused", extra={"version": outcome.version, "reason": outcome.reason})
        elif self._recovering:
            log.info("version served", extra={"version": outcome.version, "gap": outcome.gap})

    def _checkpoint(self) -> None:
        folder = f"checkpoints/step-{self._at.step:06d}-v{self._at.version:06d}"
        with self._part("checkpoint", step=self._at.step):
            state_hash = self._ports.learner.save(str(self._folder / folder))
        self._decide(
            Checkpoint(
                version=self._at.version,
                step=self._at.step,
                branch=self._ancestry.branch,
                folder=folder,
                root_hash=self._ports.learner.root_hash(),
                state_hash=state_hash,
            )
        )
        self._ports.prune()

    def _evaluate(self) -> None:
        with self._part("evaluate", step=self._at.step):
            evaluation = self._ports.evaluate(self._at.version, self._at.step)
        self._decide(evaluation)
        self._report("evaluate", evaluation=evaluation)

    def _catch_up_evaluation(self) -> None:
        """An evaluation that was due when the run died, at genesis or at the last step, is made now."""
        due = self._at.step == 0 or self._at.step >= self._config.steps
        scored = {r.version for _, r in self._at.records if isinstance(r, Evaluation) and r.step == self._at.step}
        done = any(self._ancestry.has(version) for version in self._versions.values() if version.version in scored)
        if due and not done:
            self._evaluate()

    def _decide_version(self, version: Version) -> None:
        self._decide(version)
        self._remember(version)

    def _decide(self, record: Decision) -> int:
        with self._part("decide", step=getattr(record, "step", self._at.step)):
            return self._ports.store.decide(record, self._session)

    def _remember(self, version: Version) -> None:
        self._versions[version.version] = version
        self._at.last_number = max(self._at.last_number, version.version)

    def _read(self, batch: Batch) -> list[Episode]:
        with self._part("read", step=batch.step):
            return self._ports.store.read([row.reward_lsn for row in batch.rows])

    def _staleness(self, batch: Batch, episodes: Sequence[Episode]) -> float:
        """Mean steps between the versions that acted and the one that learns, over the batch's episodes."""
        parent = self._versions[batch.parent_version].step
        acted = [self._versions[e.oldest_version].step for e in episodes if e.oldest_version in self._versions]
        return sum(parent - step for step in acted) / max(len(acted), 1)

    def _report(
        self,
        phase: str,
        *,
        stats: Mapping[str, float] | None = None,
        staleness: float = 0.0,
        evaluation: Evaluation | None = None,
    ) -> None:
        seconds, self._seconds = self._seconds, {}
        self._ports.on_step(
            Progress(
                step=self._at.step,
                version=self._at.version,
                phase=phase,
                stats=stats or {},
                seconds=seconds,
                staleness=staleness,
                evaluation=evaluation,
            )
        )

    @contextmanager
    def _part(self, name: str, *, step: int) -> Iterator[None]:
        """One part of a step, timed for its report and for a trace."""
        start = time.monotonic()
        with span(name, step=step):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start
