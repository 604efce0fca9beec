"""The whole analysis: well-formed on every kind of network, the same every time, found when finished, resumed when interrupted."""

import json
import os
import shutil
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from conftest import draw_images
from PIL import Image
from well_formed import assert_well_formed

from neurflow_engine import pipeline
from neurflow_engine.circuit_json import as_json
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.errors import DataError, RunError, WorkspaceError
from neurflow_engine.evaluation import evaluate
from neurflow_engine.pipeline import analyze, prepare, probe_images
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.store import Run, Workspace

STAGES = ["evaluate", "activations", "logits", "layer4", "layer3", "layer2", "circuit", "thumbnails"]  # of the demo, in order

# The smallest input that leaves the last stage more than one position.
NETWORKS = [
    ("resnet18", 64),
    ("convnext_atto", 64),
    ("vit_tiny_patch16_224", 48),
    pytest.param("swin_tiny_patch4_window7_224", 64, marks=pytest.mark.slow),
    pytest.param("densenet121", 64, marks=pytest.mark.slow),
    pytest.param("tnt_s_patch16_224", 48, marks=pytest.mark.slow),
]


def result(run: Run) -> str:
    """Everything a run found, as text; not how long it took."""
    return json.dumps(as_json(run) | {"seconds": None, "peak_memory_mb": None})


@pytest.fixture(scope="module")
def small_config(demo_config):
    """Fewer and smaller steps, for what is run many times."""
    return demo_config.model_copy(update={"max_images": 4, "top_k": 6, "tau": 8, "granularities": (1.0, 0.5)})


@pytest.fixture(scope="module")
def small_run(small_config, demo_workspace):
    return analyze(small_config, demo_workspace)


class StopsAfter(Silent):
    """Asks the work to stop as soon as a stage is finished, as a person would."""

    def __init__(self, stage: str):
        super().__init__()
        self._last = stage

    def _left(self, stage, seconds):
        if stage.name == self._last:
            self.stop()


class StopsBefore(Silent):
    """Was asked to stop just when a stage begins."""

    def __init__(self, stage: str):
        super().__init__()
        self._first = stage

    def _began(self, stage):
        if stage.name == self._first:
            raise Cancelled


class TestWellFormed:
    def test_on_the_demo(self, demo_run):
        assert_well_formed(as_json(demo_run), tau=16, top_k=10, size=(128, 128))
        assert demo_run.circuit.layers == ("logits", "layer4", "layer3", "layer2")
        assert len(demo_run.circuit.images) == 12
        assert len(demo_run.circuit.patches) == 12 * 59

    @pytest.mark.parametrize(("name", "side"), NETWORKS)
    def test_with_random_weights(self, name, side, tmp_path, workspace):
        data = draw_images(tmp_path / "images", "a", "b", "c", n=3)
        model = ModelConfig(name=name, random_weights=True, model_kwargs={"num_classes": 3}, input_size=(side, side))
        subject = prepare(model, data, "cpu")
        evaluation = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent())
        target = str(evaluation.predictions["predicted"].mode()[0])
        quick = {"max_images": 3, "top_k": 8, "tau": 4, "granularities": (1, 0.5), "completeness": 100, "device": "cpu"}
        config = AnalysisConfig(model=model, data=data, target=target, **quick)
        run = analyze(config, workspace)
        assert len(run.circuit.layers) == 4
        assert_well_formed(as_json(run), tau=4, top_k=8, size=(side, side))

    def test_with_the_layers_and_the_bound_on_core_neurons_that_were_asked_for(self, demo_config, demo_workspace):
        run = analyze(
            demo_config.model_copy(update={"layers": ("layer4", "layer1"), "tau": 3, "min_groups": 2, "max_groups": 2}), demo_workspace
        )
        assert run.circuit.layers == ("logits", "layer4", "layer1")
        assert_well_formed(as_json(run), tau=3, top_k=10, size=(128, 128))
        assert all(len(run.circuit.groups_of(layer)) <= 2 for layer in run.circuit.layers)


