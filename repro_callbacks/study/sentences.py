"""What a study shows, in plain sentences. The report and the summary say the same."""

from __future__ import annotations

import itertools
import math

from repro_callbacks.study.analysis import Analysis, VariantAnalysis
from repro_callbacks.study.distribution import OUTLIER_LIMIT, OUTLIERS_FROM, Distribution
from repro_callbacks.study.metric import Metric, p_value, percent
from repro_callbacks.study.paired import MEANINGFUL, PairedComparison, fewest_pairs
from repro_callbacks.study.selection import Selection
from repro_callbacks.study.variance import NAMES

SHOWN_SEEDS = 10


def headline(analysis: Analysis, variant: VariantAnalysis) -> str:
    """Say first what a difference between two single runs is worth."""
    found, metric = variant.distribution, analysis.metric
    who = f"{variant.name}: " if variant.name else ""
    if found is None:
        return f"{who}No run has finished with a score, so nothing can be said."
    if found.n == 1:
        return f"{who}One run says nothing about how {metric.label} varies between seeds; run more."
    threshold = found.noise.threshold.value
    if threshold == 0:
        return (
            f"{who}All {found.n} seeds give the same {metric.label}: either the seed is not used, "
            "or the metric is too coarse to show it."
        )
    spread = metric.gain(found.noise.spread.value, resolution=threshold)
    return (
        f"{who}Between seeds, {metric.label} varies by ±{spread}; a gain below {metric.gain(threshold)} "
        "from one run each is noise."
    )


def noise(analysis: Analysis, variant: VariantAnalysis) -> list[str]:
    """Say how sure the headline is, and check it on the runs themselves."""
    found, metric, level = variant.distribution, analysis.metric, percent(analysis.confidence)
    if found is None or found.n < 2 or found.noise.threshold.value == 0:
        return []
    threshold = found.noise.threshold
    lines = [
        f"From {found.n} seeds. {level} of runs are expected within the ± of the mean, and {level} of chance "
        f"differences between two runs below the threshold. Its {level} interval is {metric.gain_interval(threshold)}."
    ]
    if found.n >= OUTLIERS_FROM:
        lines.append(
            f"Check, without assuming a shape: {percent(found.noise.exceeded)} of all pairs of these runs differ by "
            f"more, and {level} by {metric.gain(found.noise.observed)} or less. The best and the worst seed are "
            f"{metric.gain(found.noise.largest)} apart."
        )
    if found.n < 20:
        lines.append(f"{found.n} seeds are few: take the upper end of the interval as the threshold.")
    return lines


def outliers(analysis: Analysis, variant: VariantAnalysis) -> str:
    """Say whether there are black swans, by which rule, and how many to expect."""
    found, metric = variant.distribution, analysis.metric
    if found is None or found.n < OUTLIERS_FROM:
        return f"Fewer than {OUTLIERS_FROM} runs can't show an outlier."
    shown, resolution = found.outliers, found.standard_deviation.value
    rule = f"the modified z-score of Iglewicz and Hoaglin is beyond {OUTLIER_LIMIT:g}"
    expected = f"{found.n} normal scores have {shown.expected:.2g} on average" + (
        f", and as many or more in {percent(shown.p)} of studies" if shown.seeds else ""
    )
    if not shown.seeds:
        return f"No outlier ({rule} for none of the runs; {expected})."
    listed = [
        f"seed {seed} ({metric.score(score, resolution)})"
        for seed, score in zip(shown.seeds, shown.scores, strict=True)
    ]
    more = f" and {len(listed) - SHOWN_SEEDS} more" if len(listed) > SHOWN_SEEDS else ""
    count = "1 outlier" if len(listed) == 1 else f"{len(listed)} outliers"
    return f"{count}: {', '.join(listed[:SHOWN_SEEDS])}{more} ({rule}; {expected})."


