"""OME-XML: channel names, pixel size in µm, and the files that one image is spread over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nimbus_sd._core.errors import InputError

_MICRONS = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6,
    "Å": 1e-4, "in": 25400.0, "ft": 304800.0, "thou": 25.4, "mil": 25.4,
}  # fmt: skip


@dataclass(frozen=True)
class OmeImage:
    """What the XML says about its image.

    Attributes
    ----------
    names
        One name per ``Channel``, None where it has none.
    pixel_size
        ``(y, x)`` in µm, or None if it is not given in a unit of length.
    files
        Names of the files that hold the planes; empty if the XML names none.
    title
        The image's name, or None.
    n_images
        Images in the XML; the other values are the first one's.
    """

    names: tuple[str | None, ...]
    pixel_size: tuple[float, float] | None
    files: tuple[str, ...]
    title: str | None
    n_images: int


def parse_ome(xml: str, *, source: Path) -> OmeImage:
    """Read the facts above from OME-XML.

    Raises
    ------
    InputError
        If `xml` is not well-formed; the message names `source`.
    """
    try:
        # The parser fetches nothing and limits entity expansion (expat ≥ 2.4.1).
        root = ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError as error:
        msg = f"{source}: the OME-XML is damaged ({error}). Export the image again."
        raise InputError(msg) from error
    images = _children(root, "Image")
    files = {
        node.attrib["FileName"]: None
        for node in root.iter()
        if _tag(node) == "UUID" and "FileName" in node.attrib
    }
    pixels = _children(images[0], "Pixels") if images else []
    channels = _children(pixels[0], "Channel") if pixels else []
    return OmeImage(
        names=tuple(channel.get("Name") or None for channel in channels),
        pixel_size=_pixel_size(pixels[0]) if pixels else None,
        files=tuple(files),
        title=images[0].get("Name") if images else None,
        n_images=len(images),
    )


def _pixel_size(pixels: ElementTree.Element) -> tuple[float, float] | None:
    size = []
    for axis in "YX":
        value = pixels.get(f"PhysicalSize{axis}")
        factor = _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is None or factor is None:
            return None
        size.append(float(value) * factor)
    return size[0], size[1]


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rsplit("}", 1)[-1]


def _children(node: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [child for child in node if _tag(child) == tag]
