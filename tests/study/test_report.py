"""The page and the summary: the same bytes for the same data, nothing from elsewhere, and the plain sentence first."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from repro_callbacks.study.report import summary, write_report
from tests.study import tables
from tests.study.test_variance import additive, design


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    runs = tables.runs(40, ("A", "B"), shift=0.01)
    runs.loc[2, ["status", "val_dice"]] = ["failed", np.nan]
    runs["error"] = ["", "", "<oom> & killed", *[""] * (len(runs) - 3)]
    path = write_report(runs, "val_dice", tmp_path_factory.mktemp("report"), tables.cases(), highlight=[7])
    return path.read_text(encoding="utf-8")


def test_the_plain_sentence_comes_first():
    scores = np.array([-1.0, 1.0] * 200)
    runs = pd.DataFrame({"seed": range(400), "val_dice": 0.81 + 0.004 * scores / scores.std(ddof=1)})
    first = summary(runs, "val_dice").splitlines()[0]
    assert first == "**Between seeds, Dice varies by ±0.8 points; a gain below 1.1 points from one run each is noise.**"


@pytest.mark.slow
def test_same_data_same_bytes_in_any_order_whatever_the_times(tmp_path):
    runs = tables.runs(30, ("A", "B"), shift=0.002)
    first = write_report(runs, "val_dice", tmp_path / "a", tables.cases()).read_bytes()
    later = runs.sample(frac=1, random_state=3).assign(seconds=7.0)
    shuffled = tables.cases().sample(frac=1, random_state=4)
    assert write_report(later, "val_dice", tmp_path / "b", shuffled).read_bytes() == first
    other = later.copy()
    other.loc[other.index[0], "val_dice"] += 1e-4
    assert write_report(other, "val_dice", tmp_path / "c", shuffled).read_bytes() != first, "control"


@pytest.mark.slow
def test_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys; from tests.study import tables; from repro_callbacks.study.report import write_report;"
        "write_report(tables.runs(30, ('A', 'B')), 'val_dice', sys.argv[1], tables.cases())"
    )
    for name, hash_seed in (("a", "1"), ("b", "2")):
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed, "PATH": "", "HOME": str(tmp_path)})
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()


def test_nothing_is_loaded_from_elsewhere(page):
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in {"script", "link", "img", "iframe", "object"}
            links.extend(value for name, value in attrs if name in {"src", "href", "srcset"})

    Links().feed(page)
    assert links, "figures refer to their own marks"
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import|https?://", page)


def test_figures_are_well_formed_and_share_no_id(page):
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 6  # distribution, two selections, differences, cases of each variant
    ids = []
    for figure in figures:
        root = ElementTree.fromstring(figure)
        mine = [element.get("id") for element in root.iter() if element.get("id")]
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure))
        assert used <= set(mine)
        ids += mine
    assert len(ids) == len(set(ids))
    assert "var(--main)" in page
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", page), "every stand-in colour is replaced"


@pytest.mark.slow
def test_figures_are_files_too(tmp_path):
    write_report(tables.runs(20, ("A", "B")), "val_dice", tmp_path)
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["differences-A-B.svg", "distribution.svg", "selection-A.svg", "selection-B.svg"]
    text = (tmp_path / "figures" / "distribution.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text


def test_texts_are_escaped(page):
    assert "&lt;oom&gt; &amp; killed" in page
    assert "<oom>" not in page


def test_everything_has_its_section(page):
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "How scores spread over seeds",
        "Black swans",
        "What picking the best seed gains",
        "A against B",
        "Cases that flip between seeds",
        "Runs without a score",
        "All runs",
    ]
    assert page.count("<tr") > 80
    assert "Seed 7 scores" in page


def test_a_claim_is_made_in_words():
    text = summary(tables.runs(40, ("A", "B"), shift=0.01), "val_dice")
    assert re.search(r"\*\*B is better than A by 1\.\d points on average over 40 paired seeds", text)
    assert "P(A better than B) = " in text


def test_a_claim_is_refused_in_words():
    text = summary(tables.runs(3, ("A", "B"), shift=0.1), "val_dice")
    assert "**A against B: no claim. 3 paired seeds can't give a p below 0.25, whatever the scores;" in text
    assert "at least 6 are needed.**" in text
    assert "is better than A by" not in text


def test_no_difference_is_not_a_proof():
    text = summary(tables.runs(40, ("A", "B")), "val_dice")
    assert "no difference is shown by 40 paired seeds" in text
    assert "That is not a proof that there is none." in text


def test_sources_are_reported(tmp_path):
    runs = design(25)
    runs["seed"] = range(len(runs))
    runs["vary"] = ["all", *[p for p in ("order", "augment", "init", "step") for _ in range(24)], *["all"] * 25]
    runs["val_dice"] = 0.8 + 0.004 * additive(runs, np.random.default_rng(0))
    text = write_report(runs, "val_dice", tmp_path).read_text(encoding="utf-8")
    assert "Where the variance comes from" in text
    assert "Training step (dropout): changes nothing in 25 runs." in text
    assert "The sources add up, as far as these runs can tell" in text


def test_seeds_that_change_nothing_are_pointed_out():
    runs = tables.runs(12).assign(val_dice=0.8, weights="same")
    text = summary(runs, "val_dice")
    assert text.startswith("**All 12 seeds give the same Dice: either the seed is not used")
    assert "gave the same weights, bit for bit: the seed is not used." in text


def test_variants_without_a_common_seed_are_not_passed_over():
    runs = tables.runs(12, ("A", "B"))
    runs.loc[runs["variant"] == "B", "seed"] += 100
    text = summary(runs, "val_dice")
    assert "> A and B have no finished seed in common, and are not compared." in text
    assert "paired" not in text


def test_what_carries_over_is_said_or_asked_for():
    text = summary(tables.runs(30), "val_dice")
    assert re.search(r"On data that it was not picked on, it is 0\.\d+ points (better|worse) than the mean", text)
    text = summary(tables.runs(30).drop(columns="holdout_val_dice"), "val_dice")
    assert "give each run a finite holdout_val_dice to see it" in text


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_hardly_any_run_still_gives_a_page(tmp_path, n):
    runs = tables.runs(6)
    runs.loc[n:, ["status", "val_dice", "holdout_val_dice"]] = ["failed", np.nan, np.nan]
    text = write_report(runs, "val_dice", tmp_path).read_text(encoding="utf-8")
    wanted = {0: "No run has finished with a score", 1: "One run says nothing"}.get(n, "from one run each is noise")
    assert wanted in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_a_loss_has_no_points_and_its_best_is_the_smallest():
    runs = tables.runs(12).rename(columns={"val_dice": "val_loss"}).drop(columns="holdout_val_dice")
    text = summary(runs, "val_loss")
    assert "points" not in text
    assert f"The best of these 12 seeds is {runs['val_loss'].idxmin()}," in text
    assert f"The best of these 12 seeds is {runs['val_loss'].idxmax()}," in summary(runs, "val_loss", maximize=True)


@pytest.mark.slow
def test_ten_thousand_runs_fit_on_a_page(tmp_path):
    path = write_report(tables.runs(10_000), "val_dice", tmp_path)
    assert path.stat().st_size < 6e6
