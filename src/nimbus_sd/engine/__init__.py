"""Prediction and training on arrays: runs where only NumPy, SciPy, torch and dask exist."""
