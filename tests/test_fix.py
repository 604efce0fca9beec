"""A fix applied to a plain timm model does what silencing does in the product: eager, compiled, exported, in a new process."""

import copy
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch

from neurflow_engine import apply_fix, demo, silencer_file, write_fix
from neurflow_engine.debugging import Debugger
from neurflow_engine.errors import FixError, RunError
from neurflow_engine.evaluation import classifier_of
from neurflow_engine.fix import weights_sha256
from neurflow_engine.images import open_image
from neurflow_engine.layers import examine
from neurflow_engine.records import LOGITS, Damping, Filling, Layer, Variation
from neurflow_engine.silencing import silenced
from neurflow_engine.store import SCHEMA, DebugReport
from neurflow_engine.tracing import edited, record
from tests.nets import TwoStreams, images, network, randomised

SMALL_SWIN = {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "num_classes": 5}
MODELS = {  # name: arguments, input size
    "test_resnet": ({"num_classes": 5}, 64),
    "test_vit": ({"num_classes": 5}, 160),  # a class token in front of the patches
    "test_convnext": ({"num_classes": 5}, 64),
    "swin_tiny_patch4_window7_224": (SMALL_SWIN, 64),  # channels last
}
KINDS = ("zero", "mean", "position", "image", "anywhere")


def plain(name: str, **changes) -> torch.nn.Module:
    """A timm model as its owner builds it, the same every time."""
    arguments, _ = MODELS[name]
    torch.manual_seed(0)
    return randomised(timm.create_model(name, **arguments | changes)).eval()


