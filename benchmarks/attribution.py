"""Our attribution beside captum's IntegratedGradients as the published code uses it: one target neuron at a time, 50 steps, float32.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.attribution --assets ASSETS
    python -m benchmarks.attribution --assets ASSETS --images 3 --targets 4 --top-k 8 --sample 1 \\
        --segments imagenet_mobilenetv2:bn2:blocks.6

Both explain the same neurons of the upper layer (the core neurons of the class that is predicted most) on the same patches (those that
excite the neuron most), from the same zero baseline, averaged over positions, on the same segment of the network, in one process and in
turns, so that whatever else the machine does hits both. What the lower layer gives for the patches is known to both beforehand.

captum: the plain segment of the network as timm builds it, with as many rows in a pass as is fastest of a few (found on a trial that is not
counted). Ours: ``attribute`` of the pipeline, all of it: the cut, the choice of the quadrature rule by the completeness gap, gradients of
all target neurons, once more in float32 where bfloat16 could confuse core neurons. The time of a target neuron is the mean of the sample
for captum, and all of it divided by the number of targets for ours.

Nets without local weights get random ones, with BatchNorm statistics from the photos (timm starts the last scale of each residual branch
at zero, which would leave nothing to attribute). ``same`` is the share of captum's core neurons that ours has too; the two columns
after it compare both with a float32 integral of many more nodes (whose own gap is shown), so that it is clear who is off where they differ.
"""

import argparse
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from benchmarks.child import noted_steps
from benchmarks.measuring import Clock, Peak, cell, machine, peak, photos, table, work_per_copy
from neurflow_engine.attribution import Attribution, integrated_gradients
from neurflow_engine.catalogue import list_models
from neurflow_engine.concepts import concept
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.core_neurons import core_neurons
from neurflow_engine.images import open_image, scan
from neurflow_engine.layer_step import native_bfloat16
from neurflow_engine.layers import examine, pooled
from neurflow_engine.models import Classifier, load_classifier
from neurflow_engine.pipeline import Subject, _Analysis
from neurflow_engine.progress import Silent
from neurflow_engine.records import LOGITS, Layer, ProbeImage
from neurflow_engine.store import Draft, Workspace
from neurflow_engine.tracing import Segment, folded

