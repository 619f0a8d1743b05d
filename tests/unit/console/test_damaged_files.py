"""Small files to which anything may have happened, and odd requests: each command works, or says one thing, ends with
2, and leaves nothing behind.

A share of it runs in `make test`; `make test-all` tries every command on each damaged file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from buffers import branching, snapshots
from buffers.archive import archive
from buffers.log.readers import reading
from buffers.owner import StoreOwner
from buffers.view import StoreView
from console.main import app
from contracts.records import Batch, Kind
from tests.crash.disk import unsynced
from tests.crash.plain import plain_config
from tests.unit.buffers.bench import Bench, name_task
from tests.unit.console import played
from tests.unit.console.test_bad_input import Answer, assert_refused, ratchet

pytestmark = pytest.mark.timeout(300)  # many small files: a busy disk takes its time
LARGEST_BYTES = 64 << 10
NOT_SMALL = (".seg", ".mdb", ".npy", ".torn")  # logs and the index have tests of their own
TELL = (".json", "/lineage", "/epoch")  # most of what commands are told
COMMANDS = [
    "status run",
    "status run --json",
    "status twig",
    "store inspect run",
    "store query run",
    "store query run --json --success",
    "store query twig",
    "store ask run staleness",
    "store verify run",
    "store verify twig",
    "store verify runs/run/snapshots/s",
    "snapshot list run",
    "snapshot verify run s",
    "export run --out out",
    "export twig --out out-of-twig",
    "store restore far --as back",
    "snapshot restore run s --as copy",
    "snapshot branch run s --as shoot",
    "store archive run --to far-2",
    "snapshot create run --name t",
    "store repair run",
    "store repair run --from runs/twig",
    "store repair twig",
    "store erase run --task task/0",
    "snapshot delete run s",
]
ODD = [
    None, True, 0, -1, 1.5, 10**30, "", "x", "\ud800", "a\0b", "../../x", "a" * 5000, [], ["x"], {}, {"a": 1},
    float("nan"), float("inf"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> Iterator[None]:
    """The runner makes the tree of commands anew for each call, which takes longer than most of them."""
    command = get_command(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda _: command)
        yield


@pytest.fixture(scope="session")
def world(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a snapshot of it, a branch, an archive. To be copied."""
    root = tmp_path_factory.mktemp("world")
    run = root / "runs" / "run"
    shutil.copytree(finished_run, run)
    (run / "serving.json").write_text(json.dumps({"address": "127.0.0.1:1"}))
    snapshots.create(run, "s")
    archive(run, str(root / "far"))
    branching.restore(run / "snapshots" / "s", root / "runs" / "twig", share=False)
    for name in ("run", "twig"):
        owner = StoreOwner.open(run.parent / name / "store", config=plain_config(), source=name_task)
        owner.close()
    return root


def list_small(root: Path) -> list[str]:
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in NOT_SMALL]
    return [path.relative_to(root).as_posix() for path in found if path.stat().st_size < LARGEST_BYTES]


def list_made(root: Path) -> set[str]:
    """All that a command that was refused may not have made: what an owner keeps for itself in a store is its own."""
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.startswith(".") or "store" not in path.relative_to(root).parts[2:3]
    }


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON document, the document itself first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*at, key))


def change(document: Any, way: tuple[Any, ...], value: Any, *, remove: bool) -> Any:
    """The document with another value at the end of the way, or without it."""
    if not way:
        return value
    *above, last = way
    holder = document
    for key in above:
        holder = holder[key]
    if remove:
        del holder[last]
    else:
        holder[last] = value
    return document


def reads(words: str, name: str) -> bool:
    """Whether the command has to do with the file."""
    if name.startswith("far/"):
        return " far " in words
    if name.startswith("runs/twig/"):
        return "twig" in words
    if "/snapshots/" in name:
        return " run s" in words or "snapshots" in words or "list" in words or "verify run" in words
    return " run" in words


