"""Every key that a run file may have, with its unit and default. For an unknown one the loader names the nearest.

Keys marked `resumable` may differ when a run is resumed; a change of any other is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.formulas import FORMULAS, KEYS, OWN, Advantage, Aggregation, Formula

RESUMABLE = "resumable"
SERVING_TOKEN = "RATCHET_SERVING_TOKEN"  # an environment variable: secrets stand in no file


def _free(default: Any, **more: Any) -> Any:
    """A field that may change on resume."""
    return Field(default, json_schema_extra={RESUMABLE: True}, **more)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class ModelInit(Section):
    """A Qwen2-architecture model made from nothing, seeded by the run's seed."""

    layers: int = Field(4, ge=1)
    width: int = Field(192, ge=8)
    heads: int = Field(6, ge=1)
    feed_forward: int = Field(512, ge=8)
    max_positions: int = Field(256, ge=16)
    tied_embeddings: bool = False


class Lora(Section):
    """Low-rank adapters: they alone learn, warm start included, and the base model stays as it is. rank 0: none."""

    rank: int = Field(0, ge=0)
    alpha: int = Field(16, ge=1)  # the adapters' product counts alpha / rank times
    dropout: float = Field(0.0, ge=0, lt=1)  # of the adapters' input in a step; above 0 the policy that learns is noisy
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Model(Section):
    path: str | None = None  # a local Hugging Face folder; None: made from `init`
    init: ModelInit = ModelInit()
    lora: Lora = Lora()
    chat_template: bool = True  # used where the tokenizer has one
    truncation: Literal["left", "refuse"] = "left"  # prompts over engine.max_prompt_tokens: keep the end, or fail


class Fields(Section):
    """Which fields of a file's rows are what. Templates may also use every field by its own name."""

    question: str = "question"
    answer: str | None = "answer"  # what verifiers compare with; None: rows have none
    split: str | None = None  # train or held_out (also: test, validation, eval); None: held-out ones are drawn by hash


class Environment(Section):
    """`name` says where items come from: `reasoning_gym`; `dataset`, a file of your own; `module:object` from your own
    folder, which is that of the configuration file; `openenv` or `verifiers`, environments of those packages."""

    name: str = "reasoning_gym"
    dataset: str = "spell_backward"  # a data set of reasoning_gym, a .jsonl or .parquet file, a class, a taskset
    python: str | None = _free(None)  # the Python it runs in, if not ours; has numpy, pydantic, pyyaml, gymnasium
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of the data set or the object
    fields: Fields = Fields()
    prompt: str = "{question}"  # {question} or any {field} of the item
    answer: str = "{answer}"  # what supervised fine-tuning shows as the completion
    verifier: str = "own"  # the source's own; positions, exact, number, math_verify; or module:object
    tolerance: float = Field(1e-6, ge=0)  # of verifier number, relative to the larger magnitude, and absolute below 1
    max_turns: int = Field(1, ge=1)  # answers in one episode: after a wrong one that is not the last comes the remark
    remark: str = "{remark}"  # {remark}, what the verifier said, or any field of the item
    train_items: int = Field(20_000, ge=1)
    held_out_items: int = Field(512, ge=1)
    timeout_s: float = _free(10.0, gt=0)  # one answer judged
    retries: int = _free(2, ge=0)

    @property
    def label(self) -> str:
        """The name of its tasks: reasoning_gym/spell_backward, dataset/questions.jsonl, my_task:items."""
        return self.name if ":" in self.name else f"{self.name}/{self.dataset}"


