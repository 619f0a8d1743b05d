"""A contextual bandit at four sites, each with a producer of its own: runs of thousands of steps that cost seconds.

A control run like any other (`control.id: benchmarks.sites:Sites-v0`), played in one process without Ray: store,
leases, batches, versions and checkpoints are the real ones. From step `flips_from` on the producer of the last site
hands in its rewards the wrong way round: that is the poison which the time machine is measured with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from shutil import rmtree
from threading import Event
from typing import Any
from uuid import UUID

import gymnasium
import numpy as np

from actors.tenants import tenant
from buffers.log.files import write_durably
from buffers.owner import StoreOwner, episode_id
from configs.loader import config_hash, load
from configs.schema import RunConfig
from console.run_folder import create
from contracts.protocols import Actions, ActRequest, InFlight, PolicyEngine, Spaces, WeightSet
from contracts.records import Episode, FloatArray, Lease, Purpose, Session, Span, Step, StopReason
from learners.stretches import FINISHED, LENGTH_SUM, RETURN_BEFORE, RETURN_SUM
from loops.control import draw_noise
from loops.rollout import Place, RolloutSlot
from loops.tasks import derive_seed, task_source
from loops.update import UpdateLoop, UpdatePorts

ID = "benchmarks.sites:Sites-v0"
METRIC = "greedy_return"  # the share of right actions
NUM_SITES, NUM_FEATURES, NUM_ACTIONS, SESSION = 4, 2, 3, 64
# What is right at a site is the largest of three linear functions of the features, other ones at each site.
FUNCTIONS = np.random.default_rng(5).standard_normal((NUM_SITES, NUM_ACTIONS, NUM_FEATURES))
# The features stand in the columns of their site, so that a linear policy can be right, and sites do not share weights.
SPACES = Spaces(observation_size=NUM_SITES * (NUM_FEATURES + 1), num_actions=NUM_ACTIONS)


def make_session(seed: int, *, site: int | None = None) -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.int64]]]:
    """Observations [SESSION + 1, D] of one site, drawn where None, and what is right at each [SESSION]."""
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(NUM_SITES))
    site = drawn if site is None else site
    features = rng.standard_normal((SESSION + 1, NUM_FEATURES))
    observations = np.zeros((SESSION + 1, NUM_SITES, NUM_FEATURES + 1), dtype=np.float32)
    observations[:, site, 0] = 1.0
    observations[:, site, 1:] = features
    return observations.reshape(SESSION + 1, -1), (features[:SESSION] @ FUNCTIONS[site].T).argmax(axis=1)


class Sites(gymnasium.Env[FloatArray, np.int64]):
    """One session at a site drawn by the seed: each right action is worth 1 / SESSION, so that a return is a share."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (SPACES.observation_size,), np.float32)
    action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        super().reset(seed=seed)
        self._observations, self._right = make_session(int(self.np_random.integers(2**31)))
        self._at = 0
        return self._observations[0], {}

    def step(self, action: np.int64) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self._right[self._at]) / SESSION
        self._at += 1
        return self._observations[self._at], reward, self._at == SESSION, False, {}


gymnasium.register(
    ID.partition(":")[2], entry_point="benchmarks.sites:Sites", disable_env_checker=True, order_enforce=False
)


class SitePlayer:
    """loops.rollout.Player: the sessions of one site. A task's place tells its step: in sync mode all have as many."""

    def __init__(self, engine: PolicyEngine, *, config: RunConfig, site: int, flips_from: int | None) -> None:
        self._engine, self._config, self._site = engine, config, site
        self._flips_from = flips_from

    @property
    def capacity(self) -> int:
        return self._config.learner.groups_per_step

    def play(self, leases: Sequence[Lease]) -> list[Episode]:
        places = [lease.task.position for lease in leases]
        seed = self._config.seed
        sessions = [make_session(derive_seed(seed, "session", place), site=self._site) for place in places]
        noise = np.concatenate([draw_noise(SPACES, seed, place, SESSION) for place in places])
        request = ActRequest(
            request_id=f"site-{self._site}:{places[0]}",
            observations=np.concatenate([observations[:SESSION] for observations, _ in sessions]),
            noise=noise,
        )
        [answer] = self._engine.generate([request], timeout_s=self._config.engine.timeout_s)
        actions = np.split(answer.actions, len(leases))
        log_probs = np.split(answer.log_probs, len(leases))
        return [
            self._episode(leases[i], sessions[i], actions[i].astype(np.int32), log_probs[i], answer.version)
            for i in range(len(leases))
        ]

    def _episode(self, lease: Lease, session: Any, actions: Any, log_probs: FloatArray, version: int) -> Episode:
        observations, right = session
        is_right = actions == right
        if (
            self._flips_from is not None
            and lease.task.position // self._config.learner.groups_per_step + 1 >= self._flips_from
        ):
            is_right = ~is_right
        rewards = (is_right / SESSION).astype(np.float32)
        total = float(rewards.sum())
        return Episode(
            episode_id="",  # signed by the slot
            lease=lease.lsn,
            member=0,
            task_id=lease.task.task_id,
            environment=ID,
            environment_version=ID,
            purpose=Purpose.TRAIN,
            steps=(
                Step(
                    observation=observations,
                    action=actions,
                    log_probs=log_probs,
                    rewards=rewards,
                    end=StopReason.TERMINATED,
                ),
            ),
            spans=(Span(start=0, version=version),),
            stop_reason=StopReason.TERMINATED,
            reward=total,
            reward_parts={RETURN_BEFORE: 0.0, FINISHED: 1.0, RETURN_SUM: total, LENGTH_SUM: float(SESSION)},
        )


