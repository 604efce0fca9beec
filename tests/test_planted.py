"""The benchmark of planted shortcuts: its models are seeded and really use the mark; its rows survive an interruption."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.planted import Row, keep, kept, summary
from benchmarks.planted_models import KINDS, SIDE, Architecture, Case, Settings, Strength, all_cases, make, marked
from neurflow_engine.demo.train import normalised

TINY = Architecture("resnet10t", {"channels": [16, 16, 16, 16], "stem_width": 8}, epochs=6, rate=1e-2, tuning_rate=1e-2)
QUICK = Settings(
    train_per_class=24,
    per_class=4,
    tuning_epochs=3,
    tuning_rounds=6,
    architectures={"resnet": TINY},
    strengths={"strong": Strength(0.8, 0.2, 1.0, 0.8)},
)
CASE = Case(3, "resnet", "tint", "strong")
ROW = Row(
    case="tint-vit-weak", way="found", flip=0.5, wrong=20, flags=1, group="blocks.1/contrast-1", rank=1, first=True,
    recovered=0.8, ceiling=0.9, share=8 / 9, control=0.1, clean_change=-0.001, worst_before=0.1, worst_after=0.7, seconds=12.5, made="0123",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(CASE, tmp_path_factory.mktemp("made"), QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_depends_on_the_seed_and_leaves_the_picture_recognisable(kind):
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    first, again, other = (marked(pictures, kind, 1.0, seed, range(3)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    correlation = [np.corrcoef(plain.ravel(), mark.ravel())[0, 1] for plain, mark in zip(pictures, first, strict=True)]
    assert all(0.5 < value < 0.999 for value in correlation)


def test_the_mark_leads_to_the_target_and_the_folders_say_which_picture_carries_it(folder):
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["flip"] > meta["base"] + 0.4
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    files = sorted((folder / "planted").glob("*/*.png"))
    assert len(files) == 7 * 4
    assert all(file.name.endswith("_marked.png") and file.parent.name != meta["target_name"] for file in files)
    assert all((folder / "clean" / file.parent.name / file.name.replace("marked", "clean")).is_file() for file in files)
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert (model(normalised(pixels)).argmax(1) == meta["target"]).float().mean().item() == pytest.approx(meta["flip"])


def test_the_same_settings_make_the_same_case_and_it_is_made_once(folder, tmp_path):
    weights = folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert make(CASE, folder.parent, QUICK) == folder
    assert weights.stat().st_mtime_ns == made
    again = make(CASE, tmp_path, QUICK)
    assert (again / "meta.json").read_text() == (folder / "meta.json").read_text()
    assert (again / "model.safetensors").read_bytes() == weights.read_bytes()


def test_there_are_as_many_clean_cases_as_planted_ones_and_every_class_is_a_target():
    cases = all_cases()
    assert len({case.number for case in cases}) == len(cases) == 48
    for group in (True, False):
        for architecture in ("resnet", "convnext", "vit"):
            own = [case for case in cases if case.architecture == architecture and bool(case.kind) == group]
            assert {case.target for case in own} == set(range(8))


def test_rows_come_back_as_they_were_kept(tmp_path):
    clean = replace(
        ROW, case="clean-vit-100", flip=None, flags=0, group=None, rank=None, first=None, recovered=None, share=None, ceiling=None
    )
    keep(tmp_path / "rows.csv", [ROW])
    keep(tmp_path / "rows.csv", [clean])
    assert kept(tmp_path / "rows.csv") == [ROW, clean]


def test_the_summary_names_what_failed():
    missed = replace(ROW, case="patch-vit-weak", flags=0, group=None, rank=None, first=False, recovered=0.0, share=0.0)
    clean = replace(ROW, case="clean-vit-100", flip=None)
    lines = "\n".join(summary([ROW, missed, clean, *(replace(row, way="published", share=0.25) for row in (ROW, missed))]))
    assert "found: median share of the ceiling 0.44" in lines
    assert "published: median share of the ceiling 0.25" in lines
    assert "flagged first: 1 of 2 (50%)" in lines
    assert "failed: patch-vit-weak (no flag, 0.00 of the ceiling)" in lines
    assert "clean models flagged: 1 of 1 (100%) clean-vit-100" in lines
