"""One record of each kind, fixed for ever; `python -m tests.unit.buffers.samples` writes golden files that lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from buffers.codec import FORMAT_VERSION, encode
from contracts.records import (
    Batch,
    Branch,
    Checkpoint,
    Closed,
    Disposition,
    Dropped,
    Episode,
    Erased,
    Evaluation,
    Failure,
    Fault,
    Feedback,
    Followed,
    Guard,
    Hold,
    Kind,
    Priority,
    Purpose,
    Quarantined,
    Record,
    Review,
    Row,
    Served,
    Session,
    Skip,
    Span,
    Step,
    StopReason,
    Task,
    Trim,
    Version,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "records"

TASK = Task(
    task_id="spell_backward:7:1041",
    position=12,
    index=1041,
    group_size=8,
    producer="rollout-0",
    branch=0,
    attempt=1,
    payload=b"\x00\xff",
)
EPISODE = Episode(
    episode_id="0123456789abcdef0123456789abcdef",
    lease=4096,
    member=3,
    task_id="spell_backward:7:1041",
    environment="reasoning_gym/spell_backward",
    environment_version="0.1.25",
    purpose=Purpose.TRAIN,
    steps=(
        Step(
            observation=np.array([5, 6, 7], dtype=np.int32),
            action=np.array([8, 2], dtype=np.int32),
            log_probs=np.array([-0.5, -0.0625], dtype=np.float32),
        ),
        Step(
            observation=np.array([0.25, -1.5], dtype=np.float32),
            action=np.array([1.0], dtype=np.float32),
            log_probs=np.array([-2.0], dtype=np.float32),
        ),
    ),
    spans=(Span(start=0, version=4), Span(start=2, version=5)),
    stop_reason=StopReason.TERMINATED,
    reward=0.75,
    reward_parts={"letters": 0.75, "length": 0.0},
    reward_code="c0de",
    reward_deadline=1.8e9,
    producer="rollout-0/slot-1",
    producer_epoch=(3 << 20) | 7,
    seq=41,
    wall_time=1.75e9,
    retries=1,
)
SAMPLES: dict[Kind, Record] = {
    Kind.TASK: TASK,
    Kind.EPISODE: EPISODE,
    Kind.FEEDBACK: Feedback(
        episode_id="0123456789abcdef0123456789abcdef",
        episode_lsn=8192,
        reward=-1.0,
        reward_code="c0de",
        producer="reviewer",
        wall_time=1.75e9,
    ),
    Kind.HOLD: Hold(lease=4096, reason="a person is to look at it", producer="monitor", wall_time=1.75e9),
    Kind.REVIEW: Review(lease=4096, accepted=True, reason="it is fine", producer="a person", wall_time=1.75e9),
    Kind.PRIORITY: Priority(leases=(4096, 5000), priorities=(65_536, 0), producer="learner", wall_time=1.75e9),
    Kind.QUARANTINED: Quarantined(
        fault=Fault.DTYPE,
        detail="step 0: log_probs is float64, not float32",
        episode_id="0123456789abcdef0123456789abcdef",
        lease=4096,
        member=3,
        task_id="spell_backward:7:1041",
        producer="rollout-0/slot-1",
        producer_epoch=(3 << 20) | 7,
        seq=41,
        wall_time=1.75e9,
        num_bytes=700,
        payload=np.array([1, 2, 255], dtype=np.uint8),
    ),
    Kind.SESSION: Session(
        role="learner",
        epoch=3,
        config_hash="aa",
        code_hash="bb",
        base_weights="cc",
        tokenizer="dd",
        reward_code="ee",
        fingerprint={"torch": "2.13.0", "threads": 1, "flag": True, "scale": 0.5, "device": None},
        step_repeats=True,
        wall_time=1.75e9,
    ),
    Kind.BATCH: Batch(
        branch=1,
        step=17,
        parent_version=16,
        rows=(
            Row(episode_lsn=8192, reward_lsn=9000, lease=4096),
            Row(episode_lsn=8704, reward_lsn=8704, lease=4096, weight=0.5),
        ),
        zero_spread=(4096,),
        dropped=(Dropped(lease=5000, disposition=Disposition.STALE),),
        micro_batches=(1, 1),
        seed=2**63 - 1,
        data_lsn=10_000,
        control_lsn=2_000,
        coefficients={"learning_rate": 1e-4},
    ),
    Kind.VERSION: Version(
        version=17,
        parent=16,
        branch=1,
        step=17,
        root_hash="f00d",
        batch_lsn=2048,
        stats={"loss": -0.125},
        wall_time=1.75e9,
    ),
    Kind.SERVED: Served(version=17, gap=0.0625, wall_time=1.75e9),
    Kind.GUARD: Guard(version=18, verdict="refused", reason="gap 0.3", scores={"gap": 0.3}),
    Kind.CHECKPOINT: Checkpoint(
        version=17,
        step=17,
        branch=1,
        folder="checkpoints/step-000017",
        root_hash="f00d",
        state_hash="beef",
    ),
    Kind.BRANCH: Branch(branch=1, parent_branch=0, from_version=10, reason="roll-back", exclude="task:3"),
    Kind.SKIP: Skip(batch_lsn=2048, step=17, branch=1, reason="failed 2 times"),
    Kind.CLOSED: Closed(
        leases=(4096, 5000), disposition=Disposition.ABANDONED, reason="the lease timed out", data_lsn=9_008
    ),
    Kind.FAILURE: Failure(role="learner", detail="LearnerError('loss is nan')", batch_lsn=2048),
    Kind.TRIM: Trim(
        data_lsn=65_536,
        reason="size",
        handed=12,
        ended={"trained": 10, "stale": 2},
        episodes=95,
        episodes_late=1,
        quarantined={"dtype": 1},
        frontier=40,
        ahead=(42, 44),
        wall_time=1.75e9,
    ),
    Kind.ERASED: Erased(lsns=(8192, 8704), reason="a person asked for it", wall_time=1.75e9),
    Kind.FOLLOWED: Followed(control_lsn=8193, session=512),
    Kind.EVALUATION: Evaluation(
        version=17,
        step=17,
        metric="sampled_accuracy",
        scores={"sampled_accuracy": 0.5, "greedy_accuracy": 0.75},
        items=512,
        samples=4,
        wall_time=1.75e9,
    ),
}


def golden_files(kind: Kind, *, version: int) -> list[Path]:
    """Oldest first: a record that grew fields inside a format version has a file for each length that was written."""
    folder, name = GOLDEN / f"v{version}", kind.name.lower()
    files = [*folder.glob(f"{name}.bin"), *folder.glob(f"{name}.grown*.bin")]
    return sorted(files, key=lambda path: (len(path.name), path.name))


STRETCH = Step(
    observation=np.array([[0.5, -1.0], [0.25, 2.0], [0.0, 1.0]], dtype=np.float32),
    action=np.array([1, 0], dtype=np.int32),
    log_probs=np.array([-0.5, -0.75], dtype=np.float32),
    rewards=np.array([1.0, -0.5], dtype=np.float32),
    end=StopReason.TRUNCATED,
)


if __name__ == "__main__":
    for sample_kind, sample in SAMPLES.items():
        there = golden_files(sample_kind, version=FORMAT_VERSION)
        if not there or there[-1].read_bytes() != encode(sample):
            grown = f".grown{len(there)}" if there else ""
            path = GOLDEN / f"v{FORMAT_VERSION}" / f"{sample_kind.name.lower()}{grown}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(sample))
            print(path)
