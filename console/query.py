"""`ratchet store query RUN`: episodes by version, task, environment, producer, success and time."""

from __future__ import annotations

import json
import math
import re
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.loader import load
from console.bars import bar
from console.run_folder import refuse_shards, resolve
from contracts.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from buffers.query import Query, Summary

_VERSIONS = re.compile(r"(\d{1,18})|(\d{0,18}):(\d{0,18})")
_NEWEST = (1 << 63) - 1
_KEYS, _WORDS = ("version", "task", "environment", "producer", "since", "until"), ("success", "failure")
_SHOWN = ("lsn", "episode_id", "task_id", "versions", "reward", "producer", "time")


def query(
    run: Annotated[str, typer.Argument(metavar="RUN|SNAPSHOT")],
    version: Annotated[
        str | None, typer.Option(metavar="A:B", help="One of these acted, both included; also A, A: and :B.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="ID")] = None,
    environment: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    producer: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    success: Annotated[
        bool | None, typer.Option("--success/--failure", help="Reward above the run's replay.min_reward, or not.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="2026-01-31T12:00 (UTC) or seconds.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Not included.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Episodes to list, the newest ones.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Episodes that fit every option, and sums over all of them; read from columns, not from what they hold."""
    from buffers.query import Query, Summary, find

    folder = resolve(run)
    refuse_shards(folder, asked="a query")
    wanted = Query(
        versions=None if version is None else parse_versions(version),
        task=task,
        environment=environment,
        producer=producer,
        success=success,
        min_reward=load(folder / "config.yaml").replay.min_reward,
        since=None if since is None else parse_time("--since", since),
        until=None if until is None else parse_time("--until", until),
    )
    summary, listed = Summary(wanted.min_reward), list[dict[str, Any]]()
    with bar("reading", quiet=as_json) as advance:
        for table in find(folder / "store", wanted, on_progress=advance):
            summary.add(table)
            listed = _take_newest(table, limit - len(listed)) + listed
    if as_json:
        typer.echo(json.dumps({"run": folder.name, "summary": summary.to_json(), "episodes": listed}))
        return
    for line in [*render_rows(listed), render_summary(summary, wanted)]:
        typer.echo(line)


def parse_query(text: str, *, min_reward: float) -> Query:
    """The same in one string: `version=3:9 task=ID environment=NAME producer=NAME success|failure since=TIME
    until=TIME`, in any order. Raises UserError on anything else, and where nothing is asked for."""
    from buffers.query import Query

    given: dict[str, str] = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if key in given or bool(equals) is (key in _WORDS) or key not in (*_KEYS, *_WORDS) or (equals and not value):
            raise UserError(
                f"the query {text!r}",
                f"{word!r} is no part of one, or stands there twice",
                f"{' '.join(f'{name}=…' for name in _KEYS)} {' | '.join(_WORDS)}",
            )
        given[key] = value
    if not given or all(word in given for word in _WORDS):
        raise UserError(f"the query {text!r}", "it names no episodes, or contradicts itself", "for example version=3:9")
    return Query(
        versions=parse_versions(given["version"]) if "version" in given else None,
        task=given.get("task"),
        environment=given.get("environment"),
        producer=given.get("producer"),
        success=None if not any(word in given for word in _WORDS) else "success" in given,
        min_reward=min_reward,
        since=parse_time("since", given["since"]) if "since" in given else None,
        until=parse_time("until", given["until"]) if "until" in given else None,
    )


def parse_versions(text: str) -> tuple[int, int]:
    """`7`, `3:9`, `3:`, `:9`. Raises UserError on anything else."""
    match = _VERSIONS.fullmatch(text)
    if match is None:
        raise UserError(f"--version {text}", "that is no range of versions", "A, A:B, A: or :B, both ends included")
    if match[1]:
        return int(match[1]), int(match[1])
    return int(match[2] or 0), int(match[3] or _NEWEST)


def parse_time(option: str, text: str) -> float:
    """Seconds since 1970. Raises UserError where `text` is no time."""
    try:
        found = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
            found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{option} {text}", "that is no time", "2026-01-31T12:00 (UTC), or seconds since 1970")
    return found


def render_rows(rows: list[dict[str, Any]]) -> list[str]:
    """One line an episode, below the names of the columns."""
    if not rows:
        return []
    lines = [list(_SHOWN), *([_show(row, name) for name in _SHOWN] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_SHOWN))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def render_summary(summary: Summary, wanted: Query) -> str:
    if not summary.episodes:
        return "no episode fits"
    mean = "-" if summary.reward_mean is None else f"{summary.reward_mean:.4f}"
    return (
        f"{summary.episodes:,} episodes of {len(summary.tasks):,} tasks by {len(summary.producers)} producers, "
        f"versions {summary.first_version} to {summary.last_version}; {summary.rewarded:,} with a reward, mean {mean}, "
        f"{summary.successes:,} above {wanted.min_reward:g}"
    )


def _take_newest(table: pa.Table, num: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.slice(max(0, table.num_rows - num)).to_pylist() if num > 0 else []
    return [row | {"wall_time": row["wall_time"] if math.isfinite(row["wall_time"]) else None} for row in rows]


def _show(row: dict[str, Any], name: str) -> str:
    if name == "time":
        return _show_time(row["wall_time"])
    value = row[name]
    if name == "versions":
        return ",".join(map(str, value))
    if name == "reward":
        return "-" if value is None else f"{value:.4f}"
    return str(value)


def _show_time(wall_time: float | None) -> str:
    try:
        return "-" if wall_time is None else f"{datetime.fromtimestamp(wall_time, UTC):%Y-%m-%dT%H:%M:%S}"
    except (ValueError, OverflowError):  # its clock was far off
        return "-"
