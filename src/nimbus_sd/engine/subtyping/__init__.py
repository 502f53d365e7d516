"""H&E patches through networks that tell sub-types: sampling, training, prediction."""
