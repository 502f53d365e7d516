"""What a report says in words: how the scores were made, and what to distrust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nimbus_sd.app._report_facts import UNSURE, Facts

_MAX_SHIFTS = 8
_FLAGS = {
    "empty": "every pixel is 0, so its scores say nothing. Leave the marker out.",
    "sparse": (
        "fewer pixels are above 0 than the percentile leaves out, so the brightest pixel is the scale. "
        "Its scores rest on very little signal."
    ),
    "saturated": (
        "the scale is the detector's full scale, because so many pixels reach it. Bright debris or too long "
        "an exposure: dim positive cells may be missed. Look at the image; a lower quantile, or a "
        "normalisation with a scale of your own, brings them back."
    ),
    "debris": (
        "the scale is far above what the stained pixels show (over eight times their 99th percentile), so a "
        "few very bright spots set it and cells are dimmed. Look at the image, or lower the quantile."
    ),
}


@dataclass(frozen=True)
class Note:
    """One thing to know.

    Attributes
    ----------
    about
        Marker or sample, ``""`` for all.
    text
        A sentence or two.
    grave
        Whether results may be wrong because of it.
    """

    about: str
    text: str
    grave: bool = True


def notes(facts: Facts) -> list[Note]:
    """What to distrust, the gravest first."""
    found = [
        *_normalisation(facts), *_missing(facts), *_markers(facts), *_samples(facts), *_precision(facts),
        *_shifts(facts),
    ]  # fmt: skip
    return sorted(found, key=lambda n: not n.grave)


def _normalisation(facts: Facts) -> Iterator[Note]:
    for marker, flag in facts.markers["flag"].items():
        if flag:
            yield Note(str(marker), _FLAGS.get(str(flag), f"flagged “{flag}” by the normalisation."))
    if facts.markers["scale"].isna().all():
        yield Note("", "The table does not say how intensities were normalised, so that can't be judged.")


def _missing(facts: Facts) -> Iterator[Note]:
    missing = facts.markers["missing"]
    gaps = missing[missing > 0]
    if len(gaps) == len(missing) and missing.nunique() == 1:
        yield Note("", f"{percent(missing.iloc[0])} of the cells have no scores and are left out here.")
        return
    for marker, share in gaps.items():
        yield Note(str(marker), f"{percent(share)} of the cells have no score and are left out here.")


def _markers(facts: Facts) -> Iterator[Note]:
    for marker, row in facts.markers.iterrows():
        name = str(marker)
        if row["flag"]:
            continue
        if row["positive"] < 5e-4:
            many = (
                "no cell is" if row["positive"] == 0 else f"only {percent(row['positive'])} of the cells are"
            )
            yield Note(name, f"{many} positive. True for some tissues; a failed stain looks the same.", False)
        elif row["positive"] > 0.95:
            text = (
                f"{percent(row['positive'])} of the cells are positive. Background staining looks like this."
            )
            yield Note(name, text)
        if row["unsure"] > 0.25:
            text = (
                f"{percent(row['unsure'])} of the cells have a score between {UNSURE[0]} and {UNSURE[1]}: "
                "positive and negative cells are not told apart well."
            )
            yield Note(name, text)


def _samples(facts: Facts) -> Iterator[Note]:
    for sample, row in facts.samples.iterrows():
        if row["cells"] < 50:
            text = f"{row['cells']:,} cells only, so its fractions are rough."
            yield Note(str(sample), text, False)
        if facts.area_unit == "µm²" and not 15 <= row["area"] <= 600 and np.isfinite(row["area"]):
            text = (
                f"half of the cells are {'smaller' if row['area'] < 15 else 'larger'} than {row['area']:.0f} "
                "µm². Check the pixel size and the segmentation."
            )
            yield Note(str(sample), text)
    sizes = {round(float(v), 4) for v in dict(facts.run.get("mpp", {})).values()}
    if len(sizes) > 1:
        told = ", ".join(f"{s:g}" for s in sorted(sizes))
        yield Note("", f"Samples differ in pixel size ({told} µm); check that this is so.", False)


def _precision(facts: Facts) -> Iterator[Note]:
    off = float(facts.run.get("precision_difference", 0))
    if off > 0.02:
        text = (
            f"Reduced precision changed pixel probabilities by up to {off:.3f}; predict again with "
            "precision='float32' to avoid it."
        )
        yield Note("", text)


def _shifts(facts: Facts) -> Iterator[Note]:
    """Samples whose positive fraction is far from the others': biology, or a batch."""
    if facts.fractions.shape[1] < 5:
        return
    kept = facts.fractions.loc[:, (facts.samples["cells"] >= 50).to_numpy()]
    middle = kept.median(axis=1)
    spread = kept.sub(middle, axis=0).abs().median(axis=1).clip(lower=0.02)
    odd = kept.sub(middle, axis=0).div(spread, axis=0).stack()
    gap = kept.sub(middle, axis=0).stack()
    odd = odd[(odd.abs() > 8) & (gap.abs() > 0.3)]
    strongest = odd.abs().sort_values(ascending=False, kind="stable").index[:_MAX_SHIFTS]
    for sample in dict.fromkeys(sample for _, sample in strongest):
        told = ", ".join(
            f"{marker} {percent(kept.loc[marker, sample])} ({percent(middle[marker])})"
            for marker, where in strongest
            if where == sample
        )
        start = "shares of positive cells far from the middle sample's (in brackets)"
        yield Note(str(sample), f"{start}: {told}. Biology, or staining.", False)


