"""The metadata of image files: EXIF, XMP, resolution, and text."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin

from basicsr_compat.image_files import jpeg, png

# The directories within EXIF that hold what a camera says of a photo, and where it was.
EXIF_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Tags that describe how pixels lie in a TIFF file, its resolution, XMP and profile.
STRUCTURE = {*range(254, 270), 273, *range(277, 300), 317, 320, *range(322, 333), 338, 339, 512, 513, 514}
STRUCTURE |= {*range(529, 533), TiffImagePlugin.XMP, TiffImagePlugin.ICCPROFILE}


class Metadata(NamedTuple):
    """The metadata of a photo; None for what the file lacks.

    exif: the EXIF block, starting with its byte order.
    xmp: the XMP packet.
    dpi: dots per inch, horizontal and vertical.
    text: kind and content of the text chunks of a PNG file.
    comment: the comment of a JPEG file.
    extended_xmp: the part of a JPEG file's XMP that does not fit into the segment of its packet.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: png.Chunks = ()
    comment: bytes | None = None
    extended_xmp: bytes | None = None


def metadata_of(image: Image.Image, data: bytes) -> Metadata:
    """The metadata of an image that Pillow loaded. data: the content of its file; of a PNG file, what Pillow gets."""
    exif, xmp, dpi, comment = (image.info.get(key) for key in ("exif", "xmp", "dpi", "comment"))
    if image.format == "TIFF":
        with contextlib.suppress(Exception):  # what Pillow raises on arbitrary bytes; they do not spoil the pixels
            exif = _tiff_exif(image.getexif())
    if not data.startswith(jpeg.SIGNATURE):
        return _checked(exif, xmp, dpi)
    found = _checked(exif, xmp, dpi, comment)
    return found._replace(extended_xmp=jpeg.extended_xmp(data, found.xmp))


def metadata_of_deep_tiff(data: bytes, tags: dict[int, Any]) -> Metadata:
    """The metadata of a TIFF file that Pillow does not identify. tags: see `tiff_tags`."""
    exif = dpi = None
    with contextlib.suppress(Exception):  # as in metadata_of
        dpi = _tiff_dpi(tags)
        found = Image.Exif()
        found.load_from_fp(io.BytesIO(data))
        exif = _tiff_exif(found)
    return _checked(exif, tags.get(TiffImagePlugin.XMP), dpi)


def _checked(exif: object, xmp: object, dpi: object, comment: object = None) -> Metadata:
    return Metadata(
        exif=exif.removeprefix(b"Exif\0\0") or None if isinstance(exif, bytes) else None,
        xmp=xmp if isinstance(xmp, bytes) else None,
        dpi=(float(dpi[0]), float(dpi[1])) if isinstance(dpi, tuple) and len(dpi) == 2 and min(dpi) > 1 else None,
        comment=comment if isinstance(comment, bytes) else None,
    )


def _tiff_dpi(tags: dict[int, Any]) -> tuple[float, float] | None:
    """Dots per inch; None where the file does not say, or uses another unit than inches and centimeters."""
    per_inch = {2: 1.0, 3: 2.54}.get(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 2))
    x, y = tags.get(TiffImagePlugin.X_RESOLUTION), tags.get(TiffImagePlugin.Y_RESOLUTION)
    return None if per_inch is None or x is None or y is None else (per_inch * float(x), per_inch * float(y))


def _tiff_exif(found: Image.Exif) -> bytes | None:
    """The tags of a TIFF file that describe the photo, without those about its strips, as an EXIF block."""
    kept = Image.Exif()
    for tag, value in found.items():
        if tag not in STRUCTURE:
            kept[tag] = found.get_ifd(tag) if tag in EXIF_DIRECTORIES else value
    return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None
