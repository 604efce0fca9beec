"""Offline descriptions: words for what is drawn, nothing where nothing is common, and texts that are checked against pixels."""

import time
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from neurflow_engine import demo, descriptions
from neurflow_engine.descriptions import FITS, MOST_WORDS, cielab, describe, described, features, fits, match, seen, silent_patches
from neurflow_engine.errors import RunError

CORNER, TOP, WHOLE = (0.75, 0.75, 1, 1), (0.375, 0, 0.625, 0.25), (0, 0, 1, 1)


def picture(colour="grey", paint=None, size=56):
    image = Image.new("RGB", (size, size), colour)
    if paint:
        paint(ImageDraw.Draw(image))
    return np.asarray(image)


def disc(pen):
    pen.ellipse((12, 12, 44, 44), fill=(210, 30, 165))


def stripes(vertical):
    def paint(pen):
        for at in range(0, 56, 14):
            pen.rectangle((at, 0, at + 6, 56) if vertical else (0, at, 56, at + 6), fill="white")

    return paint


def dots(pen):
    for x in range(8, 56, 16):
        for y in range(8, 56, 16):
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill="white")


def lattice(pen):
    for at in range(6, 56, 14):
        pen.rectangle((at, 0, at + 2, 56), fill="black")
        pen.rectangle((0, at, 56, at + 2), fill="black")


def grain():
    values = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    return np.repeat(np.repeat(values, 2, 0), 2, 1)[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    ("pixels", "expected", "others"),
    [
        (picture("grey", disc), {"magenta", "round", "grey"}, {"stripes", "plain", "spots", "horizontal", "red"}),
        (picture("black", stripes(vertical=True)), {"stripes", "vertical", "white", "high contrast"}, {"horizontal", "plain", "round"}),
        (picture("black", stripes(vertical=False)), {"stripes", "horizontal"}, {"vertical", "diagonal", "grid"}),
        (picture("black", dots), {"spots", "black", "dark"}, {"stripes", "round", "bright"}),
        (picture("white", lattice), {"grid", "white"}, {"stripes", "spots", "round"}),
        (picture((135, 200, 235)), {"light blue", "blue", "plain", "low contrast"}, {"dark blue", "textured", "dark", "edge"}),
        (picture("black", lambda pen: pen.rectangle((0, 0, 27, 56), fill="white")), {"edge", "vertical"}, {"stripes", "spots"}),
        (grain(), {"textured"}, {"plain", "round", "horizontal", "vertical", "grid"}),
    ],
)
def test_what_is_drawn_is_seen(pixels, expected, others):
    found = {name for name, value in features(pixels).items() if value >= FITS}
    assert expected <= found
    assert not others & found


def test_a_diagonal_is_neither_level_nor_upright():
    found = features(picture("black", lambda pen: [pen.line((at, -8, at + 72, 64), fill="white", width=6) for at in range(-64, 64, 16)]))
    assert found["diagonal"] >= FITS
    assert max(found["horizontal"], found["vertical"]) < FITS


def test_colours_are_named_by_how_they_look():
    white, red, grey = cielab(np.array([(255, 255, 255), (255, 0, 0), (119, 119, 119)]))
    np.testing.assert_allclose(white, (100, 0, 0), atol=0.02)
    np.testing.assert_allclose(red, (53.24, 80.09, 67.20), atol=0.05)  # published values of sRGB red
    np.testing.assert_allclose(grey, (50.03, 0, 0), atol=0.02)


CSS = {  # names that web pages give to colours, by the plain name
    "black": "black", "grey": "gray", "light grey": "silver", "white": "white", "red": "red", "dark red": "darkred", "orange": "orange",
    "brown": "saddlebrown", "beige": "wheat", "yellow": "yellow", "green": "green", "dark green": "darkgreen", "turquoise": "turquoise",
    "light blue": "lightblue", "blue": "blue", "dark blue": "navy", "purple": "purple", "magenta": "magenta", "pink": "pink",
}  # fmt: skip


@pytest.mark.parametrize("name", CSS)
def test_a_plain_name_is_the_one_that_web_pages_use(name):
    found = features(picture(CSS[name]))
    assert {other for other in CSS if found[other] == 1} - set(descriptions._FAMILIES) == {name} - set(descriptions._FAMILIES)
    assert found[name] == 1


@pytest.mark.parametrize(
    ("place", "expected"),
    [(CORNER, {"corner", "bottom", "right"}), (TOP, {"top"}), (WHOLE, set()), (None, set()), ((0.4, 0.4, 0.6, 0.6), {"centre"})],
)
def test_a_window_has_a_place_and_a_whole_image_has_none(place, expected):
    found = features(picture(), place)
    assert {name for name in ("corner", "top", "bottom", "left", "right", "centre") if found[name] >= FITS} == expected


def test_a_description_says_what_is_common_and_rare_elsewhere():
    own = [features(picture(colour, disc), CORNER) for colour in ("grey", "green", "navy", "white", "black")]
    silent = [features(picture(colour), TOP) for colour in ("grey", "green", "navy", "white", "black")]
    found = described(own, silent)
    assert found.name == "magenta round shape in a corner"
    assert {one.feature: (one.own, one.silent) for one in found.common} == {"magenta": (1, 0), "round": (1, 0), "corner": (1, 0)}
    assert found.sentence == "Magenta (100% of the patches, 0% of silent ones), round shape (100%, 0%), in a corner (100%, 0%)."
    assert found.runner_up == "round shape in a corner"


