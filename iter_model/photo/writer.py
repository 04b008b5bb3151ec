"""Writes photos as files of many kinds, which keep gray, alpha, and bit depth where the kind can hold them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from basicsr_compat.files import atomic_write
from basicsr_compat.image_files import jpeg, png
from basicsr_compat.images import Frame, Photo
from iter_model.photo.levels import DEPTHS, over_white, rows_of, strips
from iter_model.photo.png_writer import encode_png
from iter_model.photo.tiff_writer import write_tiff

DEFAULT_QUALITY = 95
# Bytes that a segment of a JPEG file holds.
_SEGMENT = 65_000
# Values of a photo whose copy by Pillow would take over 100 MB.
_LARGE = 3 * 2**25


class Writer(NamedTuple):
    """How a kind of file is written, and what it can hold.

    save: called with an open file, a photo, and the quality.
    save_frames: called with an open file, the frames of an animation or the pages of a document, and the quality; None
        for kinds that hold one image.
    lossy: whether the kind has a quality.
    bits: most bits per channel.
    max_side: most pixels of a side.
    has_alpha: whether it holds transparency.
    segment: most bytes of EXIF, and of XMP; None for no limit.
    has_color_chunks: whether it holds PNG's color and text chunks.
    """

    save: Callable[[BinaryIO, Photo, int], None]
    save_frames: Callable[[BinaryIO, Sequence[Frame], int], None] | None = None
    lossy: bool = False
    bits: int = 8
    max_side: int = 2**31 - 1
    has_alpha: bool = True
    segment: int | None = None
    has_color_chunks: bool = False


def write_photo(path: str | os.PathLike, photo: Photo, kind: str = "png", quality: int | None = None) -> None:
    """Write an image file atomically.

    Values are clipped to [0, 1] and rounded; gray is the mean of the channels.

    Args:
        path: the file, whose suffix does not matter. Its folder must exist; an older file is replaced.
        photo: what to write. Its metadata are written unchanged; correct them first (`metadata.corrected`).
        kind: one of `WRITERS`. What it cannot hold is lost, see `left_out`: 16 bits become 8, and alpha is laid over
            white.
        quality: of lossy kinds, 1 to 100; None: `DEFAULT_QUALITY`.

    Raises:
        ValueError: ``photo`` has a wrong shape or bit depth or is too large for this kind, or the kind is unknown.
        OSError: the file cannot be written.
    """
    _check(photo, kind)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        WRITERS[kind].save(file, photo, DEFAULT_QUALITY if quality is None else quality)


def write_frames(path: str | os.PathLike, frames: Sequence[Frame], kind: str, quality: int | None = None) -> None:
    """Write an animation with its delays, or the pages of a document, to one file.

    Raises:
        ValueError: this kind of file holds one image; further see `write_photo`.
        OSError: the file cannot be written.
    """
    for frame in frames:
        _check(frame.photo, kind)
    save = WRITERS[kind].save_frames
    if save is None:
        several = ", ".join(name for name, writer in WRITERS.items() if writer.save_frames)
        raise ValueError(f"a {kind} file holds one image; several frames need --ext auto or one of {several}")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        save(file, frames, DEFAULT_QUALITY if quality is None else quality)


def fits(size: tuple[int, int], kind: str) -> bool:
    """Whether a kind of file can hold an image of this (height, width)."""
    return max(size) <= WRITERS[kind].max_side


def left_out(photo: Photo, kind: str) -> list[str]:
    """The parts of a photo's metadata that a kind of file cannot hold, in words."""
    writer, missing = WRITERS[kind], []
    for name in ("exif", "xmp"):
        value = getattr(photo.metadata, name)
        if value is not None and writer.segment is not None and len(value) > writer.segment:
            missing.append(f"{name.upper()} of {len(value)} bytes")
    if writer.segment is None and photo.metadata.extended_xmp is not None:
        missing.append(f"extended XMP of {len(photo.metadata.extended_xmp)} bytes")
    if not writer.has_color_chunks:
        if photo.metadata.text:
            missing.append("text")
        if photo.icc_profile is None and any(chunk[0] == b"cICP" for chunk in photo.color_chunks):
            missing.append("the color space (cICP)")
    return missing


def _check(photo: Photo, kind: str) -> None:
    if photo.rgb.ndim != 3 or photo.rgb.shape[2] != 3 or 0 in photo.rgb.shape:
        raise ValueError(f"photo.rgb has shape {photo.rgb.shape}, must be (H, W, 3) with H, W >= 1")
    if photo.alpha is not None and photo.alpha.shape != photo.rgb.shape[:2]:
        raise ValueError(f"photo.alpha has shape {photo.alpha.shape}, must be that of photo.rgb: {photo.rgb.shape[:2]}")
    if photo.bit_depth not in DEPTHS:
        raise ValueError(f"photo.bit_depth={photo.bit_depth} must be one of {', '.join(map(str, DEPTHS))}")
    if kind not in WRITERS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(WRITERS)}")
    height, width = photo.rgb.shape[:2]
    if not fits((height, width), kind):
        side = WRITERS[kind].max_side
        raise ValueError(f"a {kind} file holds {side} pixels a side, not {width}x{height}; use --max-side or --ext png")


