"""Flagged groups of several classes that are one thing."""

import json

import hand_made_debug
import numpy as np
import pytest

from neurflow_engine import silencer_file
from neurflow_engine.records import Damping, Filling, Layer
from neurflow_engine.store import SCHEMA, DebugReport
from neurflow_engine.sweep_marks import likeness, marks

N = 60
RNG = np.random.default_rng(0)
STAMPED = (np.arange(N) % 4 == 0).astype(float)  # presence of a stamp
STRIPES = (np.arange(N) % 7 == 0).astype(float)
DIRECTION = RNG.normal(size=16).astype(np.float32)


def noisy(presence: np.ndarray, seed: int) -> list[float]:
    return np.clip(presence + np.random.default_rng(seed).normal(scale=0.1, size=N), 0, 1).tolist()


@pytest.fixture
def report(tmp_path):
    """A function that writes a report of groups given by (presence, direction), each flagged unless it is said otherwise."""

    def write(name: str, groups: dict[str, tuple[list[float], np.ndarray | None]], unflagged: tuple[str, ...] = ()) -> DebugReport:
        folder = tmp_path / name
        folder.mkdir()
        images = [{"path": f"{number}.png", "true": "a", "predicted": "b", "probability": 1.0, "half": None} for number in range(N)]
        entries = [hand_made_debug.group(group, shown, misleading=group not in unflagged) for group, (shown, _) in groups.items()]
        silencers = {}
        for group, (_, along) in groups.items():
            layer = group.rpartition("/")[0]
            silencer = Filling(layer, (0,), (0.0,)) if along is None else Damping(layer, along, along, 0.0, "position")
            silencers[group] = (Layer(layer, 16, 1, (16, 4, 4)), silencer)
        silencer_file.write(folder / DebugReport.SILENCERS, silencers, {"run": name})
        about = {"schema": SCHEMA, "method": DebugReport.METHOD, "run": name, "images": images, "groups": entries}
        (folder / "manifest.json").write_text(json.dumps(about))
        return DebugReport(folder)

    return write


def test_groups_that_show_in_the_same_images_are_one_mark_in_whatever_layers_they_lie(report):
    found = marks(
        {
            "cat": report("one", {"layer1/contrast-1": (noisy(STAMPED, 1), DIRECTION)}),
            "dog": report("two", {"layer2/contrast-1": (noisy(STAMPED, 2), RNG.normal(size=16).astype(np.float32))}),
            "fox": report("three", {"layer1/contrast-1": (noisy(STRIPES, 3), RNG.normal(size=16).astype(np.float32))}),
        }
    )
    (mark,) = found
    assert mark.groups == (("cat", "layer1/contrast-1"), ("dog", "layer2/contrast-1"))
    assert mark.how == "presence"
    assert mark.similarity == pytest.approx(np.corrcoef(noisy(STAMPED, 1), noisy(STAMPED, 2))[0, 1])


def test_groups_are_compared_in_the_images_in_which_both_were_measured(report):
    one, other = noisy(STAMPED, 1), noisy(STAMPED, 2)
    reports = [report(name, {f"layer{number}/0": (shown, None)}) for number, (name, shown) in enumerate({"a": one, "b": other}.items())]
    reports[0].groups["layer0/0"]["presence"][:3] = [None] * 3
    reports[1].groups["layer1/0"]["presence"][-1] = None
    assert likeness((reports[0], "layer0/0"), (reports[1], "layer1/0")) == {
        "presence": pytest.approx(np.corrcoef(one[3:-1], other[3:-1])[0, 1])
    }


def test_directions_of_one_layer_are_one_mark_also_where_they_show_in_other_images_and_whichever_way_they_point(report):
    others = {"fox": report("three", {"layer2/contrast-1": (noisy(STRIPES, 5), DIRECTION)})}  # the same numbers in another layer
    (mark,) = marks(
        {
            "cat": report("one", {"layer1/contrast-1": (noisy(STAMPED, 1), DIRECTION)}),
            "dog": report("two", {"layer1/contrast-1": (noisy(1 - STAMPED, 2), -DIRECTION)}),
        }
        | others
    )
    assert {name for name, _ in mark.groups} == {"cat", "dog"}
    assert (mark.how, mark.similarity) == ("direction", pytest.approx(1.0))


def test_groups_of_one_class_or_not_flagged_are_no_mark(report):
    both = {"layer1/contrast-1": (noisy(STAMPED, 1), DIRECTION), "layer1/contrast-2": (noisy(STAMPED, 2), DIRECTION)}
    assert marks({"cat": report("one", both)}) == []
    unflagged = report("two", {"layer1/contrast-1": (noisy(STAMPED, 3), DIRECTION)}, ("layer1/contrast-1",))
    assert marks({"cat": report("three", both), "dog": unflagged}) == []
    assert marks({}) == []


def test_what_hangs_together_is_one_mark_and_its_likeness_is_that_of_the_weakest_link(report):
    middle = np.clip(0.5 * STAMPED + 0.5 * STRIPES, 0, 1)
    reports = {
        "cat": report("one", {"layer1/contrast-1": (noisy(STAMPED, 1), None)}),
        "dog": report("two", {"layer2/contrast-1": (noisy(middle, 2), None)}),
        "fox": report("three", {"layer3/contrast-1": (noisy(STRIPES, 3), None)}),
        "hen": report("four", {"layer1/contrast-1": (noisy(RNG.random(N), 4), None)}),
    }
    pair = {names: likeness(*((reports[name], reports[name].json["groups"][0]["id"]) for name in names))["presence"]
            for names in (("cat", "dog"), ("dog", "fox"), ("cat", "fox"))}  # fmt: skip
    linked = [value for value in pair.values() if value >= 0.7]
    found = marks(reports)
    assert len(linked) >= 1
    assert pair["cat", "fox"] < 0.7
    (mark,) = found
    assert mark.similarity == pytest.approx(min(linked))
    assert "hen" not in {name for name, _ in mark.groups}


def test_reports_on_other_images_are_compared_by_direction_alone(report):
    one = report("one", {"layer1/contrast-1": (noisy(STAMPED, 1), DIRECTION)})
    other = report("two", {"layer1/contrast-1": (noisy(STAMPED, 2), DIRECTION)})
    other.json["images"][0]["path"] = "elsewhere.png"
    assert set(likeness((one, "layer1/contrast-1"), (other, "layer1/contrast-1"))) == {"direction"}
