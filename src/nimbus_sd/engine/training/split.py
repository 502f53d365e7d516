"""Divide fields of view into training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.sources import SPLITS


def split_fields(
    owners: Mapping[str, str], *, shares: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, str]:
    """Draw a split for every field; fields of one image go together.

    Parameters
    ----------
    owners
        Field (name of labels) to image: cells of one image are alike, however it was segmented.
    shares
        Of images for training, validation and test, summing to 1. A share above 0
        gets at least one image as long as training keeps one.
    seed
        Decides the draw; the order of the fields does not matter.

    Returns
    -------
    Field to ``"train"``, ``"validation"`` or ``"test"``.

    Raises
    ------
    InputError
        Unless the shares are three numbers ≥ 0 that sum to 1.

    Examples
    --------
    >>> found = split_fields({f"fov{i}": f"image{i}" for i in range(10)}, seed=1)
    >>> [list(found.values()).count(s) for s in ("train", "validation", "test")]
    [8, 1, 1]
    """
    valid = len(shares) == len(SPLITS) and all(np.isfinite(s) and s >= 0 for s in shares)
    if not valid or abs(sum(shares) - 1) > 1e-6:
        msg = f"shares={tuple(shares)} must be three numbers ≥ 0 that sum to 1, for instance (0.8, 0.1, 0.1)"
        raise InputError(msg)
    images = sorted(set(owners.values()))
    drawn = [images[i] for i in np.random.default_rng(seed).permutation(len(images))]
    n_validation, n_test = (max(round(s * len(images)), 1) if s else 0 for s in shares[1:])
    # with too few images validation goes first, because it picks the checkpoint
    spare = len(images) - (1 if shares[0] else 0)
    n_validation = min(n_validation, spare)
    n_test = min(n_test, spare - n_validation)
    if not shares[0]:
        n_test = len(images) - n_validation if shares[2] else n_test
    of_image = {
        image: SPLITS[1] if i < n_validation else SPLITS[2] if i < n_validation + n_test else SPLITS[0]
        for i, image in enumerate(drawn)
    }
    return {field: of_image[image] for field, image in owners.items()}


def check_split(given: Mapping[str, str], owners: Mapping[str, str]) -> dict[str, str]:
    """Return the split that a user gave.

    Raises
    ------
    InputError
        If a field is missing or unknown, a split's name is unknown, or two splits
        share an image.
    """
    missing, unknown = sorted(set(owners) - set(given)), sorted(set(given) - set(owners))
    if missing or unknown:
        what = f"leaves out {missing[:5]}" if missing else f"names {unknown[:5]}, which are no labels here"
        msg = f"split= {what}; give one of {', '.join(SPLITS)} for each of {sorted(owners)[:8]}"
        raise InputError(msg)
    wrong = {f: s for f, s in given.items() if s not in SPLITS}
    if wrong:
        msg = f"split= holds {wrong}; valid: {', '.join(SPLITS)}"
        raise InputError(msg)
    by_image: dict[str, set[str]] = {}
    for field, image in owners.items():
        by_image.setdefault(image, set()).add(given[field])
    shared = {image: sorted(names) for image, names in by_image.items() if len(names) > 1}
    if shared:
        msg = (
            f"split= puts one image into several splits: {shared}. Cells of one image are alike however it "
            "was segmented: keep its labels together, so that validation is honest"
        )
        raise InputError(msg)
    return dict(given)
