"""Evaluations and previews that are interrupted: what was asked of the model is not asked again, and the end is the same."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from neurflow_engine import per_image, store
from neurflow_engine.evaluation import evaluate
from neurflow_engine.pipeline import prepare
from neurflow_engine.preview import preview
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.store import Workspace


class Stopping(Silent):
    """Stops a stage after some of its steps."""

    def __init__(self, stage: str, after: int):
        super().__init__()
        self._stage, self._after = stage, after

    def _moved(self, stage):
        if stage.name == self._stage and stage.done >= self._after:
            self.stop()


class Watching(Silent):
    """How many steps of each stage were there at once, and how many in the end."""

    def __init__(self):
        super().__init__()
        self.first, self.last = {}, {}

    def _moved(self, stage):
        self.first.setdefault(stage.name, stage.done)
        self.last[stage.name] = stage.done


@pytest.fixture(autouse=True)
def noting_at_once(monkeypatch):
    monkeypatch.setattr(store, "_NOTE_EVERY", 0.0)


def test_an_interrupted_evaluation_goes_on_with_the_rest(demo_config, demo_images, tmp_path):
    subject = prepare(demo_config.model, demo_images, "cpu")
    parts = subject.classifier, subject.anatomy, subject.image_set
    workspace, other = Workspace(tmp_path / "interrupted"), Workspace(tmp_path / "undisturbed")
    with pytest.raises(Cancelled):
        evaluate(*parts, workspace, Stopping("evaluate", after=40))
    assert workspace.evaluations() == []
    watching = Watching()
    found, expected = evaluate(*parts, workspace, watching), evaluate(*parts, other, Silent())
    assert watching.first["evaluate"] == 48  # three batches of sixteen
    assert watching.last["evaluate"] == len(found.predictions) == len(subject.image_set.images)
    pd.testing.assert_frame_equal(found.predictions, expected.predictions)
    assert not (found.folder / "work").exists()


def test_an_interrupted_preview_goes_on_with_the_rest(demo_run, demo_images, tmp_path):
    group = demo_run.circuit.inputs("logits/0")[0].source
    workspace, other = Workspace(tmp_path / "interrupted"), Workspace(tmp_path / "undisturbed")
    with pytest.raises(Cancelled):
        preview(demo_run, demo_images, [group], workspace, Stopping("preview", after=1), device="cpu")
    assert workspace.previews(demo_run.id) == []
    watching = Watching()
    found = preview(demo_run, demo_images, [group], workspace, watching, device="cpu")
    assert watching.first["preview"] == 16
    assert watching.last["preview"] == found["n_images"]
    expected = preview(demo_run, demo_images, [group], other, device="cpu")
    assert found | {"created": None} == expected | {"created": None}
    assert [before["before"] for before in found["helped"]] != [] or found["hurt"]  # it did change something


def test_an_image_that_cannot_be_decoded_is_named_also_after_an_interruption(demo_config, image_folder, tmp_path):
    (image_folder / "cat" / "00.png").write_bytes(b"no picture")
    subject = prepare(demo_config.model, image_folder, "cpu")
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(Cancelled):
        evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Stopping("evaluate", after=1))
    found = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent())
    assert [file.path for file in found.skipped] == ["cat/00.png"]
    assert len(found.predictions) == 5


def test_an_answer_that_was_cut_off_is_asked_for_again(tmp_path, demo_config, image_folder):
    subject = prepare(demo_config.model, image_folder, "cpu")
    paths = [image.path for image in subject.image_set.images]
    asked = []

    def answer(indices, images):
        asked.append(list(indices))
        return np.column_stack([indices, images.mean((1, 2, 3)).numpy()])

    def ask(draft):
        with Silent().stage("ask") as tick:
            return per_image.ask(draft, image_folder, paths, subject.classifier, 2, answer, tick, 0)

    with Workspace(tmp_path).draft(tmp_path / "draft", "one") as draft:
        expected, known, _ = ask(draft)
        assert list(known) == list(range(6))
        array = tmp_path / "draft.partial" / "work" / "per-image.npy"
        content = bytearray(array.read_bytes())
        content[-12:] = bytes(8) + bytes(4)  # the second number of the last row was never written, nor was its mark
        array.write_bytes(content)
        again, _, batches = ask(draft)
    assert asked == [list(range(6)), [5]]
    assert np.array_equal(again, expected)
    assert [asdict(file) for file in batches.skipped] == []
