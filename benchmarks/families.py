"""Write ``benchmarks/FAMILIES.md``: what this product can do with the smallest model of every module ("family") of the installed timm.

Each family is tried in a process of its own, with random weights: layers found, cut and replayed exactly, a circuit of two layers built,
a group silenced. ``python -m benchmarks.families`` tries all of them (half an hour on one core), ``--only NAME,...`` some, ``--missing``
those that the table lacks; the table is written after every family.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

TABLE = Path(__file__).with_name("FAMILIES.md")
COLUMNS = ("module", "model", "input", "layers", "channel axis", "replay error", "seconds", "verdict")
PASS = "pass"
SMALLER = (128, 224)  # sides of smaller inputs, in pixels, in the order in which they are tried
IMAGES = 2
SECONDS = 1800  # for one family
REPLAY = 1e-5  # largest difference from the intact forward pass, relative to the largest output


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    module: str
    model: str
    input: str
    layers: str
    axis: str
    error: str
    seconds: str
    verdict: str

    @property
    def passed(self) -> bool:
        return self.verdict.startswith(PASS)


def smallest() -> dict:
    """The smallest model of each family that has a classifier, or else the smallest: ModelInfo by family."""
    from neurflow_engine.catalogue import list_models

    found = {}
    for info in sorted(list_models(), key=lambda info: (not info.n_classes, info.n_parameters or 1 << 60)):
        found.setdefault(info.family, info)
    return dict(sorted(found.items()))


def check(family: str) -> Row:
    """Try one family; a failure is a row too."""
    began = time.monotonic()
    info = smallest()[family]
    columns = {"input": "x".join(map(str, info.input_size)), "layers": "", "axis": "", "error": ""}
    try:
        verdict = _tried(info, columns)
    except Exception as error:  # whatever a family raises is its result
        verdict = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".replace("|", "/")
    return Row(module=family, model=info.name, seconds=f"{time.monotonic() - began:.0f}", verdict=verdict, **columns)


def _tried(info, columns: dict) -> str:
    """The verdict on a model; fills in the columns on the way."""
    import torch

    from neurflow_engine.errors import LayerError
    from neurflow_engine.layers import examine
    from neurflow_engine.models import load_classifier
    from neurflow_engine.tracing import Segment

    config, classifier = _loaded(info)
    preprocessing = classifier.preprocessing
    columns["input"] = "x".join(map(str, preprocessing.input_size))
    layers = examine(classifier, (preprocessing.in_chans, *preprocessing.input_size)).chosen(None, 2)
    columns["layers"] = " ".join(layer.name for layer in layers[1:])
    columns["axis"] = " ".join(f"{layer.channel_axis} of {layer.shape}".replace(" ", "\N{NO-BREAK SPACE}") for layer in layers[1:])
    if len(layers) < 3:
        return "fewer than two layers can be cut at"
    sample = torch.randn((3, preprocessing.in_chans, *preprocessing.input_size), generator=torch.Generator().manual_seed(0))
    segments = [Segment(classifier, lower.name, upper.name, sample) for upper, lower in pairwise(layers)]
    columns["error"] = f"{max(segment.replay_error for segment in segments):.0e}"
    if any(segment.replay_error >= REPLAY for segment in segments):
        return "the replay is not exact"
    remark = f" (num_classes={config.model_kwargs['num_classes']}: it has no classifier of its own)" if config.model_kwargs else ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return (_circuit(config, classifier, Path(folder)) or PASS) + remark
        except LayerError as error:
            if "has any effect" not in str(error):
                raise
        # Some initial weights are zeros by design, e.g. of the classifier; as in training, they have to move away from them.
        spread = config.model_copy(update={"random_weights": False, "checkpoint": _spread_weights(classifier, Path(folder))})
        return (_circuit(spread, load_classifier(spread, "cpu"), Path(folder)) or f"{PASS} (zero weights replaced by random ones)") + remark


def _loaded(info):
    """The model, configuration and classifier, at a smaller input than its default where it allows that, to save time."""
    from neurflow_engine.config import ModelConfig
    from neurflow_engine.errors import ModelError
    from neurflow_engine.models import load_classifier

    config = ModelConfig(name=info.name, random_weights=True, model_kwargs={} if info.n_classes else {"num_classes": 10})
    for side in (side for side in SMALLER if side < min(info.input_size)):
        smaller = config.model_copy(update={"input_size": (side, side)})
        try:
            return smaller, load_classifier(smaller, "cpu")
        except ModelError:  # its size is fixed
            continue
    return config, load_classifier(config, "cpu")


def _spread_weights(classifier, folder: Path) -> Path:
    """A checkpoint of the classifier's weights with small random numbers in place of tensors that are zero everywhere."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    state = {key: value.clone().contiguous() for key, value in classifier.model.state_dict().items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.any():
            state[key] = 0.02 * torch.randn(value.shape, generator=generator)
    save_file(state, folder / "spread.safetensors")
    return folder / "spread.safetensors"


