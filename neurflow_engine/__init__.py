"""The engine of NeurFlow Debugger: from a timm model and a folder of images to a circuit, and to what misleads the model.

>>> from neurflow_engine import AnalysisConfig, ModelConfig, Workspace, analyze  # doctest: +SKIP
>>> config = AnalysisConfig(model=ModelConfig(name="resnet50"), data="photos", target="red panda")  # doctest: +SKIP
>>> analyze(config, Workspace()).circuit.groups  # doctest: +SKIP

Nothing heavy is imported before one of the names below is used.
"""

import os
from importlib import import_module

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. Spinning makes an analysis several times
# slower as soon as anything else, such as the app's own server, wants one of few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {
    "AnalysisConfig": "config",
    "ModelConfig": "config",
    "NeurflowError": "errors",
    "Workspace": "store",
    "Run": "store",
    "analyze": "pipeline",
    "Debugger": "debugging",
    "find_misleading": "misleading",
    "apply_fix": "fix",
    "write_fix": "fix",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"neurflow_engine.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
