"""Five questions that people ask of a run's experience, as SQL over its tables, answered by DuckDB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from buffers.tables import Experience
from contracts.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Question:
    """`tables`: those that `sql` names; only they are read."""

    text: str
    tables: tuple[str, ...]
    sql: str


QUESTIONS = {
    "reward-by-version": Question(
        text="How much reward did each policy version get?",
        tables=("episodes",),
        sql="""
            SELECT oldest_version AS version, count(*) AS episodes, avg(reward) AS reward_mean,
                   stddev_samp(reward) AS reward_std, min(reward) AS reward_min, max(reward) AS reward_max
            FROM episodes WHERE reward IS NOT NULL GROUP BY 1 ORDER BY 1
        """,
    ),
    "staleness": Question(
        text="How many versions old was what the learner read?",
        tables=("episodes", "batches", "versions"),
        sql="""
            SELECT parents.depth - makers.depth AS staleness, count(*) AS episodes,
                   count(*) / sum(count(*)) OVER () AS share
            FROM batches
            JOIN episodes ON episodes.lsn = batches.episode_lsn
            JOIN versions AS parents ON parents.version = batches.parent_version
            JOIN versions AS makers ON makers.version = episodes.oldest_version
            GROUP BY 1 ORDER BY 1
        """,
    ),
    "quarantine": Question(
        text="What is quarantined, and why?",
        tables=("quarantine",),
        sql="""
            SELECT fault, count(*) AS episodes, count(DISTINCT producer) AS producers, sum(num_bytes) AS bytes,
                   max(wall_time) AS newest, arg_max(detail, lsn) AS newest_detail
            FROM quarantine GROUP BY 1 ORDER BY episodes DESC, fault
        """,
    ),
    "most-replayed": Question(
        text="Which tasks were trained on most often?",
        tables=("tasks", "batches"),
        sql="""
            SELECT task_id, count(DISTINCT batch_lsn) AS batches, count(DISTINCT batches.lease) AS groups,
                   count(*) AS episodes
            FROM batches JOIN tasks ON tasks.lease = batches.lease
            GROUP BY 1 ORDER BY batches DESC, episodes DESC, task_id LIMIT 20
        """,
    ),
    "tokens-a-day": Question(
        text="How many tokens came in on each day (UTC)?",
        tables=("episodes",),
        sql="""
            SELECT CAST(wall_time AS DATE) AS day, count(*) AS episodes, sum(num_prompt_tokens) AS prompt_tokens,
                   sum(num_action_tokens) AS action_tokens
            FROM episodes GROUP BY 1 ORDER BY 1
        """,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A table: its columns' names, and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def ask(experience: Experience, name: str) -> Answer:
    """Raises UserError on a question that is none of QUESTIONS."""
    if name not in QUESTIONS:
        known = "; ".join(f"{known}: {question.text}" for known, question in QUESTIONS.items())
        raise UserError(f"the question {name}", "there is no such question", known)
    import duckdb

    question = QUESTIONS[name]
    with duckdb.connect(":memory:") as database:
        for table in question.tables:
            database.register(f"{table}_stream", experience.read(table))
            database.execute(f"CREATE TABLE {table} AS SELECT * FROM {table}_stream")  # a stream is read once
            database.unregister(f"{table}_stream")
        found = database.execute(question.sql)
        columns = tuple(column[0] for column in found.description)
        return Answer(columns=columns, rows=tuple(found.fetchall()))
