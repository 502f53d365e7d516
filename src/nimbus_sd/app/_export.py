"""What leaves a review: all answers as CSV, and the tiles that fine-tuning reads."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from nimbus_sd import pp
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cohort import location_of
from nimbus_sd.app._gold import LAYER
from nimbus_sd.app._session import Session
from nimbus_sd.models.registry import get_card

COLUMNS = ("region", "instance_id", "marker", "score", "gold", "reviewer", "answer", "time")


def answers_csv(session: Session) -> str:
    """One line per cell, marker and reviewer; `gold` is what all of them amount to."""
    regions, instances = session.instances()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, marker, who, answer, when in session.gold.rows():
        gold = session.gold.answer((row, marker))
        writer.writerow(
            (
                regions[row],
                int(instances[row]),
                session.markers[marker],
                f"{session.scores[row, marker]:.4f}",
                "" if np.isnan(gold) else int(gold),
                f"'{who}" if who[0] in "=+-@" else who,  # a spreadsheet would take it for a formula
                answer if isinstance(answer, str) else ("positive" if answer else "negative"),
                when,
            )
        )
    return out.getvalue()


def training_set(session: Session, *, model: str = "nimbus-sd-s") -> dict[str, Any]:
    """Write the corrected cells as training tiles beside the store, and say how to train on them.

    Raises
    ------
    InputError
        If no cell has been decided, or there is no local store to write beside.
    """
    store = location_of(session.sdata)
    if not isinstance(store, Path):
        msg = (
            "the object has no store on a local disk to write the tiles beside; call "
            "nb.pp.training_tiles(sdata, 'tiles.zarr', labels_layer='gold') instead"
        )
        raise InputError(msg)
    with session.lock:
        layer = session.adata.layers.get(LAYER)
        known = 0 if layer is None else int((~np.isnan(np.asarray(layer))).sum())
        if not known:
            msg = "no cell is positive or negative yet; answer some before the tiles are written"
            raise InputError(msg)
        card = get_card(model)
        path = store.with_name(f"{store.name}.{session.table}.gold_tiles.zarr")
        labelled = [f for f in session.fields if not np.isnan(np.asarray(layer)[f.rows]).all()]
        tiles = pp.training_tiles(
            session.sdata,
            path,
            labels_layer=LAYER,
            table=session.table,
            labels=[f.name for f in labelled],
            image={f.name: f.sample.pair.image for f in labelled},
            model_mpp=card.mpp,
            quantile=card.quantile,
            rule=card.rule,
            split=dict.fromkeys((f.name for f in labelled), "train"),
            dataset=store.stem,
            overwrite=True,
            progress=False,
        )
    return {
        "path": str(path),
        "tiles": len(tiles),
        "answers": known,
        "command": f'nb.tl.finetune("{path}", out="my-model")',
    }
