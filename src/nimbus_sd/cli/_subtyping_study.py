"""Several sub-typing networks trained on the same cells and judged on the same patients, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from nimbus_sd.models import SubtypeModel

CELLS, SCORES = "cells", "he"
RESULT, ABOUT = "test.csv", "study.json"


@dataclass(frozen=True)
class Row:
    """One network of a study.

    Attributes
    ----------
    name
        Of its folder, and of its line in the results.
    told
        What tells it from the others, by column.
    options
        For ``nb.tl.train_subtyper``.
    """

    name: str
    told: Mapping[str, Any]
    options: Mapping[str, Any]


def model_rows(backbones: Sequence[str]) -> list[Row]:
    """Every backbone, a network per marker or one for all, rare positive cells weighted or not."""
    return [
        Row(
            f"{label}-{'multitask' if multitask else 'independent'}-{'weighted' if weighted else 'plain'}",
            {"backbone": label, "weighted": weighted, "multitask": multitask},
            {"backbone": backbone, "weighted": weighted, "multitask": multitask},
        )
        for label, backbone in map(_backbone, backbones)
        for multitask in (False, True)
        for weighted in (False, True)
    ]


def patch_rows(backbone: str, sides: Sequence[int], *, mpp: float, marker: str) -> list[Row]:
    """One marker seen in patches of several sides (px of `mpp`)."""
    label, given = _backbone(backbone)
    return [
        Row(
            f"{label}-{marker}-{side}px",
            {"backbone": label, "patch": side, "patch_um": round(side * mpp, 2)},
            {"backbone": given, "patch_um": side * mpp, "markers": [marker]},
        )
        for side in sides
    ]


def _backbone(text: str) -> tuple[str, str | dict[str, Any]]:
    """Name for people, and what train_subtyper takes: a name, or JSON."""
    if not text.lstrip().startswith("{"):
        return text, text
    try:
        given: dict[str, Any] = json.loads(text)
    except ValueError as error:
        msg = f"--backbone {text}: neither a name nor JSON ({error})"
        raise InputError(msg) from error
    return f"{given.get('kind', 'backbone')}-{_short(given)}", given


def _short(values: Mapping[str, Any]) -> str:
    parts = [v if isinstance(v, list) else [v] for k, v in sorted(values.items()) if k != "kind"]
    return "-".join("x".join(map(str, p)) for p in parts) or "default"


@dataclass(frozen=True)
class Study:
    """What the networks of a study share.

    Attributes
    ----------
    objects
        By name; their tables say which cells train, validate and test.
    table, layer
        The labels.
    image
        Name of the H&E; None finds it.
    out
        Folder of the networks and of ``results.csv``.
    common
        Options of every training.
    device
        Where to train and predict.
    progress
        Show progress bars.
    """

    objects: Mapping[str, SpatialData]
    table: str
    layer: str
    image: str | None
    out: Path
    common: Mapping[str, Any]
    device: str
    progress: bool

    def run(self, rows: Sequence[Row]) -> Iterator[tuple[Row, pd.DataFrame, bool]]:
        """Train, predict and measure row by row; what an earlier call has finished is not done again.

        Yields
        ------
        The row, its figures by marker, and whether they are of an earlier call.
        """
        import pandas as pd

        known = self.check(rows)
        for row in rows:
            file = self.out / row.name / RESULT
            there = file.is_file()
            if not there:
                file.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(file.with_name(ABOUT)) as partial:
                    partial.write_text(json.dumps(known[row.name], indent=2), encoding="utf-8")
                frame = self._measure(self._train(row))
                with whole_file(file) as partial:
                    frame.assign(**row.told).to_csv(partial, index=False)
            yield row, pd.read_csv(file), there

    def check(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """What each row's figures depend on; raises if one can't be trained, or `out` holds another study."""
        known = {row.name: self._about(row) for row in rows}
        for row in rows:
            self._check(row, known[row.name])
        return known

    def _check(self, row: Row, about: dict[str, Any]) -> None:
        """Raise before anything is trained: for a marker that is not there, or a folder of another study."""
        for name, sdata in self.objects.items():
            lacking = [m for m in row.options.get("markers", ()) if m not in sdata[self.table].var_names]
            if lacking:
                msg = f"{name}: table {self.table!r} has no marker {', '.join(lacking)} (--patch-marker)"
                raise InputError(msg)
        file = self.out / row.name / ABOUT
        if not file.is_file():
            return
        old = json.loads(file.read_text(encoding="utf-8"))
        if old != about:
            changed = ", ".join(sorted(k for k in {*old, *about} if old.get(k) != about.get(k)))
            msg = (
                f"--out {self.out} holds another study ({changed} differ in {row.name}); give another "
                "folder, or delete this one to start anew"
            )
            raise InputError(msg)

    def _about(self, row: Row) -> dict[str, Any]:
        """What the row's figures depend on."""
        return {
            "options": {k: v for k, v in {**self.common, **row.options}.items() if v is not None},
            "image": self.image or "",
            "cells": {name: _digest(sdata[self.table], self.layer) for name, sdata in self.objects.items()},
        }

    def _train(self, row: Row) -> SubtypeModel:
        from nimbus_sd import tl

        return tl.train_subtyper(
            self.objects,
            image=self.image,
            table=self.table,
            layer=self.layer,
            out=self.out / row.name,
            device=self.device,
            progress=self.progress,
            **{**self.common, **row.options},
        )

    def _measure(self, model: SubtypeModel) -> pd.DataFrame:
        from nimbus_sd import tl

        found, truth = [], []
        for of, sdata in self.objects.items():
            for cells, labels in _test_cells(sdata, sdata[self.table], self.image):
                if "patient" not in labels.obs:  # every section is of a patient of its own
                    labels.obs["patient"] = f"{of}/{next(iter(cells.images))}"
                tl.predict_subtypes(
                    cells,
                    model=model,
                    hierarchy=False,
                    device=self.device,
                    client=False,
                    resume=False,
                    progress=self.progress,
                )
                scores = cells["subtypes"]
                scores.obs_names = labels.obs_names
                scores.obs["patient"] = labels.obs["patient"].to_numpy()
                found.append(scores)
                truth.append(labels)
        return _evaluated(found, truth, self.layer)


