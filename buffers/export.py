"""Writes the experience of a run as Parquet: a folder that DuckDB, pandas and Hugging Face `datasets` open.

    FOLDER/ { README.md: the dataset card, TABLE/part-00000.parquet … }

The folder gets its name last of all, when everything in it is synced: a half-written one is never taken for whole.
Streaming: memory is bounded by one Arrow batch a table, whatever the size of the log.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from buffers.inspection import OnProgress, ignore
from buffers.log.files import sync_folder, sync_tree
from buffers.log.readers import reading
from buffers.tables import COLUMNS, SCHEMAS, Experience
from contracts.errors import UserError

PART_BYTES = 512 << 20  # of Arrow data, after which a table goes on in another file


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. `rows`: table → rows."""

    out: Path
    uuid: UUID
    data_lsn: int
    control_lsn: int
    rows: dict[str, int]


def export(store: Path, out: Path, *, run: str, config_hash: str, on_progress: OnProgress = ignore) -> Exported:
    """Write all tables of the store in `store` to the new folder `out`.

    Raises UserError where there is something at `out`, StoreIdentityError where there is no store.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"an export to {out}", "there is something already", "name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with reading(store):
            experience = Experience(store)
            rows = _write(experience, draft, on_progress=on_progress)
        made = Exported(
            out=out,
            uuid=experience.uuid,
            data_lsn=experience.data_lsn,
            control_lsn=experience.control_lsn,
            rows=rows,
        )
        (draft / "README.md").write_text(render_card(made, run=run, config_hash=config_hash))
        sync_tree(draft)
        draft.rename(out)  # an empty folder may be there
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(out.parent)
    return made


def render_card(made: Exported, *, run: str, config_hash: str) -> str:
    """The dataset card: what `datasets` needs to find the tables, and what a reader needs to understand them."""
    lines = ["---", "configs:"]
    for table in COLUMNS:
        lines += [f"- config_name: {table}", f"  data_files: {table}/*.parquet"]
        lines += ["  default: true"] if table == "episodes" else []
    lines += ["tags:", "- reinforcement-learning", "---", "", f"# Experience of the run {run}", ""]
    lines.append(
        f"Store {made.uuid}, data log up to LSN {made.data_lsn}, control log up to LSN {made.control_lsn}, "
        f"configuration {config_hash[:16]}. Written by Ratchet. Rewards are the newest that the log had."
    )
    for table, (text, columns) in COLUMNS.items():
        lines += [
            "",
            f"## {table}: {made.rows[table]:,} rows",
            "",
            text,
            "",
            "| column | type | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in columns]
    return "\n".join(lines) + "\n"


def _write(experience: Experience, draft: Path, *, on_progress: OnProgress) -> dict[str, int]:
    parts = {table: _Parts(draft / table, SCHEMAS[table]) for table in COLUMNS}
    try:
        for table, batch in experience.stream(on_progress=on_progress):
            parts[table].write(batch)
    finally:
        for part in parts.values():
            part.close()
    return {table: part.num_rows for table, part in parts.items()}


class _Parts:
    """One table's files. A table without rows has one file all the same: its schema is something to know."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.num_rows = 0
        self._folder, self._schema, self._num_files, self._bytes = folder, schema, 0, 0
        self._writer = self._open()

    def write(self, batch: pa.RecordBatch) -> None:
        if self._bytes >= PART_BYTES:
            self._writer.close()
            self._writer = self._open()
        self._writer.write_batch(batch)
        self._bytes += batch.nbytes
        self.num_rows += batch.num_rows

    def close(self) -> None:
        self._writer.close()

    def _open(self) -> pq.ParquetWriter:
        path = self._folder / f"part-{self._num_files:05d}.parquet"
        self._num_files, self._bytes = self._num_files + 1, 0
        return pq.ParquetWriter(path, self._schema, compression="zstd")
