"""The price shown before an analysis: patches are counted exactly, and what asks for more work costs more."""

import pytest

from neurflow_engine.cost import predict, predict_sweep

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


class TestOfASweep:
    def test_what_all_share_is_counted_once(self, evaluation):
        few, all_ = (predict_sweep(evaluation, range(n), LAYERS) for n in (2, 8))
        assert few.survey_seconds == all_.survey_seconds > 0
        assert few.n_patches == all_.n_patches == 59 * len(evaluation.predictions)
        assert few.class_seconds == {index: all_.class_seconds[index] for index in range(2)}
        more = sum(all_.class_seconds[index] for index in range(2, 8))
        assert all_.seconds - few.seconds == pytest.approx(more)
        assert few.seconds > few.survey_seconds + sum(few.class_seconds.values())

    def test_the_survey_is_as_large_as_it_says(self, evaluation):
        channels = len(evaluation.class_names) + sum(place["n_channels"] for place in evaluation.places if place["name"] in LAYERS)
        assert predict_sweep(evaluation, [0], LAYERS).survey_bytes == 4 * channels * 59 * len(evaluation.predictions)

    def test_a_class_that_is_never_predicted_costs_nothing(self, evaluation, monkeypatch):
        predictions = evaluation.predictions
        monkeypatch.setattr(evaluation, "predictions", predictions[predictions["predicted"] != 3])
        assert predict_sweep(evaluation, [3], LAYERS).class_seconds == {3: 0.0}

    def test_wrong_images_and_more_draws_cost_more(self, evaluation, monkeypatch):
        before = predict_sweep(evaluation, [0], LAYERS).class_seconds[0]
        predictions = evaluation.predictions.copy()
        predictions.loc[predictions.query("predicted != 0").index[:30], "predicted"] = 0
        monkeypatch.setattr(evaluation, "predictions", predictions)
        with_wrong = predict_sweep(evaluation, [0], LAYERS).class_seconds[0]
        assert with_wrong > 1.5 * before
        assert predict_sweep(evaluation, [0], LAYERS, draws=2000).class_seconds[0] > with_wrong
