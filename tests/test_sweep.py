"""Sweeps over many classes: what they do once, what they find, and what becomes of classes that fail."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pandas as pd
import psutil
import pytest

from neurflow_engine.__main__ import main
from neurflow_engine.errors import DataError, InputError
from neurflow_engine.executors import NO_RAY, Local
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.store import Workspace
from neurflow_engine.sweep import ClassTask, run_class, side_by_side, sweep
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Sweep, open_sweep, sweeps
from neurflow_engine.targets import choose

DRAWS = 10


class Inline:
    """Runs tasks here, and notes which."""

    def __init__(self, work=None):
        self.work, self.done = work, []

    def outcomes(self, work, tasks, needs, check):
        for task in tasks:
            self.done.append(task.name)
            yield task, (self.work or work)(task)
            check()


def found_nothing(task: ClassTask) -> ClassOutcome:
    return ClassOutcome(task.index, task.name, ClassState.DONE)


@pytest.fixture(scope="module")
def swept(demo_config, tmp_path_factory) -> tuple[Workspace, Sweep]:
    """Two classes of the demo, swept in processes of their own."""
    workspace = Workspace(tmp_path_factory.mktemp("swept") / "workspace")
    return workspace, sweep(demo_config, workspace, "sailboat,owl", DRAWS, Local(1))


@pytest.fixture
def own(swept, tmp_path) -> Workspace:
    """A copy of the workspace, to be changed."""
    return Workspace(shutil.copytree(swept[0].root, tmp_path / "workspace"))


class TestChoosingClasses:
    @pytest.fixture
    def evaluation(self, demo_run, demo_workspace):
        return demo_workspace.open_evaluation(demo_run.manifest["evaluation"])

    def test_all_is_every_class_of_the_model(self, evaluation):
        assert choose(evaluation, "all", int) == list(range(len(evaluation.class_names)))

    def test_names_keep_their_order_and_count_once(self, evaluation):
        assert choose(evaluation, "owl, car,owl", evaluation.class_names.index) == [
            evaluation.class_names.index(name) for name in ("owl", "car")
        ]

    def test_the_worst_have_the_most_false_positives(self, evaluation):
        table = evaluation.per_class()
        wrong = table.set_index("index")["false_positives"]
        chosen = choose(evaluation, "worst:3", int)
        assert len(chosen) == 3
        assert wrong[chosen].min() >= wrong.drop(chosen).max()

    @pytest.mark.parametrize("targets", ["worst:0", "worst:x", "worst:", "", " , "])
    def test_what_names_nothing_is_one_sentence(self, evaluation, targets):
        with pytest.raises(InputError, match="--targets"):
            choose(evaluation, targets, int)

    def test_without_true_classes_there_is_no_worst(self, evaluation):
        evaluation.predictions["true"] = pd.array([None] * len(evaluation.predictions), "Int64")
        with pytest.raises(DataError, match="No true class"):
            choose(evaluation, "worst:3", int)


def test_classes_that_are_confused_follow_one_another():
    pairs = [(0, 3)] * 5 + [(3, 2)] * 2 + [(1, 4)] * 3 + [(2, 2)] * 9
    predictions = pd.DataFrame(pairs, columns=["true", "predicted"])
    assert side_by_side([0, 1, 2, 3, 4], predictions) == [0, 3, 2, 1, 4]
    assert side_by_side([], predictions) == []


def test_a_sweep_finds_what_analyses_of_the_classes_find(swept, demo_run, demo_config):
    workspace, made = swept
    assert made.is_finished
    by_name = {outcome.name: outcome for outcome in made.classes}
    assert list(by_name) == ["sailboat", "owl"]
    assert {outcome.state for outcome in made.classes} == {ClassState.DONE}
    assert by_name["sailboat"].run == demo_run.id
    circuit = workspace.run(demo_run.id).circuit
    assert [group.patches for group in circuit.groups] == [group.patches for group in demo_run.circuit.groups]
    np.testing.assert_allclose(
        [edge.weight for edge in circuit.edges], [edge.weight for edge in demo_run.circuit.edges], rtol=1e-3, atol=1e-4
    )
    report = workspace.open_debug_report(by_name["sailboat"].report)
    assert by_name["sailboat"].n_wrong == report.json["n_wrong"] > 0
    assert [flag.group for flag in by_name["sailboat"].flags] == [name for name, group in report.groups.items() if group["misleading"]]
    predictions = workspace.open_evaluation(made.evaluation).predictions
    target = demo_run.circuit.target_index
    assert by_name["sailboat"].n_others == int((predictions["true"] != target).sum())
    assert by_name["sailboat"].wrong_share == pytest.approx(
        ((predictions["predicted"] == target) & (predictions["true"] != target)).sum() / (predictions["true"] != target).sum()
    )
    assert len(list((workspace.root / "evaluations").glob("*/manifest.json"))) == 1
    assert len(list((workspace.root / "surveys").glob("*/manifest.json"))) == 1


def test_a_finished_sweep_is_found_and_a_wider_one_does_only_the_rest(own, demo_config):
    again = Inline()
    first = sweep(demo_config, own, "sailboat,owl", DRAWS, again)
    assert not again.done
    seconds = [outcome.seconds for outcome in first.classes]
    wider = Inline()
    second = sweep(demo_config, own, "owl,sailboat", DRAWS, wider)  # other classes, or another order: another sweep, the same runs
    assert sorted(wider.done) == ["owl", "sailboat"]
    assert {outcome.run for outcome in second.classes} == {outcome.run for outcome in first.classes}
    assert sum(outcome.seconds for outcome in second.classes) < sum(seconds)
    assert [one.id for one in sweeps(own)] == [second.id, first.id] or second.created == first.created
    assert open_sweep(own, first.id).folder == first.folder
    with pytest.raises(InputError, match=f"There is no sweep '{first.id[:-1]}x'.*{first.id}"):
        open_sweep(own, first.id[:-1] + "x")


def test_classes_that_nothing_is_predicted_as_are_no_failure(demo_config, tmp_path, workspace, demo_images):
    images = tmp_path / "images"
    for name in ("owl", "car"):
        shutil.copytree(demo_images / name, images / name)
    config = demo_config.model_copy(update={"data": images})
    inline = Inline(found_nothing)
    made = sweep(config, workspace, "all", DRAWS, inline)
    predicted = set(workspace.open_evaluation(made.evaluation).predictions["predicted"])
    assert {outcome.index for outcome in made.classes if outcome.state == ClassState.DONE} == predicted
    nothing = [outcome for outcome in made.classes if outcome.state == ClassState.NOTHING]
    assert nothing
    assert all("None of the 24 images is predicted" in outcome.message for outcome in nothing)


def test_a_class_that_fails_is_tried_twice_then_told_and_tried_again_by_the_next_sweep(own, demo_config, demo_run):
    def failing(task):
        outcome = found_nothing(task)
        if task.name == "owl":
            return ClassOutcome(task.index, task.name, ClassState.FAILED, message="The disk is full.")
        return outcome

    first = Inline(failing)
    made = sweep(demo_config, own, "owl,car,fish", DRAWS, first)
    assert sorted(first.done) == ["car", "fish", "owl", "owl"]
    (failed,) = (outcome for outcome in made.classes if outcome.state == ClassState.FAILED)
    assert (failed.name, failed.attempts, failed.message) == ("owl", 2, "The disk is full.")
    assert made.is_finished
    second = Inline(found_nothing)
    made = sweep(demo_config, own, "owl,car,fish", DRAWS, second)
    assert second.done == ["owl"]
    assert {outcome.state for outcome in made.classes} == {ClassState.DONE}


def test_whatever_goes_wrong_in_a_class_is_one_sentence(demo_config, workspace):
    task = ClassTask(0, "x", demo_config.model_copy(update={"target": "no such class"}), str(workspace.root), True, DRAWS)
    outcome = run_class(task)
    assert outcome.state == ClassState.FAILED
    assert "no such class" in outcome.message
    assert "\n" not in outcome.message


def test_a_cancelled_sweep_goes_on_with_the_classes_that_are_left(own, demo_config):
    stop = Silent()

    def first_then_stop(task):
        stop.stop()
        return found_nothing(task)

    with pytest.raises(Cancelled):
        sweep(demo_config, own, "car,fish,house", DRAWS, Inline(first_then_stop), stop)
    (unfinished,) = (one for one in sweeps(own) if not one.is_finished)
    assert unfinished.n_ended == 1
    rest = Inline(found_nothing)
    made = sweep(demo_config, own, "car,fish,house", DRAWS, rest)
    assert len(rest.done) == 2
    assert made.n_ended == 3


@pytest.mark.slow
def test_a_worker_killed_in_a_class_costs_nothing_but_time(demo_config, own, demo_run, monkeypatch):
    """The worker is killed as soon as it has begun a run; the class is tried again and ends with the circuit it would have had."""
    shutil.rmtree(own.root / "runs")
    shutil.rmtree(own.root / "debug")
    killed = []

    def kill_once():
        begun = list((own.root / "runs").glob("*.partial/stages.json"))
        if begun and not killed:
            for child in psutil.Process().children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    class Killing(Silent):
        def check(self):
            kill_once()
            super().check()

    shutil.rmtree(own.root / "sweeps")
    made = sweep(demo_config, own, "sailboat,owl", DRAWS, Local(1), Killing())
    assert killed
    assert {outcome.state for outcome in made.classes} == {ClassState.DONE}
    assert sorted(outcome.attempts for outcome in made.classes) == [1, 2]
    assert [group.patches for group in own.run(demo_run.id).circuit.groups] == [group.patches for group in demo_run.circuit.groups]
    assert len(own.runs()) == 2


def test_the_command_prints_the_sweep_and_writes_its_table(swept, demo_config, capsys, tmp_path):
    workspace, made = swept
    model = demo_config.model.name
    flags = ["sweep", "--model", model, "--data", str(demo_config.data), "--targets", "sailboat,owl", "--draws", str(DRAWS)]
    settings = ["--max-images", "12", "--top-k", "10", "--device", "cpu", "--workspace", str(workspace.root)]
    out = tmp_path / "classes.csv"
    assert main([*flags, *settings, "--json", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sweep"] == made.id
    assert [one["name"] for one in said["classes"]] == ["sailboat", "owl"]
    table = pd.read_csv(out)
    assert set(table["class"]) == {"sailboat", "owl"}
    assert main([*flags, *settings, "--out", str(tmp_path / "classes.parquet")]) == 0
    assert f"sweep {made.id}: 2 classes" in capsys.readouterr().out
    assert list(pd.read_parquet(tmp_path / "classes.parquet")["class"]) == list(table["class"])
    for wrong, sentence in (
        (["--parallel", "0"], "--parallel 0"),
        (["--address", "auto"], "--address goes with"),
        (["--out", "x.txt"], "x.txt: expected a file"),
        (["--targets", "cat"], "cat"),
    ):
        assert main([*flags, *settings, *wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch, capsys, demo_config):
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python itself marks what cannot be imported
    assert main(["sweep", "--model", demo_config.model.name, "--data", str(demo_config.data), "--executor", "ray"]) == 2
    assert NO_RAY in capsys.readouterr().err
