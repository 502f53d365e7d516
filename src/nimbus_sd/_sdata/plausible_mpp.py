"""Pixel sizes that can't be right: too small, too large, or not what the object itself says."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.frames import user_stacklevel
from nimbus_sd._sdata.elements import ATTRS_KEY, MICRONS, mpp_of, systems


@dataclass(frozen=True)
class PixelSizes:
    """What µm per px can be.

    Parameters
    ----------
    lowest, largest
        In between, cells are more than a px and less than a field.
    close
        Two sizes that differ by no more than this share count as the same.
    of
        Whose they are, for messages.
    """

    lowest: float = 0.05
    largest: float = 10.0
    close: float = 0.01
    of: str = ""

    def check(self, value: float, where: str = "") -> None:
        """Raise where a px is too small or too large.

        Parameters
        ----------
        value
            µm per px.
        where
            What says so, such as ``"image 'he'"``; empty where it was given as ``mpp=``.

        Raises
        ------
        InputError
            The message guesses the unit that was meant.
        """
        if self.lowest <= value <= self.largest:
            return
        what = f"{where} says that a px is {value:g} µm wide" if where else f"mpp={value:g}"
        units = (("nm", value / 1000), ("mm", value * 1000)) if value > 0 else ()
        guess = "; pass it in µm, for instance mpp=0.5"
        for unit, right in units:
            if self.lowest <= right <= self.largest:
                guess = f"; is that in {unit}? Pass mpp={right:g}"
        msg = f"{what}; µm per px{self.of} lie between {self.lowest:g} and {self.largest:g}{guess}"
        raise InputError(msg)

    def warn_unless_same(self, mpp: float, images: Iterable[tuple[SpatialData, str]]) -> None:
        """Warn once if a size that was given is not what the images' objects say.

        Parameters
        ----------
        mpp
            µm per px.
        images
            Objects, and names of images in them.

        Warns
        -----
        NimbusWarning
            It names both sizes of the first such image.
        """
        others = []
        for sdata, name in images:
            own = _own(sdata, name)
            if own is not None and abs(mpp / own - 1) > self.close:
                others.append((sdata, name, own))
        if not others:
            return
        sdata, name, own = others[0]
        scaled = MICRONS in systems(sdata, "images", name)
        source = (
            f"the scale of image {name!r} to {MICRONS!r} says {own:.4g} µm per px"
            if scaled
            else f"by sdata.attrs[{ATTRS_KEY!r}] image {name!r} has {own:.4g} µm per px"
        )
        more = f" ({len(others) - 1} more images differ from what was given)" if len(others) > 1 else ""
        warnings.warn(
            f"mpp={mpp:g}, but {source}{more}; the former is used. Leave mpp= out, or correct the "
            f"{'scale' if scaled else 'object'}",
            NimbusWarning,
            stacklevel=user_stacklevel(),
        )


#: Of any image with cells in it.
PIXEL_SIZES = PixelSizes()


def _own(sdata: SpatialData, image: str) -> float | None:
    """What the object says; None where it is silent, or unclear, which mpp= is there to settle."""
    try:
        return mpp_of(sdata, "images", image)
    except InputError:
        return None
