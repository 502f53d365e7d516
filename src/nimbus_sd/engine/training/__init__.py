"""Training on labelled cells: sources, augmentation, losses, the loop, lightning around it."""
