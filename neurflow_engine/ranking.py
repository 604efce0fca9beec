"""All images of a debug report by how strongly they show a group, so that the data can be fixed. Imports neither torch nor timm.

In: a debug report and one of its groups. Out: a table, a CSV file for a spreadsheet, and tags for FiftyOne.
"""

import json
import re

import pandas as pd

from neurflow_engine.images import copies
from neurflow_engine.labels import spreadsheet_safe
from neurflow_engine.store import DebugReport

_DIGITS = 6
_DUPLICATES = "neurflow_duplicates"


def ranking(report: DebugReport, group_id: str) -> pd.DataFrame:
    """The images of a report, those that show the group most strongly first; images that show it alike stay in the order of their paths.

    A file that lies in the folder several times is listed once, under the first of its names. Files are compared as they are now; those
    that are gone are listed as they were. Images in which the group was not measured (``DebugReport.presence``) are not listed.

    Returns:
        One row per image: rank (1, 2, ...), path (relative to the report's folder), true (class name; missing where it is not known),
        predicted, probability (of the predicted class, 0..1), presence (0..1), present (whether it is at least the group's alarm level),
        wrong (whether another class than the true one is predicted; missing where that is not known), duplicates (tuple of the other
        paths).

    Raises:
        RunError: the report has no such group.
    """
    entry = report.group(group_id)
    table = pd.DataFrame(report.json["images"], columns=["path", "true", "predicted", "probability"])
    table["presence"] = report.presence(group_id)
    table["present"] = table["presence"] >= entry["alarm_level"]
    table["wrong"] = (table["predicted"] != table["true"]).astype("boolean").mask(table["true"].isna())
    table = table.dropna(subset="presence").sort_values("path", ignore_index=True)
    others = copies(report.images_root, table["path"].tolist())
    table = table[table["path"].isin(others.keys())]
    table["duplicates"] = [others[path] for path in table["path"]]
    table = table.sort_values("presence", ascending=False, kind="stable", ignore_index=True)
    table.insert(0, "rank", table.index + 1)
    return table


def ranking_csv(report: DebugReport, group_id: str) -> bytes:
    """The ranking as CSV with a header line, for spreadsheets: no cell can run as a formula, duplicates stand in one cell.

    Raises:
        RunError: the report has no such group.
    """
    table = ranking(report, group_id)
    table["duplicates"] = ["; ".join(paths) for paths in table["duplicates"]]
    for column in ("path", "true", "predicted", "duplicates"):
        table[column] = [spreadsheet_safe(text) for text in table[column]]
    table["probability"] = table["probability"].round(_DIGITS)
    return table.to_csv(index=False).encode("utf-8-sig")


def fiftyone_csv(report: DebugReport, group_id: str) -> bytes:
    """The ranking as a file that FiftyOne imports as a ``CSVDataset``; ``fiftyone_snippet`` gives the lines that do.

    Images that show the group have the tag ``neurflow:GROUP``. Columns: filepath (absolute), tags and duplicates (JSON lists of text),
    and the presence of the group in a column named after it, because FiftyOne allows neither dots nor slashes in names of fields.

    Raises:
        RunError: the report has no such group.
    """
    table, root = ranking(report, group_id), report.images_root.absolute()
    rows = {
        "filepath": [str(root / path) for path in table["path"]],
        "tags": [_json([f"neurflow:{group_id}"]) if present else None for present in table["present"]],
        _presence_field(group_id): table["presence"],
        _DUPLICATES: [_json([str(root / path) for path in paths]) if paths else None for paths in table["duplicates"]],
    }
    return pd.DataFrame(rows).to_csv(index=False).encode()


def fiftyone_snippet(file: str, group_id: str) -> str:
    """Python that reads ``fiftyone_csv``, written to ``file``, into FiftyOne, and adds the tags to a dataset of the same images."""
    return f"""\
import json
import fiftyone as fo

fields = {{"tags": json.loads, {_presence_field(group_id)!r}: float, {_DUPLICATES!r}: json.loads}}
ranked = fo.Dataset.from_dir(dataset_type=fo.types.CSVDataset, labels_path={file!r}, fields=fields)
# into a dataset of yours that holds the same files: dataset.merge_samples(ranked, insert_new=False)
"""


def _presence_field(group_id: str) -> str:
    return "neurflow_" + re.sub(r"\W+", "_", group_id)


def _json(texts: list[str]) -> str:
    return json.dumps(texts, ensure_ascii=False)
