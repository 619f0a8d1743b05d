"""Items from a file of your own: rows of JSON lines (.jsonl) or of a Parquet table (.parquet).

    environment:
      name: dataset
      dataset: questions.jsonl                        # beside the configuration file, or an absolute path
      fields: {question: problem, answer: solution, split: part}
      verifier: math_verify

With a split field each row says where it belongs. Without one the rows are ordered by a hash of their question, and the
first distinct ones are held out: which those are hangs on the questions alone, not on the seed or on the file's order.
Every row is checked, and every fault names its line, its field, and what is there. The whole file is held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.schema import Environment
from contracts.errors import UserError
from environments.text.own import as_text
from environments.text.sources import Entry, Verifier, by_hash

SUFFIXES = (".jsonl", ".parquet")
HELD_OUT_WORDS = ("held_out", "test", "validation", "valid", "dev", "eval")  # data sets call them so


class FileSource:
    """environments.text.sources.Source by the rows of one file."""

    judge = None
    score_answer: Verifier | None = None

    def __init__(self, environment: Environment, *, folder: Path | None) -> None:
        """Raises UserError: no such file, or one of another kind, or a row that is not as `fields` says."""
        self._fields = environment.fields
        self._file = (Path.cwd() if folder is None else folder) / environment.dataset
        self._asked = f"The data set {environment.dataset} was asked for (environment.dataset)."
        check_file(self._file, asked=self._asked)
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise UserError(self._asked, f"It cannot be read: {error.strerror}.", "Make it readable.") from None
        self.version = f"{self._file.name} sha256:{hashlib.sha256(content).hexdigest()[:16]}"
        rows = self._json_lines(content) if self._file.suffix == ".jsonl" else self._parquet_rows()
        self._entries = [self._entry(row, place) for place, row in rows]

    def entries(self, split: str) -> Iterator[Entry]:
        if self._fields.split is None:
            return iter(by_hash(self._entries))
        return (entry for entry in self._entries if entry["_split"] == split)

    def _json_lines(self, content: bytes) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line.decode())
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                found = f"Line {number} is no JSON: {error}. It begins with {line[:60].decode(errors='replace')!r}."
                raise UserError(self._asked, found, "Write one JSON object a line.") from None

    def _parquet_rows(self) -> Iterator[tuple[str, Any]]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            table = parquet.read_table(self._file)
        except pa.ArrowException as error:
            found = f"pyarrow cannot read it: {str(error).splitlines()[0]}"
            raise UserError(self._asked, found, "Name a Parquet file.") from None
        for number, row in enumerate(table.to_pylist(), start=1):
            yield f"row {number}", row

    def _entry(self, row: Any, place: str) -> Entry:
        if not isinstance(row, Mapping):
            found = f"{place.capitalize()} is {row!r:.100}, not an object."
            raise UserError(self._asked, found, "Write one JSON object a line.")
        entry: dict[str, Any] = {**row, "place": place}
        wanted = {"question": self._fields.question, "answer": self._fields.answer}
        for name, field in wanted.items():
            value = None if field is None else self._value(row, field, key=name, place=place)
            entry[name] = as_text(value, name=field or name, place=place.capitalize(), asked=self._asked)
        if entry["question"] is None:
            found = f"{place.capitalize()}: {self._fields.question} is null."
            raise UserError(self._asked, found, "Every row needs a question.")
        entry["_split"] = self._split(row, place)
        return entry

    def _split(self, row: Mapping[str, Any], place: str) -> str:
        field = self._fields.split
        if field is None:
            return ""
        value = self._value(row, field, key="split", place=place)
        if value == "train":
            return "train"
        if value in HELD_OUT_WORDS:
            return "held_out"
        found = f"{place.capitalize()}: {field} is {value!r:.100}."
        raise UserError(self._asked, found, f"Write train, or one of {', '.join(HELD_OUT_WORDS)}.")

    def _value(self, row: Mapping[str, Any], field: str, *, key: str, place: str) -> Any:
        if field in row:
            return row[field]
        there = ", ".join(map(str, row)) or "none at all"
        raise UserError(
            self._asked,
            f"{place.capitalize()} has no field {field}. Its fields: {there}.",
            f"Say which one it is: environment.fields.{key}.",
        )


def check_file(file: Path, *, asked: str) -> None:
    """Raises UserError unless it is a file of a known kind."""
    if file.suffix not in SUFFIXES:
        raise UserError(asked, f"Its name ends in {file.suffix or 'nothing'}.", f"Known are {' and '.join(SUFFIXES)}.")
    if not file.is_file():
        near = sorted(other.name for other in file.parent.glob("*") if other.suffix in SUFFIXES)[:5]
        todo = f"There is: {', '.join(near)}." if near else "Put it beside the configuration file."
        raise UserError(asked, f"There is no file {file}.", todo)