def selection(analysis: Analysis, variant: VariantAnalysis) -> list[str]:
    """Say what picking the best seed gains, and what is left of it elsewhere."""
    found, picked, metric = variant.distribution, variant.selection, analysis.metric
    if found is None or picked is None or found.n < 2 or found.standard_deviation.value == 0:
        return []
    resolution = found.standard_deviation.value
    lines = [
        f"The best of these {found.n} seeds is {picked.seed}, {metric.gain(picked.gain, resolution)} better than the "
        f"mean. The best of {found.n} normal scores with this spread is {metric.gain(picked.expected, resolution)} "
        "better: so much of \u201cmy seed is better\u201d needs no reason but the picking."
    ]
    return [*lines, _elsewhere(picked, metric, found, resolution)]


def _elsewhere(picked: Selection, metric: Metric, found: Distribution, resolution: float) -> str:
    held = picked.holdout
    if held is None:
        return (
            f"What seed {picked.seed} scores on data that it was not picked on is not known; give each run a finite "
            f"holdout_{metric.name} to see it."
        )
    side, correlation = "better" if held.gain >= 0 else "worse", held.correlation
    text = (
        f"On data that it was not picked on, it is {metric.gain(abs(held.gain), resolution)} {side} than the mean, "
        f"place {held.rank} of {found.n}."
    )
    if math.isfinite(correlation.value):
        text += (
            f" The seeds' scores on the two sets correlate by {correlation.value:.2f} "
            f"({correlation.low:.2f} to {correlation.high:.2f})."
        )
    return text


def comparison(analysis: Analysis, pair: PairedComparison) -> str:
    """Say which variant is better, or that it is not shown, or that n can't support a claim."""
    metric, n = analysis.metric, pair.n
    winner = pair.a if pair.verdict == "a" else pair.b
    loser = pair.b if pair.verdict == "a" else pair.a
    p = p_value(pair.p_adjusted) + (" after Holm's correction" if len(analysis.comparisons) > 1 else "")
    seen = f"{pair.a} - {pair.b} is {metric.gain(pair.difference.value, signed=True)}"
    interval = f"{percent(pair.confidence)} interval {metric.gain_interval(pair.difference, signed=True)}"
    if pair.verdict == "too few":
        return (
            f"{pair.a} against {pair.b}: no claim. {n} paired seed{'s' if n > 1 else ''} can't give a p below "
            f"{pair.smallest_p:g}, whatever the scores; at least {fewest_pairs(pair.confidence)} are needed."
        )
    if pair.verdict == "not shown":
        return (
            f"{pair.a} against {pair.b}: no difference is shown by {n} paired seeds ({seen}, {interval}, {p}). "
            "That is not a proof that there is none."
        )
    return (
        f"{winner} is better than {loser} by {metric.gain(abs(pair.difference.value))} on average over {n} paired "
        f"seeds ({seen}, {interval}, {p})."
    )


def comparison_details(analysis: Analysis, pair: PairedComparison) -> list[str]:
    """Say how often one run each would mislead, and how many seeds are needed."""
    metric = analysis.metric
    share = pair.probability
    lines = [
        f"P({pair.a} better than {pair.b}) = {100 * share.value:.1f} % ({percent(share.low)} to {percent(share.high)}):"
        f" {pair.wins} of {pair.n} pairs won" + (f", {pair.ties} tied" if pair.ties else "") + "."
    ]
    if pair.verdict in ("a", "b"):
        winner = pair.a if pair.verdict == "a" else pair.b
        lines.append(
            f"{winner} wins in more than {percent(MEANINGFUL)} of pairs, from which on Bouthillier et al. (2021) call "
            "a difference meaningful."
            if pair.meaningful
            else f"{winner} wins in no more than {percent(MEANINGFUL)} of pairs, from which on Bouthillier et al. "
            "(2021) call a difference meaningful: the means differ, but one run each will often say the opposite."
        )
    if math.isfinite(pair.detectable) and pair.detectable > 0:
        needed = "no feasible number of pairs" if pair.needed is None else f"{pair.needed} pairs"
        lines.append(
            f"{pair.n} pairs show a difference of {metric.gain(pair.detectable)} in 8 of 10 studies; "
            f"for a difference as large as the one seen, {needed} would."
        )
    if pair.left_out:
        lines.append(f"Seeds that only one of the two finished are left out: {len(pair.left_out)}.")
    return lines


