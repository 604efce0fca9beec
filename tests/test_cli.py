"""The command line: JSON on stdout, sentences on stderr, exit codes that scripts can rely on, and nothing half-written taken for whole."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import hand_made_debug
import pytest
import safetensors.torch
import timm
import torch
from conftest import draw_images
from well_formed import assert_well_formed

from neurflow_engine import apply_fix, demo
from neurflow_engine.__main__ import main
from neurflow_engine.circuit_json import as_json
from neurflow_engine.debugging import Debugger
from neurflow_engine.labels import LabelStore
from neurflow_engine.pipeline import analyze
from neurflow_engine.ranking import fiftyone_snippet
from neurflow_engine.store import Workspace
from neurflow_engine.verdicts import VerdictStore

ROOT = Path(__file__).resolve().parents[1]
DEMO_MODEL = ("--model", f"local-dir:{demo.MODEL_FOLDER}")
SMALL = ("--max-images", "4", "--top-k", "6", "--tau", "8", "--granularities", "1,0.5", "--device", "cpu")  # a run within a second or two


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """What a refused command says: nothing on stdout, one line on stderr, exit code 2."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


@pytest.fixture
def command(capsys):
    """Run a command in this process: quick, because torch is loaded already."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Outcome(code, *capsys.readouterr())

    return run


def process(*arguments, **popen) -> subprocess.Popen:
    """A command in a process of its own, as people start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "neurflow_engine", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen,
    )  # fmt: skip


def finished(process: subprocess.Popen, seconds: float = 120) -> Outcome:
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out, err)