class TestRunFolder:
    def test_holds_a_manifest_that_says_how_it_was_made(self, demo_run, demo_config):
        manifest = demo_run.manifest
        assert manifest["schema"] == 1
        assert manifest["target"] == {"index": 6, "name": "sailboat"}
        assert AnalysisConfig(**manifest["configuration"], model=manifest["model"]["configuration"]) == demo_config
        assert (
            len(manifest["model"]["checkpoint_sha256"])
            == len(manifest["model"]["fingerprint"])
            == len(manifest["data"]["fingerprint"])
            == 64
        )
        assert {"torch", "timm", "numpy", "python"} <= set(manifest["packages"])
        assert list(manifest["seconds"]) == STAGES[1:]
        assert manifest["seeds"] == {"probe_images": 0}

    def test_holds_no_pickle_and_no_work_in_progress(self, demo_run):
        files = [path.relative_to(demo_run.folder) for path in demo_run.folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json", ".npy", ".parquet", ".jpg"}
        assert {path.name for path in files if path.suffix == ".json"} == {"manifest.json"}
        assert not list(demo_run.folder.parent.glob("*.partial"))

    def test_holds_activations_of_every_layer_and_a_thumbnail_of_every_patch_that_is_shown(self, demo_run):
        for layer in demo_run.layers.values():
            assert demo_run.activations(layer.name).shape == (12 * 59, layer.n_channels)
        shown = {patch for group in demo_run.circuit.groups for patch in group.patches}
        assert all(Image.open(demo_run.patch_thumbnail(patch)).size == (96, 96) for patch in shown)
        assert all(Image.open(demo_run.image_thumbnail(image.id)).size == (128, 128) for image in demo_run.circuit.images)

    def test_thumbnails_have_true_colours(self, demo_run, demo_images):
        image = demo_run.circuit.images[0]
        original, thumbnail = (
            np.asarray(Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BOX), dtype=float)
            for path in (demo_images / image.path, demo_run.image_thumbnail(0))
        )
        assert np.abs(original - thumbnail).mean() < 4


class TestFound:
    def test_a_finished_run_is_found_and_no_stage_runs(self, demo_run, demo_config, demo_workspace):
        progress = Silent()
        found = analyze(demo_config.model_copy(update={"workers": 1}), demo_workspace, progress=progress)
        assert found.folder == demo_run.folder
        assert progress.seconds == {}

    def test_also_when_the_data_lie_elsewhere(self, demo_run, demo_config, demo_workspace, tmp_path):
        shutil.copytree(demo_config.data, tmp_path / "copy")
        assert analyze(demo_config.model_copy(update={"data": tmp_path / "copy"}), demo_workspace).folder == demo_run.folder

    @pytest.mark.parametrize("change", [{"seed": 1}, {"top_k": 9}, {"tau": 5}, {"target": "owl"}, {"layers": ("layer4", "layer3")}])
    def test_another_question_is_another_run(self, change, demo_run, demo_config, demo_workspace):
        progress = StopsBefore("activations")
        with pytest.raises(Cancelled):
            analyze(demo_config.model_copy(update=change), demo_workspace, progress=progress)
        assert progress.seconds == {}  # the evaluation is found

    def test_a_folder_that_holds_something_else_is_refused(self, demo_run, demo_config, demo_workspace, tmp_path):
        with pytest.raises(RunError, match="holds another finished run"):
            analyze(demo_config.model_copy(update={"tau": 5}), demo_workspace, out=demo_run.folder)
        (tmp_path / "precious.txt").write_text("mine")
        with pytest.raises(RunError, match="exists and is not a run; choose another --out"):
            analyze(demo_config, demo_workspace, out=tmp_path)
        assert (tmp_path / "precious.txt").read_text() == "mine"


