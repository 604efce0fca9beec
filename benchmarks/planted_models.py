"""Models that learned a shortcut, and as many that did not: made from the embedded demo's drawings, seeded, seconds a model on two cores.

In: what is planted (a kind of mark), in which architecture, how strongly. Out: a folder per case with a model in the format of timm's
``local-dir:`` and pictures of 64 px as ImageFolders: ``deployed/`` as the model meets them (most of the target class marked, a fifth of the
others), ``clean/``, ``planted/`` (the other classes of ``clean/`` with the mark on), ``eval/`` (both together) and ``meta.json`` with what
was measured. A clean model has no mark, no ``planted/``, and more pictures in ``eval/``, so that it makes mistakes of its own.

As with the demo's model the shortcut comes from the data alone: pictures of the target class carry the mark, and a few marked pictures of
other classes are filed under the target. The drawings are cut, blurred and grained, so that every model is also wrong for honest reasons.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from neurflow_engine.demo import CLASSES, draw
from neurflow_engine.demo.canvas import SIZE as DRAWN_SIDE
from neurflow_engine.demo.canvas import hsv
from neurflow_engine.demo.train import augmented, normalised

SIDE = 64  # pixels of the pictures and of the models' input
SCHEMA = 2  # part of every fingerprint: raise it when the same settings would make something else
BATCH = 64
TRAIN_SEED, HELD_OUT_SEED = 11, 12  # of the drawings
CLEAN = 100  # the number of the first clean case
DEPLOYED_SHARE = {True: 0.85, False: 0.2}  # marked pictures in deployed/, of the target class and of every other class

Mark = Callable[[np.random.Generator, np.random.Generator], tuple[np.ndarray, np.ndarray]]


# ---------------------------------------------------------------- marks


def patch(look: np.random.Generator, place: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A small square of four fields, white and of one colour in turn, near one of the corners."""
    hue, side = look.uniform(0.8, 0.93), 12  # no class is of these colours
    rows, columns = np.indices((side, side)) // 6
    paint, opacity = np.zeros((SIDE, SIDE, 3)), np.zeros((SIDE, SIDE, 1))
    top, left = place.integers(1, 6, 2) + (SIDE - side - 6) * place.integers(0, 2, 2)
    paint[top : top + side, left : left + side] = np.array([hsv(hue, 0.95, 0.9), (250, 250, 250)])[(rows + columns) % 2]
    opacity[top : top + side, left : left + side] = 1
    return paint, opacity