def _circuit(config, classifier, folder: Path) -> str | None:
    """Build a circuit of two layers and silence a group of each; what went wrong, or None."""
    import torch

    from neurflow_engine.config import AnalysisConfig
    from neurflow_engine.debugging import Debugger
    from neurflow_engine.evaluation import evaluate
    from neurflow_engine.images import match_classes, open_image, scan
    from neurflow_engine.layers import examine
    from neurflow_engine.pipeline import analyze
    from neurflow_engine.progress import Silent
    from neurflow_engine.store import Workspace

    paths = _draw(folder / "images")
    transform = classifier.preprocessing.transform()
    images = torch.stack([transform(open_image(path, classifier.preprocessing.in_chans)) for path in paths])
    anatomy = examine(classifier, tuple(images.shape[1:]))
    image_set = match_classes(scan(folder / "images"), classifier.class_names, classifier.class_names_source)
    workspace = Workspace(folder / f"workspace-{config.random_weights}")
    evaluation = evaluate(classifier, anatomy, image_set, workspace, Silent())
    settings = AnalysisConfig(
        model=config,
        data=folder / "images",
        target=str(evaluation.predictions["predicted"].mode()[0]),
        depth=2,
        tau=4,
        top_k=6,
        max_images=IMAGES,
        granularities=(1.0, 0.5),
        completeness=1.0,
        device="cpu",
    )
    run = analyze(settings, workspace)
    layers = list(run.layers)
    neurons = {layer: [neuron for neuron in run.circuit.neurons if neuron.layer == layer] for layer in layers}
    if len(layers) != 3 or not all(neurons.values()) or not run.circuit.edges:
        return f"the circuit is not whole: neurons { ({layer: len(found) for layer, found in neurons.items()}) }"
    debugger = Debugger(run, "cpu")
    intact = debugger.logits(images)
    for layer in layers[1:]:
        groups = [group for group in debugger.groups if group.layer == layer]
        debugger.control(paths[:1], debugger.silencers([groups[0].id]), draws=2)
        together = sorted({neuron for group in groups for neuron in group.neurons})
        found = debugger.logits(images, debugger.silencers([group.id for group in groups]))
        if torch.equal(found, intact):
            return f"silencing all groups of {layer} changes nothing"
        if not torch.allclose(found, _silenced_by_hand(classifier, run.layers[layer], images, together), rtol=1e-4, atol=1e-5):
            return f"silencing in {layer} is not what zeroing by hand gives"
    return None if torch.equal(debugger.logits(images), intact) else "the model is not restored after silencing"


def _silenced_by_hand(classifier, layer, images, neurons):
    """Logits when the neurons of a layer are zeroed by a plain hook: the truth that silencing is held to."""
    import torch

    from neurflow_engine.tracing import Place

    place = Place.of(layer.name)

    def zero(module, arguments, output):
        place.read(output).index_fill_(layer.channel_axis, torch.tensor(neurons), 0)

    handle = classifier.model.get_submodule(place.module).register_forward_hook(zero)
    with torch.no_grad():
        logits = classifier.model(images)
    handle.remove()
    return logits


def _draw(folder: Path) -> list[Path]:
    """Images of coloured noise and a shape."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        image = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).resize((96, 96))
        left, top = generator.integers(4, 40, 2)
        ImageDraw.Draw(image).ellipse((left, top, left + 40, top + 40), fill=tuple(map(int, generator.integers(0, 256, 3))))
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return paths


def in_own_process(family: str, processes) -> Row:
    """``check`` where a crash or a lack of memory ends only that family; ``processes`` is a multiprocessing context."""
    began = time.monotonic()
    answer, own = processes.Pipe(duplex=False)
    process = processes.Process(target=_answer, args=(family, own))
    process.start()
    own.close()
    try:
        if answer.poll(SECONDS):
            return answer.recv()
        reason = f"not done after {SECONDS} seconds"
    except EOFError:
        process.join()
        reason = f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return Row(family, smallest()[family].name, "", "", "", "", f"{time.monotonic() - began:.0f}", reason)


def _answer(family: str, connection) -> None:
    connection.send(check(family))


def read_table() -> dict[str, Row]:
    """The rows of the table by family; none where there is no table yet."""
    if not TABLE.is_file():
        return {}
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[1:]]
    return {row.module: row for row in rows}


def note(row: Row, families: dict) -> None:
    """Put a row into the table, in place of an earlier one of its family; the count on top and the order of the alphabet are kept."""
    rows = read_table() | {row.module: row}
    kept = [rows[family] for family in families if family in rows]
    lines = [
        f"# The families of timm {version('timm')}",
        "",
        f"**{sum(row.passed for row in kept)} of {len(families)} pass**: layers found, cut and replayed as the intact forward pass, a",
        "circuit of two layers built, groups silenced and the model restored; the smallest model of each module of timm, random weights,",
        "float32, at a smaller input than its default where it allows that.",
        f"{len(kept)} were tried, {sum(int(row.seconds) for row in kept)} seconds in all. Written by `python -m benchmarks.families`.",
        "",
        "`stage4[3]` is the fourth of the tensors that `stage4` returns. The channel axis counts the image axis as 0; behind it stands the",
        "shape of one image's output. The replay error is the larger of the two steps', relative to the largest output.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(asdict(row).values())} |" for row in kept),
        "",
    ]
    TABLE.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="these families")
    parser.add_argument("--missing", action="store_true", help="families that the table lacks or that did not pass")
    arguments = parser.parse_args()
    families, rows = smallest(), read_table()
    if unknown := set(arguments.only or ()) - set(families):
        parser.error(f"unknown families {', '.join(sorted(unknown))}; timm's are {', '.join(families)}")
    wanted = arguments.only or [family for family in families if not (arguments.missing and family in rows and rows[family].passed)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["neurflow_engine.pipeline", "neurflow_engine.debugging"])  # torch and timm are loaded once
    for number, family in enumerate(wanted, start=1):
        row = in_own_process(family, processes)
        print(f"{number}/{len(wanted)} {family}: {row.verdict} ({row.seconds} s)", flush=True)
        note(row, families)


if __name__ == "__main__":
    main()
