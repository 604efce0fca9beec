"""Write ``neurflow_engine/timm_models.csv``: what there is to know about every architecture of the installed timm before building it.

Run it after an update of timm: ``python benchmarks/model_table.py`` (minutes; networks are built without memory, on torch's meta device).
"""

import csv
import sys

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models._registry import _model_to_module  # timm offers the way from family to names only
from tqdm import tqdm

from neurflow_engine.catalogue import TABLE

COLUMNS = ("name", "family", "height", "width", "classes", "parameters", "stages", "weights")


def described(name: str) -> dict:
    """One row of the table; parameters and stages are empty where the network cannot be built without memory."""
    source = get_pretrained_cfg(name)
    _, height, width = source.input_size
    row = {"name": name, "family": _model_to_module[name], "height": height, "width": width, "classes": source.num_classes}
    row["weights"] = source.hf_hub_id or source.url
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception as error:  # whatever keeps one of more than a thousand constructors from running on the meta device
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return row
    places = dict(model.named_modules())
    stages = [stage["module"] for stage in getattr(model, "feature_info", None) or [] if stage.get("module") in places]
    return row | {"parameters": sum(weight.numel() for weight in model.parameters()), "stages": " ".join(dict.fromkeys(stages))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [described(name) for name in tqdm(timm.list_models())]
    with open(TABLE, "w", newline="", encoding="utf-8") as file:
        file.write(f"# timm {timm.__version__}\n")
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
