"""Panels: the markers of a made-up multiplexed experiment, and random ones to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation.config import CELL_TYPES, Marker

_T = {"CD4 T": 0.97, "Treg": 0.97, "CD8 T": 0.97}
_IMMUNE = {"B": 0.97, "macrophage": 0.85, "dendritic": 0.85, "mast": 0.5, **_T}
_EPITHELIAL = {"epithelial": 0.97, "basal": 0.95}

PANEL: tuple[Marker, ...] = (
    Marker("HH3", dict.fromkeys(CELL_TYPES, 1.0), nucleus=1, level=0.6, spread=0.25, dim=0.02),
    Marker("CD45", _IMMUNE, membrane=0.9, cytoplasm=0.1, level=0.45, ragged=0.8),
    Marker("CD3", _T, membrane=0.8, cap=0.4, level=0.4),
    Marker(
        "CD4", {"CD4 T": 0.95, "Treg": 0.95, "macrophage": 0.15}, membrane=0.8, cap=0.3, level=0.3, dim=0.25
    ),
    Marker("CD8", {"CD8 T": 0.95}, membrane=0.9, cap=0.3, level=0.5),
    Marker("CD20", {"B": 0.95}, membrane=0.9, cytoplasm=0.1, level=0.5),
    Marker("FOXP3", {"Treg": 0.95}, nucleus=0.9, level=0.35, dim=0.25),
    Marker("CD68", {"macrophage": 0.95, "dendritic": 0.15}, cytoplasm=0.5, puncta=1.0, level=0.4, ragged=1.2),
    Marker(
        "CD11c", {"dendritic": 0.95, "macrophage": 0.25}, membrane=0.8, cytoplasm=0.2, level=0.35, dim=0.25
    ),
    Marker(
        "HLADR",
        {"B": 0.9, "dendritic": 0.95, "macrophage": 0.75, "epithelial": 0.05},
        membrane=0.7,
        cytoplasm=0.2,
        level=0.5,
        spread=0.7,
    ),
    Marker("Tryptase", {"mast": 0.97}, cytoplasm=0.9, puncta=0.6, level=0.8, secreted=1.0),
    Marker(
        "PanCK", _EPITHELIAL, cytoplasm=0.8, membrane=0.4, nucleus=0.08, level=0.5, spread=0.6, baseline=0.03
    ),
    Marker("ECAD", {"epithelial": 0.95, "basal": 0.7}, membrane=1, level=0.45, spread=0.5),
    Marker("CK5", {"basal": 0.95}, cytoplasm=0.9, membrane=0.2, level=0.5),
    Marker(
        "SMA",
        {"smooth muscle": 0.97, "basal": 0.3},
        cytoplasm=0.8,
        membrane=0.5,
        level=0.5,
        ecm=0.04,
        ragged=1,
    ),
    Marker(
        "VIM",
        {
            "fibroblast": 0.95,
            "endothelial": 0.9,
            "smooth muscle": 0.6,
            "macrophage": 0.8,
            "CD4 T": 0.4,
            "CD8 T": 0.4,
        },
        cytoplasm=0.7,
        membrane=0.4,
        level=0.4,
        spread=0.6,
        ecm=0.05,
        ragged=1.2,
    ),
    Marker("CD31", {"endothelial": 0.95}, membrane=0.9, cytoplasm=0.3, level=0.5, ragged=1),
    Marker("Collagen", {}, ecm=0.5, level=0.5),
    Marker(
        "Ki67",
        {"epithelial": 0.18, "basal": 0.08, "B": 0.15, "CD4 T": 0.04, "CD8 T": 0.08},
        nucleus=0.9,
        level=0.5,
        spread=0.6,
        patchy=0.6,
    ),
    Marker(
        "PDL1",
        {"macrophage": 0.3, "epithelial": 0.15},
        membrane=0.8,
        cap=0.3,
        level=0.25,
        dim=0.3,
        patchy=0.8,
    ),
)


def panel(names: tuple[str, ...] | None = None) -> tuple[Marker, ...]:
    """Markers of :data:`PANEL`, all of them or those named, in the order given.

    Raises
    ------
    InputError
        If a name is not in the panel.
    """
    if names is None:
        return PANEL
    known = {marker.name: marker for marker in PANEL}
    unknown = [name for name in names if name not in known]
    if unknown:
        msg = f"no markers {unknown} in the simulated panel; there are: {', '.join(known)}"
        raise InputError(msg)
    return tuple(known[name] for name in names)


def _random_compartments(rng: np.random.Generator) -> dict[str, Any]:
    """Weights of the compartments, from the families seen in tissue."""
    leak = float(rng.uniform(0, 0.15))
    family = rng.choice(6, p=[0.3, 0.22, 0.2, 0.16, 0.07, 0.05])
    if family == 0:
        return {"membrane": 1.0, "cytoplasm": leak, "cap": float(rng.choice([0, rng.uniform(0, 1)]))}
    if family == 1:
        return {"membrane": 0.7, "cytoplasm": float(rng.uniform(0.2, 0.7)), "nucleus": leak}
    if family == 2:
        return {"cytoplasm": 0.9, "membrane": 0.2, "nucleus": float(rng.uniform(0, 0.4))}
    if family == 3:
        return {"nucleus": 0.9, "cytoplasm": leak}
    if family == 4:
        return {"puncta": 1.5, "cytoplasm": float(rng.uniform(0.05, 0.4))}
    return {"cytoplasm": 0.7, "nucleus": 0.6, "membrane": 0.5}


def _random_types(rng: np.random.Generator) -> dict[str, float]:
    """Who is positive: a few lineages, everyone a little, or nobody."""
    kind = rng.random()
    if kind < 0.07:
        return {}
    if kind < 0.3:
        share = float(np.exp(rng.uniform(np.log(0.03), np.log(0.9))))
        return {name: float(np.clip(share * rng.lognormal(0, 0.8), 0, 1)) for name in CELL_TYPES}
    chosen = rng.choice(CELL_TYPES, size=rng.integers(2, 8), replace=False)
    if rng.random() < 0.3:
        chosen = np.union1d(chosen, ["epithelial"])
    low = rng.choice([0.1, 0.6, 0.9])
    return {str(name): float(rng.uniform(low, 1)) for name in chosen}


def _random_faint(rng: np.random.Generator) -> dict[str, Any]:
    """Draw who expresses a little without counting as positive: in most panels somebody does."""
    if rng.random() < 0.35:
        return {}
    some = rng.random(len(CELL_TYPES)) < rng.uniform(0.2, 1)
    chance = np.where(some, rng.random(len(CELL_TYPES)), 0)
    return {
        "faint": dict(zip(CELL_TYPES, chance.tolist(), strict=True)),
        "faint_level": float(np.exp(rng.uniform(np.log(0.02), np.log(0.25)))),
    }


def random_marker(rng: np.random.Generator, name: str = "marker") -> Marker:
    """Draw a marker to train on."""
    types = _random_types(rng)
    ecm = float(np.exp(rng.uniform(np.log(0.02), np.log(0.6)))) if rng.random() < 0.22 or not types else 0.0
    return Marker(
        name,
        types,
        **_random_compartments(rng),
        level=float(rng.uniform(0.25, 0.7)),
        spread=float(rng.uniform(0.2, 0.8)),
        dim=float(rng.uniform(0, 0.4)),
        ecm=ecm if rng.random() < 0.8 else 0.0,
        secreted=float(rng.uniform(0.8, 4)) if rng.random() < 0.12 else 0.0,
        patchy=float(rng.choice([0, rng.uniform(0.2, 1)])),
        baseline=float(np.exp(rng.uniform(np.log(0.01), np.log(0.2)))) if rng.random() < 0.3 else 0.0,
        ragged=float(rng.uniform(0.5, 2.0)) if rng.random() < 0.6 else 0.0,
        **_random_faint(rng),
    )
