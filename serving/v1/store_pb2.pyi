from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Log(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_UNSPECIFIED: _ClassVar[Log]
    LOG_DATA: _ClassVar[Log]
    LOG_CONTROL: _ClassVar[Log]
LOG_UNSPECIFIED: Log
LOG_DATA: Log
LOG_CONTROL: Log

class Record(_message.Message):
    __slots__ = ("lsn", "kind", "payload")
    LSN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    kind: int
    payload: bytes
    def __init__(self, lsn: _Optional[int] = ..., kind: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("producer",)
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    producer: str
    def __init__(self, producer: _Optional[str] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("producer", "epoch", "max_tasks", "rank", "world", "wait_s")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MAX_TASKS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    producer: str
    epoch: int
    max_tasks: int
    rank: int
    world: int
    wait_s: float
    def __init__(self, producer: _Optional[str] = ..., epoch: _Optional[int] = ..., max_tasks: _Optional[int] = ..., rank: _Optional[int] = ..., world: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[TaskLease]
    def __init__(self, leases: _Optional[_Iterable[_Union[TaskLease, _Mapping]]] = ...) -> None: ...

class TaskLease(_message.Message):
    __slots__ = ("lsn", "task", "missing")
    LSN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    task: Task
    missing: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lsn: _Optional[int] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., missing: _Optional[_Iterable[int]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "position", "index", "group_size", "producer", "branch", "attempt", "payload")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    position: int
    index: int
    group_size: int
    producer: str
    branch: int
    attempt: int
    payload: bytes
    def __init__(self, task_id: _Optional[str] = ..., position: _Optional[int] = ..., index: _Optional[int] = ..., group_size: _Optional[int] = ..., producer: _Optional[str] = ..., branch: _Optional[int] = ..., attempt: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class StreamExperienceRequest(_message.Message):
    __slots__ = ("opening", "frame")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    frame: Frame
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("format_version", "schema")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    schema: bytes
    def __init__(self, format_version: _Optional[int] = ..., schema: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("number", "record_batch")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECORD_BATCH_FIELD_NUMBER: _ClassVar[int]
    number: int
    record_batch: bytes
    def __init__(self, number: _Optional[int] = ..., record_batch: _Optional[bytes] = ...) -> None: ...

class StreamExperienceResponse(_message.Message):
    __slots__ = ("credit_bytes", "max_frame_bytes", "outcomes")
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    credit_bytes: int
    max_frame_bytes: int
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, credit_bytes: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("number", "acks", "refusal")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    number: int
    acks: _containers.RepeatedCompositeFieldContainer[Ack]
    refusal: Refusal
    def __init__(self, number: _Optional[int] = ..., acks: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("lsn", "duplicate", "late", "fault")
    LSN_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    duplicate: bool
    late: bool
    fault: str
    def __init__(self, lsn: _Optional[int] = ..., duplicate: bool = ..., late: bool = ..., fault: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("error", "reason")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    error: str
    reason: str
    def __init__(self, error: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("lsns",)
    LSNS_FIELD_NUMBER: _ClassVar[int]
    lsns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lsns: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("schema", "record_batch")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RECORD_BATCH_FIELD_NUMBER: _ClassVar[int]
    schema: bytes
    record_batch: bytes
    def __init__(self, schema: _Optional[bytes] = ..., record_batch: _Optional[bytes] = ...) -> None: ...

class TailRequest(_message.Message):
    __slots__ = ("start", "credit_bytes")
    START_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    start: Start
    credit_bytes: int
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("log", "lsn", "kinds", "credit_bytes")
    LOG_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    log: Log
    lsn: int
    kinds: _containers.RepeatedScalarFieldContainer[int]
    credit_bytes: int
    def __init__(self, log: _Optional[_Union[Log, str]] = ..., lsn: _Optional[int] = ..., kinds: _Optional[_Iterable[int]] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class TailResponse(_message.Message):
    __slots__ = ("schema", "record_batch", "episode_lsns", "records", "next_lsn")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RECORD_BATCH_FIELD_NUMBER: _ClassVar[int]
    EPISODE_LSNS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_LSN_FIELD_NUMBER: _ClassVar[int]
    schema: bytes
    record_batch: bytes
    episode_lsns: _containers.RepeatedScalarFieldContainer[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    next_lsn: int
    def __init__(self, schema: _Optional[bytes] = ..., record_batch: _Optional[bytes] = ..., episode_lsns: _Optional[_Iterable[int]] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., next_lsn: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("uuid", "epoch", "served", "data_lsn", "control_lsn", "outstanding", "environment")
    UUID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    DATA_LSN_FIELD_NUMBER: _ClassVar[int]
    CONTROL_LSN_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    epoch: int
    served: int
    data_lsn: int
    control_lsn: int
    outstanding: int
    environment: str
    def __init__(self, uuid: _Optional[str] = ..., epoch: _Optional[int] = ..., served: _Optional[int] = ..., data_lsn: _Optional[int] = ..., control_lsn: _Optional[int] = ..., outstanding: _Optional[int] = ..., environment: _Optional[str] = ...) -> None: ...

class GetLedgerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLedgerResponse(_message.Message):
    __slots__ = ("ledger",)
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    ledger: Ledger
    def __init__(self, ledger: _Optional[_Union[Ledger, _Mapping]] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("handed", "ended", "in_flight", "ready", "episodes", "episodes_late", "episodes_trained", "quarantined")
    class EndedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class QuarantinedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    HANDED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    EPISODES_LATE_FIELD_NUMBER: _ClassVar[int]
    EPISODES_TRAINED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    handed: int
    ended: _containers.ScalarMap[str, int]
    in_flight: int
    ready: int
    episodes: int
    episodes_late: int
    episodes_trained: int
    quarantined: _containers.ScalarMap[str, int]
    def __init__(self, handed: _Optional[int] = ..., ended: _Optional[_Mapping[str, int]] = ..., in_flight: _Optional[int] = ..., ready: _Optional[int] = ..., episodes: _Optional[int] = ..., episodes_late: _Optional[int] = ..., episodes_trained: _Optional[int] = ..., quarantined: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetDecisionsRequest(_message.Message):
    __slots__ = ("start", "kinds")
    START_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    kinds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start: _Optional[int] = ..., kinds: _Optional[_Iterable[int]] = ...) -> None: ...

class GetDecisionsResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: Record
    def __init__(self, record: _Optional[_Union[Record, _Mapping]] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("lsn",)
    LSN_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    def __init__(self, lsn: _Optional[int] = ...) -> None: ...

class AppendBatchRequest(_message.Message):
    __slots__ = ("request", "wait_s")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    request: BatchRequest
    wait_s: float
    def __init__(self, request: _Optional[_Union[BatchRequest, _Mapping]] = ..., wait_s: _Optional[float] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("session", "branch", "step", "parent_version", "num_groups", "max_staleness", "seed", "coefficients", "with_spread")
    class CoefficientsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    WITH_SPREAD_FIELD_NUMBER: _ClassVar[int]
    session: int
    branch: int
    step: int
    parent_version: int
    num_groups: int
    max_staleness: int
    seed: int
    coefficients: _containers.ScalarMap[str, float]
    with_spread: bool
    def __init__(self, session: _Optional[int] = ..., branch: _Optional[int] = ..., step: _Optional[int] = ..., parent_version: _Optional[int] = ..., num_groups: _Optional[int] = ..., max_staleness: _Optional[int] = ..., seed: _Optional[int] = ..., coefficients: _Optional[_Mapping[str, float]] = ..., with_spread: bool = ...) -> None: ...

class AppendBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Record
    def __init__(self, batch: _Optional[_Union[Record, _Mapping]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("record", "session")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    record: Record
    session: int
    def __init__(self, record: _Optional[_Union[Record, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("lsn",)
    LSN_FIELD_NUMBER: _ClassVar[int]
    lsn: int
    def __init__(self, lsn: _Optional[int] = ...) -> None: ...
