"""Held-out simulated studies with shifted parameters, against the truth.

    python benchmarks/simulated.py [--model NAME] [--studies N]

Two fields of 512 µm per study instead of four of 384 µm, gains log-uniform over 0.35-1.8 instead of 0.5-1.4,
seeds that training never uses. Integrated expression gets the best threshold for every marker of every study,
chosen with the truth in hand; the model gets 0.5. Gradient boosting on hand-made features of cells, trained
on other simulated studies, stands beside as a reference that needs no network.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

import nimbus_sd as nb
from nimbus_sd.engine.head import head_scores
from nimbus_sd.engine.training.cell_head import HeadTraining, MarkerCells, marker_cells
from nimbus_sd.engine.training.held_out import summarise
from nimbus_sd.engine.training.studies import StudyConfig, StudySource

SHIFTED = HeadTraining(gain_low=0.35, gain_high=1.8)
FIRST, FIRST_OTHER = 2_000_000, 3_000_000


def cells_of(model: nb.models.LoadedModel, config: StudyConfig, how: HeadTraining) -> list[MarkerCells]:
    """Simulate and score."""
    return list(marker_cells(model.net.eval(), StudySource(config), how, transform=model.card.transform))


def boosting(train: list[MarkerCells], test: list[MarkerCells]) -> list[np.ndarray]:
    """Scores of gradient boosting that sees everything but the network's score."""
    blind = [MarkerCells(**{**vars(c), "score": np.full_like(c.score, 0.5)}) for c in train]
    x, y = np.concatenate([c.features() for c in blind]), np.concatenate([c.target for c in blind])
    known = ~np.isnan(y)
    trees = HistGradientBoostingClassifier(max_iter=150, random_state=0).fit(x[known], y[known])
    unseen = [MarkerCells(**{**vars(c), "score": np.full_like(c.score, 0.5)}) for c in test]
    return [trees.predict_proba(c.features())[:, 1] for c in unseen]


def show(name: str, metrics: dict[str, float]) -> None:
    """Print a line."""
    print(
        f"{name:<42}{metrics['f1']:8.3f}{metrics['f1_integrated']:12.3f}"
        f"{metrics['specificity_empty']:13.3f}{metrics['ece']:8.3f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nimbus-sd-s")
    parser.add_argument("--studies", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = nb.models.load(args.model)
    test = cells_of(model, StudyConfig(FIRST, args.studies, n_fields=2, side=512, labels="truth"), SHIFTED)
    other = cells_of(model, StudyConfig(FIRST_OTHER, args.studies, labels="truth"), HeadTraining())
    print(f"{'':<42}{'F1@0.5':>8}{'integrated':>12}{'empty spec.':>13}{'ECE':>8}")
    show(f"{args.model}: mean probability", summarise([(c, c.score) for c in test]))
    if model.head is not None:
        scored = [(c, head_scores(model.head, c.features())) for c in test]
        show(f"{args.model}: cell head", summarise(scored))
    trees = boosting(other, test)
    show("gradient boosting, no network", summarise(list(zip(test, trees, strict=True))))


if __name__ == "__main__":
    main()
