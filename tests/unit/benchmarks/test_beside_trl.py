"""What the benchmarks beside TRL count, and that both sides are given the same."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.cases import COUNTDOWN, LONG, SHORT, Case, items_in_order, placed
from benchmarks.crash_cost import Account
from benchmarks.processes import Job, Tail, role_of, seconds_between
from benchmarks.rft_vs_trl import agreement, goals_of, interval
from benchmarks.trl_child import positions
from environments.text.dataset import TextTasks
from environments.text.env import TextEnv
from loops.tasks import task_source
from telemetry.logs import read_lines


@pytest.mark.parametrize("case", [SHORT, LONG], ids=lambda case: case.name)
def test_trl_is_rewarded_as_ratchet_is(tmp_path: Path, case: Case) -> None:
    case = placed(case, tmp_path)
    settings = case.config("environment.train_items=50", "environment.held_out_items=5").environment
    environment = TextEnv(settings, seed=0, folder=case.run_file.parent)
    draws = random.Random(0)
    for index, item in enumerate(environment.tasks.train):
        answer = str(item.entry["answer"])
        changed = "".join(draws.choice("abz") if draws.random() < 0.4 else letter for letter in answer)
        for said in (answer, answer.upper(), answer + "s", answer[:-1], changed, f" {answer}", "", "xyz"):
            environment.reset(options={"index": index})
            reward = environment.step(said)[1]
            assert positions(said, answer, fold_case=case is SHORT) == pytest.approx(reward), (said, answer)


def test_trl_is_given_the_prompts_in_ratchets_order() -> None:
    config = SHORT.config("environment.train_items=50", "environment.held_out_items=5", "seed=3")
    items = items_in_order(SHORT, config, num_items=60)
    source, tasks = task_source(config), TextTasks(config.environment, seed=3)
    assert [item["prompt"] for item in items] == [tasks.train[source(place)[1]].prompt for place in range(60)]
    assert all(item["prompt"][:-1] == item["answer"][::-1] for item in items)


def test_the_long_case_asks_for_lengths_spread_evenly(tmp_path: Path) -> None:
    case = placed(LONG, tmp_path)
    lines = list(read_lines(case.run_file.parent / COUNTDOWN))
    lengths = Counter(len(line["answer"]) + 1 for line in lines)
    assert sorted(lengths) == list(range(3, 256, 2))
    assert max(lengths.values()) - min(lengths.values()) <= 1
    assert len({line["question"] for line in lines}) == len(lines)
    assert next(line["answer"] for line in lines if line["question"].endswith("05=")) == "0403020100"


def test_cpu_seconds_are_summed_by_what_a_process_is() -> None:
    first = {(1, 0.0): ("a", 2.0), (2, 0.0): ("b", 1.0)}
    last = {(1, 0.0): ("a", 2.5), (2, 0.0): ("b", 4.0), (3, 9.0): ("a", 0.25)}
    assert seconds_between(first, last) == {"b": 3.0, "a": 0.75}
    assert role_of(["ray::StoreActor.append"]) == "StoreActor"
    assert role_of(["python", "-m", "console.main", "run"]) == "console.main"
    assert role_of(["/x/python", "/x/benchmarks/trl_child.py"]) == "trl_child.py"


def test_a_job_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); print('up', flush=True); "
    )
    job = Job([sys.executable, "-c", code + "sys.stdin.read()"], cwd=tmp_path, environment={}, log=tmp_path / "said")
    try:
        roles: set[str] = set()
        while "sleep" not in roles and not job.ended:  # for a moment it is a copy of the process that starts it
            roles = {role for role, _ in job.cpu_seconds().values()}
        assert "sleep" in roles
    finally:
        job.kill()
    assert job.ended
    assert job.cpu_seconds() == {}


def test_a_tail_gives_whole_lines_only(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "lines")
    assert tail.lines() == []
    tail.path.write_text('{"a": 1}\n{"a"')
    assert tail.lines() == [{"a": 1}]
    with tail.path.open("a") as file:
        file.write(": 2}\n")
    assert tail.lines() == [{"a": 1}, {"a": 2}]


def test_what_is_waiting_is_not_skipped() -> None:
    account = Account(steps=3, learned=Counter({0: 1, 1: 2, 5: 1}), waiting=frozenset({3, 9}))
    assert account.skipped == 2  # positions 2 and 4
    assert account.twice == 1


def test_an_interval_over_three_seeds() -> None:
    assert interval([1.0, 2.0, 3.0]) == {
        "mean": 2.0,
        "low": pytest.approx(-0.484, abs=1e-3),
        "high": pytest.approx(4.484, abs=1e-3),
    }
    wide, high = {"mean": 0.5, "low": 0.4, "high": 0.6}, {"mean": 0.7, "low": 0.65, "high": 0.75}
    assert agreement([wide, wide], [wide, high]) == 0.5


def test_the_goal_is_about_the_faster_of_each() -> None:
    def row(system: str, completions_per_s: float) -> dict[str, object]:
        return {"case": "short", "system": system, "completions_per_s": completions_per_s, "cpu_s_a_step": 1.0}

    speeds = {"TRL, 2 threads": 100.0, "TRL, 1 thread": 80.0, "Ratchet, vLLM": 120.0, "Ratchet, transformers": 160.0}
    rows = [row(system, speed * noise) for system, speed in speeds.items() for noise in (0.9, 1.0, 1.3)]
    rows += [row("Ratchet, vLLM, no zero spread", 900.0)]
    (goal, cpu) = goals_of(rows)
    assert (goal["measured"], goal["met"]) == (1.6, True)
    assert (cpu["measured"], cpu["met"]) == (1.0, None)