def rule_notes(stored: Any) -> list[str]:
    """What :func:`nimbus_sd.tl.phenotype` counted, where it made these groups."""
    if not isinstance(stored, Mapping) or "share_unassigned" not in stored:
        return []
    out = [f"{percent(float(stored['share_unassigned']))} of the cells fit no rule well enough."]
    pairs = stored.get("contradictions", {})
    counted = zip(*(np.atleast_1d(pairs.get(k, ())) for k in ("n_cells", "first", "second")), strict=False)
    worst = sorted(((int(n), str(a), str(b)) for n, a, b in counted if n), reverse=True)[:_MAX_SHIFTS]
    if worst:
        told = ", ".join(f"{a} and {b} ({n:,})" for n, a, b in worst)
        out.append(f"Cells positive for two markers that should exclude each other: {told}.")
    return out


def story(facts: Facts) -> list[tuple[str, str]]:
    """How the scores were made, as (question, answer)."""
    run = facts.run
    if not run:
        return [("Origin", "The table does not say where its scores come from.")]
    out = [("Scores", _model(run)), ("Pixel size", _pixels(run)), ("Intensities", _scaling(run))]
    views = list(map(str, np.atleast_1d(run.get("views", ()))))
    if views:
        many = "one view of each image" if len(views) == 1 else f"the mean over {len(views)} flips and turns"
        out.append(("Views", f"Each score comes from {many}."))
    out.append(("Positive", f"A cell counts as positive where its score is above {facts.threshold:g}."))
    computed = f"In {run.get('precision', 'unknown precision')} on {run.get('device', 'an unknown device')}"
    if "precision_difference" in run:
        computed += f"; pixel probabilities differ from float32 by at most {run['precision_difference']:.2g}"
    out.append(("Computed", f"{computed}."))
    out.append(("Made", f"{_date(run)} with nimbus_sd {run.get('version', '(version unknown)')}."))
    return [(question, answer) for question, answer in out if answer]


def _model(run: dict[str, Any]) -> str:
    text = f"By the network “{run.get('model', 'unknown')}”"
    if run.get("weights_sha256"):
        text += f" (weights {str(run['weights_sha256'])[:12]}…"
        text += f", licence {run['licence']})" if run.get("licence") else ")"
    return (
        f"{text}, which looks at one marker and the cells' outlines at a time. A score is its confidence, "
        "from 0 to 1, that the cell is positive."
    )


def _pixels(run: dict[str, Any]) -> str:
    sizes = sorted({round(float(v), 4) for v in dict(run.get("mpp", {})).values() if np.isfinite(float(v))})
    if not sizes:
        return ""
    told = f"{sizes[0]:g}" if len(sizes) == 1 else f"{sizes[0]:g} to {sizes[-1]:g}"
    works = f"; the network works at {float(run['model_mpp']):g} µm" if "model_mpp" in run else ""
    return f"{told} µm per pixel{works}."


def _scaling(run: dict[str, Any]) -> str:
    fitted = run.get("normalization", {})
    if not fitted:
        return ""
    n = len(fitted["fitted_on"])
    images = "the image" if n == 1 else f"{n} images"
    share = f"{100 * fitted['quantile']:.6g}th percentile"
    if fitted["rule"] == "fov_mean":
        how = f"the {share} of the pixels above 0 of each image, averaged over {images}"
    else:
        how = f"the {share} of all pixels of {images}"
    return f"Divided by one scale per marker, {how}, and cut off at 1."


def _date(run: dict[str, Any]) -> str:
    date = str(run.get("date", ""))
    return f"{date[:10]}, {date[11:16]} UTC" if len(date) >= 16 else "At an unknown time"


def percent(share: float) -> str:
    """``0.1234`` as ``12 %``; small ones with a digit more."""
    if not np.isfinite(share):
        return "–"
    if share == 0:
        return "0 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"