def sources(analysis: Analysis, variant: VariantAnalysis) -> list[str]:
    """Say which source makes how much of the variance, and whether they add up."""
    found = variant.sources
    if found is None:
        return []
    ranked = sorted(found.sources, key=lambda source: -source.variance.value)
    lines = []
    for source in ranked:
        spread = analysis.metric.gain(source.standard_deviation.value)
        share = source.share
        part = (
            f", {percent(share.value)} of the variance ({percent(share.low)} to {percent(share.high)})"
            if share and math.isfinite(share.low)
            else ""
        )
        lines.append(
            f"{NAMES[source.purpose].capitalize()}: standard deviation {spread}{part}, from {source.n} runs."
            if source.variance.value
            else f"{NAMES[source.purpose].capitalize()}: changes nothing in {source.n} runs."
        )
    remainder, total = found.remainder, found.together
    if total is not None:
        lines.append(
            f"All together: standard deviation {analysis.metric.gain(total.standard_deviation.value)}, from {total.n} "
            "runs."
        )
    if remainder is not None and total is not None and math.isfinite(remainder.low):
        ends = f"{remainder.low / total.variance.value:+.0%} to {remainder.high / total.variance.value:+.0%}".replace(
            "%", " %"
        )
        holds = remainder.low <= 0 <= remainder.high
        lines.append(
            f"The sources add up, as far as these runs can tell (remainder {ends} of the variance of all together)."
            if holds
            else f"The sources do not add up (remainder {ends} of the variance of all together): they interact, or the "
            "base seeds are not typical."
        )
    if found.left_out:
        lines.append(f"{found.left_out} runs vary several purposes but not all, and are not used here.")
    return lines


def cases(analysis: Analysis, variant: VariantAnalysis) -> list[str]:
    """Say how many cases flip behind a mean that hardly moves."""
    found, metric = variant.stability, analysis.metric
    if found is None:
        return []
    n = len(found.table)
    who = f"{variant.name}: " if variant.name else ""
    by = "" if variant.case_metric == metric.name else f" (by {variant.case_metric})"
    if found.runs < 2:
        return [f"{who}Cases were scored in one run only; it takes two to see one flip."]
    if found.binary:
        return [
            f"{who}{found.flipping} of {n} cases flip between {found.runs} seeds{by}. Two runs disagree on "
            f"{percent(found.churn)} of cases, while their mean has a standard deviation of "
            f"{found.sd_of_mean * 100:.2g} points."
        ]
    return [
        f"{who}{found.flipping} of {n} cases change between {found.runs} seeds{by}. A single case has a standard "
        f"deviation of {found.churn:.2g} on average ({found.table['sd'].iloc[0]:.2g} for the least stable), the mean "
        f"over cases one of {found.sd_of_mean:.2g}."
    ]


def cautions(analysis: Analysis) -> list[str]:
    """Say what makes the numbers doubtful: failed runs, seeds without effect, runs that don't repeat."""
    lines = []
    failed = len(analysis.failed)
    if failed:
        lines.append(
            f"Runs without a score: {failed} of {analysis.asked}. They are listed, and left out of every number: what "
            "is said here holds for runs that finish."
        )
    for variant in analysis.variants:
        who = f" of {variant.name}" if variant.name else ""
        for group in variant.same_weights[:3]:
            named = ", ".join(map(str, group[:SHOWN_SEEDS])) + (", ..." if len(group) > SHOWN_SEEDS else "")
            lines.append(f"Seeds {named}{who} gave the same weights, bit for bit: the seed is not used.")
    names = [variant.name for variant in analysis.variants if variant.distribution is not None]
    compared = {(pair.a, pair.b) for pair in analysis.comparisons}
    lines += [
        f"{a} and {b} have no finished seed in common, and are not compared."
        for a, b in itertools.combinations(names, 2)
        if (a, b) not in compared
    ]
    if analysis.repeats:
        named = ", ".join(f"{seed} {name}".strip() for name, seed in analysis.repeats[:SHOWN_SEEDS])
        lines.append(
            f"Runs of the same seed gave different results (seed {named}): what differs between them is not the seed's "
            "doing, and these numbers can't tell the two apart."
        )
    return lines
