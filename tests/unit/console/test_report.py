"""report.html: made from a run's files alone, nothing from outside, whatever the run contains."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from console.web.report import read, render, write_report
from contracts.records import Episode
from tests.unit.console.played import STEPS, copy

VOID = {"meta", "i"}
OPTIONAL_END = {"tr", "td", "th"}


class Nesting(HTMLParser):
    """Notes every tag that is not closed where it should be, and every address that is named."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in OPTIONAL_END | {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return None

    def handle_endtag(self, tag: str) -> None:
        if tag in OPTIONAL_END:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")


def add_tokenizer(folder: Path) -> None:
    vocabulary = {"zero": 0, "one": 1, "<two>": 2, "three": 3}
    (folder / "model").mkdir(exist_ok=True)
    Tokenizer(WordLevel(vocabulary, unk_token="zero")).save(str(folder / "model" / "tokenizer.json"))


def test_the_page_is_whole_and_stands_alone(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    add_tokenizer(folder)
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text()
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.faults == []
    assert nesting.open == []
    assert nesting.addresses == []
    assert not re.search(r"https?://|url\(|@import|<script", page)


def test_the_page_shows_what_the_files_say(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    add_tokenizer(folder)
    material = read(folder)
    page = render(material)
    assert f"<b>{STEPS}</b>" in page
    assert "the sums balance" in page
    assert material.versions[-1].root_hash in page
    assert "The first batch" in page
    assert "The last batch" in page
    assert "groups_per_step: 2" in page
    assert [line["step"] for line in material.steps] == list(range(1, STEPS + 1))


def test_what_a_model_wrote_cannot_become_markup(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    add_tokenizer(folder)
    material = read(folder)
    episodes: list[Episode] = [episode for group in (*material.before, *material.after) for episode in group]
    wrote_two = any(np.array_equal(episode.steps[0].action, [2]) for episode in episodes)
    page = render(material)
    assert ("&lt;two&gt;" in page) == wrote_two
    assert "<two>" not in page


def test_a_run_without_metrics_has_a_page(finished_run: Path, tmp_path: Path) -> None:
    folder = copy(finished_run, tmp_path)
    (folder / "metrics.jsonl").unlink()
    (folder / "status.json").unlink()
    assert "the sums balance" in render(read(folder))


def test_the_same_files_make_the_same_page(finished_run: Path) -> None:
    assert render(read(finished_run)) == render(read(finished_run))
