"""Embeddings of cell-centred patches: reading, training, embedding."""
