"""``nimbus-sd demo``: the main job on simulated tissue whose truth is known."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.lazy import require
from nimbus_sd.cli._answer import answer, say
from nimbus_sd.cli._options import AsJson, Device, DryRun, is_store

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from spatialdata import SpatialData

_COLUMNS = ("marker", "scores", "integrated", "integrated_best_threshold")
_SMALLEST = 64  # px: a field in which cells can be told apart and clustered
_SHOWN = ("CD20", "PanCK", "CD3", "SMA")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the store and the figures.")] = Path("nimbus-sd-demo"),
    n_fovs: Annotated[int, typer.Option(help="Fields of view.")] = 2,
    size: Annotated[int, typer.Option(help="Their sides in px of 0.5 µm.")] = 1024,
    seed: Annotated[int, typer.Option(help="Another seed, another tissue.")] = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Simulate tissue, score it, cluster it and compare with integrated expression."""
    start = time.perf_counter()
    store = out / "tissue.zarr"
    if store.exists() and not is_store(store):
        msg = f"{store} is not a zarr store: it is left alone; choose another --out"
        raise InputError(msg)
    require("igraph", extra="leiden")
    _check(out, n_fovs, size, device)
    facts: dict[str, Any] = {"out": out, "store": store}
    if dry_run:
        told = f"would simulate {n_fovs} fields of {size} px, score them and write store and figures to {out}"
        answer({**facts, "dry_run": True}, told, as_json=as_json)
        return
    import spatialdata as sd

    from nimbus_sd import datasets, tl

    def tell(what: str) -> None:
        say(f"[{time.perf_counter() - start:5.1f} s] {what}", as_json=as_json)

    if store.exists():
        shutil.rmtree(store)
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # the libraries' own notices; ours still show through the logger
        warnings.simplefilter("ignore")
        tell(f"simulating {n_fovs} fields of view, 20 channels, 0.5 µm/px")
        datasets.simulated_tissue(n_fovs=n_fovs, shape=(size, size), seed=seed).write(store)
        sdata = sd.read_zarr(store)
        tell(f"wrote {store}")
        tl.predict(sdata, write=True, device=device)
        adata = sdata["nimbus"]
        tell(f"scored {adata.n_obs} cells x {adata.n_vars} markers")
        agreement = _cluster(adata, sdata["truth"])
        tell("clustered with Leiden")
        figures = _figures(sdata, out)
    rows = f1_table(adata, sdata["truth"])
    facts |= {"n_cells": adata.n_obs, "n_markers": adata.n_vars, "adjusted_rand_index": agreement}
    facts |= {"f1": [dict(zip(_COLUMNS, row, strict=True)) for row in rows], "figures": figures}
    facts |= {"seconds": round(time.perf_counter() - start, 1)}
    lines = ["", _report(rows, agreement), "\nfigures: " + ", ".join(str(f) for f in figures)]
    lines.append(f"[{facts['seconds']:5.1f} s] done")
    answer(facts, lines, as_json=as_json)


def _check(out: Path, n_fovs: int, size: int, device: str) -> None:
    """Raise before anything is made."""
    if n_fovs < 1 or size < _SMALLEST:
        msg = f"--n-fovs {n_fovs} --size {size}: at least 1 field, of at least {_SMALLEST} px"
        raise InputError(msg)
    first = next((folder for folder in (out, *out.parents) if folder.exists()), Path())
    if not first.is_dir():
        msg = f"--out {out}: {first} is a file; give a folder"
        raise InputError(msg)
    from nimbus_sd.engine.device import resolve_devices

    resolve_devices(device)


def _normalised(adata: AnnData) -> np.ndarray:
    return adata.layers["integrated_expression"] / adata.var["scale"].to_numpy()


def _cluster(adata: AnnData, truth: AnnData) -> dict[str, float]:
    """Leiden on scores and on integrated expression; adjusted Rand index with the true types."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    types = truth.obs["cell_type"].reindex(adata.obs_names).astype(str)
    known = (types != "").to_numpy()
    found = {}
    adata.obsm["expression"] = _normalised(adata)
    for key, rep in (("leiden", "X"), ("leiden_expression", "expression")):
        sc.pp.neighbors(adata, use_rep=rep, key_added=key)
        sc.tl.leiden(adata, flavor="igraph", n_iterations=2, key_added=key, neighbors_key=key, resolution=0.5)
        found[key] = float(adjusted_rand_score(types[known], adata.obs[key][known]))
    del adata.obsm["expression"]
    return found


def _f1(truth: np.ndarray, positive: np.ndarray) -> float:
    tp = int((truth & positive).sum())
    wrong = int((truth ^ positive).sum())
    return 2 * tp / (2 * tp + wrong) if tp + wrong else float("nan")


def f1_table(adata: AnnData, truth: AnnData) -> list[tuple[str, float, float, float]]:
    """Per marker: F1 of scores at 0.5, of integrated expression at 0.5 and at its best threshold.

    The best threshold is chosen with the truth in hand: nobody has it in practice.
    """
    import numpy as np

    rows = []
    expression = _normalised(adata)
    for k, marker in enumerate(adata.var_names):
        true = truth[adata.obs_names, marker].X.ravel()
        known = ~np.isnan(true)
        is_positive = true[known] == 1
        if not 0 < is_positive.sum() < is_positive.size:
            continue
        score, mean = adata.X[known, k], expression[known, k]
        best = max(_f1(is_positive, mean > t) for t in np.quantile(mean, np.linspace(0.01, 0.99, 99)))
        rows.append((marker, _f1(is_positive, score > 0.5), _f1(is_positive, mean > 0.5), best))
    return rows


def _report(rows: Sequence[tuple[str, float, float, float]], agreement: Mapping[str, float]) -> str:
    import numpy as np

    mean = tuple(float(np.mean([r[i] for r in rows])) for i in (1, 2, 3))
    lines = [
        "F1 against the truth    scores > 0.5   integrated > 0.5   integrated, best threshold*",
        *(f"  {name:<20}{a:>14.2f}{b:>19.2f}{c:>22.2f}" for name, a, b, c in rows),
        f"  {'mean':<20}{mean[0]:>14.2f}{mean[1]:>19.2f}{mean[2]:>22.2f}",
        "  * one threshold per marker, chosen with the truth in hand",
        "  The bundled weights were trained on this simulator, with other seeds: real tissue is harder.",
        "",
        "Leiden clusters against the true cell types (adjusted Rand index)",
        f"  on scores {agreement['leiden']:.2f}, on integrated expression "
        f"{agreement['leiden_expression']:.2f}",
    ]
    return "\n".join(lines)


def _figures(sdata: SpatialData, out: Path) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from nimbus_sd import pl

    side = min(400, *sdata["fov0_labels"].shape)
    adata = sdata["nimbus"]
    shown = [m for m in _SHOWN if m in adata.var_names]
    paths = [out / name for name in ("scores.png", "distributions.png", "clusters.png")]
    truth = sdata["truth"].to_df().reindex(adata.obs_names)[shown]
    pl.image(sdata, shown[:3], labels="fov0_labels", crop=(0, side, 0, side), save=paths[0], show=False)
    pl.score_distribution(adata, shown, truth=truth, save=paths[1], show=False)
    pl.marker_heatmap(adata, "leiden", save=paths[2], show=False)
    return paths
