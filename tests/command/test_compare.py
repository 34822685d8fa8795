"""``repro-callbacks compare``: exit codes, table, JSON, page."""

import json
import logging
import re
from html.parser import HTMLParser

import pytest

from repro_callbacks.command.main import main
from tests.fingerprint.faults import FAULTS
from tests.fingerprint.training import Training


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "again"):
        Training().run(folder / name)
    fault = FAULTS["one bit of one gradient"]
    fault.inject(fault.sound, folder).run(folder / "gradient")
    fault = FAULTS["a parameter renamed"]
    fault.inject(fault.sound, folder).run(folder / "renamed")
    return folder


@pytest.mark.slow
def test_equal(runs, capsys):
    assert main(["compare", str(runs / "a"), str(runs / "again")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The runs are equal: the digests of all 18 batches agree.")
    assert "DIFFERS" not in printed


def test_different(runs, capsys):
    assert main(["compare", str(runs / "a"), str(runs / "gradient")]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("Epoch 1, batch 4 (optimizer step 11), rank 0: the gradients differ first")
    assert "Remedy:" in printed
    heads = next(line for line in printed.splitlines() if "epoch / batch" in line)
    row = next(line for line in printed.splitlines() if line.strip().startswith("gradients"))
    assert row.index("DIFFERS") == heads.index("1 / 4")
    assert max(map(len, printed.splitlines())) <= 120


def test_without_a_step(runs, capsys):
    assert main(["compare", str(runs / "a"), str(runs / "renamed")]) == 1
    assert "The models differ" in capsys.readouterr().out


def test_not_comparable(runs, tmp_path, capsys):
    assert main(["compare", str(runs / "a"), str(tmp_path / "absent")]) == 2
    printed = capsys.readouterr()
    assert "does not exist" in printed.err
    assert printed.out == ""
    assert main(["compare", str(runs / "a"), str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["equal"] is None


def test_json(runs, capsys):
    assert main(["compare", str(runs / "a"), str(runs / "gradient"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert found["divergence"]["cause"] == "gradient"
    assert (found["divergence"]["epoch"], found["divergence"]["batch"]) == (1, 4)
    assert found["divergence"]["fields"][0] == "gradients"


class Balance(HTMLParser):
    """Checks that every element is closed, in order."""

    VOID = ("meta", "br", "line", "rect", "path", "polyline")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("other", ["again", "gradient", "renamed"])
def test_a_page_that_needs_nothing_else(runs, tmp_path, other):
    file = tmp_path / "pages" / "page.html"
    main(["compare", str(runs / "a"), str(runs / other), "--html", str(file)])
    page = file.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"<script|src=|href=|url\(|@import|http", page)
    assert page.count("<svg") == 2
    assert ("they part here" in page) == (other == "gradient")
    assert (">equal</span>" in page) == (other == "again")


def test_what_is_in_a_run_is_not_html(runs, tmp_path):
    target = tmp_path / "a<b>&c"
    target.mkdir()
    (target / "x.rank0.jsonl").write_bytes((runs / "a" / "fingerprint.rank0.jsonl").read_bytes())
    main(["compare", str(target), str(runs / "a"), "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page
