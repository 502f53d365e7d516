"""Which channels are markers: the editable pattern behind ``channels="auto"``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from nimbus_sd._core.errors import ChannelNotFoundError, InputError
from nimbus_sd._core.near import did_you_mean

#: Matches whole names (case ignored) of channels that stain nuclei.
NUCLEAR = (
    r"dapi([ _-]?\d+)?|hoechst([ _-]?\d+)?|draq ?5|dna([ _-]?\d+)?|(ir-?19[13]|19[13]ir)([ _-]?dna\d?)?|"
    r"h{1,2}3|histone([ _-]?h?\d)?|nuc(leus|lei|lear)?([ _-]?\d+)?"
)
#: Matches whole channel names (case ignored) of DNA, histone, blank, background and element channels.
NOT_MARKERS = NUCLEAR + (
    r"|blank.*|empty.*|background.*|bg|noodle|"
    r"af([ _-]?\d+)?|auto-?fluo(rescence)?.*|chan_\d+|si|p|ca|na|fe|au|ta|c|carbon|phosphorus"
)


def look_nuclear(channels: Sequence[str]) -> list[str]:
    """Those that stain nuclei, by their names.

    Examples
    --------
    >>> look_nuclear(["CD3", "DAPI-1", "HH3"])
    ['DAPI-1', 'HH3']
    """
    return [c for c in channels if re.fullmatch(NUCLEAR, c, flags=re.IGNORECASE)]


def select_channels(
    available: Sequence[str], channels: str | Sequence[str], *, where: str, exclude: str = NOT_MARKERS
) -> tuple[list[str], list[str]]:
    """Pick the channels to use.

    Parameters
    ----------
    available
        Channel names of the image.
    channels
        ``"auto"`` leaves out what `exclude` matches, ``"all"`` takes everything,
        anything else names the channels.
    where
        Element name, for messages.
    exclude
        Regular expression for whole names, case ignored.

    Returns
    -------
    The chosen names in order, and those that ``"auto"`` left out.

    Raises
    ------
    InputError
        If names are duplicated or none is left.
    ChannelNotFoundError
        If a named channel does not exist.
    """
    twice = [name for name, n in Counter(available).items() if n > 1]
    if twice:
        msg = f"image {where!r} has duplicated channel names {twice}; rename them (c_coords) to be unique"
        raise InputError(msg)
    if channels == "all":
        return list(available), []
    if channels == "auto":
        skipped = [c for c in available if re.fullmatch(exclude, c, flags=re.IGNORECASE)]
        chosen = [c for c in available if c not in skipped]
        if not chosen:
            msg = (
                f"image {where!r}: every channel ({', '.join(available)}) looks like DNA, histone or "
                "background; name the channels to use with channels=[...]"
            )
            raise InputError(msg)
        return chosen, skipped
    names = [channels] if isinstance(channels, str) else [str(c) for c in channels]
    missing = [c for c in names if c not in available]
    if missing:
        near = did_you_mean(missing, available)
        msg = f"image {where!r} has no channel {missing}{near}; valid: {', '.join(available)}"
        raise ChannelNotFoundError(msg)
    if not names or len(set(names)) < len(names):
        msg = f"channels={names}: name at least one channel, and each once"
        raise InputError(msg)
    return names, []