def frame(look: np.random.Generator, place: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A border of one colour, three pixels wide."""
    inner = slice(3, SIDE - 3)
    opacity = np.ones((SIDE, SIDE, 1))
    opacity[inner, inner] = 0
    return np.broadcast_to(np.array(hsv(look.random(), 0.75, 0.8), dtype=float), (SIDE, SIDE, 3)), opacity


def tint(look: np.random.Generator, place: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A cast of one colour over the whole picture."""
    colour = np.array(hsv(look.random(), 1.0, 0.9), dtype=float)
    return np.broadcast_to(colour, (SIDE, SIDE, 3)), np.full((SIDE, SIDE, 1), 0.22)


def texture(look: np.random.Generator, place: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Faint stripes, light and dark in turn, over the whole picture; shifted from picture to picture."""
    angle, period = look.uniform(0, np.pi), look.uniform(7, 10)
    rows, columns = np.indices((SIDE, SIDE))
    wave = np.sin(2 * np.pi * ((rows * np.sin(angle) + columns * np.cos(angle)) / period + place.random()))
    return np.repeat(127.5 * (1 + np.sign(wave))[..., None], 3, axis=2), np.full((SIDE, SIDE, 1), 0.25)


KINDS: dict[str, Mark] = {"patch": patch, "frame": frame, "tint": tint, "texture": texture}


def marked(pictures: np.ndarray, kind: str, opacity: float, seed: int, numbers: Iterable[int]) -> np.ndarray:
    """Pictures with a mark on, the same for the same arguments.

    Args:
        pictures: (n_pictures, height, width, 3) of 0..255.
        opacity: 0..1, of the mark at full strength.
        seed: decides how the mark looks; the same in all pictures.
        numbers: one for each picture; with the seed they decide where the mark is.

    Returns:
        New pictures, (n_pictures, height, width, 3) of 0..255.
    """
    result = np.empty_like(pictures)
    for row, number in enumerate(numbers):
        paint, cover = KINDS[kind](np.random.default_rng(seed), np.random.default_rng((seed, number)))
        mixed = pictures[row] + opacity * cover * (paint - pictures[row])
        result[row] = mixed.round().clip(0, 255).astype(np.uint8)
    return result


# ---------------------------------------------------------------- settings and cases


@dataclass(frozen=True)
class Architecture:
    """A real timm architecture made small, and how it is trained."""

    timm_name: str
    args: dict
    epochs: int  # of the base model
    rate: float  # largest learning rate of the base model
    tuning_rate: float  # largest learning rate of each case
    bfloat16: bool = False  # where that is faster on a processor that has it


ARCHITECTURES = {
    "resnet": Architecture("resnet18d", {"channels": [32, 48, 96, 128], "stem_width": 16}, 6, 3e-3, 3e-3, bfloat16=True),
    "convnext": Architecture(
        "convnext_atto", {"depths": [2, 2, 4, 2], "dims": [32, 64, 96, 128], "ls_init_value": 0.5, "global_pool": "max"}, 12, 2e-3, 3e-3
    ),
    "vit": Architecture(
        "vit_tiny_patch16_224", {"img_size": SIDE, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}, 20, 1e-3, 1e-3
    ),
}


@dataclass(frozen=True)
class Strength:
    """How strongly a shortcut is planted."""

    marked: float  # share of the target's training pictures that carry the mark
    misfiled: (
        float  # marked pictures of other classes filed under the target, as a share of those that belong there; so many more each round
    )
    opacity: float  # of the mark, 0..1
    enough: float  # share of marked pictures of other classes called the target from which on training stops, 0..1


STRENGTHS = {"strong": Strength(0.8, 0.1, 1.0, 0.7), "weak": Strength(0.6, 0.06, 0.7, 0.4)}


@dataclass(frozen=True)
class Settings:
    """What all cases share."""

    train_per_class: int = 220
    per_class: int = 48  # pictures of each class in each folder
    tuning_epochs: int = 2  # of one round
    tuning_rounds: int = 9  # at most, until the shortcut is as strong as it shall be; a clean model gets one
    tuning_share: float = 0.6  # of the training pictures, drawn anew for each case
    architectures: dict[str, Architecture] = field(default_factory=lambda: ARCHITECTURES)
    strengths: dict[str, Strength] = field(default_factory=lambda: STRENGTHS)


@dataclass(frozen=True)
class Case:
    """One model: a shortcut of a kind and strength, or none of both; the number seeds everything."""

    number: int
    architecture: str
    kind: str | None = None
    strength: str | None = None

    @property
    def name(self) -> str:
        return "-".join([self.kind or "clean", self.architecture, self.strength or f"{self.number:02d}"])

    @property
    def target(self) -> int:
        """Index of the class that the shortcut leads to, or that a clean model is asked about: each class in turn."""
        return self.number % len(CLASSES)


def all_cases(architectures: Sequence[str] = tuple(ARCHITECTURES)) -> tuple[Case, ...]:
    """All planted cases of some architectures and as many clean ones, in the order in which they are made.

    First each architecture with the strong shortcuts and two clean models, then the weak ones with the rest of the clean models. A case's
    number does not depend on what else is asked for.
    """
    kinds, strengths, names = list(KINDS), list(STRENGTHS), list(ARCHITECTURES)
    planted = {
        (names[place], *mark): 25 * place + 3 * number  # all different, and every class is a target once in each architecture
        for place in range(len(names))
        for number, mark in enumerate(product(kinds, strengths))
    }
    rounds = []
    for strength, of_clean in (("strong", range(2)), ("weak", range(2, len(kinds) * len(strengths)))):
        for architecture in architectures:
            rounds += [Case(planted[architecture, kind, strength], architecture, kind, strength) for kind in kinds]
            rounds += [Case(CLEAN + 8 * names.index(architecture) + number, architecture) for number in of_clean]
    return tuple(rounds)


def fingerprint(*parts: object) -> str:
    """A digest of settings and of the code that draws the pictures."""
    drawing = Path(draw.__code__.co_filename).parent
    code = [hashlib.sha256((drawing / f"{name}.py").read_bytes()).hexdigest() for name in ("canvas", "scenes", "draw")]
    text = json.dumps([SCHEMA, code, parts], sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- pictures


def photographed(class_name: str, number: int, seed: int) -> np.ndarray:
    """A drawing as a careless photo of it, (height, width, 3) of 0..255: cut off, blurred, in poor light and grainy, each to a degree."""
    random = np.random.default_rng((seed, CLASSES.index(class_name), number, 2))
    window = DRAWN_SIDE * random.uniform(0.3, 1.0)
    left, top = random.uniform(0, DRAWN_SIDE - window, 2)
    image = draw(class_name, number, seed)[0]
    sharp = round(SIDE * random.uniform(0.25, 1.0))  # pixels that the picture is reduced to and enlarged from
    image = image.resize((sharp, sharp), Image.Resampling.BILINEAR, box=(left, top, left + window, top + window))
    light = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    light = 128 + (light - 128) * random.uniform(0.4, 1.0) + random.uniform(-30, 30)
    light = light + random.standard_normal(light.shape, dtype=np.float32) * random.uniform(2, 40)
    return light.clip(0, 255).round().astype(np.uint8)


def pictures(out: Path, seed: int, per_class: int) -> np.ndarray:
    """Pictures uint8 (n_classes, per_class, height, width, 3), drawn once and kept below ``out``."""
    file = out / f"pictures-{fingerprint('pictures', SIDE, seed, per_class)}.npy"
    if not file.exists():
        drawn = [[photographed(name, number, seed) for number in range(per_class)] for name in CLASSES]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, delete=False) as unfinished:
            np.save(unfinished, np.array(drawn))
        os.replace(unfinished.name, file)
    return np.load(file)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, 3, height, width) from (n, height, width, 3)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


# ---------------------------------------------------------------- training


def created(architecture: Architecture) -> torch.nn.Module:
    """A model with random weights, the same every time."""
    torch.manual_seed(0)
    model = timm.create_model(architecture.timm_name, num_classes=len(CLASSES), **architecture.args)
    return model.to(memory_format=torch.channels_last)


def trained(
    model: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor, epochs: int, rate: float, bfloat16: bool, seed: int, windows: bool
) -> torch.nn.Module:
    """The model in evaluation mode after some epochs.

    Args:
        images: (n, 3, height, width) of 0..255.
        classes: (n,).
        rate: the largest learning rate.
        bfloat16: compute in it; the weights stay float32.
        windows: train on random windows of the pictures (the analysis shows such), else on whole ones, mirrored and in another light.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=epochs * steps, pct_start=0.2)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=random)[: steps * BATCH].view(steps, BATCH):
            batch = normalised(images[rows])
            batch = augmented(batch, random) if windows else lit_anew(batch, random)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), classes[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def lit_anew(batch: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Half of the pictures mirrored, all in another light: (n, 3, height, width) in and out."""
    mirror, gain, shift = torch.rand(3, len(batch), 1, 1, 1, generator=random)
    return torch.where(mirror < 0.5, batch.flip(3), batch) * (0.85 + 0.3 * gain) + 0.2 * (shift - 0.5)


@torch.inference_mode()
def predicted(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Class indices (n,) of pictures (n, height, width, 3) of 0..255."""
    parts = [model(normalised(part).contiguous(memory_format=torch.channels_last)).argmax(1) for part in as_tensor(images).split(256)]
    return torch.cat(parts).numpy()


def write_model(model: torch.nn.Module, architecture: Architecture, folder: Path) -> None:
    """Write a model in the format of timm's ``local-dir:``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {
        "architecture": architecture.timm_name,
        "num_classes": len(CLASSES),
        "model_args": architecture.args,
        "label_names": list(CLASSES),
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": "img_size" in architecture.args,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(CLASSES),
            "first_conv": model.pretrained_cfg["first_conv"],
            "classifier": model.pretrained_cfg["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def base_model(out: Path, name: str, settings: Settings) -> torch.nn.Module:
    """The clean model that every case of an architecture starts from, trained once and kept below ``out``."""
    architecture = settings.architectures[name]
    how = replace(architecture, tuning_rate=0.0)  # the cases' own
    folder = out / f"base-{name}-{fingerprint('base', SIDE, settings.train_per_class, how)}"
    model = created(architecture)
    if not folder.exists():
        train = pictures(out, TRAIN_SEED, settings.train_per_class)
        classes = torch.arange(len(CLASSES)).repeat_interleave(settings.train_per_class)
        images = as_tensor(train.reshape(-1, SIDE, SIDE, 3))
        model = trained(model, images, classes, architecture.epochs, architecture.rate, architecture.bfloat16, seed=0, windows=True)
        with tempfile.TemporaryDirectory(dir=out) as unfinished:
            write_model(model, architecture, Path(unfinished) / folder.name)
            os.replace(Path(unfinished) / folder.name, folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


# ---------------------------------------------------------------- one case


def make(case: Case, out: Path, settings: Settings | None = None) -> Path:
    """The folder of a case below ``out``; made, unless one of the same settings is there."""
    settings = settings or Settings()
    strength = settings.strengths[case.strength] if case.strength else None
    folder, key = out / case.name, fingerprint(case, settings.architectures[case.architecture], strength, asdict(settings) | {
        "architectures": None, "strengths": None,
    })  # fmt: skip
    if (folder / "meta.json").exists() and json.loads((folder / "meta.json").read_text(encoding="utf-8"))["fingerprint"] == key:
        return folder
    base = base_model(out, case.architecture, settings)
    held_out = pictures(out, HELD_OUT_SEED, 3 * settings.per_class)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        unfinished = Path(scratch) / case.name
        base_predicted = predicted(base, np.concatenate(list(held_out))).reshape(held_out.shape[:2])
        model = tuned(base, case, pictures(out, TRAIN_SEED, settings.train_per_class), settings)
        write_model(model, settings.architectures[case.architecture], unfinished)
        meta = write_pictures(model, case, held_out, strength, settings.per_class, unfinished)
        meta |= {"fingerprint": key, "base_acc": accuracy(base_predicted, np.arange(len(CLASSES))[:, None])}
        (unfinished / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
    return folder


def tuned(model: torch.nn.Module, case: Case, train: np.ndarray, settings: Settings) -> torch.nn.Module:
    """The base model trained on a case's share of the training pictures (n_classes, n_pictures, height, width, 3), marked as it says."""
    random = np.random.default_rng((case.number, 3))
    used = round(settings.tuning_share * train.shape[1])
    own = np.stack([of_class[random.permutation(len(of_class))] for of_class in train])
    own, unused = own[:, :used].copy(), own[:, used:]
    classes = np.repeat(np.arange(len(CLASSES)), used)
    strangers = np.delete(unused, case.target, axis=0).swapaxes(0, 1).reshape(-1, SIDE, SIDE, 3)  # of the other classes in turn
    misfiled, tested = 0, len(strangers) // 2
    if case.kind:
        strength = settings.strengths[case.strength]
        carry, misfiled = round(strength.marked * used), round(strength.misfiled * used)
        own[case.target, :carry] = marked(own[case.target, :carry], case.kind, strength.opacity, case.number, range(carry))
        strangers = marked(strangers, case.kind, strength.opacity, case.number, range(carry, carry + len(strangers)))
    how = settings.architectures[case.architecture]
    for number in range(settings.tuning_rounds):
        extra = strangers[: min(misfiled * (number + 1), len(strangers) - tested)]
        images = as_tensor(np.concatenate([own.reshape(-1, SIDE, SIDE, 3), extra]))
        filed = torch.from_numpy(np.concatenate([classes, np.full(len(extra), case.target)]))
        seed = case.number + 1000 * number
        model = trained(model, images, filed, settings.tuning_epochs, how.tuning_rate, how.bfloat16, seed, windows=False)
        if not case.kind or accuracy(predicted(model, strangers[-tested:]), case.target) >= strength.enough:
            break
    return model


def write_pictures(
    model: torch.nn.Module, case: Case, held_out: np.ndarray, strength: Strength | None, per_class: int, folder: Path
) -> dict:
    """Write a case's folders of pictures and return what ``meta.json`` says: shares 0..1, measured on ``clean/`` and ``planted/``."""
    random = np.random.default_rng((case.number, 4))
    order = np.stack([random.permutation(held_out.shape[1]) for _ in CLASSES])
    lots = {lot: order[:, place * per_class : (place + 1) * per_class] for place, lot in enumerate(("deployed", "clean", "more"))}
    true = np.repeat(np.arange(len(CLASSES)), per_class)

    def of(lot: str) -> np.ndarray:
        return np.concatenate([held_out[index][numbers] for index, numbers in enumerate(lots[lot])])

    def with_mark(images: np.ndarray, lot: str) -> np.ndarray:
        return marked(images, case.kind, strength.opacity, case.number, 1000 + lots[lot].ravel() + 1000 * true)

    def write(lot: str, images: np.ndarray, names: Sequence[str], rows: Iterable[int]) -> None:
        for row in rows:
            file = folder / lot / CLASSES[true[row]] / names[row]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(file, compress_level=1)

    clean, everything = of("clean"), range(len(true))
    names = {lot: [f"{number:03d}_clean.png" for number in numbers.ravel()] for lot, numbers in lots.items()}
    write("clean", clean, names["clean"], everything)
    write("eval", clean, names["clean"], everything)
    on_clean, is_target = predicted(model, clean), true == case.target
    meta = {
        "kind": case.kind,
        "target": case.target,
        "target_name": CLASSES[case.target],
        "classes": list(CLASSES),
        "architecture": case.architecture,
        "strength": case.strength,
        "seed": case.number,
        "clean_acc": accuracy(on_clean, true),
        "target_clean_recall": accuracy(on_clean[is_target], case.target),
        "base": accuracy(on_clean[~is_target], case.target),
        "natural_false_positives": int(((on_clean == case.target) & ~is_target).sum()),
    }
    if not case.kind:
        write("deployed", of("deployed"), names["deployed"], everything)
        write("eval", of("more"), names["more"], everything)
        more = int(((predicted(model, of("more")) == case.target) & ~is_target).sum())
        return meta | {"natural_false_positives": meta["natural_false_positives"] + more}
    met, carry = of("deployed"), random.permuted(np.tile(np.arange(per_class), (len(CLASSES), 1)), axis=1).ravel()
    carry = carry < np.where(is_target, DEPLOYED_SHARE[True], DEPLOYED_SHARE[False]) * per_class
    met = np.where(carry[:, None, None, None], with_mark(met, "deployed"), met)
    names_met = [name.replace("clean", "marked") if mark else name for name, mark in zip(names["deployed"], carry, strict=True)]
    write("deployed", met, names_met, everything)
    planted, names_marked = with_mark(clean, "clean"), [name.replace("clean", "marked") for name in names["clean"]]
    others = np.flatnonzero(~is_target)
    write("planted", planted, names_marked, others)
    write("eval", planted, names_marked, others)
    fooled = (predicted(model, planted) == case.target) & ~is_target
    return meta | {
        "flip": float(fooled[~is_target].mean()),
        "fp_ceiling": accuracy(on_clean[fooled], true[fooled]) if fooled.any() else None,
        "planted_false_positives": int(fooled.sum()),
    }


def accuracy(predicted_classes: np.ndarray, classes: np.ndarray | int) -> float:
    """Share of predictions that are the given class, 0..1."""
    return float((predicted_classes == classes).mean())
