"""report.html: what a run learned, at a glance. A pure function of the run's files; one file, nothing from outside.

write_report(Path("runs/quickstart-20261120-101500"))
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from buffers.view import StoreView
from console.run_folder import read_manifest
from console.status import held_out, read_status
from console.web.curves import Line, Points, draw_chart, smooth
from contracts.records import Batch, Disposition, Episode, Evaluation, Ledger, Session, Version
from telemetry.logs import read_lines

NUM_PROMPTS, NUM_COMPLETIONS = 5, 4  # of the samples shown, before and after
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything the page is made from."""

    folder: Path
    manifest: Mapping[str, Any]
    status: Mapping[str, Any]
    config: str
    steps: Sequence[Mapping[str, Any]]  # metrics.jsonl, one line a step
    evaluations: Sequence[Evaluation]
    versions: Sequence[Version]
    sessions: Sequence[Session]
    ledger: Ledger
    before: Sequence[Sequence[Episode]]  # groups of the first batch
    after: Sequence[Sequence[Episode]]  # and of the last one


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html, whole or not at all; its path."""
    path = run_folder / "report.html"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render(read(run_folder)), encoding="utf-8")
    draft.replace(path)
    return path


def read(folder: Path) -> Material:
    """Raises RunFolderError or StoreError where `folder` is no run, or has no store."""
    manifest = read_manifest(folder)
    steps = {line["step"]: line for line in read_lines(folder / "metrics.jsonl") if line.get("phase") == "step"}
    view = StoreView.open(folder / "store")
    records = [record for _, record in view.decisions()]
    batches = [record for record in records if isinstance(record, Batch)]
    return Material(
        folder=folder,
        manifest=manifest,
        status=read_status(folder),
        config=(folder / "config.yaml").read_text(),
        steps=[steps[step] for step in sorted(steps)],
        evaluations=[record for record in records if isinstance(record, Evaluation)],
        versions=[record for record in records if isinstance(record, Version)],
        sessions=[record for record in records if isinstance(record, Session)],
        ledger=view.ledger(),
        before=_groups(view, batches[:1]),
        after=_groups(view, batches[1:][-1:]),
    )


def render(material: Material) -> str:
    """The page."""
    name = escape(str(material.manifest["run"]))
    sections = [
        _header(material),
        _tiles(material),
        _section("Learning", _charts(material), kind="charts"),
        _section("What became of every task", _ledger(material.ledger), kind="card"),
        _section("Before and after", _samples(material), kind="samples"),
        _section("Versions", _versions(material.versions), kind="card"),
        _section("Reproducing it", _origin(material), kind="card"),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE.read_text()}</style></head>'
        f"<body><main>{''.join(sections)}<footer>Made by ratchet from the files of {name}: the log is the truth, "
        "this page is a view of it.</footer></main></body></html>\n"
    )


# ---------------------------------------------------------------------------------------------- parts


def _section(title: str, body: str, *, kind: str) -> str:
    return f'<h2>{escape(title)}</h2><div class="{kind}">{body}</div>' if body else ""


def _header(material: Material) -> str:
    state = escape(str(material.status.get("state", "created")))
    started = escape(str(material.manifest["created"]).replace("T", " ").removesuffix("+00:00"))
    return (
        f'<header><h1>{escape(str(material.manifest["run"]))} <span class="state {state}">{state}</span></h1>'
        f"<p>created {started} UTC</p></header>"
    )


def _tiles(material: Material) -> str:
    tiles: list[tuple[str, str, str, str]] = []  # (label, value, note, tone)
    scores = held_out(list(material.evaluations))
    if scores is not None:
        gain = 100 * (scores["last"] - scores["first"])
        tone = "up" if gain > 0 else "down" if gain < 0 else ""
        note = f"{gain:+.1f} points, from {scores['first']:.1%}"
        tiles.append((_words(scores["metric"]), f"{scores['last']:.1%}", note, tone))
    step = material.versions[-1].step if material.versions else 0
    tiles.append(("learner steps", f"{step:,}", f"of {material.status.get('steps', '?')} planned", ""))
    tiles.append(
        ("episodes kept", f"{material.ledger.episodes:,}", f"{material.ledger.episodes_trained:,} trained", "")
    )
    spent = _seconds_spent(material)
    rate = f"{spent / step:.2f} s a step" if step else ""
    tiles.append(("time", _duration(spent), rate, ""))
    drawn = [
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f'<span class="{tone}">{escape(note)}</span></div>'
        for label, value, note, tone in tiles
    ]
    return f'<div class="tiles">{"".join(drawn)}</div>'


def _charts(material: Material) -> str:
    def of(name: str) -> list[tuple[float, float]]:
        found = ((line["step"], line.get(name)) for line in material.steps)
        return [(float(step), float(value)) for step, value in found if isinstance(value, (int, float))]

    def curve(name: str, title: str, note: str, *, low: float | None = None) -> str:
        points = of(name)
        lines = [Line(name="each step", points=points, role="faint"), Line(name=title, points=smooth(points))]
        return draw_chart(lines, title=title, note=note, low=low)

    return "".join(
        (
            curve("reward_mean", "Reward", "mean of each batch, and its moving mean"),
            _held_out_chart(material.evaluations),
            curve("log_prob_gap", "Log-probability gap", "engine against learner, mean |difference| in nats", low=0.0),
            curve("staleness", "Staleness", "versions between acting and learning, mean of each batch", low=0.0),
            curve("entropy", "Entropy", "of the policy, nats a token", low=0.0),
            curve("grad_norm", "Gradient norm", "before clipping", low=0.0),
        )
    )


def _held_out_chart(evaluations: Sequence[Evaluation]) -> str:
    newest = {evaluation.step: evaluation for evaluation in evaluations}
    known = ("sampled_accuracy", "greedy_accuracy", "greedy_return")
    names = [name for name in known if newest and all(name in e.scores for e in newest.values())]
    lines = []
    for name, role in zip(names, ("main", "second"), strict=False):
        points: Points = [(float(step), evaluation.scores[name]) for step, evaluation in sorted(newest.items())]
        lines.append(Line(name=_words(name), points=points, role=role, marks=True))
    items = next(iter(newest.values())).items if newest else 0
    if "greedy_return" in names:
        return draw_chart(lines, title="Greedy return", note=f"mean of {items:,} episodes that are never trained on")
    return draw_chart(lines, title="Held-out accuracy", note=f"on {items:,} items that are never trained on", low=0.0)


def _ledger(ledger: Ledger) -> str:
    shares = [(name, count) for name, count in ledger.ended.items() if count] + [("in flight", ledger.in_flight)]
    tone = {Disposition.TRAINED.value: "", Disposition.ZERO_SPREAD.value: "none", "in flight": "none"}
    bar = "".join(
        f'<i class="{tone.get(name, "loss")}" style="flex:{count}" title="{escape(_words(name))}: {count:,}"></i>'
        for name, count in shares
        if count
    )
    rows = "".join(
        f'<tr><td><i class="swatch {tone.get(name, "loss")}"></i>{escape(_words(name))}</td>'
        f"<td class=number>{count:,}</td><td class=number>{_share(count, ledger.handed)}</td></tr>"
        for name, count in shares
    )
    verdict = "the sums balance" if ledger.balanced else "<b class=down>the sums do not balance</b>"
    return (
        f'<div class="bar">{bar}</div><table class="narrow">'
        "<tr><th>how it ended<th class=number>tasks<th class=number>share</tr>"
        f"{rows}<tr><td><b>handed out</b><td class=number><b>{ledger.handed:,}</b>"
        f"<td class=number>{verdict}</tr></table>"
    )


def _samples(material: Material) -> str:
    file = material.folder / "model" / "tokenizer.json"
    if not material.before or not file.exists():
        return ""
    tokenizer = Tokenizer.from_file(str(file))
    columns = (("The first batch", material.before), ("The last batch", material.after))
    return "".join(
        f'<div class="card"><h3>{title}</h3>{"".join(_sample(group, tokenizer) for group in groups)}</div>'
        for title, groups in columns
        if groups
    )


def _sample(group: Sequence[Episode], tokenizer: Tokenizer) -> str:
    whole = next((episode for episode in group if episode.steps), None)
    if whole is None:
        return '<div class="sample"><p><i>erased</i></p></div>'
    prompt = tokenizer.decode(whole.steps[0].observation.astype(int).tolist(), skip_special_tokens=True)
    tries = []
    for episode in group[:NUM_COMPLETIONS]:
        text = " ".join(f"<code>{part}</code>" for part in _said(episode, tokenizer))
        reward = "none" if episode.reward is None else f"{episode.reward:.2f}"
        tone = {0.0: "zero", 1.0: "full"}.get(-1.0 if episode.reward is None else episode.reward, "")
        tries.append(f'<div><span class="reward {tone}">{reward}</span>{text}</div>')
    return f'<div class="sample"><p>{escape(prompt)}</p>{"".join(tries)}</div>'


def _said(episode: Episode, tokenizer: Any) -> Iterator[str]:
    """The episode's answers, and in italics the remarks between them."""
    for number, step in enumerate(episode.steps):
        shown = [(step.observation, "<i>{}</i>")] if number else []
        for ids, form in (*shown, (step.action, "{}")):
            yield form.format(escape(tokenizer.decode(ids.astype(int).tolist(), skip_special_tokens=True)))


