"""The price shown before an analysis: patches are counted exactly, and what asks for more work costs more."""

import pytest

from neurflow_engine.cost import predict

LAYERS = ("layer4", "layer3", "layer2")


@pytest.fixture
def evaluation(demo_run, demo_workspace):
    return demo_workspace.open_evaluation(demo_run.manifest["evaluation"])


def test_patches_are_counted_as_the_run_cuts_them(evaluation, demo_run):
    n_images = len(demo_run.circuit.images)
    assert predict(evaluation, n_images, LAYERS).n_patches == len(demo_run.circuit.patches) == 59 * n_images
    assert predict(evaluation, 10, LAYERS, granularities=(1.0,)).n_patches == 10


def test_seconds_follow_the_measured_speed(evaluation, monkeypatch):
    before = predict(evaluation, 40, LAYERS)
    steps = [step | {name: 3 * step[name] for name in ("patch", "pair")} for step in evaluation.speed["steps"]]
    monkeypatch.setattr(evaluation, "speed", evaluation.speed | {"forward": 3 * evaluation.speed["forward"], "steps": steps})
    assert 1.5 * before.seconds < predict(evaluation, 40, LAYERS).seconds < 3 * before.seconds  # some of it is not the network's


def test_memory_is_predicted_within_the_limit(evaluation):
    assert predict(evaluation, 40, LAYERS, memory_mb=500).memory_mb < predict(evaluation, 40, LAYERS).memory_mb <= 3000
    assert predict(evaluation, 40, LAYERS).memory_mb == pytest.approx(predict(evaluation, 4000, LAYERS).memory_mb, rel=0.3)


@pytest.mark.parametrize(
    "more",
    [
        {"n_images": 80},
        {"layers": (*LAYERS, "layer1")},
        {"tau": 32},
        {"top_k": 100},
        {"granularities": (1.0, 0.5, 0.25, 0.125)},
    ],
)
def test_more_work_costs_more(evaluation, more):
    usual = {"n_images": 40, "layers": LAYERS}
    assert predict(evaluation, **usual | more).seconds > predict(evaluation, **usual).seconds
    assert predict(evaluation, **usual | more).memory_mb >= predict(evaluation, **usual).memory_mb