def damage(file: Path, data: st.DataObject) -> str:
    """Do something to the file; what."""
    whole = file.read_bytes()
    kinds = ["flip", "cut", "remove", "digits", "value", "value", "value"]
    try:
        document = json.loads(whole)
    except ValueError:
        kinds = kinds[:-3]
        document = None
    kind = data.draw(st.sampled_from(kinds), label="damage")
    match kind:
        case "flip" if whole:
            bit = data.draw(st.integers(0, 8 * len(whole) - 1), label="bit")
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            file.write_bytes(broken)
        case "cut" | "flip":
            file.write_bytes(whole[: data.draw(st.integers(0, max(0, len(whole) - 1)), label="bytes")])
        case "remove":
            file.unlink()
        case "digits":
            file.write_bytes(b"9" * 5000)
        case "value":
            way = data.draw(st.sampled_from(list(places(document))), label="place")
            value = data.draw(st.sampled_from(ODD), label="value")
            remove = data.draw(st.booleans(), label="remove")
            file.write_text(json.dumps(change(document, way, value, remove=remove)))
    return kind


def check(words: str, root: Path) -> Answer:
    """Run the command: it works, or refuses in one message and leaves nothing."""
    before = list_made(root)
    with unsynced():
        answer = ratchet(*words.split(), cwd=root)
    if answer.returncode == 1 and words.startswith("store verify"):
        assert "DEFECTS" in answer.stdout
    elif answer.returncode:
        assert answer.returncode == 2, (words, answer)
        assert answer.stdout == ""
        heads = [line.partition(":")[0] for line in answer.stderr.splitlines() if not line.startswith(" ")]
        assert heads in (["error", "found", "to do"], ["error", "found"], ["error", "to do"]), (words, answer)
        assert list_made(root) <= before, (words, answer)
    else:
        assert not [name for name in list_made(root) - before if "/." in f"/{name}"], words
    return answer


def try_commands(world: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, *, num: int) -> None:
    root = tmp_path_factory.mktemp("damaged") / "world"
    shutil.copytree(world, root)
    try:
        names = list_small(world)
        told = [name for name in names if name.endswith(TELL)]
        name = data.draw(st.sampled_from(told) | st.sampled_from(told) | st.sampled_from(names), label="file")
        damage(root / name, data)
        near = [words for words in COMMANDS if reads(words, name)]
        chosen = data.draw(st.lists(st.sampled_from(near), unique=True, max_size=num, min_size=min(num, len(near))))
        for words in sorted(chosen, key=COMMANDS.index):
            answer = check(words, root)
            made = root / "runs" / words.split()[-1]
            if "--as" in words and answer.returncode == 0:
                assert StoreView.open(made / "store").ledger().balanced
    finally:
        shutil.rmtree(root.parent)


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=CHECKS, database=None)
@given(data=st.data())
def test_a_damaged_file_never_shows_a_traceback(
    world: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    try_commands(world, tmp_path_factory, data, num=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None, suppress_health_check=CHECKS, database=None)
@given(data=st.data())
def test_every_command_on_each_damaged_file(
    world: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    try_commands(world, tmp_path_factory, data, num=len(COMMANDS))


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "world"))


def test_every_command_works_while_nothing_is_damaged(root: Path) -> None:
    for words in COMMANDS:
        if "erase" not in words:
            assert check(words, root).returncode == 0, words


MOMENT, MANIFEST, STATUS = "far/*/moments/*.json", "runs/run/snapshots/s/snapshot.json", "runs/run/status.json"
FETCH = "store restore far --as back"


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        (MOMENT, "files", ["x"], FETCH),
        (MOMENT, "files", {"config.yaml": 5}, FETCH),
        (MOMENT, "files", {"config.yaml": "0" * 64}, FETCH),
        (MOMENT, "files", {"a" * 5000: "0" * 64}, FETCH),
        (MOMENT, "store_uuid", "zz", FETCH),
        (MOMENT, "data_lsn", "x", FETCH),
        (MOMENT, "control_lsn", 10**30, FETCH),
        (MOMENT, "checkpoints", 5, FETCH),
        (MANIFEST, "files", ["x"], "snapshot verify run s"),
        (MANIFEST, "created", None, "snapshot list run"),
        (MANIFEST, "store_uuid", "zz", "snapshot branch run s --as shoot"),
        (STATUS, "pid", "x", "status run"),
        (STATUS, "state", None, "status run"),
        (STATUS, "idle", {"engine-0": 5}, "status run"),
        ("runs/run/manifest.json", "store_uuid", 5, "status run"),
        ("runs/run/store/store.json", "uuid", 5, "store inspect run"),
        ("runs/run/store/store.json", "format_version", 2, "store verify run"),
        ("runs/twig/store/data/lineage", "ancestors", [[-1, 5]], "store query twig"),
        ("runs/run/store/archived.json", "data_lsn", None, "store erase run --task task/0"),
    ],
)
def test_a_wrong_value_is_refused(root: Path, file: str, key: str, value: Any, words: str) -> None:
    (path,) = root.glob(file)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert check(words, root).returncode == 2


