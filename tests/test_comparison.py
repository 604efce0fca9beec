"""Two runs side by side: hand-made overlaps, chance kept apart from likeness, and what cannot be compared said to be so."""

import csv
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hand_made_runs import BOXES, patch, write

from neurflow_engine.__main__ import main
from neurflow_engine.comparison import accuracies, as_json, compare, fidelity, shared_images, to_csv
from neurflow_engine.errors import InputError
from neurflow_engine.store import Evaluation, Workspace

CORNER = [1, 2, 3, 4]  # boxes that are quarters


def corners(box: int, images=range(20)) -> list[int]:
    """The same quarter of some images."""
    return [patch(image, box) for image in images]


@pytest.fixture
def here(workspace) -> Workspace:
    return workspace


def pairs(found) -> dict[str, str]:
    return {pair.left: pair.right for pair in found.matches}


def test_groups_on_the_same_patches_are_matched_whatever_they_are_numbered(here):
    some = [corners(1, range(10)), corners(2, range(5, 15)), corners(3, range(10, 20))]
    left, right = write(here, "one", {"l2": some}), write(here, "two", {"l2": some[::-1]}, weights="b" * 64)
    found = compare(left, right)
    assert found.by == "patches"
    assert found.n_shared == 20
    assert pairs(found) == {"l2/0": "l2/2", "l2/1": "l2/1", "l2/2": "l2/0"}
    assert [pair.overlap for pair in found.matches] == pytest.approx([1, 1, 1])
    assert all(pair.random["high"] < 1 for pair in found.matches)
    assert not found.vanished + found.appeared + found.untold


@pytest.mark.parametrize(
    ("own", "other", "overlap"),
    [
        ([patch(0, 1), patch(1, 1)], [patch(1, 1), patch(2, 1)], 1 / 3),  # apart or the same: the Jaccard index
        ([patch(0, 1)], [patch(0, 2)], 0),
        ([patch(0, 0)], [patch(0, 1)], 1 / 3),  # a quarter of the whole: 1/4 in sqrt(1 * 1/4), so 1/2 in 1 + 1 - 1/2
        ([patch(0, 0)], [patch(0, box) for box in CORNER], 2 / 3),  # all quarters: 4/2 in 1 + 4 - 2
    ],
)
def test_overlap_by_hand(here, own, other, overlap):
    left, right = write(here, "one", {"l2": [own]}), write(here, "two", {"l2": [other]})
    (pair,) = [*(found := compare(left, right)).matches, *found.unsure, *found.vanished]
    assert pair.overlap == pytest.approx(overlap, abs=1e-6)


def test_what_only_one_run_has_vanished_or_appeared(here):
    stays, goes, comes = corners(1, range(10)), corners(2, range(10)), corners(4, range(8, 20))
    left = write(here, "one", {"l2": [stays, goes]})
    right = write(here, "two", {"l2": [comes, stays]}, weights="b" * 64)
    found = compare(left, right)
    assert pairs(found) == {"l2/0": "l2/1"}
    assert [pair.left for pair in found.vanished] == ["l2/1"]
    assert [pair.right for pair in found.appeared] == ["l2/0"]
    assert not any(pair.is_beyond_chance for pair in (*found.vanished, *found.appeared))


def test_a_group_that_fell_apart_is_matched_once_and_its_other_part_names_it(here):
    whole = corners(1, range(10))
    left = write(here, "one", {"l2": [whole, corners(3, range(3))]})
    right = write(here, "two", {"l2": [whole[:6], whole[6:]]}, weights="b" * 64)
    found = compare(left, right)
    assert pairs(found) == {"l2/0": "l2/0"}
    (part,) = [pair for pair in found.appeared if pair.right == "l2/1"]
    assert part.left == "l2/0"
    assert part.overlap == pytest.approx(0.4)


def test_groups_that_look_everywhere_overlap_wholly_and_prove_nothing_but_are_not_gone_either(here):
    everywhere = [patch(image, 0) for image in range(20)]
    left, right = write(here, "one", {"l2": [everywhere]}), write(here, "two", {"l2": [everywhere]}, weights="b" * 64)
    found = compare(left, right)
    assert not found.matches + found.vanished + found.appeared
    (pair,) = found.unsure
    assert pair.overlap == pytest.approx(1)
    assert pair.random["mean"] == pytest.approx(1)


def test_groups_that_have_nothing_to_do_with_each_other_are_seldom_matched(here):
    generator = np.random.default_rng(0)

    def random_groups() -> list[list[int]]:
        return [
            sorted({patch(image, box) for image in generator.choice(20, 6, replace=False) for box in generator.choice(5, 2)})
            for _ in range(40)
        ]

    left, right = write(here, "one", {"l2": random_groups()}), write(here, "two", {"l2": random_groups()}, weights="b" * 64)
    found = compare(left, right)
    assert len(found.matches) <= 4  # one in forty would be expected, had each group one chance


