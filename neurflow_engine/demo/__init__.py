"""The embedded demo: images drawn by code, and a small model that learned a shortcut on them. Imports neither torch nor timm."""

from pathlib import Path

from neurflow_engine.demo.draw import CLASSES, IMAGE_SEED, TARGET, draw, write_images

MODEL_FOLDER = Path(__file__).parent / "model"  # for timm: f"local-dir:{MODEL_FOLDER}"
SETTINGS = {"max_images": 40}  # of the demo's analysis, where they differ from the defaults

__all__ = ["CLASSES", "IMAGE_SEED", "MODEL_FOLDER", "SETTINGS", "TARGET", "draw", "write_images"]