class LocalFleet:
    """contracts.protocols.Fleet of one engine in this process."""

    def __init__(self, engine: PolicyEngine, *, timeout_s: float) -> None:
        self._engine, self._timeout_s = engine, timeout_s

    def pause(self, in_flight: InFlight) -> None:
        self._engine.pause(in_flight, timeout_s=self._timeout_s)

    def push(self, weights: WeightSet) -> None:
        self._engine.push(weights)

    def probe(self, requests: Sequence[ActRequest]) -> list[list[Actions]]:
        return [self._engine.generate(requests, timeout_s=self._timeout_s, guard=True)]

    def resume(self) -> None:
        self._engine.resume()


class AtOnce(Executor):
    """Does what it is given before `submit` returns."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*given, **named))
        return future


class TurnTaking:
    """The learner's store in one thread: where its batch is not full yet, every site has its turn."""

    def __init__(self, owner: StoreOwner, slots: list[RolloutSlot]) -> None:
        self._owner, self._slots = owner, slots

    def append_batch(self, request: Any, *, wait_s: float = 0.0) -> Any:
        got = self._owner.append_batch(request)
        if got is None:
            for slot in self._slots:
                slot.turn()
        return got

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)


def configure(
    *, steps: int, seed: int, root: Path, held_out: int, checkpoint_every: int = 100, **learner: Any
) -> RunConfig:
    """A run of `steps` steps that is evaluated on `held_out` sessions."""
    return RunConfig.model_validate(
        {
            "name": "sites",
            "root": str(root),
            "seed": seed,
            "mode": "sync",
            "steps": steps,
            "max_staleness": 0,
            "control": {
                "id": ID,
                "lanes": 4,
                "horizon": SESSION,
                "hidden": [],
                "normalise_observations": False,
                "normalise_rewards": False,
                "evaluation_episodes": held_out,
            },
            "ppo": {
                "epochs": 16,
                "minibatch_steps": 2048,
                "discount": 1e-6,
                "gae_lambda": 0.0,
                "entropy_coefficient": 0.01,
            },
            "learner": {
                "algorithm": "ppo",
                "groups_per_step": 32,
                "group_size": 1,
                "learning_rate": 0.1,
                "warmup_steps": 0,
                "weight_decay": 0.5,  # a policy of its last few batches: what one of them teaches shows at once
                "clip_low": 1.0,
                "clip_high": 10.0,
                "betas": [0.9, 0.99],
                "precision": "fp32",
                **learner,
            },
            "engine": {"backend": "torch", "parity_gap": 1e-4, "max_sequences": 1024},
            "rollout": {"workers": NUM_SITES},
            "store": {"ack": "os", "segment_mib": 16, "control_segment_mib": 4, "reserve_mib": 0, "index_map_mib": 256},
            "checkpoint": {"every_steps": checkpoint_every, "keep": 2},
        }
    )


def play(config: RunConfig, *, name: str, flips_from: int | None = None) -> Path:
    """A finished run of `config`, in a new folder `name` under its root."""
    folder = create(config, name=name)
    kind = tenant(config)
    kind.make_model(folder / "model")
    owner = StoreOwner.open(folder / "store", config=config, source=task_source(config), create=True)
    _name_store(folder, owner.uuid)
    engine = kind.build_engine(folder / "model")
    stage = kind.open_stage(folder, engine, rank=0)
    learner = kind.build_learner(folder)
    slots = [
        RolloutSlot(
            owner,
            player=SitePlayer(
                engine, config=config, site=site, flips_from=flips_from if site == NUM_SITES - 1 else None
            ),
            store_uuid=str(owner.uuid),
            place=Place(producer=f"site-{site}", rank=site, world=NUM_SITES),
            episode_id=episode_id,
        )
        for site in range(NUM_SITES)
    ]
    ports = UpdatePorts(
        store=TurnTaking(owner, slots),
        learner=learner,
        publisher=kind.build_publisher(learner, LocalFleet(engine, timeout_s=config.engine.timeout_s)),
        prepare=dict,
        save_version=lambda weights: None,
        prune=lambda: _prune(folder, keep=config.checkpoint.keep),
        evaluate=stage.evaluate,
        beside=AtOnce(),
    )
    session = Session(
        role="learner",
        epoch=0,
        config_hash=config_hash(config),
        base_weights=learner.base_hash,
        fingerprint=dict(learner.fingerprint()),
    )
    try:
        loop = UpdateLoop(ports, config=load(folder / "config.yaml"), folder=folder, session=session)
        loop.recover()
        loop.run(Event())
    finally:
        owner.close()
        stage.close()
        engine.close()
    return folder


def _name_store(folder: Path, uuid: UUID) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"store_uuid": str(uuid)}
    write_durably(path, (json.dumps(manifest, indent=1) + "\n").encode())


def _prune(folder: Path, *, keep: int) -> None:
    for path in sorted((folder / "checkpoints").iterdir())[1:-keep]:
        rmtree(path)