def test_weights_of_edges_between_matched_groups_are_set_against_each_other(here):
    upper, lower, gone = corners(1, range(10)), corners(2, range(10)), corners(3, range(10))
    left = write(
        here, "one", {"l2": [upper], "l1": [lower, gone]},
        {("l1/0", "l2/0"): 0.6, ("l1/1", "l2/0"): 0.4, ("l2/0", "logits/0"): 1.0},
    )  # fmt: skip
    right = write(here, "two", {"l2": [upper], "l1": [corners(4), lower]}, {("l1/1", "l2/0"): -0.1}, weights="b" * 64)
    changes = [(one.left and one.left.source, one.right and one.right.source, one.change) for one in compare(left, right).weights]
    assert changes == [("l2/0", None, pytest.approx(-1.0)), ("l1/0", "l1/1", pytest.approx(-0.7))]


def test_images_of_the_same_name_in_other_folders_are_the_same_only_if_they_look_the_same(here):
    left = write(here, "one", {"l2": [corners(1)]})
    other = write(here, "two", {"l2": [corners(1)]}, folder="0" * 64)
    assert len(shared_images(left, other)) == 20
    other.image_thumbnail(3).write_bytes(b"another picture")
    other.image_thumbnail(4).unlink()
    assert [pair[0] for pair in shared_images(left, other)] == [0, 1, 2, *range(5, 20)]


def test_images_are_matched_by_path_and_not_by_number(here):
    paths = [f"cat/{number}.png" for number in range(20)]
    left = write(here, "one", {"l2": [corners(1, range(10)), corners(1, range(10, 20))]})
    right = write(here, "two", {"l2": [corners(1, range(10)), corners(1, range(10, 20))]}, images=paths[::-1], weights="b" * 64)
    assert pairs(compare(left, right)) == {"l2/0": "l2/1", "l2/1": "l2/0"}


class TestWithoutSharedImages:
    @pytest.fixture
    def left(self, here):
        return write(here, "one", {"l2": [corners(1), corners(2)]}, neurons={"l2/0": range(6), "l2/1": range(6, 12)})

    @pytest.fixture
    def others(self) -> list[str]:
        return [f"dog/{number}.png" for number in range(20)]

    def test_groups_of_the_same_weights_are_matched_by_direction(self, here, left, others):
        right = write(
            here, "two", {"l2": [corners(3), corners(4)]}, images=others, neurons={"l2/0": range(12, 18), "l2/1": range(6)}
        )  # fmt: skip
        found = compare(left, right)
        assert found.by == "directions"
        assert "weights are the same" in found.how
        assert pairs(found) == {"l2/0": "l2/1"}
        assert found.matches[0].overlap == pytest.approx(1)
        assert [pair.left for pair in found.vanished] == ["l2/1"]

    def test_other_groups_cannot_be_matched_and_it_says_so(self, here, left, others):
        found = compare(left, write(here, "two", {"l2": [corners(3)]}, images=others, weights="b" * 64))
        assert found.by is None
        assert "no probe image in common and their weights differ" in found.how
        assert not found.matches + found.vanished + found.appeared + found.weights
        assert found.untold == (("left", "l2/0"), ("left", "l2/1"), ("right", "l2/0"))

    def test_a_few_shared_images_are_too_few(self, here, left, others):
        images = [f"cat/{number}.png" for number in range(4)] + others[4:]
        found = compare(left, write(here, "two", {"l2": [corners(3)]}, images=images, weights="b" * 64))
        assert found.by is None
        assert "only 4 probe images in common" in found.how


def test_a_group_with_no_patch_in_a_shared_image_did_not_vanish(here):
    images = [f"cat/{number}.png" for number in range(10)] + [f"dog/{number}.png" for number in range(10)]
    left = write(here, "one", {"l2": [corners(1, range(8)), corners(2, range(12, 20))]})
    right = write(here, "two", {"l2": [corners(1, range(8)), corners(3, range(5))]}, images=images, weights="b" * 64)
    found = compare(left, right)
    assert found.n_shared == 10
    assert not found.vanished
    assert found.untold == (("left", "l2/1"),)


def test_layers_of_other_architectures_are_held_against_each_other_by_depth(here):
    left = write(here, "one", {"deep": [corners(1)], "low": [corners(2)]})
    right = write(here, "two", {"stage4": [corners(1)], "stage2": [corners(2)], "stage1": [corners(3)]}, weights="b" * 64)
    found = compare(left, right)
    assert found.layers == (("deep", "stage4"), ("low", "stage2"))
    assert ("right", "stage1/0") in found.untold


def test_the_same_seed_gives_the_same_comparison(here):
    generator = np.random.default_rng(1)
    made = [[generator.choice(100, 8, replace=False).tolist() for _ in range(5)] for _ in range(2)]
    runs = [write(here, name, {"l2": groups}, weights=name) for name, groups in zip(("one", "two"), made, strict=True)]
    told = [as_json(compare(*runs, seed=seed), {}, {}) for seed in (0, 0, 1)]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(("draws", "sentence"), [(1, "at least two random draws"), (-5, "at least two random draws")])
def test_a_control_needs_draws(here, draws, sentence):
    runs = [write(here, name, {"l2": [corners(1)]}) for name in ("one", "two")]
    with pytest.raises(InputError, match=sentence):
        compare(*runs, draws=draws)