class Control(Section):
    """Gymnasium environments with vector observations and discrete or continuous actions, and the policy for them.

    With an `id` the run is a control run: `environment`, `model` and `warm_start` do not apply, and the learner is PPO.
    """

    id: str | None = None  # any registered Gymnasium id, such as CartPole-v1; None: the run is a text run
    parameters: dict[str, Any] = Field(default_factory=dict)  # keyword arguments of gymnasium.make
    lanes: int = Field(16, ge=1)  # environments that one rollout slot steps together
    horizon: int = Field(128, ge=1)  # steps of one lane that make an episode record
    hidden: tuple[int, ...] = (64, 64)  # widths of the hidden layers, of actor and critic each
    normalise_observations: bool = True
    normalise_rewards: bool = True  # by the running deviation of the discounted return
    evaluation_episodes: int = Field(20, ge=1)


class Ppo(Section):
    """Proximal policy optimisation; learning rate, clips and gradient clip are the learner's."""

    epochs: int = Field(10, ge=1)  # over one batch
    minibatch_steps: int = Field(256, ge=2)  # environment steps in one gradient step
    discount: float = Field(0.99, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    value_coefficient: float = Field(0.5, ge=0)
    entropy_coefficient: float = Field(0.0, ge=0)
    target_kl: float | None = Field(None, gt=0)  # nats; epochs end early beyond it


class WarmStart(Section):
    """Supervised fine-tuning before reinforcement. steps 0: none."""

    steps: int = Field(0, ge=0)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.01, ge=0)


