"""Reads experience that was made elsewhere: another run's export, or prompts with completions and rewards in a file.

    FOLDER of `ratchet export`      token ids, behaviour log-probs and rewards as they were; groups are leases
    FILE.jsonl, FILE.parquet        rows {prompt, completion, reward}, neighbours with one prompt being a group, or rows
                                    {prompt, completions, rewards}: texts, without log-probs

Memory: of a file one group; of an export the episodes' columns and the steps of CHUNK groups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from contracts.errors import UserError
from contracts.records import Step, StopReason

CHUNK = 256  # groups of an export whose steps are read at once
_COLUMNS = ("lsn", "lease", "member", "task_id", "environment", "stop_reason", "reward", "producer")


@dataclass(frozen=True, kw_only=True)
class Try:
    """One answer. `text`; or None and `steps`, token ids with log-probs. `reward` None: the source has none."""

    reward: float | None
    text: str | None = None
    steps: tuple[Step, ...] = ()
    stop_reason: StopReason = StopReason.TERMINATED


@dataclass(frozen=True, kw_only=True)
class ForeignGroup:
    """Tries of one prompt. `key` names it in its source for ever; `origin` is what else the source says of it."""

    key: str
    prompt: str
    tries: tuple[Try, ...]
    origin: dict[str, Any] = field(default_factory=dict)


def hash_source(source: Path) -> str:
    """sha256 over the source's files, names included, in 64 hex digits. Raises UserError where there is none."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise UserError(
            f"experience in {source}", "there is no such file, nor a folder of `ratchet export`", "name one of the two"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(source) if source.is_dir() else file.suffix}\n".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def read_groups(source: Path) -> Iterator[ForeignGroup]:
    """The groups in their order. Raises UserError where the source is nothing that is known here."""
    if source.is_dir():
        return _read_export(source)
    if source.suffix in (".jsonl", ".json"):
        return _group(_read_jsonl(source), source)
    if source.suffix == ".parquet":
        rows = (row for batch in pq.ParquetFile(source).iter_batches(batch_size=CHUNK) for row in batch.to_pylist())
        return _group(rows, source)
    raise UserError(
        f"experience in {source}", f"{source.suffix or 'no suffix'} is no format known here", "JSONL or Parquet"
    )


# ---------------------------------------------------------------------------------------------- files


def _read_jsonl(source: Path) -> Iterator[dict[str, Any]]:
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"experience in {source}", f"line {number} is no JSON object", "correct it")
            yield row


def _group(rows: Iterator[dict[str, Any]], source: Path) -> Iterator[ForeignGroup]:
    numbered = ((number, _check(row, source, number)) for number, row in enumerate(rows))
    for _, members in groupby(numbered, key=_tell_apart):
        listed = list(members)
        prompt = listed[0][1]["prompt"]
        tries: list[Try] = []
        for _, row in listed:
            texts = row["completions"] if "completions" in row else [row["completion"]]
            rewards = row["rewards"] if "completions" in row else [row.get("reward")]
            tries += [Try(text=text, reward=_number(reward)) for text, reward in zip(texts, rewards, strict=True)]
        rest = {key: value for key, value in listed[0][1].items() if isinstance(value, str | int | float | bool)}
        yield ForeignGroup(
            key=str(listed[0][0]), prompt=prompt, tries=tuple(tries), origin={"row": listed[0][0], **rest}
        )


def _tell_apart(numbered: tuple[int, dict[str, Any]]) -> tuple[str, int]:
    """The same for neighbours of one group: rows of one completion by their prompt; others are groups by themselves."""
    number, row = numbered
    return row["prompt"], number if "completions" in row else -1


def _check(row: dict[str, Any], source: Path, number: int) -> dict[str, Any]:
    several = "completions" in row
    texts = row.get("completions") if several else [row.get("completion")]
    is_whole = isinstance(row.get("prompt"), str) and isinstance(texts, list) and len(texts) > 0
    is_whole = is_whole and all(isinstance(text, str) for text in texts or ())
    if several:
        rewards = row.get("rewards")
        is_whole = is_whole and isinstance(rewards, list) and len(rewards) == len(texts or ())
    if not is_whole:
        raise UserError(
            f"experience in {source}",
            f"row {number} has the fields {', '.join(row)}",
            "each row has prompt, completion and reward, or prompt, completions and as many rewards",
        )
    return row


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


# ---------------------------------------------------------------------------------------------- exports


def _read_export(folder: Path) -> Iterator[ForeignGroup]:
    """Each lease that was answered, in the log's order. Late answers are of it too."""
    if not all((folder / name).is_dir() for name in ("episodes", "steps")):
        raise UserError(
            f"experience in {folder}", "it has no tables episodes and steps", "a folder of `ratchet export`"
        )
    episodes = ds.dataset(folder / "episodes", format="parquet").to_table(columns=list(_COLUMNS)).to_pylist()
    leases: dict[int, list[dict[str, Any]]] = {}
    for row in episodes:
        leases.setdefault(row["lease"], []).append(row)
    steps = ds.dataset(folder / "steps", format="parquet")
    groups = iter(leases.items())
    while chunk := list(islice(groups, CHUNK)):
        lsns = [row["lsn"] for _, rows in chunk for row in rows]
        by_lsn = _read_steps(steps, lsns)
        for lease, rows in chunk:
            yield ForeignGroup(
                key=str(lease),
                prompt="",
                tries=tuple(
                    Try(
                        reward=row["reward"],
                        steps=tuple(by_lsn.get(row["lsn"], ())),
                        stop_reason=StopReason(row["stop_reason"]),
                    )
                    for row in sorted(rows, key=lambda one: one["member"])
                ),
                origin={
                    "lease": lease,
                    "lsns": [row["lsn"] for row in rows],
                    "task_id": rows[0]["task_id"],
                    "environment": rows[0]["environment"],
                    "producers": sorted({row["producer"] for row in rows}),
                },
            )


def _read_steps(steps: Any, lsns: Sequence[int]) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    wanted = (ds.field("lsn") >= min(lsns)) & (ds.field("lsn") <= max(lsns))
    table = steps.filter(wanted & ds.field("lsn").isin(pa.array(lsns))).to_table().sort_by(
        [("lsn", "ascending"), ("step", "ascending")]
    )  # fmt: skip
    for row in table.to_pylist():
        if row["observation_tokens"] is None or row["action_tokens"] is None:
            raise UserError("an export as experience", "it is of a control run", "take the export of a text run")
        found.setdefault(row["lsn"], []).append(
            Step(
                observation=np.array(row["observation_tokens"], dtype=np.int32),
                action=np.array(row["action_tokens"], dtype=np.int32),
                log_probs=np.array(row["log_probs"], dtype=np.float32),
            )
        )
    return found