SEGMENTS = (
    "imagenet_mobilenetv2:bn2:blocks.6",
    "imagenet_mobilenetv2:blocks.6:blocks.5",
    "resnet50:layer4:layer3",
    "resnet50:layer3:layer2",
    "vit_small_patch16_224:blocks.11:blocks.9",
)
STEPS = 50  # captum's default, and the published code's
ROWS = {"cpu": (10, 25, 50, 100), "cuda": (50, 250, 1250, 2500)}  # of scaled patches in one pass, tried for captum
CORE = 16
CROWDING = (0, 6)  # of the nodes of the reference: what converges faster differs between networks
COLUMNS = (
    "model", "upper <- lower", "weights", "targets", "captum, s/target", "ours, s/target", "ratio", "CPU ratio", "same",
    "captum right", "ours right", "gap reference", "gap captum", "gap ours", "nodes", "corrected", "floor, s/target", "one pass, s",
    "captum rows",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What all rows of the table have in common."""

    assets: Path
    data: Path
    images: int
    targets: int
    top_k: int
    sample: int
    reference_nodes: int
    device: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, metavar="DIR", help="folder of model folders (timm's local-dir format)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos (default: reference_lesser_panda/images of the assets)")
    parser.add_argument(
        "--segments", nargs="+", default=SEGMENTS, metavar="MODEL:UPPER:LOWER", help="a folder of the assets or a timm name"
    )
    parser.add_argument("--images", type=int, default=20, help="photos, each cut into 59 patches")
    parser.add_argument("--targets", type=int, default=16, help="target neurons that ours explains together")
    parser.add_argument("--top-k", type=int, default=50, help="patches of a target neuron")
    parser.add_argument("--sample", type=int, default=3, help="target neurons that captum explains too, one after the other")
    parser.add_argument("--reference-nodes", type=int, default=200, help="of the float32 integral that both are compared with; 0: none")
    parser.add_argument("--device", default="cpu")
    arguments = vars(parser.parse_args())
    segments = arguments.pop("segments")
    arguments["data"] = arguments["data"] or arguments["assets"] / "reference_lesser_panda" / "images"
    settings = Settings(**arguments)
    best = peak(settings.device)
    print(machine(settings.device))
    print(best, flush=True)
    rows = []
    for segment in segments:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compared(segment, settings, best, Path(folder)))
        print(", ".join(f"{column} {cell(value)}" for column, value in zip(COLUMNS, rows[-1], strict=True)), flush=True)
    print(table(COLUMNS, rows))


def compared(text: str, settings: Settings, best: Peak, folder: Path) -> tuple:
    """One row of the table."""
    name, upper_name, lower_name = text.split(":")
    paths = photos(settings.data, settings.images)
    classifier, weights = loaded(name, settings, paths)
    plain = replace(
        classifier, model=deepcopy(classifier.model).to(memory_format=torch.contiguous_format), lock=threading.RLock()
    )  # fmt: skip
    subject = subject_of(classifier, settings.data)
    layers = subject.anatomy.chosen((upper_name, lower_name), 2)
    _, upper, lower = layers
    analysis = prepared(subject, layers, paths, settings, folder)
    own_clock, captum_clock, pass_clock = Clock(), Clock(), Clock()
    sample = torch.randn((3, *analysis.patches.images.shape[1:]), generator=torch.Generator().manual_seed(0)).to(classifier.device)
    segment = Segment(plain, lower.name, upper.name, sample)
    if segment.needs_context:
        raise SystemExit(f"{text}: a branch leads around {lower.name}; this comparison needs a segment that one tensor leads into")

    def forward(at_cut: Tensor) -> Tensor:
        return pooled(upper, segment(at_cut))

    with folded(classifier, sample, intact=[layer.name for layer in layers]), noted_steps() as steps:
        with pass_clock.running(settings.device), analysis.progress.stage("activations") as tick:
            analysis.activations(tick, {})
        concepts = explained_neurons(analysis, layers, settings)
        chosen = list(concepts)[:: max(1, len(concepts) // settings.sample)][: settings.sample]
        maps = analysis.draft.open_rows(f"work/map-{lower.name}")
        inputs = {neuron: torch.from_numpy(maps.read(concepts[neuron])).to(classifier.device) for neuron in chosen}
        n_rows = fastest_rows(forward, inputs[chosen[0]], chosen[0], settings.device)
        theirs: dict[int, Attribution] = {}
        for neuron in chosen:
            with captum_clock.running(settings.device):
                theirs[neuron] = published(forward, inputs[neuron], neuron, lower, n_rows, STEPS)
            theirs[neuron] = with_gap(theirs[neuron], forward, inputs[neuron], neuron)
            with own_clock.running(settings.device):
                ours = attributed(analysis, upper, lower, concepts)
        one_copy = work_per_copy(forward, inputs[chosen[0]][:1])
    ours_s, captum_s = own_clock.wall / len(chosen) / len(concepts), captum_clock.wall / len(chosen)
    cpu_ratio = captum_clock.cpu / len(chosen) / (own_clock.cpu / len(chosen) / len(concepts))
    note = steps[upper.name]
    first, again = note["passes"][0], sum(one["pairs"] for one in note["passes"][1:])
    flops = note["rule"][0] * (one_copy[0].flops * first["patches"] + one_copy[1].flops * first["pairs"])
    floor = flops / (best.bfloat16 if first["mixed"] else best.float32) / len(concepts)
    right = (None, None, None)
    if settings.reference_nodes:
        truth = converged(forward, inputs, lower, settings.reference_nodes)
        right = same(truth, theirs), same(truth, ours), gap(truth)
    return (
        name, f"{upper.name} <- {lower.name}", weights, len(concepts), captum_s, ours_s, captum_s / ours_s, cpu_ratio, same(theirs, ours),
        *right, gap(theirs), gap({neuron: ours[neuron] for neuron in chosen}), "{}, crowding {}".format(*note["rule"]),
        f"{again} of {first['pairs']}", floor, pass_clock.wall, n_rows,
    )  # fmt: skip


def loaded(name: str, settings: Settings, paths: Sequence[Path]) -> tuple[Classifier, str]:
    """A classifier from the assets, from local weights, or with random weights; and which of these."""
    if (settings.assets / name / "config.json").is_file():
        return load_classifier(ModelConfig(name=f"local-dir:{settings.assets / name}", crop_pct=1.0), settings.device), "trained"
    if any(info.name == name and info.weights_local for info in list_models(name)):
        return load_classifier(ModelConfig(name=name, crop_pct=1.0), settings.device), "trained"
    classifier = load_classifier(ModelConfig(name=name, random_weights=True, crop_pct=1.0), settings.device)
    calibrate(classifier, paths)
    return classifier, "random"


@torch.no_grad()
def calibrate(classifier: Classifier, paths: Sequence[Path]) -> None:
    """Give each BatchNorm random scales and shifts, and the statistics of a batch of photos."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in classifier.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    transform = classifier.preprocessing.transform()
    batch = torch.stack([transform(open_image(path, classifier.preprocessing.in_chans)) for path in paths[:16]])
    classifier.model(batch.to(classifier.device))
    classifier.model.eval()


def subject_of(classifier: Classifier, data: Path) -> Subject:
    """The classifier with what can be cut in it."""
    preprocessing = classifier.preprocessing
    return Subject(classifier, examine(classifier, (preprocessing.in_chans, *preprocessing.input_size)), scan(data))


def prepared(subject: Subject, layers: Sequence[Layer], paths: Sequence[Path], settings: Settings, folder: Path) -> _Analysis:
    """An analysis of the photos, as ``analyze`` makes it, whose stages are called one by one."""
    classifier = subject.classifier
    config = AnalysisConfig(
        model=classifier.config,
        data=settings.data,
        target="0",
        layers=tuple(layer.name for layer in layers[1:]),
        tau=CORE,
        top_k=settings.top_k,
        disk_mb=1 << 20,
        device=settings.device,
    )
    root = Path(subject.image_set.root)
    probe = [ProbeImage(number, path.relative_to(root).as_posix(), None, 0.0, 0.0) for number, path in enumerate(paths)]
    draft = Draft(Workspace(folder).run_folder("benchmark"), "benchmark")
    return _Analysis(config, subject, 0, layers, probe, native_bfloat16(classifier.device), draft, Silent())


def explained_neurons(analysis: _Analysis, layers: Sequence[Layer], settings: Settings) -> dict[int, tuple[int, ...]]:
    """Core neurons, in the upper layer, of the class that is predicted most; each with the patches that excite it most."""
    logits, upper, _ = layers
    scores = analysis.draft.open_rows(f"activations/{LOGITS}")
    whole = scores.read(range(len(scores)))
    predicted = int(np.bincount(whole[: len(analysis.probe)].argmax(1)).argmax())
    patches = concept(whole[:, predicted], settings.top_k)
    attribution = attributed(analysis, logits, upper, {predicted: patches})[predicted]
    chosen = core_neurons(attribution.channels, settings.targets)
    columns = analysis.draft.open_rows(f"activations/{upper.name}").columns(chosen)
    return {neuron: concept(column, settings.top_k) for neuron, column in zip(chosen, columns.T, strict=True)}


def attributed(analysis: _Analysis, upper: Layer, lower: Layer, concepts: dict[int, tuple[int, ...]]) -> dict[int, Attribution]:
    """``attribute`` of the pipeline, from the start however often it is called."""
    for note in (upper.name, f"{upper.name} again"):
        analysis.draft.note(note, 0)
    with analysis.progress.stage(upper.name) as tick:
        tables = analysis.attribute(tick, upper, lower, concepts, analysis.draft.open_rows(f"activations/{upper.name}"))
        return {neuron: tables[neuron].of(neuron, patches) for neuron, patches in concepts.items()}


def published(forward: Callable, at_cut: Tensor, neuron: int, lower: Layer, n_rows: int, steps: int) -> Attribution:
    """captum's integrated gradients of one neuron; (n_patches, ...) at the cut, ``n_rows`` of scaled patches in a pass."""
    parts = [
        IntegratedGradients(forward).attribute(some, target=neuron, n_steps=steps, internal_batch_size=n_rows).detach()
        for some in at_cut.split(n_rows)
    ]
    spread = torch.cat(parts).movedim(lower.channel_axis, 1).flatten(2)
    return Attribution(spread.mean(2).cpu().numpy(), spread.sum((1, 2)).cpu().numpy(), np.zeros(len(at_cut)))


@torch.no_grad()
def with_gap(found: Attribution, forward: Callable, at_cut: Tensor, neuron: int) -> Attribution:
    """What captum found, ``change`` holding the sums of attributions until now."""
    change = np.concatenate([(forward(some) - forward(torch.zeros_like(some)))[:, neuron].cpu().numpy() for some in at_cut.split(10)])
    return Attribution(found.channels, change, np.abs(found.change - change))


def fastest_rows(forward: Callable, at_cut: Tensor, neuron: int, device: str) -> int:
    """The number of rows in a pass with which captum takes the least time for a row."""
    seconds = {}
    for n_rows in ROWS["cuda" if device.startswith("cuda") else "cpu"]:
        some = at_cut[:n_rows]
        steps = 2 * max(1, n_rows // len(some))
        for _ in range(2):
            clock = Clock()
            with clock.running(device), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                IntegratedGradients(forward).attribute(some, target=neuron, n_steps=steps, internal_batch_size=n_rows)
            seconds[n_rows] = min(clock.wall / (steps * len(some)), seconds.get(n_rows, float("inf")))
    return min(seconds, key=seconds.get)


def converged(forward: Callable, inputs: dict[int, Tensor], lower: Layer, n_nodes: int) -> dict[int, Attribution]:
    """The same integrals in float32 with many nodes, even ones or crowded near the baseline, whichever adds up better on a few patches."""
    first, at_cut = next(iter(inputs.items()))
    trials = {crowding: many_nodes(forward, at_cut[:4], first, lower, n_nodes, crowding).relative_gap for crowding in CROWDING}
    best = min(trials, key=trials.get)
    return {neuron: many_nodes(forward, at_cut, neuron, lower, n_nodes, best) for neuron, at_cut in inputs.items()}


def many_nodes(forward: Callable, at_cut: Tensor, neuron: int, lower: Layer, n_nodes: int, crowding: float) -> Attribution:
    """Integrated gradients of one neuron in float32, a few patches at a time."""
    parts = [
        integrated_gradients(forward, some, [[neuron]] * len(some), lower.channel_axis, n_nodes, crowding, max_copies=50)
        for some in at_cut.split(10)
    ]
    return Attribution(*(np.concatenate(values) for values in zip(*((p.channels, p.change, p.gap) for p in parts), strict=True)))


def same(expected: dict[int, Attribution], found: dict[int, Attribution]) -> float:
    """Mean share of the expected core neurons that were found."""
    shares = []
    for neuron, attribution in expected.items():
        core = core_neurons(attribution.channels, CORE)
        shares.append(len(set(core) & set(core_neurons(found[neuron].channels, CORE))) / len(core))
    return float(np.mean(shares))


def gap(found: dict[int, Attribution]) -> float:
    """Sum of completeness gaps over the sum of changes of the function."""
    return float(sum(a.gap.sum() for a in found.values()) / sum(np.abs(a.change).sum() for a in found.values()))


if __name__ == "__main__":
    main()