def random_silencer(net, layer: Layer, kind: str, batch: torch.Tensor, seed: int = 0):
    """One that changes the layer's output for these images."""
    random = np.random.default_rng(seed)
    if kind in ("zero", "mean"):
        neurons = tuple(sorted(random.choice(layer.n_channels, layer.n_channels // 2, replace=False).tolist()))
        return Filling(layer.name, neurons, tuple(random.normal(size=len(neurons)).tolist() if kind == "mean" else [0.0] * len(neurons)))
    output = record(net, batch, [layer.name])[layer.name].movedim(layer.channel_axis, -1)
    pattern = output.flatten(0, -2).std(0).numpy() * random.normal(size=layer.n_channels)
    filter = pattern / (pattern**2).sum()
    shown = output @ torch.tensor(filter, dtype=torch.float32)
    level = float(shown.mean() - 3 * shown.std())
    vectors = lambda n: (random.normal(size=(n, layer.n_channels)) * 0.1).astype(np.float32)  # noqa: E731
    variation = Variation(vectors(1)[0], vectors(2), vectors(2)) if kind == "image" else None
    bounds = {"most": float(4 * shown.std()), "least": float(shown.flatten(1).amax(1).mean() - 0.5)} if kind == "anywhere" else {}
    return Damping(layer.name, filter.astype(np.float32), pattern.astype(np.float32), level, kind, variation, **bounds)


def save_fix(path: Path, model: torch.nn.Module, size: int, silencers: silencer_file.NamedSilencers) -> Path:
    weights = {"float32": weights_sha256(model, torch.float32), "bfloat16": weights_sha256(model, torch.bfloat16)}
    preprocessing = {"in_chans": 3, "input_size": [size, size]}
    silencer_file.write(path, silencers, {"model": {"name": "the model", "preprocessing": preprocessing, "weights_sha256": weights}})
    return path


def one_of_each(name: str, kinds=KINDS) -> dict:
    """A silencer of each kind at the two middle stages of a model."""
    net, (_, size) = network(plain(name)), MODELS[name]
    anatomy = examine(net, (3, size, size))
    stages = [anatomy.layers[stage] for stage in anatomy.stages[-3:-1] or anatomy.stages]
    layers = [stages[number % len(stages)] for number in range(len(kinds))]
    return {kind: (layer, random_silencer(net, layer, kind, images(2, size))) for kind, layer in zip(kinds, layers, strict=True)}


def reference(net, batch: torch.Tensor, silencers: dict) -> torch.Tensor:
    """Logits as the product silences: through tracing."""
    with ExitStack() as stack:
        for layer, silencer in silencers.values():
            edit = partial(lambda layer, silencer, output: silenced(layer, output, silencer), layer, silencer)
            stack.enter_context(edited(net, layer.name, edit))
        return record(net, batch, [LOGITS])[LOGITS]


@pytest.fixture(scope="module")
def resnet_fix(tmp_path_factory) -> Path:
    """A fix of all kinds of silencers for ``plain("test_resnet")``."""
    return save_fix(tmp_path_factory.mktemp("fix") / "fix.json", plain("test_resnet"), 64, one_of_each("test_resnet"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_timm_model_answers_as_the_product_does_with_the_group_silenced(name, kind, tmp_path):
    model, size = plain(name), MODELS[name][1]
    batch = images(3, size, seed=4)
    silencers = one_of_each(name, (kind,))
    fix = save_fix(tmp_path / "fix.json", model, size, silencers)
    with torch.no_grad():
        before = model(batch)
        apply_fix(model, fix)
        after = model(batch)
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, reference(network(plain(name)), batch, silencers), rtol=0, atol=1e-6)


@torch.no_grad()
def test_several_silencers_at_several_layers_work_together(resnet_fix):
    batch, model = images(3, 64), plain("test_resnet")
    apply_fix(model, resnet_fix)
    expected = reference(network(plain("test_resnet")), batch, silencer_file.read(resnet_fix)[1])
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_layer_may_be_one_of_the_tensors_that_a_module_returns(tmp_path):
    for keys in (None, ("left", "right")):
        net = network(TwoStreams(keys))
        for step in keys or ("0", "1"):
            layer = examine(net, (3, 16, 16)).layers[f"pair[{step}]"]
            silencers = {"group": (layer, random_silencer(net, layer, "position", images(2, 16)))}
            model = TwoStreams(keys).eval()
            with apply_fix(model, save_fix(tmp_path / "fix.json", model, 16, silencers)):
                torch.testing.assert_close(model(images(3, 16)), reference(net, images(3, 16), silencers), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_context_undoes_itself_also_after_an_exception(resnet_fix):
    batch, model = images(2, 64), plain("test_resnet")
    before = model(batch)
    fix = apply_fix(model, resnet_fix)
    with pytest.raises(TypeError), fix:  # noqa: PT012 (what happens before the exception belongs to the test)
        assert not torch.equal(model(batch), before)
        model(None)
    assert torch.equal(model(batch), before)
    assert not fix.is_applied
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_without_a_context_a_fix_stays_until_it_is_removed_and_cannot_be_entered_afterwards(resnet_fix):
    batch, model = images(2, 64), plain("test_resnet")
    before = model(batch)
    fix = apply_fix(model, resnet_fix)
    assert torch.equal(model(batch), model(batch))
    assert not torch.equal(model(batch), before)
    fix.remove()
    fix.remove()
    assert torch.equal(model(batch), before)
    with pytest.raises(FixError, match="was removed"), fix:
        pass


def test_names_of_weights_stay_as_they_are_and_a_copy_of_the_model_keeps_the_fix(resnet_fix):
    batch, model = images(2, 64), plain("test_resnet")
    keys = list(model.state_dict())
    apply_fix(model, resnet_fix)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(copy.deepcopy(model)(batch), model(batch), rtol=0, atol=0)


def test_applying_a_fix_leaves_statistics_and_training_modes_alone(resnet_fix):
    model = plain("test_resnet").train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.bn1.running_mean.clone()
    apply_fix(model, resnet_fix)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.bn1.running_mean, statistics)


def test_a_model_in_training_is_silenced_and_learns(resnet_fix):
    net, silencers = network(plain("test_resnet")), silencer_file.read(resnet_fix)[1]
    net.model.train()
    expected = reference(net, images(4, 64), silencers)
    model = plain("test_resnet").train()
    apply_fix(model, resnet_fix)
    logits = model(images(4, 64))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    logits.sum().backward()
    assert next(model.parameters()).grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_outputs_keep_the_precision_of_the_model(dtype, resnet_fix):
    batch, model = images(3, 64), plain("test_resnet").to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the weights are known in this precision too
        apply_fix(model, resnet_fix)
    logits = model(batch.to(dtype))
    assert logits.dtype == dtype
    exact = plain("test_resnet")
    apply_fix(exact, resnet_fix)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    assert (logits - exact(batch)).abs().max() < tolerance * exact(batch).abs().max()


@torch.no_grad()
def test_large_activations_of_float16_do_not_overflow_in_the_sum_over_neurons(tmp_path):
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2)).half()
    layer = Layer("0", 3, 1, (3, 4, 4))
    ones = np.ones(3, np.float32)
    apply_fix(model, save_fix(tmp_path / "fix.json", model.float(), 4, {"g": (layer, Damping("0", ones, ones / 3, 3.0, "position"))}))
    seen = []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.half()(torch.full((1, 3, 4, 4), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(seen[-1], torch.ones(1, 3, 4, 4, dtype=torch.float16), rtol=0, atol=32.0)  # 60000 is known to 32


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_model_with_a_fix_compiles_into_one_graph(name, tmp_path):
    model, size = plain(name), MODELS[name][1]
    fix = apply_fix(model, save_fix(tmp_path / "fix.json", model, size, one_of_each(name)))
    expected = model(images(2, size))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(2, size)), expected, rtol=0, atol=1e-5)
    fix.remove()
    with pytest.raises(FixError, match="apply the fix, then compile"):
        apply_fix(compiled, tmp_path / "fix.json")


@torch.no_grad()
def test_a_part_of_a_model_may_be_compiled_after_the_fix(resnet_fix):
    model = plain("test_resnet")
    fix = apply_fix(model, resnet_fix)
    expected = model(images(2, 64))
    for name in {layer.name for layer, _ in fix.silencers.values()}:
        setattr(model, name, torch.compile(model.get_submodule(name), backend="aot_eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        torch.testing.assert_close(model(images(2, 64)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_model_with_a_fix_is_exported_to_onnx_with_it(name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} writes ONNX files; install tests/requirements.txt")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs ONNX files; install tests/requirements.txt")
    model, size = plain(name), MODELS[name][1]
    batch = images(2, size)
    before = model(batch)
    apply_fix(model, save_fix(tmp_path / "fix.json", model, size, one_of_each(name)))
    torch.onnx.export(model, (batch,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    logits = torch.tensor(logits)
    torch.testing.assert_close(logits, model(batch), rtol=1e-4, atol=1e-4)
    assert (logits - before).abs().max() > 1e-2


def test_weights_of_another_model_are_warned_about(resnet_fix):
    model = plain("test_resnet")
    with torch.no_grad():
        model.fc.bias[0] += 1
    with pytest.warns(UserWarning, match="weights of this model are not those"):
        apply_fix(model, resnet_fix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_fix(plain("test_resnet"), resnet_fix)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: plain("test_vit"), "This model has no layer layer"),
        (lambda: timm.create_model("resnet18", num_classes=5), r"has shape \(1, 128, 8, 8\), expected 48 channels along axis 1 of 4"),
        (lambda: timm.create_model("test_resnet", in_chans=1), "does not take an image of 3 x 64 x 64"),
    ],
)
def test_another_architecture_is_refused_and_left_as_it_was(model, sentence, resnet_fix):
    model = model()
    with pytest.raises(FixError, match=sentence):
        apply_fix(model, resnet_fix)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_goes_around_a_layer_is_refused_or_warned_about(resnet_fix):
    model = plain("test_resnet")
    model.set_grad_checkpointing(True)
    with pytest.raises(FixError, match="goes around it; if gradient checkpointing is on"):
        apply_fix(model, resnet_fix)
    model.set_grad_checkpointing(False)
    fix = apply_fix(model, resnet_fix)
    model(images(2, 64))
    model.set_grad_checkpointing(True)
    with pytest.warns(RuntimeWarning, match=r"went around layer\d, layer\d, so nothing was silenced"):
        model(images(2, 64))
    fix.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(images(2, 64))


def test_forward_passes_of_two_threads_are_watched_apart(resnet_fix):
    model = plain("test_resnet")
    apply_fix(model, resnet_fix)
    with torch.no_grad(), ThreadPoolExecutor(2) as threads, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, *others = threads.map(torch.no_grad()(model), [images(2, 64)] * 20)
    assert not caught
    assert all(torch.equal(first, other) for other in others)


@pytest.fixture(scope="module")
def demo_report(demo_run, tmp_path_factory) -> DebugReport:
    """A debug report of the demo's run that recommends a damping for each of three groups."""
    folder = tmp_path_factory.mktemp("report") / "demo-report"
    groups = [group for group in demo_run.circuit.groups if group.layer != LOGITS][:3]
    random, silencers = np.random.default_rng(0), {}
    for group in groups:
        layer = demo_run.layers[group.layer]
        filter = random.random(layer.n_channels).astype(np.float32)
        damping = Damping(layer.name, filter, (filter / (filter**2).sum()).astype(np.float32), 0.1, "position")
        silencers[group.id] = (layer, damping)
    folder.mkdir()
    silencer_file.write(folder / DebugReport.SILENCERS, silencers, {})
    figures = {"silencing": "damping", "recovered": 0.5, "presence": [0.1], "places": []}
    said = [{"id": group.id, "layer": group.layer} | figures for group in groups]
    versions = {"schema": SCHEMA, "method": DebugReport.METHOD}
    report = versions | {"report": folder.name, "run": demo_run.id, "images_root": "", "created": "2026-01-01", "groups": said}
    (folder / "manifest.json").write_text(json.dumps(report))
    return DebugReport(folder)


NEW_PROCESS = """
import sys, timm, torch, numpy
import neurflow_engine
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
neurflow_engine.apply_fix(model, sys.argv[2])
with torch.no_grad():
    numpy.save(sys.argv[4], model(torch.from_numpy(numpy.load(sys.argv[3]))).numpy())
print(sorted({"pandas", "sklearn", "streamlit", "neurflow_engine.models"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("recommended", [False, True], ids=["set to zero", "as a report recommends"])
def test_a_fix_of_a_run_gives_the_same_logits_in_a_new_process_with_timm_alone(recommended, demo_run, demo_images, request, tmp_path):
    report = request.getfixturevalue("demo_report") if recommended else None
    chosen = [group.id for group in demo_run.circuit.groups if group.layer != LOGITS][:3]
    write_fix(demo_run, report, chosen, tmp_path / "fix.json")
    about, silencers = silencer_file.read(tmp_path / "fix.json")
    assert list(silencers) == chosen
    assert about["class"]["name"] == demo_run.circuit.target_name
    assert about["model"]["architecture"] == demo_run.manifest["model"]["architecture"]
    assert [group["silencing"] for group in about["groups"]] == ["damping" if recommended else "zero"] * 3
    assert not any("presence" in group for group in about["groups"])

    classifier = classifier_of(demo_run, "cpu")
    transform = classifier.preprocessing.transform()
    batch = torch.stack([transform(open_image(path, 3)) for path in sorted(demo_images.rglob("*.*"))[:6]])
    np.save(tmp_path / "images.npy", batch.numpy())
    command = [sys.executable, "-W", "error", "-c", NEW_PROCESS, demo.MODEL_FOLDER]
    command += [tmp_path / name for name in ("fix.json", "images.npy", "logits.npy")]
    outcome = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == "[]"
    logits = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    torch.testing.assert_close(logits, reference(classifier, batch, silencers), rtol=0, atol=1e-5)
    assert (logits - record(classifier, batch, [LOGITS])[LOGITS]).abs().max() > 1e-3


def test_a_fix_does_what_silencing_did_in_whatever_order_its_groups_are_named(demo_run, misled_report, tmp_path):
    ways = {True: {}, False: {}}  # groups by whether they are damped, then by layer
    for group in misled_report.json["groups"]:
        ways[group["silencing"] == "damping"].setdefault(group["layer"], group["id"])
    layer = next(layer for layer in ways[True] if layer in ways[False])
    named = [ways[False][layer], ways[True][layer]]
    tried = Debugger(demo_run, "cpu", misled_report).silencers(named)
    for number, groups in enumerate((named, named[::-1])):
        write_fix(demo_run, misled_report, groups, tmp_path / f"{number}.json")
        _, written = silencer_file.read(tmp_path / f"{number}.json")
        assert list(written) == named[::-1]
        damping, filling = (silencer for _, silencer in written.values())
        np.testing.assert_array_equal(damping.filter, tried[0].filter)
        assert filling == tried[1]


def test_a_fix_of_unknown_or_no_groups_or_of_another_run_is_refused(demo_run, demo_report, tmp_path):
    group_id = next(iter(demo_report.groups))
    for report in (None, demo_report):
        with pytest.raises(RunError, match=f"Did you mean .*{group_id}"):
            write_fix(demo_run, report, [group_id, group_id[:-1] + "x"], tmp_path / "fix.json")
    with pytest.raises(FixError, match="at least one group"):
        write_fix(demo_run, None, [], tmp_path / "fix.json")
    with pytest.raises(FixError, match=r"has to end in \.json"):
        write_fix(demo_run, None, [group_id], tmp_path / "fix.html")
    other = copy.copy(demo_report)
    other.json = demo_report.json | {"run": "another"}
    with pytest.raises(RunError, match="is about run another"):
        write_fix(demo_run, other, [group_id], tmp_path / "fix.json")
    assert not list(tmp_path.iterdir())


def test_silencers_come_back_bit_by_bit_from_either_file_or_their_folder(tmp_path):
    layer = Layer("blocks.2[0][1]", 4, 2, (7, 4), n_prefix_tokens=1)
    filling = Filling(layer.name, (3, 0), (0.1 + 0.2, -1e-320))
    transposed = np.arange(8, dtype=np.float32).reshape(4, 2).T  # does not lie in memory as it is read
    variation = Variation(np.float32([0, 1, 2, 3]), transposed, -transposed)
    filter, pattern = np.float32([1 / 3, -0.0, 1e-40, 3]), np.float32([1, 2, 3, 4]) / 7
    damping = Damping(layer.name, filter, pattern, 1 / 3, "anywhere", variation, most=0.1 + 0.2, least=-1 / 3)
    path = tmp_path / "deep" / "fix.json"
    silencer_file.write(path, {"late": (layer, damping), "a/1": (layer, filling)}, {"note": "ä", "none": None})
    for given in (path, str(path.with_suffix(".safetensors")), path.parent):
        about, silencers = silencer_file.read(given)
        assert about == {"note": "ä", "none": None}
        assert list(silencers) == ["late", "a/1"]
        assert silencers["a/1"] == (layer, filling)
        read_layer, read_damping = silencers["late"]
        assert (read_layer, read_damping.layer, read_damping.level, read_damping.scope) == (layer, layer.name, 1 / 3, "anywhere")
        assert (read_damping.most, read_damping.least) == (0.1 + 0.2, -1 / 3)
        for vector in ("filter", "pattern"):
            assert getattr(read_damping, vector).tobytes() == getattr(damping, vector).tobytes()
        for vector, values in vars(variation).items():
            np.testing.assert_array_equal(getattr(read_damping.variation, vector), values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda layer, damping: (layer, replace(damping, level=float("nan"))), "level is not finite"),
        (lambda layer, damping: (layer, replace(damping, pattern=np.float32([1, 2, np.inf]))), "pattern has numbers that are not finite"),
        (lambda layer, damping: (layer, replace(damping, filter=np.float32([1, 2]))), r"filter has shape \(2,\), expected \(3,\)"),
        (lambda layer, damping: (layer, replace(damping, layer="other")), "it is for layer other"),
        (lambda layer, damping: (layer, replace(damping, scope="pixel")), "scope 'pixel' is unknown"),
        (lambda layer, damping: (layer, replace(damping, most=0.0)), "most that it takes away is no finite number above 0"),
        (lambda layer, damping: (layer, replace(damping, least=float("inf"))), "least from which it acts is not finite"),
        (lambda layer, damping: (replace(layer, channel_axis=2), damping), r"axis 2 of .* has not 3 channels"),
        (lambda layer, damping: (layer, Filling("stage", (3,), (0.0,))), "there is no neuron 3"),
        (lambda layer, damping: (layer, Filling("stage", (1, 1), (0.0, 0.0))), "named twice"),
        (lambda layer, damping: (layer, Filling("stage", (1,), ())), "1 neurons have 0 values"),
    ],
)
def test_silencers_that_cannot_work_are_not_written(change, sentence, tmp_path):
    layer, damping = Layer("stage", 3, 1, (3, 4, 4)), Damping("stage", np.ones(3, np.float32), np.ones(3, np.float32), 0.0, "image")
    with pytest.raises(FixError, match=sentence):
        silencer_file.write(tmp_path / "fix.json", {"group": change(layer, damping)}, {})
    with pytest.raises(FixError, match="not finite"):
        silencer_file.write(tmp_path / "fix.json", {"group": (layer, damping)}, {"share": float("nan")})
    assert not list(tmp_path.iterdir())


def edit_json(**changes):
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_group(**changes):
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        content["silencers"]["group"] |= changes
        path.write_text(json.dumps(content))

    return edit


def edit_tensors(edit):
    """Change the tensors and note the new sha256, as a file that was made wrong would have it."""

    def change(path: Path) -> None:
        tensors = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
        edit(tensors)
        packed = safetensors.numpy.save(tensors)
        path.with_suffix(".safetensors").write_bytes(packed)
        edit_json(tensors_sha256=silencer_file.hashlib.sha256(packed).hexdigest())(path)

    return change


def cut_off(path: Path) -> None:
    path.with_suffix(".safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (Path.unlink, "does not exist"),
        (lambda path: path.write_text("{"), "is damaged or no JSON"),
        (lambda path: path.write_bytes(b"\xff"), "is damaged or no JSON"),
        (lambda path: path.write_text("[]"), "has schema None"),
        (edit_json(schema=2), "has schema 2, this version reads silencers of schema 1"),
        (edit_json(silencers=[]), "silencers: Input should be a valid dictionary"),
        (edit_json(about={"x": float("inf")}), "holds Infinity"),
        (edit_group(kind="magic"), "group: Input tag 'magic'"),
        (edit_group(level="high"), "level: Input should be a valid number"),
        (edit_group(filter="other"), "lacks tensor 'other'"),
        (edit_group(layer={"name": "stage", "n_channels": 4, "channel_axis": 1, "shape": [4, 4, 4]}), r"filter has shape \(3,\), expected"),
        (lambda path: path.with_suffix(".safetensors").unlink(), "belongs to fix.json, cannot be read"),
        (cut_off, "sha256 is not the one noted there"),
        (edit_tensors(lambda tensors: tensors.update({"group.filter": np.ones(3)})), "is float64 of shape"),
        (edit_tensors(lambda tensors: tensors.update({"group.filter": np.float32([1, 2, np.nan])})), "numbers that are not finite"),
    ],
)
def test_damaged_files_are_refused_with_one_sentence(damage, sentence, tmp_path):
    path, layer = tmp_path / "fix.json", Layer("stage", 3, 1, (3, 4, 4))
    silencer_file.write(path, {"group": (layer, Damping("stage", np.ones(3, np.float32), np.ones(3, np.float32), 0.0, "image"))}, {})
    damage(path)
    with pytest.raises(FixError, match=sentence) as caught:
        silencer_file.read(path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one_pair_of_files_and_silencers_without_a_model_are_no_fix(tmp_path):
    with pytest.raises(FixError, match="it holds none"):
        silencer_file.read(tmp_path)
    with pytest.raises(FixError, match=r"read from a \.json file"):
        silencer_file.read(tmp_path / "fix.pt")
    model = TwoStreams().eval()
    save_fix(tmp_path / "a.json", model, 16, {})
    silencer_file.write(tmp_path / "b.json", {}, {})
    with pytest.raises(FixError, match=r"2 \(a.json, b.json\): name one of them"):
        apply_fix(model, tmp_path)
    with pytest.raises(FixError, match="does not say for which model"):
        apply_fix(model, tmp_path / "b.json")