def _eight_bits(photo: Photo, *, flat: bool = False) -> Image.Image:
    """The photo as an image of Pillow's with 8 bits. flat: alpha is laid over white."""
    if photo.alpha is None and not photo.is_gray and photo.rgb.dtype == np.uint8:
        return Image.fromarray(photo.rgb)
    parts: Iterator[np.ndarray] = (rows_of(photo, 8, strip) for strip in strips(photo))
    if flat and photo.alpha is not None:
        parts = map(over_white, parts)
    levels = np.concatenate([*parts])
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def _described(photo: Photo, segment: int | None) -> dict[str, Any]:
    """The arguments of Pillow's writers for the metadata of a photo. segment: see `Writer`."""
    exif, xmp, dpi, *_ = photo.metadata
    options: dict[str, Any] = {}
    if exif is not None and (segment is None or len(exif) <= segment):
        options["exif"] = b"Exif\0\0" + exif
    if xmp is not None and (segment is None or len(xmp) <= segment):
        options["xmp"] = xmp
    if dpi is not None:
        options["dpi"] = dpi
    if photo.icc_profile is not None:
        options["icc_profile"] = photo.icc_profile
    return options


def _write_png(file: BinaryIO, photo: Photo, quality: int) -> None:
    bits = 8 if photo.bit_depth == 8 else 16
    if bits == 16 or photo.rgb.size > _LARGE:
        file.writelines(encode_png(photo, bits))
    else:
        _eight_bits(photo).save(file, "PNG", **_png_options(photo))


def _png_options(photo: Photo) -> dict[str, Any]:
    info = PngImagePlugin.PngInfo()
    for kind, body in (*photo.color_chunks, *photo.metadata.text):
        info.add(kind, body)
    options = _described(photo, None)
    if xmp := options.pop("xmp", None):
        info.add(b"iTXt", png.XMP + xmp)
    return {"pnginfo": info, "compress_level": 2, **options}


def _write_jpeg(file: BinaryIO, photo: Photo, quality: int) -> None:
    options = _described(photo, _SEGMENT)
    if photo.metadata.comment:
        options["comment"] = photo.metadata.comment[:_SEGMENT]
    options["extra"] = jpeg.extension_segments(photo.metadata.xmp, photo.metadata.extended_xmp)
    _eight_bits(photo, flat=True).save(file, "JPEG", quality=quality, subsampling=0, **options)


def _write_webp(file: BinaryIO, photo: Photo, quality: int) -> None:
    _eight_bits(photo).save(file, "WEBP", quality=quality, **_described(photo, None))


def _write_avif(file: BinaryIO, photo: Photo, quality: int) -> None:
    _eight_bits(photo).save(file, "AVIF", quality=quality, **_described(photo, None))


def _write_tiff(file: BinaryIO, photo: Photo, quality: int) -> None:
    write_tiff(file, [photo])


def _write_pages(file: BinaryIO, frames: Sequence[Frame], quality: int) -> None:
    write_tiff(file, [frame.photo for frame in frames])


def _write_gif(file: BinaryIO, photo: Photo, quality: int) -> None:
    _eight_bits(photo).save(file, "GIF")


def _animated(form: str, **fixed: Any) -> Callable[[BinaryIO, Sequence[Frame], int], None]:
    """A function that writes an animation in one of Pillow's formats. fixed: further arguments of its writer."""

    def write(file: BinaryIO, frames: Sequence[Frame], quality: int) -> None:
        first = frames[0]
        options = _png_options(first.photo) if form == "PNG" else _described(first.photo, None)
        options |= {"quality": quality} if form in ("WEBP", "AVIF") else {}
        played = [frame for frame in frames if not frame.is_cover]
        if form == "GIF" and any(frame.photo.alpha is not None for frame in frames):
            options["disposal"] = 2  # a frame is not seen through the holes of the next
        if form == "PNG" and first.is_cover:
            options["default_image"] = True
        if first.loop is not None:
            options["loop"] = first.loop
        shown = frames if "default_image" in options else played
        image, *others = (_eight_bits(frame.photo) for frame in shown)
        durations = [frame.duration or 0 for frame in played]
        if form != "PNG":
            durations = [round(duration) for duration in durations]
        image.save(file, form, save_all=True, append_images=others, duration=durations, **options, **fixed)

    return write


# How each kind of file is written. A new kind is a row.
WRITERS: dict[str, Writer] = {
    "png": Writer(_write_png, _animated("PNG"), bits=16, has_color_chunks=True),
    "jpg": Writer(_write_jpeg, lossy=True, max_side=65_535, has_alpha=False, segment=_SEGMENT),
    "webp": Writer(_write_webp, _animated("WEBP"), lossy=True, max_side=16_383),
    "tiff": Writer(_write_tiff, _write_pages, bits=32),
    "avif": Writer(_write_avif, _animated("AVIF"), lossy=True, max_side=65_535),
    "gif": Writer(_write_gif, _animated("GIF"), max_side=65_535),
}
