"""The report: every figure in both files, nothing foreign in the page, nothing private."""

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from glmkit.data.encoding import usable_cores
from glmkit.demo.counts import Tuning
from glmkit.demo.end_to_end import Report
from glmkit.demo.examples import Example, filled_text, print_examples, rates_table
from glmkit.demo.measure import Measured
from glmkit.eval.cloze import Rate, Ratio
from glmkit.eval.report_files import machine_facts

VOID = {"meta", "br", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def example(**changes) -> Example:
    fields = {
        "kind": "single_token",
        "document": "json/encoder.py",
        "line": 12,
        "before": 'if a < b and c > "d":\n    return ',
        "truth": "<script>alert(1)</script>",
        "after": " & more\n",
        "prediction": "</pre>",
        "correct": False,
        "rivals": {"unigram": "self", "left": "", "left_right": "<b>"},
    }
    return Example(**(fields | changes))


@pytest.fixture
def report() -> Report:
    rate = Rate(0.4, 0.38, 0.42, 5000)
    measured = Measured(
        exact_match={"single_token": rate, "multi_token": Rate(0.1, 0.09, 0.11, 2500), "identifier": rate},
        by_document={"single_token": Rate(0.4, 0.35, 0.45, 5000), "multi_token": rate, "identifier": rate},
        baselines={"unigram": Rate(0.0, 0.0, 0.0, 5000), "left": Rate(0.2, 0.19, 0.21, 5000), "left_right": rate},
        chains={"multi_token": Rate(0.01, 0.0, 0.02, 2500)},
        ratios={"unigram": Ratio(None, None, None), "left": Ratio(2.0, 1.9, 2.1), "left_right": Ratio(1.0, 0.9, 1.1)},
        ratios_by_document={"left": Ratio(2.0, 1.8, 2.2)},
        tuning=Tuning(),
        predictions={},
        rivals={},
    )
    corpus = {
        "modules": 668,
        "clusters": 490,
        "largest_cluster": 89,
        "train_modules": 415,
        "train_characters": 7_946_013,
        "validation_modules": 32,
        "validation_characters": 422_274,
        "held_out_modules": 115,
        "held_out_characters": 844_618,
        "copies_left_out": 106,
        "held_out_seen": 0.21,
        "unreadable_files": 0,
        "shingle_words": 5,
        "jaccard": 0.3,
        "containment": 0.5,
    }
    return Report(
        seconds=312.4,
        phases={"training a tokenizer": 9.5, "pretraining": 240.0},
        tokens_per_second=14321.5,
        tokens_seen=3_400_000,
        parameters=2_103_040,
        validation_loss=3.1234,
        measured=measured,
        corpus=corpus,
        model={"layers": 4, "width <channels>": 192},
        training={"learning rate": 0.003},
        machine=machine_facts(),
        training_losses=[(1000.0 * step, 7.0 / (1 + step / 50)) for step in range(1, 300)],
        validation_losses=[(100_000.0, 3.4), (200_000.0, math.nan), (299_000.0, 3.1234)],
        examples=[example(), example(correct=True, document="a.py"), example(kind="identifier", rivals={})],
        blanks_left_out={"identifier": {"too_long": 40}},
    )


def test_both_files_are_written_and_agree(report, tmp_path):
    data, html = report.write(tmp_path)
    values = json.loads(data.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    for field in ("seconds", "tokens_per_second", "parameters", "validation_loss", "exact_match", "baselines"):
        assert field in values
    assert values["exact_match"]["single_token"] == {"rate": 0.4, "low": 0.38, "high": 0.42, "n": 5000}
    assert values["ratio_to_left"] == {"ratio": 2.0, "low": 1.9, "high": 2.1}
    assert values["validation_losses"][1] == [200_000.0, None]  # not a number is not JSON
    assert values["corpus"]["held_out_characters"] == 844_618
    words = " ".join(Page(html.read_text(encoding="utf-8")).words)
    for shown in ("40.0 %", "2.00×", "5.2 min", "2.1 M", "14.3 k/s", "3.123", "38.0 to 42.0", "490", "844.6 k"):
        assert shown in words


def test_the_page_needs_nothing_else_and_runs_nothing(report, tmp_path):
    page = Page(report.write(tmp_path)[1].read_text(encoding="utf-8"))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "action", "onclick", "onload"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


def test_everything_from_outside_is_escaped(report, tmp_path):
    text = report.write(tmp_path)[1].read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<del>&lt;/pre&gt;</del>" in text
    assert "width &lt;channels&gt;" in text
    assert "∅" in text  # the empty answer of a baseline can be seen


def test_right_and_wrong_look_different(report, tmp_path):
    wrong, right = example(truth="a", prediction="b"), example(truth="a", prediction="a", correct=True)
    assert filled_text(wrong).plain == wrong.before + "[b][a]" + wrong.after
    assert filled_text(right).plain == right.before + "[a]" + right.after
    styles = [(span.style, filled_text(wrong).plain[span.start : span.end]) for span in filled_text(wrong).spans]
    assert styles == [("red strike", "[b]"), ("bold green", "[a]")]
    assert "[∅]" in filled_text(example(prediction="")).plain


def test_terminal_shows_examples_and_table_in_80_columns(report):
    console = Console(width=80, record=True, file=io.StringIO())
    print_examples(report.examples, console)
    console.print(rates_table(report.measured))
    text = console.export_text()
    assert "json/encoder.py:12" in text
    assert "…" not in text
    row = next(line for line in text.splitlines() if "left neighbour" in line)
    assert row.split()[-1] == "2.00"
    assert "19.0 to 21.0" in row


def test_nothing_says_where_or_whose_the_machine_is(report, tmp_path):
    facts = machine_facts()
    assert set(facts) <= {"processor", "cores", "memory", "system", "python", "torch", "numpy", "tokenizers", "glmkit"}
    assert usable_cores() == facts["cores"] >= 1
    private = {str(tmp_path), str(Path.cwd()), str(Path.home())} - {"/"}
    for path in report.write(tmp_path):
        assert not {word for word in private if word in path.read_text(encoding="utf-8")}


def test_a_rerun_replaces_the_files(report, tmp_path):
    report.write(tmp_path)
    (tmp_path / "report.json").write_text("old")
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["parameters"] == 2_103_040
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