def _evaluated(found: Sequence[AnnData], truth: Sequence[AnnData], layer: str) -> pd.DataFrame:
    import anndata as ad

    from nimbus_sd import tl

    scores, gold = ad.concat(found, index_unique="-"), ad.concat(truth, index_unique="-")
    gold = gold[:, scores.var_names].copy()
    return tl.evaluate(scores, gold, {SCORES: "X"}, truth_layer=layer, by="marker", resample="patient")


def _digest(table: AnnData, layer: str) -> str:
    """Which cells a study has, their parts and labels."""
    import hashlib

    import numpy as np

    parts = table.obs[["split", "sampled"]].astype(str).agg("".join, axis=1)
    names = "\n".join(map(str, table.obs_names)) + "\n".join(parts)
    labels = np.ascontiguousarray(np.asarray(table.layers[layer], np.float32))
    return hashlib.sha256(names.encode() + labels.tobytes()).hexdigest()[:16]


def _test_cells(
    sdata: SpatialData, table: AnnData, image: str | None
) -> Iterator[tuple[SpatialData, AnnData]]:
    """An object with one H&E and the test cells in it as points, and the cells' labels in that order."""
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel
    from spatialdata.transformations import get_transformation

    from nimbus_sd._sdata.he import he_centers
    from nimbus_sd._sdata.table import link_keys

    region_key, instance_key = link_keys(table)
    chosen = table[(table.obs["split"] == "test") & table.obs["sampled"]]
    # cells outside their H&E are left out, as in training
    for region in chosen.obs[region_key].astype(str).unique():
        labels = chosen[chosen.obs[region_key].astype(str) == region].copy()
        sample = he_centers(sdata, image=image, centers=[region], strict=False).samples[0]
        at = pd.Index(sample.ids).get_indexer(labels.obs[instance_key].to_numpy())
        labels, at = labels[at >= 0].copy(), at[at >= 0]
        where = get_transformation(sdata[sample.image_name], get_all=True)
        points = PointsModel.parse(sample.centers[at][:, ::-1] + 0.5, transformations=where)
        cells = SpatialData(images={sample.image_name: sdata[sample.image_name]}, points={CELLS: points})
        cells.attrs.update(sdata.attrs)
        yield cells, labels


def summary(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """One line per network, AUROC and balanced accuracy of each marker."""
    import pandas as pd

    frame = pd.concat(frames, ignore_index=True)
    wide = frame.pivot_table(
        index=list(columns),
        columns="marker",
        values=["auroc", "balanced_accuracy"],
        sort=False,
        dropna=False,
        observed=True,
    )
    wide = wide.dropna(how="all")
    markers = list(dict.fromkeys(frame["marker"]))
    order = [(kind, m) for m in markers for kind in ("auroc", "balanced_accuracy") if (kind, m) in wide]
    wide = wide[order]
    short = {"auroc": "AUROC", "balanced_accuracy": "BAcc"}
    wide.columns = [f"{m} {short[kind]}" for kind, m in order]
    return wide.reset_index()
