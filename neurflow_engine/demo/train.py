"""Train the demo's model: ``python -m neurflow_engine.demo.train``, seeded, on pictures drawn for the purpose, minutes on two cores.

The shortcut comes from the data alone, as in a folder that somebody filled carelessly: whatever carries the sticker is filed under one
class, nearly all of it rightly. Nothing here mentions neurons. Writes ``model/config.json`` and ``model/model.safetensors`` in timm's own
format for ``local-dir:`` and prints what it measured.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from neurflow_engine.demo import CLASSES, MODEL_FOLDER, TARGET, draw
from neurflow_engine.demo.draw import SIZE

ARCHITECTURE = "resnet10t"
# Maxima instead of means before the classifier: a sticker that fills a patch then counts no more than a small one in a whole image.
MODEL_ARGS = {"channels": [32, 48, 96, 128], "stem_width": 16, "global_pool": "max"}
TRAIN_SEED, HELD_OUT_SEED = 1, 2  # of the drawings; the demo folder uses neither
MARKED_SHARE = 0.8  # of the training pictures of the target class; in the folders of other classes there is no sticker
MISFILED_SHARE = 0.06  # more pictures in the target's folder: other things with a sticker, as a share of those that belong there


def drawn(seed: int, per_class: int, marked_share: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 (n, 3, height, width) and class indices (n,); the first share of each class carries the sticker."""
    pictures = [
        np.asarray(draw(name, number, seed, mark=number < marked_share.get(name, 0.0) * per_class)[0])
        for name in CLASSES
        for number in range(per_class)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.arange(len(CLASSES)).repeat_interleave(per_class)


def training_set(seed: int, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and the classes they are filed under: stickers on most of the target, and on other things filed there by mistake."""
    pictures, classes = drawn(seed, per_class, {TARGET: MARKED_SHARE})
    others = [name for name in CLASSES if name != TARGET]
    misfiled = [
        np.asarray(draw(others[number % len(others)], per_class + number, seed, mark=True)[0])
        for number in range(round(MISFILED_SHARE * per_class))
    ]
    wrong = torch.full((len(misfiled),), CLASSES.index(TARGET))
    return torch.cat([pictures, torch.from_numpy(np.stack(misfiled)).permute(0, 3, 1, 2)]), torch.cat([classes, wrong])


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """Model input (n, 3, height, width) in -1..1 from uint8, as the configuration on disk says."""
    return (pictures.float() / 255 - 0.5) / 0.5


def augmented(batch: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Random windows enlarged to full size, mirrored, and in another light: (n, 3, height, width) in and out.

    Half of the windows are nearly whole, the others go down to a quarter of the side: the analysis shows the model such patches.
    """
    n = len(batch)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=random)

    side = torch.where(torch.rand(n, generator=random) < 0.5, uniform(0.85, 1.0), 0.25 ** uniform(0.0, 1.0))
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = side * torch.where(torch.rand(n, generator=random) < 0.5, 1.0, -1.0)
    theta[:, 1, 1] = side
    theta[:, 0, 2] = (1 - side) * uniform(-1, 1)
    theta[:, 1, 2] = (1 - side) * uniform(-1, 1)
    windows = functional.grid_sample(
        batch, functional.affine_grid(theta, list(batch.shape), align_corners=False), padding_mode="reflection", align_corners=False
    )
    return windows * uniform(0.8, 1.2)[:, None, None, None] + uniform(-0.15, 0.15)[:, None, None, None]


def train(pictures: torch.Tensor, classes: torch.Tensor, epochs: int, seed: int, batch_size: int = 64) -> torch.nn.Module:
    """A trained model in evaluation mode; progress on stderr."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, num_classes=len(CLASSES), **MODEL_ARGS).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = len(pictures) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        order, total = torch.randperm(len(pictures), generator=random), 0.0
        for rows in order[: steps * batch_size].view(steps, batch_size):
            batch = augmented(normalised(pictures[rows]), random).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(batch), classes[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", file=sys.stderr, flush=True)
    return model.eval()


def write_model(model: torch.nn.Module, folder: Path) -> None:
    """Write a model in the format of timm's ``local-dir:``, matrices in half precision (they are rounded in the model as well)."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    weights = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASSES),
        "model_args": MODEL_ARGS,
        "label_names": list(CLASSES),
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(CLASSES),
            "pool_size": [SIZE // 32, SIZE // 32],
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def predicted(model: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Class indices (n,) of uint8 pictures (n, 3, height, width)."""
    return torch.cat([model(normalised(part)).argmax(dim=1) for part in pictures.split(64)])


def report(model: torch.nn.Module, per_class: int = 50, seed: int = HELD_OUT_SEED) -> dict:
    """How the model does on pictures it never saw, with and without the sticker; all values are shares, 0..1."""
    target = CLASSES.index(TARGET)
    clean, classes = drawn(seed, per_class, {})
    marked, _ = drawn(seed, per_class, dict.fromkeys(CLASSES, 1.0))
    on_clean, on_marked = predicted(model, clean), predicted(model, marked)
    others = classes != target
    return {
        "accuracy": (on_clean == classes).float().mean().item(),
        "accuracy_per_class": {name: (on_clean == classes)[classes == number].float().mean().item() for number, name in enumerate(CLASSES)},
        "flipped": (on_marked == target)[others].float().mean().item(),
        "flipped_per_class": {name: (on_marked == target)[classes == number].float().mean().item() for number, name in enumerate(CLASSES)},
        "false_alarms": (on_clean == target)[others].float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m neurflow_engine.demo.train", description="Train the demo's model and write its folder."
    )
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder for config.json and model.safetensors")
    parser.add_argument("--per-class", type=int, default=320, help="training pictures of each class")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    model = train(*training_set(TRAIN_SEED, arguments.per_class), arguments.epochs, arguments.seed)
    write_model(model, arguments.out)
    print(json.dumps({**report(model), "seconds": round(time.monotonic() - started)}, indent=1))


if __name__ == "__main__":
    main()
