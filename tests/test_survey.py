"""A survey: every patch of every image once, used by analyses and debug reports instead of passes of their own."""

import numpy as np
import pytest

from neurflow_engine import activations
from neurflow_engine.debugging import Debugger
from neurflow_engine.evaluation import evaluate
from neurflow_engine.images import cut_patches
from neurflow_engine.pipeline import analyze, prepare
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.store import Evaluation, Workspace
from neurflow_engine.survey import Survey, find, survey


@pytest.fixture(scope="module")
def subject(demo_config):
    return prepare(demo_config.model, demo_config.data, "cpu")


def evaluated(subject, workspace) -> Evaluation:
    return evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent(), 0)


def made(subject, evaluation, workspace, config, progress=None) -> Survey:
    layers = subject.anatomy.chosen(config.layers, config.depth)
    return survey(subject.classifier, evaluation, subject.image_set.root, layers, config.granularities, workspace, progress, 0)


@pytest.fixture(scope="module")
def surveyed(subject, demo_config, tmp_path_factory) -> tuple[Workspace, Evaluation, Survey]:
    """A workspace with nothing but the demo's evaluation and its survey."""
    workspace = Workspace(tmp_path_factory.mktemp("surveyed") / "workspace")
    evaluation = evaluated(subject, workspace)
    return workspace, evaluation, made(subject, evaluation, workspace, demo_config)


class Passes(Silent):
    """Counts the patches that went through the network, by stage, and stops after so many."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.of, self._stop_after = {}, stop_after

    def _moved(self, stage):
        self.of[stage.name] = stage.done
        if self._stop_after is not None and stage.done >= self._stop_after:
            self.stop()


def test_it_tells_what_an_analysis_finds_by_itself(subject, surveyed, demo_config, demo_run):
    _, _, found = surveyed
    paths = [image.path for image in demo_run.circuit.images]
    patches = cut_patches(len(paths), subject.classifier.preprocessing.input_size, demo_config.granularities)
    for layer in demo_run.layers:
        own = np.array(demo_run.activations(layer))
        for number, values in enumerate(found.activations(layer, paths)):
            ids = [patch.id for patch in patches if patch.image == number]
            np.testing.assert_allclose(values, own[ids], rtol=1e-4, atol=1e-4)


def test_an_analysis_takes_its_activations_from_it(surveyed, demo_config, demo_run, monkeypatch):
    workspace, _, _ = surveyed
    monkeypatch.setattr("neurflow_engine.pipeline.survey", lambda *_: pytest.fail("patches went through the network again"))
    run = analyze(demo_config, workspace)
    assert run.id == demo_run.id
    assert [group.patches for group in run.circuit.groups] == [group.patches for group in demo_run.circuit.groups]
    assert [(edge.source, edge.target) for edge in run.circuit.edges] == [(edge.source, edge.target) for edge in demo_run.circuit.edges]


def test_presence_is_the_same_with_it_as_without(surveyed, demo_config, demo_run):
    _, evaluation, found = surveyed
    debugger = Debugger(demo_run, "cpu")
    paths = evaluation.predictions["path"].tolist()[::7]
    with_it = debugger.presence_in({name: found.activations(name, paths) for name in debugger.layers})
    without = debugger.presence(debugger.load([demo_config.data / path for path in paths]))
    assert list(with_it) == list(without)
    for group, values in with_it.items():
        np.testing.assert_allclose(values, without[group], atol=1e-4)


def test_it_is_made_once_and_goes_on_where_it_was_interrupted(subject, workspace, demo_config, monkeypatch):
    evaluation = evaluated(subject, workspace)
    monkeypatch.setattr("neurflow_engine.store._NOTE_EVERY", 0.0)
    n_patches = 59 * len(evaluation.predictions)
    first = Passes(stop_after=n_patches // 2)
    with pytest.raises(Cancelled):
        made(subject, evaluation, workspace, demo_config, first)
    assert find(workspace, evaluation, ["layer4"], demo_config.granularities) is None
    sent = []
    original = activations.record
    monkeypatch.setattr(
        activations,
        "record",
        lambda classifier, inputs, *more, **named: (sent.append(len(inputs)), original(classifier, inputs, *more, **named))[1],
    )
    whole = made(subject, evaluation, workspace, demo_config)
    assert 0 < sum(sent) < 0.6 * n_patches
    sent.clear()
    assert made(subject, evaluation, workspace, demo_config).folder == whole.folder
    assert not sent
    assert find(workspace, evaluation, ["layer4"], demo_config.granularities).folder == whole.folder
    assert find(workspace, evaluation, ["stem"], demo_config.granularities) is None
    assert find(workspace, evaluation, ["layer4"], (1.0,)) is None
    assert (whole.activations("layer4", evaluation.predictions["path"].tolist()).std(axis=(1, 2)) > 0).all()  # no image was left out