class TestCommand:
    @pytest.fixture
    def runs(self, here):
        groups = [corners(1, range(10)), corners(2, range(10))]
        return write(here, "before-1", {"l2": groups}), write(here, "after-1", {"l2": groups[::-1]}, weights="b" * 64)

    def test_json(self, runs, capsys):
        assert main(["compare", "before-1", "after-1", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [(pair["left"], pair["right"], pair["overlap"]) for pair in found["matches"]] == [
            ("l2/0", "l2/1", 1.0),
            ("l2/1", "l2/0", 1.0),
        ]
        assert set(found["matches"][0]["random"]) == {"mean", "low", "high"}
        assert (found["left"]["run"], found["right"]["run"]) == ("before-1", "after-1")
        assert found["fidelity"] == []
        assert found["accuracy"] is None

    def test_text(self, runs, capsys):
        assert main(["compare", "before-1", "after-1"]) == 0
        assert "2 groups in both, 0 vanished, 0 appeared" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("before-1", "before-1"), "needs two runs"),
            (("before-1", "aftr-1"), "after-1"),
            (("before-1", "../../nothing-here"), "does not exist"),
            (("before-1", "after-1", "--draws", "0"), "at least two random draws"),
        ],
    )
    def test_errors_are_one_sentence(self, runs, capsys, arguments, sentence):
        assert main(["compare", *arguments]) == 2
        said = capsys.readouterr()
        assert not said.out
        assert sentence in said.err
        assert len(said.err.splitlines()) == 1


def test_a_name_cannot_run_as_a_formula_in_the_csv(here):
    runs = [write(here, name, {"l2": [corners(1, range(9))]}, weights=name) for name in ("one", "two")]
    rows = list(csv.DictReader(io.StringIO(to_csv(compare(*runs), {"l2/0": "=1+1"}, {}))))
    assert [row["left_name"] for row in rows] == ["'=1+1"]
    assert rows[0]["outcome"] == "match"
    assert float(rows[0]["overlap"]) == 1


def test_fidelity_stands_beside_its_controls_and_says_where_there_is_none():
    layer = {
        "layer": "l2",
        "verdict": {"trusted": True},
        "mask_core": 0.1,
        "mask_random": {"mean": 0.9, "low": 0.8, "high": 1.0},
        "edge_correlation": {"1": 0.5, "5": 0.7, "10": None},
        "completeness_gap": {"median": 0.02, "worst": 0.1},
    }
    rows = {row["measure"]: row for row in fidelity({"layers": [layer]}, None, [("l2", "l2"), ("l1", "l1")])}
    assert {row["left_layer"] for row in rows.values()} == {"l2"}
    assert (rows["trusted"]["left"], rows["trusted"]["right"]) == (True, None)
    assert (rows["mask"]["left"], rows["mask"]["left_random"]["low"]) == (0.1, 0.8)
    assert rows["edges"]["left"] == pytest.approx(0.6)
    assert rows["gap"]["left"] == 0.02
    assert rows["keep"]["left"] is None


class TestAccuracies:
    @pytest.fixture
    def evaluations(self, demo_run, demo_workspace, tmp_path):
        """The demo's evaluation, and another in which one owl more is taken for a sailboat."""
        own = demo_workspace.open_evaluation(demo_run.manifest["evaluation"])
        folder = shutil.copytree(own.folder, tmp_path / "other")
        manifest = json.loads((folder / "manifest.json").read_text()) | {"evaluation": "other"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        frame = own.predictions.copy()
        owl = own.class_names.index("owl")
        row = frame.index[(frame["true"] == owl) & (frame["predicted"] == owl)][0]
        frame.loc[row, "predicted"] = demo_run.circuit.target_index
        frame.to_parquet(folder / "predictions.parquet")
        return own, Evaluation(folder)

    def test_of_the_same_images_have_an_interval(self, evaluations):
        found = accuracies(*evaluations)
        n = len(evaluations[0].predictions)
        assert found["same_images"]
        assert found["all"]["change"] == pytest.approx(-1 / n)
        assert found["all"]["low"] < -1 / n < found["all"]["high"]
        assert found["classes"][0]["name"] == "owl"
        assert [row["change"] for row in found["classes"][1:]] == [0.0] * (len(found["classes"]) - 1)

    def test_of_other_images_have_none(self, evaluations):
        own, other = evaluations
        other.manifest["data"]["fingerprint"] = "0" * 64
        found = accuracies(own, other)
        assert not found["same_images"]
        assert found["all"]["low"] is None
        assert found["classes"][0]["name"] == "owl"

    def test_of_one_evaluation_are_nothing_to_compare(self, evaluations):
        assert accuracies(evaluations[0], evaluations[0]) is None

    def test_of_unknown_classes_are_nothing_to_compare(self, evaluations):
        own, other = evaluations
        other.predictions["true"] = pd.Series([None] * len(other.predictions), dtype="float64")
        assert accuracies(own, other) is None


def test_boxes_of_the_hand_made_runs_are_a_whole_and_its_quarters():
    assert [(box[2] - box[0]) * (box[3] - box[1]) for box in BOXES] == [64 * 64] + [32 * 32] * 4
