"""Experience from outside a run, see docs/serving.md: `.venv/bin/python -m docs.tutorial.producer ADDRESS TASKS`."""

from __future__ import annotations

import os
import sys

import numpy as np

from buffers.owner import episode_id
from configs.schema import SERVING_TOKEN
from contracts.records import Episode, Purpose, Span, Step, StopReason, Task
from serving.client import connect

NAME = "outside-0"


def play(task: Task) -> tuple[Step, float]:
    """Your part: what the policy was shown, what it answered with which log-probabilities, and what that is worth."""
    prompt, answer = np.array([5, 6, 7], dtype=np.int32), np.array([8, 2], dtype=np.int32)
    log_probs = np.log(np.array([0.5, 0.9], dtype=np.float32))
    return Step(observation=prompt, action=answer, log_probs=log_probs), float(task.index % 2)


def main(address: str, num_tasks: int) -> None:
    with connect(address, token=os.environ.get(SERVING_TOKEN)) as store:
        status, epoch, seq = store.status(), store.attach(NAME), 0
        for _ in range(num_tasks):
            for lease in store.lease(NAME, epoch, max_tasks=1, wait_s=10):  # none: the learner has enough for now
                episodes = []
                for member in lease.missing:
                    step, reward = play(lease.task)
                    seq += 1  # by it the store knows a second copy of the same episode
                    episodes.append(
                        Episode(
                            episode_id=episode_id(str(status["uuid"]), lease.lsn, member),
                            lease=lease.lsn, member=member, task_id=lease.task.task_id,
                            environment=str(status["environment"]), environment_version="1", purpose=Purpose.TRAIN,
                            steps=(step,), spans=(Span(start=0, version=int(str(status["served"]))),),
                            stop_reason=StopReason.TERMINATED, reward=reward,
                            producer=NAME, producer_epoch=epoch, seq=seq,
                        )
                    )  # fmt: skip
                acks = store.append(episodes)  # once it returns they survive anything but the loss of the disk
                print(lease.task.task_id, [ack.lsn for ack in acks], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