class TestResumed:
    def test_stopped_after_every_single_stage_it_ends_as_if_it_had_never_been(self, small_run, small_config, workspace):
        for number, stage in enumerate(STAGES[:-1]):
            progress = StopsAfter(stage)
            with pytest.raises(Cancelled):
                analyze(small_config, workspace, progress=progress)
            assert list(progress.seconds) == [stage], number  # nothing that was finished is done again
            assert workspace.runs() == []
        progress = Silent()
        run = analyze(small_config, workspace, progress=progress)
        assert list(progress.seconds) == STAGES[-1:]
        assert result(run) == result(small_run)
        for name in ("images.parquet", "activations/layer3.npy", "thumbnails/patch-5.jpg"):
            if (small_run.folder / name).exists():
                assert (run.folder / name).read_bytes() == (small_run.folder / name).read_bytes()

    def test_an_unfinished_run_is_named_as_such(self, small_config, small_run, workspace):
        with pytest.raises(Cancelled):
            analyze(small_config, workspace, progress=StopsAfter("layer4"))
        with pytest.raises(RunError, match=f"Run {small_run.id} is not finished; start the same analysis again"):
            workspace.open_run(small_run.id)
        with pytest.raises(RunError, match="is not finished"):
            workspace.open_run(workspace.run_folder(small_run.id))
        assert workspace.runs() == []

    def test_half_a_stage_is_done_again(self, small_run, small_config, workspace):
        class StopsInside(Silent):
            def _moved(self, stage):
                if stage.name == "layer3" and stage.done > stage.total / 2:
                    self.stop()

        with pytest.raises(Cancelled):
            analyze(small_config, workspace, progress=StopsInside())
        progress = Silent()
        assert result(analyze(small_config, workspace, progress=progress)) == result(small_run)
        assert list(progress.seconds) == ["layer3", "layer2", "circuit", "thumbnails"]

    def test_remains_of_another_analysis_are_not_taken_for_its_own(self, small_run, small_config, workspace, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(Cancelled):
            analyze(small_config.model_copy(update={"seed": 5, "max_images": 4}), workspace, out, StopsAfter("layer4"))
        assert result(analyze(small_config, workspace, out)) == result(small_run)

    def test_a_damaged_list_of_stages_is_one_sentence(self, small_config, small_run, workspace):
        with pytest.raises(Cancelled):
            analyze(small_config, workspace, progress=StopsAfter("logits"))
        (stages,) = workspace.root.rglob("stages.json")
        stages.write_text(stages.read_text()[:10])
        with pytest.raises(WorkspaceError, match=r"stages\.json cannot be read .* delete its folder"):
            analyze(small_config, workspace)

    def test_a_run_dropped_between_its_last_write_and_its_name_is_found_whole(self, small_config, small_run, workspace, monkeypatch):
        """The folder is complete but still called partial: the power went just before the rename."""

        class PowerCut(BaseException):
            pass

        def cut(source, destination):
            if str(source).endswith(".partial"):
                raise PowerCut
            rename(source, destination)

        rename = os.replace
        with pytest.raises(Cancelled):
            analyze(small_config, workspace, progress=StopsAfter("evaluate"))
        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(PowerCut):
            analyze(small_config, workspace)
        monkeypatch.undo()
        progress = Silent()
        run = analyze(small_config, Workspace(workspace.root), progress=progress)
        assert progress.seconds == {}
        assert result(run) == result(small_run)


class TestReused:
    """Activations that another run found on the same patches are not computed again."""

    @pytest.fixture
    def surveyed(self, monkeypatch):
        """Names of the layers for which patches were sent through the network, batch by batch."""
        found, survey = [], pipeline.survey

        def watched(probe, ids, activations, maps, capacity, tick):
            found.append([layer.name for layer in activations])
            survey(probe, ids, activations, maps, capacity, tick)

        monkeypatch.setattr(pipeline, "survey", watched)
        return found

    @staticmethod
    def same_file(run: Run, other: Run, layer: str) -> bool:
        return run.activations_file(layer).samefile(other.activations_file(layer))

    def test_with_another_bound_on_core_neurons(self, small_run, small_config, demo_workspace, surveyed, tmp_path):
        other = small_config.model_copy(update={"tau": 5})
        run = analyze(other, demo_workspace, tmp_path / "reused")
        assert surveyed == []
        assert all(self.same_file(run, small_run, layer) for layer in small_run.layers)
        assert cores(run) == cores(analyze(other, Workspace(tmp_path / "anew")))
        assert surveyed

    def test_with_another_depth_only_the_new_layer_is(self, small_run, small_config, demo_workspace, surveyed, tmp_path):
        other = small_config.model_copy(update={"depth": 4, "tau": 3})
        run = analyze(other, demo_workspace, tmp_path / "reused")
        (new,) = set(run.layers) - set(small_run.layers)
        assert surveyed == [[new]] * len(surveyed) != []
        assert [layer for layer in run.layers if layer != new and not self.same_file(run, small_run, layer)] == []
        assert cores(run) == cores(analyze(other, Workspace(tmp_path / "anew")))

    def test_not_when_an_image_changed(self, small_run, small_config, demo_workspace, surveyed, tmp_path):
        shutil.copytree(small_config.data, tmp_path / "images")
        path = tmp_path / "images" / small_run.circuit.images[0].path
        Image.open(path).rotate(3).save(path)
        run = analyze(small_config.model_copy(update={"data": tmp_path / "images", "depth": 1}), demo_workspace, tmp_path / "run")
        assert surveyed
        assert not any(self.same_file(run, small_run, layer) for layer in run.layers)

    def test_maps_that_an_interrupted_attempt_began_are_not_taken_for_whole(
        self, small_run, small_config, demo_workspace, tmp_path, monkeypatch
    ):
        """Interrupted among the patches; then a run of the same patches is finished, and the first goes on with its activations."""
        monkeypatch.setattr("neurflow_engine.store._NOTE_EVERY", 0.0)
        monkeypatch.setattr(pipeline, "_IMAGES", 1)

        class StopsInside(Silent):
            def _moved(self, stage):
                if stage.name == "activations" and stage.done > stage.total / 2:
                    self.stop()

        workspace, other = Workspace(tmp_path / "workspace"), small_config.model_copy(update={"tau": 5})
        with pytest.raises(Cancelled):
            analyze(small_config, workspace, progress=StopsInside())
        assert list(workspace.root.rglob("map-layer4.npy"))
        analyze(other, workspace)
        assert cores(analyze(small_config, workspace)) == cores(small_run)


def cores(run: Run) -> dict[tuple[str, int], set[int]]:
    return {(neuron.layer, neuron.index): set(neuron.core) for neuron in run.circuit.neurons}


class TestPrecision:
    def test_gradients_in_bfloat16_find_the_core_neurons_of_float32(self, small_config, demo_workspace, tmp_path, monkeypatch):
        """Emulated where the processor has none: what counts is the rounding."""
        monkeypatch.setattr(pipeline, "native_bfloat16", lambda device: True)
        mixed = analyze(small_config, demo_workspace, tmp_path / "mixed")
        exact = analyze(small_config.model_copy(update={"precision": "float32"}), demo_workspace, tmp_path / "exact")
        assert (mixed.manifest["precision"], exact.manifest["precision"]) == ("bfloat16 gradients, float32 decisions", "float32")
        assert cores(mixed) == cores(exact)
        weights = [
            [w for neuron in run.circuit.neurons for group in neuron.semantic_groups for w in group.weights] for run in (mixed, exact)
        ]
        assert weights[0] != weights[1]


class TestTwoAtOnce:
    def test_the_second_of_the_same_run_gets_a_sentence(self, small_run, small_config, workspace):
        second = []

        class Meanwhile(Silent):
            def _began(self, stage):
                if stage.name == "layer4":
                    with pytest.raises(RunError, match="is being computed by another process; wait for it or cancel it") as caught:
                        analyze(small_config, workspace)
                    second.append(caught.value)

        assert result(analyze(small_config, workspace, progress=Meanwhile())) == result(small_run)
        assert len(second) == 1

    def test_an_evaluation_that_another_process_finishes_meanwhile_is_used(self, small_config, demo_workspace, small_run, tmp_path):
        """Both find no evaluation, the second waits its turn for the folder and then finds the first one's."""
        subject = prepare(small_config.model, small_config.data, "cpu")
        workspace = Workspace(tmp_path / "workspace")
        original = Workspace.draft

        def late(self, final, *arguments, **options):
            if not final.is_dir():
                shutil.copytree(demo_workspace.evaluation_folder(final.name), final)
            return original(self, final, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "draft", late)
            found = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent())
        assert found.id == small_run.manifest["evaluation"]

    def test_an_evaluation_that_another_process_is_at_is_waited_for(self, small_config, tmp_path):
        subject = prepare(small_config.model, small_config.data, "cpu")
        workspace, found = Workspace(tmp_path / "workspace"), []
        progresses = [Silent(), Silent()]

        def evaluated(progress) -> None:
            found.append(evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, progress).id)

        both = [Thread(target=evaluated, args=(progress,)) for progress in progresses]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert len(found) == 2
        assert len(set(found)) == 1
        assert sorted(list(progress.seconds) for progress in progresses) == [[], ["evaluate"]]


