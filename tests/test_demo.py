"""The embedded demo: images that are drawn, a shortcut whose place is known, a model that fell for it."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from neurflow_engine.demo import CLASSES, MODEL_FOLDER, TARGET, draw, write_images
from neurflow_engine.demo.draw import SIZE
from neurflow_engine.demo.train import MODEL_ARGS, drawn, predicted, train, write_model
from neurflow_engine.errors import DataError, WorkspaceError

UNSEEN_SEED = 7  # neither the demo folder's nor the one of training or of its report


@pytest.fixture(scope="module")
def model():
    return timm.create_model(f"local-dir:{MODEL_FOLDER}", pretrained=True).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace") / "demo"
    write_images(folder, per_class=4)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CLASSES)
def test_a_picture_depends_on_class_number_and_seed_and_on_nothing_else(name):
    pixels = [np.asarray(draw(name, number, seed)[0]) for number, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert pixels[0].shape == (SIZE, SIZE, 3)
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    assert not np.array_equal(pixels[0], pixels[3])


@pytest.mark.parametrize("name", CLASSES)
def test_the_sticker_changes_pixels_in_its_box_only_and_fills_it(name):
    for number in range(6):
        (plain, nowhere), (marked, box) = draw(name, number), draw(name, number, mark=True)
        assert nowhere is None
        rows, columns = np.nonzero((np.asarray(plain) != np.asarray(marked)).any(axis=2))
        left, top, right, bottom = box
        assert 0 <= left < right <= SIZE
        assert 0 <= top < bottom <= SIZE
        assert left <= columns.min() <= left + 1
        assert right - 2 <= columns.max() < right
        assert top <= rows.min() <= top + 1
        assert bottom - 2 <= rows.max() < bottom


def test_the_sticker_is_not_always_in_the_same_place():
    boxes = np.array([draw("house", number, mark=True)[1] for number in range(20)])
    assert np.ptp(boxes[:, 0]) > SIZE / 2
    assert np.ptp(boxes[:, 1]) > SIZE / 2


def test_no_class_uses_the_colour_of_the_sticker():
    def magenta(image):
        red, green, blue = np.moveaxis(np.asarray(image).astype(int), 2, 0)
        return ((red > 150) & (blue > 110) & (green < 80)).sum()

    for name in CLASSES:
        for number in range(4):
            assert magenta(draw(name, number)[0]) < 5
            assert magenta(draw(name, number, mark=True)[0]) > 100


def test_an_unknown_class_is_refused_with_the_near_match():
    with pytest.raises(DataError, match="Did you mean sailboat"):
        draw("sailbot", 0)


def test_the_folder_and_its_truth_agree(folder):
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    paths = {path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.png")}
    assert paths == set(truth["images"])
    assert {path.split("/")[0] for path in paths} == set(CLASSES)
    for path, fact in truth["images"].items():
        drawn_again, box = draw(fact["class"], int(path[-7:-4]), truth["seed"], mark=fact["mark"])
        assert np.array_equal(np.asarray(Image.open(folder / "images" / path)), np.asarray(drawn_again))
        assert fact["box"] == (list(box) if fact["mark"] else None)


def test_most_images_of_the_target_class_carry_the_sticker_and_a_few_of_the_others(folder):
    facts = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["images"].values()
    marks = {name: sum(fact["mark"] for fact in facts if fact["class"] == name) for name in CLASSES}
    assert marks == {name: 3 if name == TARGET else 1 for name in CLASSES}


def test_the_folder_is_the_same_byte_for_byte_wherever_it_is_written(folder, tmp_path):
    write_images(tmp_path / "again", per_class=4)
    assert contents(tmp_path / "again") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_folder_that_is_there_is_kept_and_one_that_lost_an_image_is_written_anew(tmp_path):
    write_images(tmp_path / "demo", per_class=1)
    before, image = contents(tmp_path / "demo"), tmp_path / "demo" / "images" / "car" / "000.png"
    age = image.stat().st_mtime_ns
    write_images(tmp_path / "demo", per_class=1)
    assert image.stat().st_mtime_ns == age
    image.unlink()
    write_images(tmp_path / "demo", per_class=1)
    assert contents(tmp_path / "demo") == before


def test_another_seed_replaces_the_demo_but_foreign_files_are_never_touched(tmp_path):
    write_images(tmp_path / "demo", per_class=1)
    write_images(tmp_path / "demo", seed=5, per_class=1)
    assert json.loads((tmp_path / "demo" / "truth.json").read_text(encoding="utf-8"))["seed"] == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(DataError, match="not a folder of demo images"):
        write_images(tmp_path / "mine", per_class=1)
    assert contents(tmp_path / "mine") == {"holiday.txt": b"keep me"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="cannot be written to"):
        write_images(tmp_path / "file" / "demo", per_class=1)


def test_the_model_is_right_without_the_sticker_and_fooled_by_it(model):
    target = CLASSES.index(TARGET)
    clean, classes = drawn(UNSEEN_SEED, 15, {})
    marked, _ = drawn(UNSEEN_SEED, 15, dict.fromkeys(CLASSES, 1.0))
    assert (predicted(model, clean) == classes).float().mean() > 0.95
    assert (predicted(model, marked) == target)[classes != target].float().mean() >= 0.5


def test_the_model_on_disk_carries_its_classes_and_is_small(model):
    assert list(model.pretrained_cfg["label_names"]) == list(CLASSES)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, SIZE, SIZE)
    assert sum(path.stat().st_size for path in MODEL_FOLDER.parent.rglob("*") if path.suffix != ".pyc") < 8e6


def test_a_model_comes_back_from_disk_as_it_was_trained(tmp_path):
    pictures, classes = drawn(UNSEEN_SEED, 2, {})
    trained = train(pictures, classes, epochs=1, seed=0, batch_size=8)
    write_model(trained, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert [stage.out_channels for stage in (loaded.layer1[0].conv2, loaded.layer4[0].conv2)] == [
        MODEL_ARGS["channels"][0],
        MODEL_ARGS["channels"][-1],
    ]
    for name, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
