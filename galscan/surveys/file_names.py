"""Names of image files: suffixes, the band in a name, and companions of images such as masks and weights.

One way to split a name into object and band serves cutouts, frames, members of archives and extensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from galscan.core.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fits.bz2")
IMAGES = PICTURES + FITS
_LONGEST_FIRST = sorted(IMAGES, key=len, reverse=True)
BANDS = "ugrizy"  # blue to red

# Words of the names of companion files and extensions (weights, masks, models), which cover the same sky as an image.
COMPANIONS = frozenset({
    "invvar", "ivar", "wht", "weight", "weights", "rms", "var", "variance", "mask", "masks", "maskbits", "flag",
    "flags", "dq", "model", "blobmodel", "resid", "residual", "residuals", "chi2", "depth", "galdepth", "nexp",
    "psfsize", "psf", "bkg", "segm", "seg", "segmap", "segmentation", "err", "error", "errors", "sigma", "stddev",
    "unc", "uncert", "uncertainty", "badpix", "bpm", "ctx", "expmap", "coverage",
})  # fmt: skip
# Extensions of HST and JWST, and of cameras, that are no pictures either.
_EXTENSIONS = COMPANIONS | {"samp", "time", "area", "con", "exp", "sky", "background", "d2imarr", "wcsdvarr", "quality"}

# Wavelengths (nm) sort the bands from blue to red; only their order matters.
_WAVELENGTHS = {
    "fuv": 153, "nuv": 231, "u": 355, "b": 436, "g": 475, "v": 551, "r": 622, "vis": 715, "i": 763, "z": 905, "y": 970,
    "j": 1240, "h": 1660, "k": 2190, "ks": 2159, "w1": 3350, "ch1": 3550, "ch2": 4490, "w2": 4600, "ch3": 5730,
    "ch4": 7870, "w3": 11_600, "w4": 22_100,
}  # fmt: skip
# Filters of HST are named by hundredths or tenths of micrometres, those of JWST by hundredths; these are of JWST.
_JWST = {
    "f200w", "f210m", "f212n", "f250m", "f277w", "f300m", "f322w2", "f323n", "f335m", "f356w", "f360m", "f405n",
    "f410m", "f430m", "f444w", "f460m", "f466n", "f470n", "f480m", "f560w", "f770w",
}  # fmt: skip
_ROMAN = "f(?:062|087|106|129|146|158|184|213)"
_SPACE = rf"f\d{{3,4}}(?:w2?|m|n|lp|x)|{_ROMAN}"
_OPTICAL = (
    "hsc|des|decam|decals|sdss|sloan|ps1|panstarrs|lsst|rubin|lsstcam|comcam|lsstcomcam|megacam|megaprime|cfht|cfhtls|"
    "cfis|unions|ztf|skymapper|kids|omegacam|vst|suprime|suprimecam|subaru|bass|mzls|delve|filter|filt|band"
)
_INFRARED = "nir|nisp|euclid|vircam|vista|viking|video|wfcam|ukidss|2mass|twomass"
_WORD = re.compile(
    rf"(?:^|(?<=[-_.]))(?:hsc[-_.](?P<hsc>[ri])2|(?:{_OPTICAL})[-_.](?P<optical>[{BANDS}])(?:[-_]?band)?"
    rf"|(?:{_INFRARED})[-_.](?P<infrared>[zyjhk]|ks|vis)|(?:unwise|wise|neowise)[-_.](?P<wise>w[1-4])"
    rf"|(?:irac|spitzer)[-_.]?(?:ch)?(?P<irac>[1-4])|(?P<space>{_SPACE})|(?<=[-_.])(?P<other>vis|nuv|fuv|ks))"
    r"(?=[-_.]|$)",
    re.IGNORECASE,
)
_SUFFIX = re.compile(rf"[-_.]([{BANDS}])(?:[-_]?band)?$")
_INFIX = re.compile(rf"[-_.]([{BANDS}])(?:band)?(?=[-_.])")
# Only where several files of one name differ in it alone: a single letter may be the end of an object's name.
_LOOSE = re.compile(r"(?:^|[-_.])([ugrizyjhkbv]|ks|vis|fuv|nuv|w[1-4]|ch[1-4])(?:[-_]?band)?(?=[-_.]|$)", re.IGNORECASE)
_FILLERS = "image|img|sci|science|band|filter|filt|cutout|stamp|coadd|drz|drc|i2d"
_BEFORE = re.compile(rf"(?<=.)(?:[-_.](?:{_FILLERS}))+$", re.IGNORECASE)
_BEHIND = re.compile(rf"^(?:[-_.](?:{_FILLERS})(?=[-_.]|$))+", re.IGNORECASE)
_PLAIN = frozenset({*_FILLERS.split("|"), "rgb", "color", "colour"})
_SEPARATORS = "-_. "


def is_fits(path: str) -> bool:
    return path.lower().endswith(FITS)


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGES)


def stem(path: str) -> str:
    """Return the file name without folder and image suffix."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = next((s for s in _LONGEST_FIRST if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)].strip()


def split_band(path: str, bands: Sequence[str] = ()) -> tuple[str, str]:
    """Split ``NGC1_g.fits`` or ``NGC1_HSC-G.fits`` into ``("NGC1", "g")``; without a band, the band is ``""``.

    `bands` are the names of the bands if they are not the usual letters: ``("f606w", "f814w")``.
    """
    name = stem(path)
    if not set(bands) <= set(BANDS):
        words = "|".join(re.escape(b) for b in sorted(bands, key=len, reverse=True))
        if match := re.search(rf"(?:^|[-_.])({words})(?=[-_.]|$)", name, re.IGNORECASE):
            return _without(name, match), next(b for b in bands if b.lower() == match[1].lower())
        return name, ""
    if found := list(_WORD.finditer(name)):
        # The name of a detection image may list several bands; it is of none.
        return (_without(name, found[-1]), _named(found[-1])) if len({_named(m) for m in found}) == 1 else (name, "")
    if match := _SUFFIX.search(name) or _INFIX.search(name):
        return _without(name, match), match[1]
    return name, ""