@pytest.fixture(scope="module")
def small_images(tmp_path_factory, demo_images):
    """Six images of the demo, among them sailboats, in folders of their classes."""
    root = tmp_path_factory.mktemp("few") / "images"
    for name in ("sailboat", "owl"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(demo_images / name / f"{number:03d}.png", root / name)
    return root


class TestResults:
    """What every command prints with --json: exactly these keys."""

    def test_models(self, command):
        found = command("models", "resnet1*t", "--json").json
        assert set(found) == {"schema", "models"}
        assert set(found["models"][0]) == {"name", "family", "input_size", "parameters", "layers", "pretrained", "weights_local"}
        assert "resnet10t" in [model["name"] for model in found["models"]]
        assert "resnet10t" in command("models", "resnet10").out

    def test_models_of_no_known_name_are_an_empty_list(self, command):
        assert command("models", "qqqq", "--json").json["models"] == []
        assert command("models", "qqqq").out == "No timm model matches 'qqqq'.\n"

    def test_evaluate_with_classes_that_count_as_one(self, command, small_images, tmp_path):
        (tmp_path / "vehicle.json").write_text('{"vehicle": ["car", "train", "sailboat"]}')
        found = command(
            "evaluate", *DEMO_MODEL, "--merge", tmp_path / "vehicle.json", "--data", small_images, "--device", "cpu", "--json"
        ).json
        assert "vehicle" in [row["name"] for row in found["classes"]]
        assert not {"car", "train", "sailboat"} & {row["name"] for row in found["classes"]}
        outcome = command("evaluate", *DEMO_MODEL, "--merge", tmp_path / "none.json", "--data", small_images)
        assert "none.json cannot be read" in outcome.sentence

    def test_evaluate(self, command, small_images, workspace):
        (small_images / "owl" / "torn.png").write_bytes((small_images / "owl" / "000.png").read_bytes()[:900])
        outcome = command("evaluate", *DEMO_MODEL, "--data", small_images, "--device", "cpu", "--json")
        (small_images / "owl" / "torn.png").unlink()
        found = outcome.json
        assert set(found) == {
            "schema",
            "evaluation",
            "model",
            "images",
            "accuracy",
            "label_rule",
            "classes",
            "confusions",
            "skipped",
            "layers",
        }
        assert found["images"] == 6
        assert [set(row) for row in found["skipped"]] == [{"path", "reason"}]
        assert found["skipped"][0]["path"] == "owl/torn.png"
        assert "1 file left out: owl/torn.png" in outcome.err
        row = next(row for row in found["classes"] if row["name"] == "owl")
        keys = {"index", "name", "images", "predicted_images", "recall", "precision", "false_positives", "false_negatives", "confused_with"}
        assert set(row) == keys
        assert row["images"] == 3
        assert sum(row["count"] for row in found["confusions"]) == 6
        assert [layer["name"] for layer in found["layers"] if layer["stage"]][-1] == "layer4"

    def test_analyze_then_find_it(self, command, small_images, workspace):
        flags = ("analyze", *DEMO_MODEL, "--data", small_images, "--target", "sailboat", *SMALL, "--depth", "2", "--json")
        outcome = command(*flags)
        found = outcome.json
        keys = {"schema", "run", "folder", "evaluation", "groups", "probe_images", "skipped", "seconds", "peak_memory_mb"}
        assert set(found) == keys
        assert "activations" in outcome.err  # the bars
        run = workspace.open_run(found["run"])
        assert str(run.folder) == found["folder"]
        assert (len(run.circuit.groups), len(run.circuit.images)) == (found["groups"], found["probe_images"])
        assert run.circuit.layers == ("logits", "layer4", "layer3")
        assert run.manifest["configuration"]["tau"] == 8
        again = command(*flags)
        assert again.json == found
        assert again.err == ""

    def test_circuit_is_the_schema(self, command, demo_run, demo_workspace):
        LabelStore.for_workspace(demo_workspace.root).edit(demo_run.id, "layer4/0", "white sail", "test", 0)
        circuit = command("circuit", demo_run.id, "--workspace", demo_workspace.root, "--json").json
        number, whole, text = (int, float), int, str
        assert_types(
            circuit,
            {
                "schema": whole,
                "run": text,
                "model": {"name": text, "checkpoint_sha256": text},
                "target": {"index": whole, "name": text},
                "layers": [text],
                "patches": [{"id": whole, "image": text, "box": [whole]}],
                "neurons": [
                    {
                        "layer": text,
                        "index": whole,
                        "patches": [whole],
                        "core": [whole],
                        "semantic_groups": [
                            {"id": text, "patches": [whole], "mean_activation": number, "core": [{"index": whole, "weight": number}]}
                        ],
                    }
                ],
                "groups": [
                    {
                        "id": text,
                        "layer": text,
                        "members": [{"neuron": whole, "semantic_group": text}],
                        "patches": [whole],
                        "label": (str, type(None)),
                    }
                ],
                "edges": [{"source": text, "target": text, "weight": number, "raw_weight": number}],
                "seconds": dict.fromkeys(circuit["seconds"], number),
                "peak_memory_mb": number,
            },
        )
        assert circuit["schema"] == 1
        assert_well_formed(circuit, tau=16, top_k=10, size=(128, 128))
        assert {group["id"]: group["label"] for group in circuit["groups"] if group["label"]} == {"layer4/0": "white sail"}
        assert command("circuit", demo_run.folder, "--json", "--workspace", demo_workspace.root).json == circuit

    def test_circuit_for_people(self, command, demo_run, demo_workspace):
        lines = command("circuit", demo_run.id, "--workspace", demo_workspace.root).out.splitlines()
        assert lines[0].startswith("sailboat")
        assert len(lines) == 1 + len(demo_run.circuit.groups)
        assert "built from layer4/" in lines[1]

    def test_debug(self, command, demo_run, demo_workspace, small_images):
        place = ("--workspace", demo_workspace.root, "--device", "cpu", "--json")
        flags = ("debug", demo_run.id, "--images", small_images, "--draws", 2, *place)
        report = command(*flags).json
        whole = {"schema", "method", "report", "run", "images_root", "image_folders", "created", "draws", "seed"}
        whole |= {"n_wrong", "n_clean", "n_reported", "ceiling", "lower_logit", "images", "groups"}
        assert set(report) == whole
        assert [set(image) for image in report["images"]] == [{"path", "true", "predicted", "probability", "half"}] * 6
        keys = {
            "id",
            "layer",
            "kind",
            "silencing",
            "n_neurons",
            "misleading",
            "reason",
            "score",
            "p_value",
            "recovered",
            "recovered_interval",
        }
        keys |= {
            "control_recovered",
            "draws",
            "clean_accuracy_change",
            "clean_accuracy_interval",
            "target_recall_change",
            "usual",
            "typical",
        }
        keys |= {
            "auc",
            "false_alarm_rate",
            "presence_excess",
            "alarm_level",
            "as_good_at_random",
            "selectivity",
            "beyond_ceiling",
            "confused_class",
            "ways",
            "places",
            "presence",
        }
        for group in report["groups"]:
            assert set(group) == keys
            assert len(group["presence"]) == 6
        assert {group["id"] for group in report["groups"]} == {group.id for group in demo_run.circuit.groups if group.layer != "logits"}
        assert command(*flags).json == report  # found, not computed again: same date

    def test_debug_on_several_folders(self, command, demo_run, small_images, demo_workspace, tmp_path):
        folders = (tmp_path / "clean", tmp_path / "planted")
        for folder, name in zip(folders, ("owl", "sailboat"), strict=True):
            shutil.copytree(small_images / name, folder / name)
        place = ("--draws", 1, "--workspace", demo_workspace.root, "--device", "cpu", "--json")
        report = command("debug", demo_run.id, "--images", *folders, *place).json
        assert (report["images_root"], report["image_folders"]) == (str(tmp_path), [str(folder) for folder in folders])
        classes = {image["path"]: image["true"] for image in report["images"]}
        assert classes == {
            f"{folder}/{name}/00{n}.png": name for folder, name in (("clean", "owl"), ("planted", "sailboat")) for n in range(3)
        }

    def test_debug_for_people(self, command, demo_run, demo_workspace, misled_report, misled_images):
        flags = ("--images", misled_images, "--draws", misled_report.json["draws"], "--workspace", demo_workspace.root, "--device", "cpu")
        first, *groups = command("debug", demo_run.id, *flags).out.splitlines()
        assert first.startswith(f"{misled_report.json['n_wrong']} wrong images, {misled_report.json['n_clean']} clean ones, at best ")
        assert [line.split()[1 if line.startswith("!") else 0] for line in groups] == list(misled_report.groups)
        assert [line.startswith("! ") for line in groups] == [group["misleading"] for group in misled_report.json["groups"]]

    def test_debug_with_mask(self, command, demo_run, demo_workspace, small_images):
        flags = ("debug", demo_run.id, "--images", small_images, "--draws", 3, "--workspace", demo_workspace.root, "--device", "cpu")
        found = command(*flags, "--mask", "layer4/0,layer3/0", "--json").json
        assert set(found) == {"schema", "run", "silenced", "skipped", "before", "after", "control"}
        assert found["silenced"] == ["layer4/0", "layer3/0"]
        assert found["control"]["draws"] == 3
        for before, after, control in zip(found["before"], found["after"], found["control"]["images"], strict=True):
            assert before["path"] == after["path"] == control["path"]
            assert [len(before["top5"]), len(after["top5"])] == [5, 5]
            assert set(before["top5"][0]) == {"index", "name", "probability"}
            assert all(row["low"] <= row["mean"] <= row["high"] for row in control["classes"])
            assert 0 <= control["changed"] <= 1
        assert found["before"] != found["after"]

    def test_debug_with_mask_leaves_broken_images_out_and_lists_them(self, command, demo_run, demo_workspace, small_images, tmp_path):
        shutil.copytree(small_images, tmp_path / "images")
        whole = (small_images / "owl" / "000.png").read_bytes()
        (tmp_path / "images" / "owl" / "000.png").write_bytes(whole[: len(whole) // 2])
        flags = ("--draws", 1, "--workspace", demo_workspace.root, "--device", "cpu", "--mask", "layer4/0", "--json")
        found = command("debug", demo_run.id, "--images", tmp_path / "images", *flags).json
        assert [entry["path"] for entry in found["skipped"]] == ["owl/000.png"]
        assert [row["path"] for row in found["before"]] == [f"owl/00{n}.png" for n in (1, 2)] + [f"sailboat/00{n}.png" for n in range(3)]
        shutil.rmtree(tmp_path / "images" / "sailboat")
        for name in ("001", "002"):
            (tmp_path / "images" / "owl" / f"{name}.png").write_bytes(whole[: len(whole) // 2])
        outcome = command("debug", demo_run.id, "--images", tmp_path / "images", *flags)
        assert outcome.code == 2
        assert "None of the 3 images" in outcome.err.splitlines()[-1]

    def test_preview(self, command, demo_run, demo_workspace, misled_report, misled_images):
        group = misled_report.json["groups"][0]["id"]
        flags = ("preview", demo_run.id, "--images", misled_images, "--mask", group, "--workspace", demo_workspace.root, "--device", "cpu")
        found = command(*flags, "--json").json
        keys = {
            "schema",
            "preview",
            "run",
            "report",
            "silenced",
            "images_root",
            "created",
            "n_images",
            "n_duplicates",
            "n_unknown",
            "skipped",
        }
        assert set(found) == keys | {"accuracy", "unseen", "classes", "groups", "worst_group", "helped", "hurt", "images"}
        assert (found["silenced"], found["report"]) == ([group], misled_report.id)  # the report on the same images, not the newest
        assert len(found["helped"]) > len(found["hurt"])
        assert demo_workspace.previews(demo_run.id)[0] == found
        lines = command(*flags).out.splitlines()
        accuracy = found["accuracy"]
        assert lines[0] == f"{group} silenced, as debug report {misled_report.id} recommends"
        assert lines[1].startswith(f"accuracy {accuracy['before']:.3f} -> {accuracy['after']:.3f} (change {accuracy['change']:+.3f} [")
        assert lines[-2].startswith(f"worst group {found['worst_group']['before']['name']} ")
        assert lines[-1] == f"{len(found['helped'])} images helped, {len(found['hurt'])} hurt"

    def test_preview_without_a_report_sets_groups_to_zero(self, command, demo_run, small_images, workspace):
        flags = ("--images", small_images / "owl", small_images / "sailboat", "--mask", "layer4/0")
        outcome = command("preview", demo_run.folder, *flags, "--device", "cpu")
        assert (outcome.code, outcome.out) == (2, "")  # the class folders themselves hold no folders of classes
        assert "No true class is known" in outcome.err.splitlines()[-1]
        found = command("preview", demo_run.folder, "--images", small_images, "--mask", "layer4/0", "--device", "cpu").out.splitlines()
        assert found[0] == "layer4/0 silenced, set to zero"

    @pytest.mark.parametrize("format", ["json", "circuit-html", "csv"])
    def test_export_of_the_circuit(self, command, demo_run, demo_workspace, tmp_path, format):
        out = tmp_path / "new" / f"report.{format}"
        flags = ("--format", format, "--out", out, "--workspace", demo_workspace.root)
        found = command("export", demo_run.id, *flags, "--json").json
        assert found == {"schema": 1, "file": str(out), "bytes": out.stat().st_size}
        assert out.stat().st_size > 1000

    def test_export_html_is_the_debug_report_with_all_that_is_known(self, command, demo_run, demo_workspace, misled_report, tmp_path):
        group = misled_report.json["groups"][0]["id"]
        with closing(VerdictStore.for_workspace(demo_workspace.root)) as store:
            store.give(demo_run.id, group, "spurious", "ana", 0, "a round sticker", misled_report.id)
        with closing(LabelStore.for_workspace(demo_workspace.root)) as store:
            version = label.version if (label := store.for_run(demo_run.id).get(group)) else 0
            store.edit(demo_run.id, group, "magenta star", "ana", version)
        out = tmp_path / "report.html"
        flags = ("--format", "html", "--out", out, "--workspace", demo_workspace.root, "--device", "cpu", "--report", misled_report.id)
        found = command("export", demo_run.id, *flags, "--json").json
        assert found == {"schema": 1, "file": str(out), "bytes": out.stat().st_size, "report": misled_report.id}
        page = out.read_text()
        for text in ("Why images are wrongly taken for sailboat", group, "a round sticker", "magenta star", "data:image/"):
            assert text in page

    def test_export_html_is_the_circuit_where_there_is_no_debug_report(self, command, demo_run, tmp_path, workspace):
        flags = ("--out", tmp_path / "a.html", "--json")
        outcome = command("export", demo_run.folder, "--format", "html", *flags)
        assert "report" not in outcome.json
        assert "no debug report, so this is its circuit" in outcome.err
        assert "circuit of" in (tmp_path / "a.html").read_text()

    def test_export_fix_silences_the_most_misleading_group(self, command, demo_run, demo_workspace, misled_report, misled_images, tmp_path):
        out, group = tmp_path / "fix.json", misled_report.json["groups"][0]["id"]
        place = ("--out", out, "--workspace", demo_workspace.root, "--report", misled_report.id)
        found = command("export", demo_run.id, "--format", "fix", *place, "--json").json
        tensors = str(tmp_path / "fix.safetensors")
        size = out.stat().st_size
        assert found == {
            "schema": 1, "file": str(out), "bytes": size, "tensors": tensors, "report": misled_report.id, "groups": [group]
        }  # fmt: skip
        debugger = Debugger(demo_run, "cpu", misled_report)
        images = debugger.load(sorted((misled_images / "owl").glob("marked-*.png")))
        model = timm.create_model(f"local-dir:{demo.MODEL_FOLDER}", pretrained=True).eval()
        with apply_fix(model, out), torch.no_grad():
            torch.testing.assert_close(model(images), debugger.logits(images, debugger.silencers([group])), rtol=0, atol=1e-4)

    def test_export_fix_silences_the_groups_that_are_named(self, command, demo_run, tmp_path, workspace):
        found = command(
            "export", demo_run.folder, "--format", "fix", "--groups", "layer4/0,layer3/0", "--out", tmp_path / "f.json", "--json"
        )
        assert (found.json["groups"], found.json["report"]) == (["layer4/0", "layer3/0"], None)

    @pytest.mark.parametrize("format", ["ranking-csv", "fiftyone"])
    def test_export_of_images_by_presence(self, command, demo_run, demo_workspace, misled_report, tmp_path, format):
        out, flags = tmp_path / "images.csv", ("--workspace", demo_workspace.root, "--report", misled_report.id, "--format", format)
        found = command("export", demo_run.id, *flags, "--out", out, "--json").json
        assert found["groups"] == [misled_report.json["groups"][0]["id"]]
        assert len(out.read_text(encoding="utf-8-sig").splitlines()) == 1 + len(misled_report.json["images"])
        assert found.get("snippet") == (fiftyone_snippet(str(out), found["groups"][0]) if format == "fiftyone" else None)
        other = command("export", demo_run.id, *flags, "--out", tmp_path / "other.csv", "--group", "layer4/3", "--json").json
        assert other["groups"] == ["layer4/3"]
        assert (tmp_path / "other.csv").read_bytes() != out.read_bytes()

    @pytest.mark.slow
    def test_demo_from_nothing(self, workspace):
        outcome = finished(process("demo", "--json"), 300)
        run = workspace.open_run(outcome.json["run"])
        assert run.summary.target_name == "sailboat"
        assert run.summary.n_images == 40
        circuit = finished(process("circuit", run.id, "--json")).json
        assert_well_formed(circuit, tau=16, top_k=50, size=(128, 128))


def assert_types(value, schema, where="circuit"):
    """Same keys at every level, and every leaf of the kind the schema says."""
    if isinstance(schema, dict):
        assert set(value) == set(schema), where
        for key, inner in schema.items():
            assert_types(value[key], inner, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for item in value:
            assert_types(item, schema[0], f"{where}[]")
    else:
        assert isinstance(value, schema), where
        assert not isinstance(value, bool), where


class TestExitCodes:
    def test_0_with_the_result_alone_on_stdout(self):
        outcome = finished(process("models", "resnet18", "--json"))
        assert "resnet18" in [model["name"] for model in outcome.json["models"]]
        assert outcome.err == ""

    def test_0_for_help(self, capsys):
        for arguments in (["--help"], ["analyze", "--help"]):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 0
        assert "--granularities" in capsys.readouterr().out

    def test_1_when_nobody_reads_the_output(self):
        running = process("models")
        running.stdout.readline()
        running.stdout.close()
        err = running.stderr.read()
        assert (running.wait(60), err.strip()) == (1, "Nobody reads the output any more.")
        running.stderr.close()

    def test_2_with_one_line_on_stderr(self, tmp_path):
        assert "There is no run 'nothing' in" in finished(process("circuit", "nothing", "--workspace", tmp_path)).sentence

    @pytest.mark.parametrize("module", ["argparse", "pandas"])
    def test_130_and_one_line_when_interrupted_while_its_modules_are_loaded(self, module, tmp_path):
        command = [sys.executable, "-X", "importtime", "-m", "neurflow_engine", "models", "--workspace", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not next(process.stderr).rstrip().endswith(f" {module}"):
                pass
            process.send_signal(signal.SIGINT)
            written = [line for line in process.stderr if not line.startswith("import time:")]
        assert process.returncode == 130
        assert written == ["Cancelled.\n"]

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_130_when_interrupted_and_what_was_finished_is_kept(self, number, demo_images, tmp_path):
        workspace = Workspace(tmp_path)
        flags = ("analyze", *DEMO_MODEL, "--data", demo_images, "--target", "sailboat", "--top-k", "12", "--device", "cpu")
        running = process(*flags, "--json", "--workspace", workspace.root)
        wait_for(lambda: any("activations" in stages["seconds"] for stages in noted(workspace)), running)
        running.send_signal(number)
        outcome = finished(running)
        assert outcome.code == 130, outcome
        assert outcome.out == ""
        assert outcome.err.splitlines()[-1] == "Cancelled; what was finished is kept, start it again to resume."
        assert "Traceback" not in outcome.err
        assert workspace.runs() == []
        (partial,) = workspace.root.glob("runs/*.partial")
        assert "activations" in json.loads((partial / "stages.json").read_text())["seconds"]


def noted(workspace: Workspace) -> list[dict]:
    """What unfinished runs say of their stages."""
    return [json.loads(path.read_text()) for path in workspace.root.glob("runs/*.partial/stages.json")]


def wait_for(condition, running: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["analyse"], "invalid choice: 'analyse'"),
            (["evaluate", "--model", "resnet18"], "the following arguments are required: --data"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--colour", "red"], "unrecognized arguments: --colour red"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--model-kwargs", "{"], "expected a JSON object, got '{'"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--model-kwargs", "[1]"], "expected a JSON object, got '[1]'"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--mean", "a,b"], "expected numbers separated by commas, got 'a,b'"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--input-size", "big"], "a side or HEIGHTxWIDTH in pixels, got 'big'"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--input-size", "0"], "input_size.0: Input should be greater than 0"),
            (["evaluate", "--model", "resnet18", "--data", ".", "--crop-pct", "1.5"], "crop_pct: Input should be less than or equal to 1"),
            (["analyze", "--model", "a", "--data", ".", "--target", "b", "--tau", "0"], "tau: Input should be greater than or equal to 1"),
            (["analyze", "--model", "a", "--data", ".", "--target", "b", "--layers", ","], "layers: needs at least one value, each once"),
            (["analyze", "--model", "a", "--data", ".", "--target", "b", "--layers", "x", "--depth", "2"], "not allowed with argument"),
            (["export", "run", "--format", "pdf", "--out", "x"], "invalid choice: 'pdf'"),
        ],
    )  # fmt: skip
    def test_are_one_sentence(self, command, arguments, sentence):
        assert sentence in command(*arguments).sentence

    def test_an_unknown_run_brings_near_matches(self, command, demo_run, demo_workspace):
        sentence = command("circuit", demo_run.id[:-2] + "zz", "--workspace", demo_workspace.root).sentence
        assert f"Did you mean {demo_run.id}" in sentence
        assert "Run folder ./nowhere does not exist" in command("circuit", "./nowhere").sentence.replace(
            "folder nowhere", "folder ./nowhere"
        )

    def test_an_unknown_group_brings_near_matches(self, command, demo_run, demo_workspace, small_images):
        flags = ("--images", small_images, "--workspace", demo_workspace.root, "--device", "cpu")
        sentence = command("debug", demo_run.id, *flags, "--mask", "layer4/00").sentence
        assert "has no group 'layer4/00' that can be silenced. Did you mean layer4/0" in sentence
        assert "names no group" in command("debug", demo_run.id, *flags, "--mask", ",").sentence
        assert "--draws 0" in command("debug", demo_run.id, *flags, "--draws", "0").sentence

    def test_a_preview_needs_groups_that_exist(self, command, demo_run, demo_workspace, small_images):
        flags = ("--images", small_images, "--workspace", demo_workspace.root, "--device", "cpu")
        assert "Did you mean layer4/0" in command("preview", demo_run.id, *flags, "--mask", "layer4/00").sentence
        assert "needs at least one group to silence" in command("preview", demo_run.id, *flags, "--mask", ",").sentence
        assert "arguments are required: --mask" in command("preview", demo_run.id, *flags).sentence

    def test_a_report_has_to_exist_and_to_be_about_the_run(self, command, demo_run, demo_workspace, misled_report, small_images, tmp_path):
        flags = ("--images", small_images, "--workspace", demo_workspace.root, "--device", "cpu", "--mask", "layer4/0")
        assert "There is no debug report 'nothing'" in command("preview", demo_run.id, *flags, "--report", "nothing").sentence
        shutil.copytree(demo_run.folder, tmp_path / "other")
        manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
        (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest | {"run": "another"}))
        for name in ("preview", "debug"):
            sentence = command(name, tmp_path / "other", *flags, "--report", misled_report.id).sentence
            assert f"Debug report {misled_report.id} is about run {demo_run.id}, not about another" in sentence

    def test_what_is_exported_needs_a_report_groups_and_a_name(self, command, demo_run, demo_workspace, misled_report, tmp_path, workspace):
        def sentence(*flags):
            return command("export", demo_run.folder, "--out", tmp_path / "out.json", *flags).sentence

        for format in ("fix", "ranking-csv", "fiftyone"):
            assert "has no debug report that tells which" in sentence("--format", format)
        assert "Did you mean layer4/0" in sentence("--format", "fix", "--group", "layer4/00")
        assert "--groups names no group" in sentence("--format", "fix", "--groups", ",")
        assert "--groups goes with --format fix, ranking-csv, fiftyone, not with csv" in sentence("--format", "csv", "--groups", "layer4/0")
        known = ("--workspace", demo_workspace.root, "--report", misled_report.id)
        assert "Did you mean layer4/0" in sentence("--format", "fix", "--group", "layer4/00", *known)
        assert "Did you mean layer4/0" in sentence("--format", "ranking-csv", "--group", "layer4/00", *known)
        assert "--groups names 2: layer4/0, layer4/1" in sentence("--format", "fiftyone", "--groups", "layer4/0,layer4/1", *known)
        assert "the name has to end in .json" in sentence("--format", "fix", "--out", tmp_path / "fix.zip", *known)
        assert list(tmp_path.glob("*.json")) == list(tmp_path.glob("fix.*")) == []

    def test_nothing_is_exported_of_a_report_that_flags_nothing(self, command, demo_run, workspace, demo_images, tmp_path):
        report = hand_made_debug.report(demo_run, demo_images, workspace)
        calm = [group | {"misleading": False} for group in report.json["groups"]]
        (report.folder / "manifest.json").write_text(json.dumps(report.json | {"groups": calm}))
        for format in ("fix", "ranking-csv", "fiftyone"):
            sentence = command("export", demo_run.folder, "--format", format, "--out", tmp_path / "out.json").sentence
            assert f"Debug report {report.id} calls no group misleading; name those that you mean with --groups." in sentence

    def test_a_folder_is_given_once(self, command, demo_run, demo_workspace, small_images):
        place = ("--workspace", demo_workspace.root, "--device", "cpu")
        twice = command("debug", demo_run.id, "--images", small_images, small_images, *place).sentence
        assert f"Data folder {small_images} is given twice; name it once." in twice
        within = command("debug", demo_run.id, "--images", small_images / "owl", small_images, *place).sentence
        assert f"{small_images / 'owl'} is given twice: it lies in {small_images}; name it once." in within

    def test_debugging_needs_true_classes(self, command, demo_run, demo_workspace, tmp_path):
        flat = draw_images(tmp_path / "flat", "")
        outcome = command("debug", demo_run.id, "--images", flat, "--workspace", demo_workspace.root, "--device", "cpu")
        assert outcome.code == 2
        assert "No true class is known for the images" in outcome.err.splitlines()[-1]


class TestBadInput:
    """Must not pass, and must say in one sentence what is wrong."""

    @staticmethod
    def analyze(data, *more, model=("--model", "resnet10t", "--random-weights", "--input-size", "32"), target="0"):
        return ("analyze", *model, "--data", data, "--target", target, *SMALL, *more)

    def test_a_text_file_named_jpg_is_skipped_and_listed(self, command, image_folder, workspace):
        (image_folder / "cat" / "notes.jpg").write_text("no image")
        outcome = command(*self.analyze(image_folder, "--json", target=self.predicted(command, image_folder)))
        assert outcome.json["skipped"] == [{"path": "cat/notes.jpg", "reason": "is not an image that can be opened"}]
        assert workspace.open_run(outcome.json["run"]).manifest["data"]["skipped"] == outcome.json["skipped"]

    @staticmethod
    def predicted(command, data) -> str:
        model = ("--model", "resnet10t", "--random-weights", "--input-size", "32")
        rows = command("evaluate", *model, "--data", data, "--device", "cpu", "--json").json["classes"]
        return str(max(rows, key=lambda row: row["predicted_images"])["index"])

    def test_nothing_but_such_files_is_an_error(self, command, tmp_path, workspace):
        (tmp_path / "data").mkdir()
        for name in ("one.jpg", "two.jpg"):
            (tmp_path / "data" / name).write_text("no image")
        sentence = command(*self.analyze(tmp_path / "data")).sentence
        assert "holds no image that can be opened: one.jpg is not an image" in sentence
        assert "1 more" in sentence
        assert not workspace.root.exists()

    def test_an_empty_folder(self, command, tmp_path):
        (tmp_path / "data").mkdir()
        assert "holds no images (looked for .jpg" in command(*self.analyze(tmp_path / "data")).sentence

    def test_an_unknown_model_brings_near_matches(self, command, image_folder):
        sentence = command(*self.analyze(image_folder, model=("--model", "resnet_18", "--random-weights"))).sentence
        assert "resnet_18" in sentence
        assert "Did you mean resnet18" in sentence

    def test_a_checkpoint_of_another_architecture(self, command, image_folder, tmp_path):
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict(), path)
        sentence = command(*self.analyze(image_folder, model=("--model", "resnet10t", "--checkpoint", path))).sentence
        assert f"Checkpoint {path} does not fit model resnet10t" in sentence
        assert "keys missing" in sentence
        assert "another architecture" in sentence

    def test_a_class_that_does_not_exist_brings_near_matches(self, command, demo_images):
        assert "Did you mean sailboat" in command(*self.analyze(demo_images, model=DEMO_MODEL, target="sailbot")).sentence
        assert "8" in command(*self.analyze(demo_images, model=DEMO_MODEL, target="8")).sentence

    def test_a_class_that_is_never_predicted(self, command, small_images, workspace):
        outcome = command(*self.analyze(small_images, model=DEMO_MODEL, target="train"))
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith("None of the 6 images is predicted as 'train'")

    def test_an_unknown_layer_brings_near_matches(self, command, demo_images):
        assert "Did you mean layer4" in command(*self.analyze(demo_images, "--layers", "layer5", model=DEMO_MODEL, target="owl")).sentence

    @pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"fc.weight": torch.zeros(2), "hook": evil}}])
    def test_a_pickle_that_runs_code_is_refused_and_its_code_is_not_run(self, command, image_folder, tmp_path, wrap):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "pwned"),)

        torch.save(wrap(Evil()), tmp_path / "zip.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(wrap(Evil())))
        for name in ("zip.pth", "plain.pth"):
            sentence = command(*self.analyze(image_folder, model=("--model", "resnet10t", "--checkpoint", tmp_path / name))).sentence
            assert f"Checkpoint {tmp_path / name}" in sentence
            assert not (tmp_path / "pwned").exists()
        assert "would run code" in sentence or "damaged" in sentence


class TestWorkspaceThatCannotBeWritten:
    FLAGS = ("analyze", *DEMO_MODEL, "--target", "sailboat", *SMALL)

    @pytest.fixture(scope="class")
    @staticmethod
    def uninterrupted(demo_config, small_images, tmp_path_factory):
        small = {"data": small_images, "max_images": 4, "top_k": 6, "tau": 8, "granularities": (1.0, 0.5)}
        return as_json(analyze(demo_config.model_copy(update=small), Workspace(tmp_path_factory.mktemp("uninterrupted"))))

    def test_below_a_regular_file(self, command, small_images, tmp_path):
        (tmp_path / "file").write_text("in the way")
        outcome = command(*self.FLAGS, "--data", small_images, "--workspace", tmp_path / "file" / "workspace")
        assert "cannot be written (Not a directory); free space, change its permissions or choose another workspace" in outcome.sentence

    def test_read_only(self, command, small_images, disk, demo_run):
        folder = disk("size=20m")
        shutil.copytree(demo_run.folder, folder / "runs" / demo_run.id)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        outcome = command(*self.FLAGS, "--data", small_images, "--workspace", folder)
        assert "cannot be written (Read-only file system)" in outcome.sentence
        outcome = command("circuit", demo_run.id, "--workspace", folder, "--json")
        assert outcome.json["run"] == demo_run.id  # reading is fine
        assert outcome.err.startswith("The groups have no names here. The label database")

    @pytest.mark.parametrize("kib", [8, 64, 160, 320])
    def test_full_at_any_moment_and_resumed_with_more_space(self, command, small_images, disk, kib, uninterrupted):
        folder = disk(f"size={kib}k")
        outcome = command(*self.FLAGS, "--data", small_images, "--workspace", folder)
        assert outcome.code == 2
        assert "No space left on device" in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
        assert Workspace(folder).runs() == []
        subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
        run = command(*self.FLAGS, "--data", small_images, "--workspace", folder, "--json").json["run"]
        circuit = command("circuit", run, "--workspace", folder, "--json").json
        assert circuit | {"seconds": 0, "peak_memory_mb": 0} == uninterrupted | {"seconds": 0, "peak_memory_mb": 0}

    def test_no_file_may_grow_as_large_as_needed(self, small_images, tmp_path):
        """As a quota: also where nobody may mount anything."""
        running = process(
            *self.FLAGS, "--data", small_images, "--workspace", tmp_path,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000)),
        )  # fmt: skip
        outcome = finished(running)
        assert outcome.code == 2, outcome
        assert "cannot be written (File too large)" in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
        assert Workspace(tmp_path).runs() == []
