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
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import draw_images
from well_formed import assert_well_formed

from neurflow_engine import demo
from neurflow_engine.__main__ import main
from neurflow_engine.circuit_json import as_json
from neurflow_engine.labels import LabelStore
from neurflow_engine.pipeline import analyze
from neurflow_engine.store import Workspace

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
        flags = (
            "debug",
            demo_run.id,
            "--images",
            small_images,
            "--draws",
            2,
            "--workspace",
            demo_workspace.root,
            "--device",
            "cpu",
            "--json",
        )
        report = command(*flags).json
        assert {"schema", "report", "run", "images_root", "created", "draws", "n_wrong", "n_clean", "images", "groups"} <= set(report)
        assert set(report["images"][0]) == {"path", "true", "predicted", "probability"}
        keys = {
            "id",
            "layer",
            "misleading",
            "score",
            "p_value",
            "recovered",
            "control_recovered",
            "clean_accuracy_change",
            "false_alarm_rate",
        }
        for group in report["groups"]:
            assert keys | {"presence"} <= set(group)
            assert set(group["control_recovered"]) == {"mean", "low", "high"}
            assert len(group["presence"]) == 6
            assert all(0 <= value <= 1 for value in group["presence"])
        assert {group["id"] for group in report["groups"]} == {group.id for group in demo_run.circuit.groups if group.layer != "logits"}
        assert command(*flags).json == report  # found, not computed again: same date

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

    @pytest.mark.parametrize("format", ["json", "html", "csv"])
    def test_export(self, command, demo_run, demo_workspace, tmp_path, format):
        out = tmp_path / "new" / f"report.{format}"
        flags = ("--format", format, "--out", out, "--workspace", demo_workspace.root)
        found = command("export", demo_run.id, *flags, "--json").json
        assert found == {"schema": 1, "file": str(out), "bytes": out.stat().st_size}
        assert out.stat().st_size > 1000

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


def mounted(folder: Path, *options: str):
    """Mount a file system in memory, where this process may."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")


@pytest.fixture
def disk(tmp_path):
    """Mount a tiny disk of the options given, and a function that mounts it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs mount")

    def mount(*options):
        mounted(folder, *options)
        return folder

    yield mount
    while subprocess.run(["mountpoint", "-q", folder]).returncode == 0:
        subprocess.run(["umount", folder], check=True)


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