def _versions(versions: Sequence[Version]) -> str:
    if not versions:
        return ""
    shown = versions if len(versions) <= 6 else [*versions[:2], *versions[-4:]]
    rows = []
    for i, version in enumerate(shown):
        if len(shown) < len(versions) and i == 2:
            rows.append(f"<tr><td colspan=4>{len(versions) - len(shown):,} more in the log</td></tr>")
        parent = "genesis" if version.parent < 0 else str(version.parent)
        rows.append(
            f"<tr><td class=number>{version.version}<td class=number>{version.step}<td class=number>{parent}"
            f"<td><code>{escape(version.root_hash)}</code></tr>"
        )
    head = "<tr><th class=number>version<th class=number>step<th class=number>from<th>root hash of all weights</tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _origin(material: Material) -> str:
    sessions = [session for session in material.sessions if session.role == "learner"]
    rows = [("configuration", str(material.manifest["config_hash"])), ("store", str(material.manifest["store_uuid"]))]
    if sessions:
        newest = sessions[-1]
        rows += [("base weights", newest.base_weights), ("code", newest.code_hash), ("sessions", str(len(sessions)))]
        rows += [(name, json.dumps(value)) for name, value in newest.fingerprint.items()]
    table = "".join(f"<tr><td>{escape(_words(n))}</td><td><code>{escape(v)}</code></td></tr>" for n, v in rows if v)
    replay = f"<p>Compute every step again: <code>ratchet replay {escape(material.folder.name)}</code></p>"
    return (
        f"{replay}<details><summary>configuration</summary><pre>{escape(material.config)}</pre></details>"
        f"<details><summary>identities and fingerprint</summary><table>{table}</table></details>"
    )


# ---------------------------------------------------------------------------------------------- pieces


def _groups(view: StoreView, batches: Sequence[Batch]) -> list[list[Episode]]:
    """The first groups of the batches, members in order."""
    groups: dict[int, list[int]] = {}
    for batch in batches:
        for row in batch.rows:
            groups.setdefault(row.lease, []).append(row.episode_lsn)
    chosen = list(groups.values())[:NUM_PROMPTS]
    return [view.episodes(list(dict.fromkeys(lsns))[:NUM_COMPLETIONS]) for lsns in chosen]  # some are read twice


def _seconds_spent(material: Material) -> float:
    """Wall time between the first session and the newest version, pauses between sessions left out."""
    moments = [(session.wall_time, True) for session in material.sessions]
    moments += [(version.wall_time, False) for version in material.versions]
    return sum(now - before for (before, _), (now, begins) in pairwise(sorted(moments)) if not begins)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _share(count: int, whole: int) -> str:
    share = count / max(whole, 1)
    return "< 0.1 %" if 0 < share < 0.001 else f"{share:.1%}".replace("%", " %")


def _words(name: str) -> str:
    return name.replace("_", " ")
