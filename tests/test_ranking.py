"""The ranking of a report's images: strongest first, every content once, and files that a spreadsheet and FiftyOne can read."""

import csv
import io
import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import draw_images

from neurflow_engine.errors import RunError
from neurflow_engine.ranking import fiftyone_csv, fiftyone_snippet, ranking, ranking_csv
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport

GROUP = "blocks.3/contrast-1"
# in the order of the report: path, true, predicted, probability, presence
IMAGES = [
    ("dog/01.png", "dog", "cat", 0.75, 0.9),
    ("cat/00.png", "cat", "cat", 0.5, 0.25),
    ("cat/01.png", "cat", "cat", 0.9, 0.9),
    ("dog/00.png", "dog", "dog", 0.7, 0.0),
    ("unknown/=1+1.png", None, "cat", 0.8, 0.5),
]


@pytest.fixture
def report(tmp_path):
    """A report on five images."""
    root = draw_images(tmp_path / "images", "cat", "dog", "unknown", n=2)
    (root / "unknown" / "00.png").rename(root / "unknown" / "=1+1.png")
    return written(tmp_path / "report", root, IMAGES)


def written(folder, root, images):
    names = ("path", "true", "predicted", "probability")
    manifest = {
        "schema": SCHEMA,
        "method": DebugReport.METHOD,
        "report": folder.name,
        "run": "run-1",
        "images_root": str(root),
        "images": [dict(zip(names, image, strict=False)) | {"half": None} for image in images],
        "groups": [{"id": GROUP, "layer": "blocks.3", "alarm_level": 0.5, "presence": [image[-1] for image in images]}],
    }
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return DebugReport(folder)


def test_the_strongest_come_first_and_equals_by_path(report):
    found = ranking(report, GROUP)
    assert found["path"].tolist() == ["cat/01.png", "dog/01.png", "unknown/=1+1.png", "cat/00.png", "dog/00.png"]
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["presence"].tolist() == [0.9, 0.9, 0.5, 0.25, 0.0]
    assert found["present"].tolist() == [True, True, True, False, False]
    assert found["probability"].tolist() == [0.9, 0.75, 0.8, 0.5, 0.7]


def test_images_in_which_the_group_was_not_measured_are_not_listed(report):
    report.group(GROUP)["presence"][0] = None
    found = ranking(report, GROUP)
    assert found["path"].tolist() == ["cat/01.png", "unknown/=1+1.png", "cat/00.png", "dog/00.png"]
    assert found["rank"].tolist() == [1, 2, 3, 4]


def test_an_image_of_unknown_class_is_neither_wrong_nor_right(report):
    wrong = ranking(report, GROUP)["wrong"]
    assert wrong.isna().tolist() == [False, False, True, False, False]
    assert wrong.fillna(False).tolist() == [False, True, False, False, False]


def test_a_file_under_several_names_is_listed_once_and_says_so(report):
    root = report.images_root
    for copy in ("dog/01.png", "dog/00.png"):
        (root / copy).write_bytes((root / "cat" / "00.png").read_bytes())
    found = ranking(report, GROUP)
    assert found["path"].tolist() == ["cat/01.png", "unknown/=1+1.png", "cat/00.png"]
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["duplicates"].tolist() == [(), (), ("dog/00.png", "dog/01.png")]


def test_a_folder_that_is_gone_is_ranked_as_it_was(report):
    for path in sorted(report.images_root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert len(ranking(report, GROUP)) == len(IMAGES)


def test_an_unknown_group_is_refused_with_near_matches(report):
    for export in (ranking, ranking_csv, fiftyone_csv):
        with pytest.raises(RunError, match=r"no group 'blocks.3/contrast-2'\. Did you mean blocks.3/contrast-1\?"):
            export(report, "blocks.3/contrast-2")


def test_the_csv_holds_the_ranking_and_no_formula(report):
    root = report.images_root
    (root / "=copy.png").write_bytes((root / "cat" / "00.png").read_bytes())
    report = written(report.folder.with_name("other"), root, [*IMAGES, ("=copy.png", "=cat", "cat", 0.5, 0.25)])
    text = ranking_csv(report, GROUP).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["rank", "path", "true", "predicted", "probability", "presence", "present", "wrong", "duplicates"]
    assert [row["path"] for row in rows] == ["cat/01.png", "dog/01.png", "unknown/=1+1.png", "'=copy.png", "dog/00.png"]
    assert rows[3]["true"] == "'=cat"
    assert rows[3]["duplicates"] == "cat/00.png"
    assert [row["true"] for row in rows] == ["cat", "dog", "", "'=cat", "dog"]
    assert [row["wrong"] for row in rows] == ["False", "True", "", "True", "False"]


def test_the_fiftyone_file_is_read_as_its_csv_importer_reads_it(report):
    """FiftyOne's importer: csv.DictReader on the file, absolute paths, empty cells left out, the others through the field's function."""
    root = report.images_root
    (root / "dog" / "00.png").write_bytes((root / "cat" / "00.png").read_bytes())
    parsers = {"tags": json.loads, "neurflow_blocks_3_contrast_1": float, "neurflow_duplicates": json.loads}
    samples = {}
    for row in csv.DictReader(io.StringIO(fiftyone_csv(report, GROUP).decode())):
        samples[row["filepath"]] = {name: parse(row[name]) for name, parse in parsers.items() if row[name]}
    tags = ["neurflow:blocks.3/contrast-1"]
    assert samples == {
        str(root / "cat" / "01.png"): {"tags": tags, "neurflow_blocks_3_contrast_1": 0.9},
        str(root / "dog" / "01.png"): {"tags": tags, "neurflow_blocks_3_contrast_1": 0.9},
        str(root / "unknown" / "=1+1.png"): {"tags": tags, "neurflow_blocks_3_contrast_1": 0.5},
        str(root / "cat" / "00.png"): {"neurflow_blocks_3_contrast_1": 0.25, "neurflow_duplicates": [str(root / "dog" / "00.png")]},
    }


def test_the_fiftyone_snippet_parses_every_column_of_the_file(report):
    snippet = fiftyone_snippet("tags of 'mine'.csv", GROUP)
    compile(snippet, "snippet", "exec")
    (line,) = [line for line in snippet.splitlines() if line.startswith("fields = ")]
    columns = pd.read_csv(io.BytesIO(fiftyone_csv(report, GROUP))).columns
    assert [f'"{name}":' in line or f"'{name}':" in line for name in columns] == [False, True, True, True]
    assert repr("tags of 'mine'.csv") in snippet


def test_a_ranking_needs_no_torch(report):
    code = (
        "import sys; from pathlib import Path; from neurflow_engine.ranking import ranking; "
        "from neurflow_engine.store import DebugReport; "
        f"print(len(ranking(DebugReport(Path({str(report.folder)!r})), {GROUP!r})), 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "5 False\n"