def _named(match: re.Match[str]) -> str:
    """Return the band of a match of `_WORD`."""
    word = next(text for text in match.groups() if text).lower()
    return f"ch{word}" if match["irac"] else word


def _without(name: str, match: re.Match[str]) -> str:
    """Return a name without a band, and without a word like "image" beside it."""
    left, right = name[: match.start()].rstrip(_SEPARATORS), name[match.end() :]
    return (_BEFORE.sub("", left) + _BEHIND.sub("", right)).strip(_SEPARATORS)


def split_names(files: Iterable[str], bands: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Return name and band of each file, by the names of all: band ``""`` where there is none.

    Beside what `split_band` finds, the band may be the name of the folder, if files of one name are in several of such
    folders, or a single letter of either case anywhere in the name, if files differ in it alone.
    """
    split = {file: split_band(file, bands) for file in files}
    for candidate in (_by_folder, _by_letter) if set(bands) <= set(BANDS) else (_by_folder,):
        found = {f: new for f, (name, band) in split.items() if not band and (new := candidate(f, bands))[1]}
        groups: dict[str, set[str]] = {name: set() for name, _ in found.values()}
        for name, band in (*found.values(), *split.values()):
            if name in groups and band:
                groups[name].add(band)
        if 2 * sum(len(group) > 1 for group in groups.values()) >= max(len(groups), 1):
            split |= found
    return split


def _by_folder(file: str, bands: Sequence[str]) -> tuple[str, str]:
    folder = file.rsplit("/", 2)[-2] if "/" in file else ""
    if not set(bands) <= set(BANDS):
        return stem(file), next((b for b in bands if b.lower() == folder.lower()), "")
    return stem(file), band_of(folder)


def _by_letter(file: str, bands: Sequence[str]) -> tuple[str, str]:
    name = stem(file)
    found = list(_LOOSE.finditer(name))
    return (_without(name, found[-1]), found[-1][1].lower()) if found else (name, "")


def band_of(text: str) -> str:
    """Return the band that a keyword, an extension's or a folder's name says; ``""`` if it says none.

    ``g`` of ``HSC-G``, ``g DECam SDSS c0001 4720.0 1520.0``, ``r.00000`` or ``image_g``.
    """
    words = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
    found = {_named(match) for match in _WORD.finditer("." + words)}
    found = found or {match[1].lower() for match in _LOOSE.finditer(words)}
    return found.pop() if len(found) == 1 else ""


def is_companion(name: str, *, extension: bool = False) -> bool:
    """Return whether the name of a file or an extension has a word that images do not have: mask, weight, error ..."""
    return not (_EXTENSIONS if extension else COMPANIONS).isdisjoint(_words(name))


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[-_. ]+", name.lower()) if word not in _PLAIN)


def companions(files: Iterable[str]) -> list[str]:
    """Return the files that are beside an image of the same name but for words like "mask" or "weight"."""
    files = list(files)
    if not any(is_companion(stem(file)) for file in files):  # most folders have none, and splitting names is slow
        return []
    words = {file: _words(split_band(file)[0]) for file in files}
    images = {w for w in words.values() if COMPANIONS.isdisjoint(w)}
    return [
        file
        for file, w in words.items()
        if not COMPANIONS.isdisjoint(w) and tuple(word for word in w if word not in COMPANIONS) in images
    ]


def wavelength(band: str) -> tuple[float, str]:
    """Return a key that sorts bands from blue to red; bands of unknown wavelength come first, by name."""
    word = band.lower()
    if word in _WAVELENGTHS:
        return float(_WAVELENGTHS[word]), word
    if not (match := re.fullmatch(r"f(\d{3,4})[a-z0-9]*", word)):
        return 0.0, word
    number = int(match[1])
    # Two digits after a zero, numbers below 200, and Roman's (without a letter) are hundredths of a micrometre.
    hundredths = word in _JWST or number < 200 or len(match[1]) == 4 or re.fullmatch(_ROMAN, word)
    return float(number * (10 if hundredths else 1)), word


def parse_bands(text: str | None) -> list[str]:
    """Return the bands of the option --bands from blue to red: letters, or names separated by commas."""
    if not text:
        return []
    words = [w.strip() for w in text.split(",") if w.strip()] if "," in text or set(text) - set(BANDS) else list(text)
    repeated = next((w for w in words if words.count(w) > 1), None)
    if repeated or not words:
        raise InputError(
            f"--bands {text}: '{repeated or text}' is given twice or is not a band; write gri, or f606w,f814w"
        )
    return sorted(words, key=BANDS.index) if set(words) <= set(BANDS) else words


def group_by_name(split: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
    """Return the files of each object by its name: one image, or one FITS file per band; see `split_names`."""
    groups: dict[str, list[str]] = {}
    for file, (name, _) in split.items():
        groups.setdefault(name, []).append(file)
    return groups


def is_ambiguous(bands: Sequence[str]) -> bool:
    """Return whether files of one name, with these bands, are not the bands of one object."""
    return len(bands) > 1 and ("" in bands or len(set(bands)) < len(bands))