def test_what_is_wrong_with_a_snapshot_is_told_though_its_configuration_is_gone(root: Path) -> None:
    (root / "runs" / "run" / "snapshots" / "s" / "config.yaml").unlink()
    answer = check("store verify runs/run/snapshots/s", root)
    assert (answer.returncode, "config.yaml is missing" in answer.stdout) == (1, True)
    (root / "runs" / "run" / "config.yaml").unlink()
    assert check("store verify twig", root).returncode == 0
    assert check("status run", root).returncode == 2


def test_an_end_that_a_snapshot_does_not_have_costs_its_branch_nothing(root: Path) -> None:
    """An LSN far beyond its log: what the branch writes from here on must not be taken for the old store's."""
    path = root / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_lsn": 1 << 62, "control_lsn": 1 << 62}))
    assert check("snapshot branch run s --as shoot", root).returncode == 0
    store = root / "runs" / "shoot" / "store"
    for _ in range(2):
        StoreOwner.open(store, config=plain_config(), source=name_task).close()
    assert StoreView.open(store).ledger().balanced


# ---------------------------------------------------------------------------------------------- odd requests


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (f"store query run --version {'9' * 5000}", "that is no range of versions"),
        (f"store query run --version {'9' * 25}:", "that is no range of versions"),
        ("store query run --since nan", "that is no time"),
        ("store repair run --from nowhere", "holds no store"),
        ("store repair run --from far", "holds no store"),
        ("snapshot restore run s --as latest", "that names the newest run"),
        ("store restore far --as latest", "that names the newest run"),
        ("snapshot restore run s --as runs/dangling", "there is something already"),
        ("store restore far --as dangling", "there is something already"),
        ("snapshot restore run s --as file/below", "is no folder"),
        ("store restore far --as file/below/it", "is no folder"),
        ("snapshot create run --name dangling", "is there already"),
        ("store restore notes --as back", "there is no archive"),
    ],
    ids=lambda value: value[:60],
)
def test_an_odd_request_is_refused(root: Path, words: str, piece: str) -> None:
    (root / "file").write_text("a file")
    for place in ("runs", "runs/run/snapshots"):
        (root / place / "dangling").symlink_to("nowhere")
    (root / "notes" / "of-somebody").mkdir(parents=True)
    before = list_made(root)
    assert_refused(ratchet(*words.split(), cwd=root), piece)
    assert list_made(root) == before


def test_a_clock_that_was_far_off_hides_no_episode(root: Path) -> None:
    store = root / "runs" / "run" / "store"
    config = plain_config(steps=100, mode="async")
    owner = StoreOwner.open(store, config=config, source=name_task)
    bench = Bench(owner)
    bench.serve(played.STEPS + 1, step=played.STEPS + 1)
    for wall_time in (float("nan"), float("inf"), 1e300, -1e300):
        (lease, *_) = bench.lease(1)
        bench.play([lease], version=played.STEPS + 1, wall_time=wall_time)
    owner.close()
    with reading(store):
        num = StoreView.open(store).ledger().episodes
    shown = ratchet("store", "query", "run", "--limit", "99", cwd=root)
    assert f"{num} episodes of" in shown.stdout
    answer = ratchet("store", "query", "run", "--limit", "99", "--json", cwd=root)
    found = json.loads(answer.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(found["episodes"]) == num
    assert json.loads(ratchet("store", "ask", "run", "tokens-a-day", "--json", cwd=root).stdout)["rows"]
    assert ratchet("export", "run", "--out", "out", cwd=root).returncode == 0


def test_an_erasure_takes_samples_out_of_the_report(root: Path) -> None:
    from console.web.report import write_report

    run = root / "runs" / "run"
    write_report(run)
    before = (run / "report.html").read_bytes()
    (run / "report.html").write_bytes(before + b"what an episode said")
    view = StoreView.open(run / "store")
    (first, *_) = (record for _, record in view.decisions(kinds=[Kind.BATCH]) if isinstance(record, Batch))
    name = view.fold.groups[first.rows[0].lease].task.task_id
    erased = ratchet("store", "erase", "run", "--task", name, cwd=root)
    assert erased.returncode == 0, erased
    assert b"what an episode said" not in (run / "report.html").read_bytes()
    assert "not reached: exports and copies" in erased.stdout