def test_what_silent_patches_show_too_is_not_said():
    patches = [features(picture(colour, disc), CORNER) for colour in ("grey", "green", "navy")]
    found = described(patches, patches)
    assert (found.name, found.runner_up, found.common) == (None, None, ())
    assert found.sentence.startswith("No colour, light, texture, shape or place is common")


def test_nothing_is_said_of_patches_that_share_nothing():
    own = [picture("white"), picture("black", disc), grain(), picture("navy", stripes(vertical=True)), picture("yellow", lattice)]
    silent = [picture(colour) for colour in ("grey", "green", "brown", "pink", "orange")]
    assert described([features(pixels) for pixels in own], [features(pixels) for pixels in silent]).name is None
    assert described([], []).name is None


def test_a_name_is_short_and_means_to_a_reader_what_it_was_made_from():
    rows = dict.fromkeys(features(picture()), 0.0)
    names = set()
    for some in [*combinations(rows, 1), *combinations(rows, 2), *combinations(list(rows)[::2], 3)]:
        found = described([rows | dict.fromkeys(some, 1.0)], [rows])
        names.add(found.name)
        assert len(found.name.split()) <= MOST_WORDS
        assert [set(part) for part in descriptions.understood(found.name)] == [{one.feature for one in found.common}]
    assert "plain light blue area" in names
    assert "corner patch" in names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a magenta disc", True),
        ("Magenta  CIRCLE", True),
        ("blue or magenta", True),
        ("blue and magenta", False),
        ("blue/magenta", True),
        ("no blue, magenta", True),
        ("without stripes but round", True),
        ("not magenta", None),
        ("navy", False),
        ("in a corner", True),
        ("a round sign at the top", False),
        ("object", None),
        ("a bluestocking", None),
        ("", None),
        ("рыба", None),
        ("<script>alert(1)</script>", None),
    ],
)
def test_a_text_is_checked_by_the_words_that_are_known(text, expected):
    shown = features(picture("grey", disc), CORNER)
    assert fits(text, shown) is expected
    assert (match(text, shown) is None) == (expected is None)


def test_a_plain_colour_word_takes_in_its_shades_but_not_the_other_way_round():
    sky = features(picture((135, 200, 235)))
    assert fits("blue", sky)
    assert fits("light blue", sky)
    assert not fits("dark blue", sky)


def test_the_demo_sticker_is_found_by_its_looks(demo_run):
    found = {group.id: describe(demo_run, group.id) for group in demo_run.circuit.groups}
    named = [one.name for one in found.values() if one.name]
    assert any("magenta" in name for name in named)
    marked = features(np.asarray(demo.draw("owl", 0, mark=True)[0].crop(demo.draw("owl", 0, mark=True)[1])))
    unmarked = features(np.asarray(demo.draw("owl", 0)[0].crop(demo.draw("owl", 0, mark=True)[1])))
    assert fits("magenta round shape", marked)
    assert not fits("magenta round shape", unmarked)
    for group_id, one in found.items():
        assert set(one.patches) <= set(demo_run.circuit.group[group_id].patches)
        assert not set(one.contrast) & set(demo_run.circuit.group[group_id].patches)
        assert one == describe(demo_run, group_id)
        assert one.sentence.endswith(("image width.", "whole images.", "different sizes."))


def test_silent_patches_show_the_group_least_and_are_as_large(demo_run):
    group = demo_run.circuit.groups_of(demo_run.circuit.layers[1])[0]
    silent = silent_patches(demo_run, group, group.patches[:16])
    strength = demo_run.activations(group.layer)[:, list(group.neurons)] @ np.array(group.direction)
    assert len(silent) >= 12
    assert strength[list(silent)].max() < strength[list(group.patches[:16])].min()
    assert silent_patches(demo_run, group, group.patches[:16]) == silent


def test_given_patches_are_the_only_ones_looked_at(demo_run):
    group = demo_run.circuit.groups_of(demo_run.circuit.layers[1])[0]
    found = describe(demo_run, group.id, patches=group.patches[:4], contrast=(0, 1))
    assert (found.patches, found.contrast) == (group.patches[:4], (0, 1))
    assert describe(demo_run, group.id, patches=()).name is None


def test_a_description_takes_no_time_worth_waiting_for(demo_run):
    group = demo_run.circuit.groups_of(demo_run.circuit.layers[1])[0]
    describe(demo_run, group.id)
    started = time.process_time()
    describe(demo_run, group.id)
    assert time.process_time() - started < 0.3  # it takes 0.05 s on a quiet machine


def test_an_unknown_group_and_a_lost_picture_are_errors(demo_run, tmp_path):
    import shutil

    from neurflow_engine.store import Run

    with pytest.raises(RunError, match=r"has no group 'layer9/0'"):
        describe(demo_run, "layer9/0")
    copy = Run(shutil.copytree(demo_run.folder, tmp_path / "copy"))
    for image in (copy.folder / "thumbnails").glob("image-*.jpg"):
        image.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        seen(copy, [0])
