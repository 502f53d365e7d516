"""The eight symmetries of the square, applied to the last two axes and inverted."""

from __future__ import annotations

from typing import Any

from nimbus_sd._core.errors import InputError

#: View name to (transpose, flip y, flip x); the transpose comes first.
VIEWS: dict[str, tuple[bool, bool, bool]] = {
    "identity": (False, False, False),
    "flip_y": (False, True, False),
    "flip_x": (False, False, True),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, True, False),
    "rot270": (True, False, True),
    "antitranspose": (True, True, True),
}


def _parts(view: str) -> tuple[bool, bool, bool]:
    try:
        return VIEWS[view]
    except KeyError:
        msg = f"unknown view {view!r}; valid: {', '.join(VIEWS)}"
        raise InputError(msg) from None


def _flip_last(x: Any, flip_y: bool, flip_x: bool) -> Any:
    axes = [axis for axis, flip in ((-2, flip_y), (-1, flip_x)) if flip]
    if not axes:
        return x
    # torch has no negative strides and NumPy arrays have no flip method
    if hasattr(x, "flip"):
        return x.flip(axes)
    step_y, step_x = (-1 if flip else 1 for flip in (flip_y, flip_x))
    return x[..., ::step_y, ::step_x]


def apply_view(x: Any, view: str) -> Any:
    """Show `x` from one of the eight sides.

    Parameters
    ----------
    x
        NumPy array or torch tensor ``(..., y, x)``.
    view
        A key of :data:`VIEWS`.

    Returns
    -------
    The view; its last two axes are swapped for the four transposing views.

    Examples
    --------
    >>> import numpy as np
    >>> apply_view(np.arange(4).reshape(2, 2), "rot90").tolist()
    [[1, 3], [0, 2]]
    """
    transpose, flip_y, flip_x = _parts(view)
    if transpose:
        x = x.swapaxes(-1, -2)
    return _flip_last(x, flip_y, flip_x)


def invert_view(x: Any, view: str) -> Any:
    """Undo :func:`apply_view`: ``invert_view(apply_view(x, v), v)`` equals ``x``."""
    transpose, flip_y, flip_x = _parts(view)
    x = _flip_last(x, flip_y, flip_x)
    return x.swapaxes(-1, -2) if transpose else x