class Learner(Section):
    """`algorithm` is the family. In policy_gradient `loss` names the formula, which decides every key that is null: the
    table at the top of configs/formulas.py says what each name means. PPO takes the clips alone from it.
    """

    algorithm: Literal["policy_gradient", "ppo"] = "policy_gradient"
    loss: str = "grpo"  # grpo, dr_grpo, dapo, gspo, rloo, reinforce_pp; or module:object from your own folder
    advantage: Advantage | None = None
    aggregation: Aggregation | None = None
    clip_low: float | None = Field(None, ge=0)
    clip_high: float | None = Field(None, ge=0)
    dynamic_sampling: bool | None = None  # replace groups without spread before a batch is cut
    dual_clip: float | None = Field(None, gt=1)
    kl_coefficient: float = Field(0.0, ge=0)  # to the genesis weights; k3 in the loss, or a penalty in the reward
    importance_cap: float | None = Field(2.0, gt=0)  # truncated importance weights; None: off
    overlong_tokens: int = Field(0, ge=0)  # the last tokens before engine.max_tokens cost up to 1 of reward; 0: none
    groups_per_step: int = Field(32, ge=1)
    group_size: int = Field(8, ge=1)  # 1 in control runs
    learning_rate: float = Field(1e-4, gt=0)
    decay_steps: int | None = Field(None, ge=1)  # cosine to 0 at this step; None: constant
    warmup_steps: int = Field(10, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    skip_zero_spread: bool = True  # rows without any gradient are not computed
    shuffle_rewards: bool = False  # negative control: rewards are permuted across the groups of a batch
    micro_batch_tokens: int = Field(16_384, ge=1)  # padded tokens in one forward pass
    precision: Literal["fp32", "bf16"] = "bf16"  # bf16: autocast; the weights stay float32
    attention: Literal["eager", "sdpa"] = "eager"
    threads: int = _free(1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        if loss not in FORMULAS and ":" not in loss:
            raise ValueError(f"There is {', '.join(FORMULAS)}, or module:object from your own folder")
        return loss

    def formula(self) -> Formula:
        """The loss with everything that was set beside it."""
        given = {key: value for key in KEYS if (value := getattr(self, key)) is not None}
        return replace(FORMULAS.get(self.loss, OWN), **given)


class Engine(Section):
    backend: Literal["vllm", "transformers", "torch"] = "vllm"  # torch: the policy network of a control run
    count: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_prompt_tokens: int = Field(64, ge=1)
    max_tokens: int = Field(32, ge=1)  # of one completion
    max_context_tokens: int | None = Field(None, ge=2)  # of an episode, remarks included; None: prompt and completion
    max_sequences: int = _free(256, ge=1)  # at once
    memory_gib: float = _free(1.0, gt=0)  # KV cache (CPU); on a GPU see gpu_memory_share
    gpu_memory_share: float = _free(0.85, gt=0, le=1)  # colocated: while awake, beside all that the learner keeps
    in_flight: Literal["finish", "continue"] = "finish"
    transport: Literal["object_store", "nccl"] = "object_store"
    parity_gap: float = Field(0.15, gt=0)  # mean |log-prob gap| above which a push is refused
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    eager: bool = True
    threads: int = _free(1, ge=1)
    timeout_s: float = _free(120.0, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def context_tokens(self) -> int:
        """The most tokens that one sequence can have."""
        return self.max_context_tokens or self.max_prompt_tokens + self.max_tokens


class Rollout(Section):
    workers: int = _free(1, ge=1)
    slots: int = _free(2, ge=1)  # leases worked on at once by one worker, each `chunk` groups
    chunk: int | None = _free(None, ge=1)  # groups asked for at once; null: 16, in sync mode a whole step's
    max_pending_groups: int = _free(1024, ge=1)  # that wait for a late reward; at more, nothing is handed out
    lease_timeout_s: float = _free(120.0, gt=0)  # after which a held lease is abandoned and handed out again
    ack_log: str | None = _free(None)  # a file or named pipe that hears every acknowledgement (audits)
    num_gpus: float = _free(0.0, ge=0)


class Retention(Section):
    """How much experience is kept. The oldest whole segments go, as far as all bounds ask; what a start, a checkpoint's
    replay, a waiting group or a reader needs stays. All None: everything is kept."""

    max_mib: int | None = _free(None, ge=1)  # of the data log
    max_age_s: float | None = _free(None, gt=0)  # of the newest record in a segment
    max_episodes: int | None = _free(None, ge=1)
    every_s: float = _free(60.0, gt=0)  # how often it is looked at

    @property
    def is_bounded(self) -> bool:
        return not self.max_mib is self.max_age_s is self.max_episodes is None


class Store(Section):
    shards: int = Field(1, ge=1, le=1024)  # owners, each on its own node: see docs/scale.md
    retention: Retention = Retention()
    ack: Literal["durable", "os"] = "durable"
    segment_mib: int = Field(128, ge=1)
    control_segment_mib: int = Field(16, ge=1)
    reserve_mib: int = _free(64, ge=0)  # free space that data never takes
    commit_bytes: int = _free(1 << 20, ge=1)
    commit_wait_ms: float = _free(2.0, ge=0)
    strict: bool = _free(False)
    index_map_mib: int = _free(4096, ge=16)
    sampler: Literal["fifo", "uniform", "prioritised"] = "fifo"  # what a batch is filled with beside new groups
    replayed_share: float = Field(0.5, gt=0, lt=1)  # not fifo: of learner.groups_per_step, rounded down; less at first
    replayed_window: int = Field(32, ge=1)  # steps: the groups of so many newest ones are learned from again
    importance_exponent: float = Field(0.5, ge=0, le=1)  # prioritised: how far weights make up for it; 1: wholly

    def count_replayed(self, num_groups: int) -> int:
        """Of `num_groups` in a batch, those that were learned from before."""
        return 0 if self.sampler == "fifo" else int(self.replayed_share * num_groups)


class Replay(Section):
    """A group of which every member failed gets one stored success of its task for its first member.

    Lu et al. 2025, "ARPO", section 3.3. Stored log-probs stay the behaviour policy's: learner.importance_cap corrects.
    """

    enabled: bool = False
    trigger_std: float = Field(0.05, ge=0)  # of the group's rewards, population: below it, and ...
    trigger_mean: float = 0.2  # ... their mean below this
    min_reward: float = 0.1  # above it an episode is a success
    source: Literal["success", "failure"] = "success"  # failure: a control that replays what did not succeed


class Archive(Section):
    """Where the run is kept beside this disk. Also by hand: `ratchet store archive`."""

    uri: str | None = _free(None)  # s3://bucket/prefix, gs://…, file:///folder; secrets from the environment. None: not
    every_s: float = _free(600.0, gt=0)


class CheckpointRule(Section):
    every_steps: int = _free(20, ge=1)
    keep: int = _free(2, ge=1)  # newest ones, beside genesis


class Evaluate(Section):
    every_steps: int = _free(0, ge=0)  # 0: first and last only
    samples: int = Field(4, ge=1)  # sampled completions an item, at temperature 1


class Metrics(Section):
    enabled: bool = _free(True)
    host: str = _free("127.0.0.1")


class Serving(Section):
    """The store over gRPC, for producers and readers outside the run's cluster. The token, if any, stands in the
    environment (SERVING_TOKEN). Off loopback it takes a certificate, and a token or the authority of the clients'."""

    enabled: bool = _free(False)
    host: str = _free("127.0.0.1")
    port: int = _free(0, ge=0, le=65_535)  # 0: a free one; RUN/serving.json says which
    certificate: str | None = _free(None)  # PEM files of the server: certificate (with its chain) and key
    key: str | None = _free(None)
    client_authority: str | None = _free(None)  # PEM: clients must show a certificate that it signed (mTLS)
    decisions: bool = _free(False)  # learners outside may write sessions, batches and versions, too
    max_message_mib: int = _free(16, ge=1, le=64)  # one frame of episodes, one reply
    credit_mib: int = _free(16, ge=1)  # what one producer may have sent and not yet been answered for
    max_streams: int = _free(64, ge=1)  # producers and tailers at once; each holds a thread

    @model_validator(mode="after")
    def _paired(self) -> Serving:
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("serving.certificate and serving.key come together: set both or none")
        if self.client_authority is not None and self.certificate is None:
            raise ValueError("serving.client_authority needs TLS: set serving.certificate and serving.key")
        return self


class Cluster(Section):
    address: str = _free("local")  # "local": a cluster of its own for this run; else a Ray address or "auto"
    mode: Literal["cpu", "gpu", "colocated"] = _free("cpu")  # who asks for GPUs: see actors/placement.py
    insecure: bool = _free(False)  # join a cluster of several nodes without token authentication
    placement_timeout_s: float = _free(30.0, gt=0)
    object_store_mib: int = _free(256, ge=80)


class RunConfig(Section):
    name: str = "run"
    root: str = _free("runs")  # folder of run folders
    seed: int = 0
    mode: Literal["sync", "async"] = "async"
    steps: int = _free(100, ge=0)
    max_staleness: int = Field(1, ge=0)  # versions; 0 in sync mode
    model: Model = Model()
    environment: Environment = Environment()
    control: Control = Control()
    ppo: Ppo = Ppo()
    warm_start: WarmStart = WarmStart()
    learner: Learner = Learner()
    engine: Engine = Engine()
    rollout: Rollout = Rollout()
    store: Store = Store()
    replay: Replay = Replay()
    archive: Archive = Archive()
    checkpoint: CheckpointRule = CheckpointRule()
    evaluate: Evaluate = Evaluate()
    metrics: Metrics = Metrics()
    serving: Serving = Serving()
    cluster: Cluster = Cluster()

    @property
    def environment_label(self) -> str:
        """What every episode of the run says that it is from."""
        return self.control.id or self.environment.label

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.mode == "sync" and self.max_staleness != 0:
            raise ValueError("mode sync has no staleness: set max_staleness to 0")
        self._check_colocated()
        if self.model.lora.rank and self.engine.transport == "nccl":
            raise ValueError("engine.transport nccl sends whole networks, not adapters (model.lora): set object_store")
        if self.model.path is None and self.model.init.width % self.model.init.heads:
            init = self.model.init
            raise ValueError(f"model.init.width {init.width} is no multiple of heads {init.heads}")
        self._check_tenant()
        self._check_turns()
        self._check_sampler()
        self._check_shards()
        if self.replay.enabled and self.control.id is not None:
            raise ValueError("replay.enabled is for groups of several tries: control runs have none")
        return self

    @property
    def new_groups_per_step(self) -> int:
        """Groups of a batch that no batch had before."""
        return self.learner.groups_per_step - self.store.count_replayed(self.learner.groups_per_step)

    def _check_sampler(self) -> None:
        store = self.store
        if store.sampler == "fifo":
            return
        if self.control.id is not None:
            raise ValueError(f"store.sampler {store.sampler} is for policy_gradient: PPO learns from each episode once")
        if store.count_replayed(self.learner.groups_per_step) == 0:
            raise ValueError(
                f"store.sampler is {store.sampler}, but store.replayed_share {store.replayed_share} of "
                f"learner.groups_per_step {self.learner.groups_per_step} is less than one group"
            )

    def _check_turns(self) -> None:
        engine, turns = self.engine, self.environment.max_turns
        if turns > 1 and engine.max_context_tokens is None:
            raise ValueError(
                f"environment.max_turns is {turns}, so engine.max_context_tokens must say how long an episode may get"
            )
        if engine.context_tokens < engine.max_prompt_tokens + engine.max_tokens:
            raise ValueError(
                f"engine.max_context_tokens {engine.context_tokens} has no room for a prompt of "
                f"{engine.max_prompt_tokens} and a completion of {engine.max_tokens}"
            )
        positions = self.model.init.max_positions
        if self.model.path is None and self.control.id is None and engine.context_tokens > positions:
            raise ValueError(
                f"the engine may have {engine.context_tokens} tokens in a sequence, and model.init.max_positions is "
                f"{positions}"
            )

    def _check_shards(self) -> None:
        shards = self.store.shards
        if shards == 1:
            return
        alone = {
            "store.retention": self.store.retention.is_bounded,
            "archive.uri": self.archive.uri is not None,
            "serving.enabled": self.serving.enabled,
            "replay.enabled": self.replay.enabled,
            "store.sampler": self.store.sampler != "fifo",
        }
        if wrong := [key for key, is_set in alone.items() if is_set]:
            raise ValueError(f"store.shards is {shards}, and {', '.join(wrong)} is for a store of one shard alone")
        if self.learner.groups_per_step < shards:
            raise ValueError(
                f"learner.groups_per_step {self.learner.groups_per_step} leaves some of {shards} shards without a group"
            )

    def _check_colocated(self) -> None:
        if self.cluster.mode != "colocated":
            return
        wanted: dict[str, object] = {"mode": "sync", "engine.transport": "object_store"}
        found: dict[str, object] = {"mode": self.mode, "engine.transport": self.engine.transport}
        if self.engine.device == "cuda":  # cores are shared by as many engines as there are cores
            wanted["engine.count"], found["engine.count"] = 1, self.engine.count
        if wrong := [f"{key} is {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]:
            raise ValueError(
                "cluster.mode is colocated, in which engine and update worker take turns in one place, but "
                + " and ".join(wrong)
            )

    def _check_tenant(self) -> None:
        is_control = self.control.id is not None
        if is_control and self.model.lora.rank:
            raise ValueError("model.lora is for language models: set model.lora.rank to 0, or leave control.id out")
        wanted = {
            "learner.algorithm": self.learner.algorithm == "ppo",
            "engine.backend": self.engine.backend == "torch",
        }
        for key, value in wanted.items():
            if value is not is_control:
                a, b = ("ppo", "torch") if is_control else ("policy_gradient", "vllm or transformers")
                raise ValueError(
                    f"control.id is {self.control.id or 'not set'}: learner.algorithm must be {a} and engine.backend "
                    f"{b}, but {key} is another"
                )
        if (self.learner.group_size == 1) is not is_control:
            raise ValueError(
                "learner.group_size is 1 in control runs, where a group is one stretch of play; else at least 2"
            )