class TestProbeImages:
    @staticmethod
    def evaluation(tmp_path, predicted):
        class Found:
            class_names = ("cat", "dog", "owl")
            predictions = pd.DataFrame(
                {
                    "path": [f"{number}.png" for number in range(len(predicted))],
                    "true": pd.array([None, *[0] * (len(predicted) - 1)], dtype="Int64"),
                    "predicted": predicted,
                    "probability": 0.5,
                    "logit": 2.0,
                }
            )

        return Found()

    def test_are_those_predicted_as_the_target_whatever_their_true_class(self, tmp_path):
        found = probe_images(self.evaluation(tmp_path, [1, 0, 1, 2]), target=1, max_images=9, seed=0)
        assert [(image.id, image.path, image.true) for image in found] == [(0, "0.png", None), (1, "2.png", 0)]

    def test_more_than_enough_are_a_seeded_sample_in_order_of_path(self, tmp_path):
        evaluation = self.evaluation(tmp_path, [1] * 50)
        one, again, other = (probe_images(evaluation, 1, 10, seed) for seed in (0, 0, 1))
        numbers = [int(image.path.split(".")[0]) for image in one]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 10
        assert one == again
        assert one != other

    def test_none_is_a_sentence_with_the_classes_that_are_predicted(self, tmp_path):
        with pytest.raises(DataError, match=r"None of the 3 images is predicted as 'owl'.* predicted most often: dog, cat"):
            probe_images(self.evaluation(tmp_path, [1, 0, 1]), 2, 9, 0)
