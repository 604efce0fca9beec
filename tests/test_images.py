"""A folder of images becomes an image set, batches and patches, whatever lies in the folder."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.nn.functional import interpolate

from neurflow_engine.errors import DataError
from neurflow_engine.images import ImageBatches, copies, crop_patches, cut_patches, match_classes, open_image, scan
from neurflow_engine.models import Preprocessing
from neurflow_engine.records import ImageFile, Patch

# pytest shows warnings that the module itself silences
pytestmark = [pytest.mark.filterwarnings(f"ignore:::{module}") for module in ("PIL.TiffImagePlugin", "PIL.Image")]

ASSETS = Path(os.environ.get("NEURFLOW_ASSETS", Path(__file__).parents[1] / "../shared/assets"))
PREPROCESSING = Preprocessing((32, 32), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", 1.0, "center")


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), channels: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def class_folders(root: Path, *folders: str, images: int = 2) -> Path:
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for image in range(images):
            picture(10 * number + image).save(root / folder / f"{image}.png")
    return root


class TestScan:
    def test_class_folders_are_the_first_level_and_images_are_sorted_by_path(self, tmp_path):
        class_folders(tmp_path, "b", "a/inner")
        found = scan(tmp_path)
        assert found.images == tuple(ImageFile(path, path[0]) for path in ("a/inner/0.png", "a/inner/1.png", "b/0.png", "b/1.png"))
        assert found.folders == ("a", "b")
        assert found.skipped == ()

    def test_flat_folder_has_no_class_folders(self, tmp_path):
        picture().save(tmp_path / "one.JPG", "JPEG")
        found = scan(tmp_path)
        assert found.images == (ImageFile("one.JPG", None),)
        assert found.folders == ()

    def test_every_usual_extension_is_found_and_other_files_are_not(self, tmp_path):
        for extension in ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"):
            picture().save(tmp_path / f"image.{extension}")
        (tmp_path / "notes.txt").write_text("no image")
        assert len(scan(tmp_path).images) == 8

    def test_hidden_files_and_folders_are_passed_over(self, tmp_path):
        class_folders(tmp_path, "a", ".cache")
        picture().save(tmp_path / "a" / "._0.png")
        found = scan(tmp_path)
        assert len(found.images) == 2
        assert found.skipped == ()

    def test_broken_files_are_listed_with_reasons(self, tmp_path):
        class_folders(tmp_path, "a")
        (tmp_path / "a" / "empty.jpg").touch()
        (tmp_path / "a" / "text.jpg").write_text("this is no image")
        os.mkfifo(tmp_path / "a" / "pipe.jpg")
        reasons = {file.path: file.reason for file in scan(tmp_path).skipped}
        assert reasons == {
            "a/empty.jpg": "is empty (0 bytes)",
            "a/pipe.jpg": "is not a regular file",
            "a/text.jpg": "is not an image that can be opened",
        }

    def test_a_program_in_an_image_files_clothes_is_not_run(self, tmp_path):
        class_folders(tmp_path, "a")
        (tmp_path / "a" / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
        assert [file.path for file in scan(tmp_path).skipped] == ["a/drawing.jpg"]

    def test_links_out_of_the_folder_and_to_folders_are_not_followed(self, tmp_path):
        root = class_folders(tmp_path / "data", "a")
        picture(7).save(tmp_path / "outside.png")
        (root / "a" / "link.png").symlink_to(tmp_path / "outside.png")
        (root / "a" / "dangling.png").symlink_to(tmp_path / "nothing.png")
        (root / "a" / "inside.png").symlink_to(root / "a" / "0.png")
        (root / "loop").symlink_to(root)
        found = scan(root)
        assert [image.path for image in found.images] == ["a/0.png", "a/1.png", "a/inside.png"]
        assert {file.path: file.reason for file in found.skipped} == {
            "a/dangling.png": "is a link that leads out of the data folder",
            "a/link.png": "is a link that leads out of the data folder",
            "loop": "is a link to a folder; links to folders are not followed",
        }

    def test_a_data_folder_that_is_itself_a_link_is_read(self, tmp_path):
        class_folders(tmp_path / "data", "a")
        (tmp_path / "link").symlink_to(tmp_path / "data")
        assert len(scan(tmp_path / "link").images) == 2

    def test_names_that_are_not_utf8_are_skipped(self, tmp_path):
        class_folders(tmp_path, "a")
        picture().save(os.fsencode(tmp_path) + b"/a/caf\xe9.png")
        (skipped,) = scan(tmp_path).skipped
        assert skipped.path == "a/caf?.png"
        assert skipped.reason == "has a name that is not valid UTF-8"

    def test_fingerprint_follows_contents_and_names_only(self, tmp_path):
        first, second = class_folders(tmp_path / "1", "a", "b"), class_folders(tmp_path / "2", "a", "b")
        assert scan(first).fingerprint == scan(second).fingerprint
        picture(99).save(second / "a" / "0.png")
        changed = scan(second).fingerprint
        assert changed != scan(first).fingerprint
        (first / "a" / "0.png").rename(first / "a" / "2.png")
        assert scan(first).fingerprint not in (changed, scan(class_folders(tmp_path / "3", "a", "b")).fingerprint)

    def test_fingerprint_follows_damage(self, tmp_path):
        class_folders(tmp_path, "a")
        (tmp_path / "a" / "x.png").write_bytes(b"")
        before = scan(tmp_path).fingerprint
        (tmp_path / "a" / "x.png").unlink()
        assert scan(tmp_path).fingerprint != before

    def test_unusable_folders_are_one_sentence(self, tmp_path):
        with pytest.raises(DataError, match=r"Data folder .*missing does not exist\.$"):
            scan(tmp_path / "missing")
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"file is a file, not a folder\.$"):
            scan(tmp_path / "file")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty holds no images \(looked for \.jpg, \.jpeg, .*\)\.$"):
            scan(tmp_path / "empty")

    def test_a_folder_of_broken_files_only_is_an_error(self, tmp_path):
        (tmp_path / "a.jpg").write_text("text")
        (tmp_path / "b.jpg").touch()
        with pytest.raises(DataError, match=r"holds no image that can be opened: a\.jpg is not an image .*, and 1 more\.$"):
            scan(tmp_path)

    def test_a_folder_can_be_listed_without_torch(self, tmp_path):
        class_folders(tmp_path, "a")
        code = "import sys; from neurflow_engine.images import scan; print(len(scan(sys.argv[1]).images), 'torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.stdout.split() == ["2", "False"], done.stderr


class TestCopies:
    def test_files_of_one_content_are_found_under_their_first_name(self, tmp_path):
        class_folders(tmp_path, "a", "b")
        for copy in ("a/2.png", "b/1.png"):
            (tmp_path / copy).write_bytes((tmp_path / "a" / "0.png").read_bytes())
        paths = [image.path for image in scan(tmp_path).images]
        assert copies(tmp_path, paths) == {"a/0.png": ("a/2.png", "b/1.png"), "a/1.png": (), "b/0.png": ()}
        assert copies(tmp_path, paths[::-1]) == {"b/1.png": ("a/2.png", "a/0.png"), "b/0.png": (), "a/1.png": ()}

    def test_files_of_one_size_may_differ(self, tmp_path):
        for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
            (tmp_path / name).write_bytes(content)
        assert copies(tmp_path, ["a", "b", "c"]) == {"a": ("c",), "b": ()}

    def test_files_that_are_gone_are_nobodys_copies(self, tmp_path):
        assert copies(tmp_path / "gone", ["a.png", "b.png"]) == {"a.png": (), "b.png": ()}


class TestOpenImage:
    def test_orientation_is_applied(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned: the stored left edge is the upper edge
        stored = Image.new("RGB", (40, 20), "black")
        stored.paste("red", (0, 0, 20, 20))
        stored.save(tmp_path / "turned.png", exif=exif)
        image = open_image(tmp_path / "turned.png")
        assert image.size == (20, 40)
        assert image.getpixel((10, 5)) == (255, 0, 0)
        assert image.getpixel((10, 35)) == (0, 0, 0)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
    def test_opaque_modes_keep_their_colours(self, tmp_path, mode):
        image = Image.new("RGB", (8, 8), "white")
        image.paste("black", (0, 0, 8, 4))
        image.convert(mode).save(tmp_path / "image.tif")
        opened = open_image(tmp_path / "image.tif")
        assert opened.mode == "RGB"
        assert [opened.getpixel((4, row)) for row in (1, 6)] == [(0, 0, 0), (255, 255, 255)]

    def test_cmyk_jpeg(self, tmp_path):
        Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK").save(tmp_path / "image.jpg", quality=95)
        assert np.abs(np.subtract(open_image(tmp_path / "image.jpg").getpixel((8, 8)), (200, 30, 40))).max() <= 6

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_pixels_lie_on_white(self, tmp_path, mode):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
        image.paste((0, 0, 0, 0), (0, 0, 8, 4))
        image.convert(mode).save(tmp_path / "image.png")
        opened = open_image(tmp_path / "image.png")
        assert [opened.getpixel((4, row)) for row in (1, 6)] == [(255, 255, 255), (0, 0, 0)]

    def test_a_colour_marked_as_transparent_lies_on_white(self, tmp_path):
        Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "image.png", transparency=(10, 20, 30))
        assert open_image(tmp_path / "image.png").getpixel((1, 1)) == (255, 255, 255)

    def test_half_transparent_pixels_are_blended(self, tmp_path):
        Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "image.png")
        assert open_image(tmp_path / "image.png").getpixel((1, 1)) == (127, 127, 127)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_scaled_to_eight(self, tmp_path, suffix):
        values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"image.{suffix}")
        opened = open_image(tmp_path / f"image.{suffix}", in_chans=1)
        assert np.asarray(opened).tolist() == [[0, 1, 128, 255]]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
            (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
            (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
            (np.array([[-100000, 0, 100000]], np.int32), [0, 128, 255]),
            (np.array([[np.nan, 0.5, np.inf]], np.float32), [0, 128, 0]),
            (np.array([[70000, 70000, 70000]], np.int32), [0, 0, 0]),
        ],
    )
    def test_wide_values_are_scaled_by_the_range_that_holds_them(self, tmp_path, values, expected):
        Image.fromarray(values).save(tmp_path / "image.tif")
        assert np.asarray(open_image(tmp_path / "image.tif", in_chans=1)).tolist() == [expected]

    @pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
    def test_the_first_frame_of_an_animation(self, tmp_path, suffix):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert open_image(tmp_path / f"image.{suffix}").getpixel((8, 8)) == (255, 0, 0)

    def test_single_channel_models_get_grey(self, tmp_path):
        picture().save(tmp_path / "image.png")
        assert open_image(tmp_path / "image.png", in_chans=1).mode == "L"

    def test_damage_behind_the_header_is_an_error(self, tmp_path):
        for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif"):
            path = tmp_path / f"image.{suffix}"
            picture(size=(200, 200)).save(path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            with pytest.raises(DataError, match=rf"image\.{suffix} is .*\.$"):
                open_image(path)

    def test_random_damage_never_escapes_as_another_error(self, tmp_path):
        random = np.random.default_rng(0)
        for suffix in ("jpg", "png", "webp", "gif", "tif"):
            picture().save(tmp_path / f"image.{suffix}")
            whole = (tmp_path / f"image.{suffix}").read_bytes()
            for _ in range(60):
                damaged = bytearray(whole)
                for position in random.integers(0, len(whole), 8):
                    damaged[position] = random.integers(256)
                (tmp_path / "damaged").write_bytes(damaged)
                with contextlib.suppress(DataError):
                    assert open_image(tmp_path / "damaged").mode == "RGB"

    def test_damaged_metadata_does_not_cost_the_picture(self, tmp_path):
        picture(size=(40, 20)).save(tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
        assert open_image(tmp_path / "image.jpg").size == (40, 20)

    def test_decompression_bombs_are_refused_before_they_are_decoded(self, tmp_path):
        for side in (10_001, 20_000):
            Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
            with pytest.raises(DataError, match=r"has more than 100,000,000 pixels"):
                open_image(tmp_path / f"{side}.png")
        assert [file.path for file in scan_with_one_good_image(tmp_path).skipped] == ["10001.png", "20000.png"]

    def test_a_text_chunk_that_unpacks_to_much_more_is_refused(self, tmp_path):
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "x" * (65 << 20), zip=True)
        picture().save(tmp_path / "image.png", pnginfo=info)
        with pytest.raises(DataError, match=r"image\.png is not an image that can be opened"):
            open_image(tmp_path / "image.png")

    def test_a_missing_file_is_a_sentence(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file or directory\)\.$"):
            open_image(tmp_path / "gone.png")


def scan_with_one_good_image(root: Path):
    picture().save(root / "good.png")
    return scan(root)


class TestImageBatches:
    @pytest.fixture
    def folder(self, tmp_path):
        class_folders(tmp_path, "a", "b", images=5)
        whole = (tmp_path / "a" / "0.png").read_bytes()
        for path in ("a/2.png", "b/0.png", "b/1.png", "b/2.png"):
            (tmp_path / path).write_bytes(whole[: len(whole) // 2])
        return tmp_path

    def batches(self, root, **options):
        batches = ImageBatches(root, [image.path for image in scan(root).images], PREPROCESSING, batch_size=3, **options)
        return list(batches), batches

    def test_broken_files_are_left_out_and_listed(self, folder):
        found, batches = self.batches(folder)
        assert [indices for indices, _ in found] == [[0, 1], [3, 4], [8], [9]]
        assert [tuple(images.shape) for _, images in found] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)]
        assert [file.path for file in batches.skipped] == ["a/2.png", "b/0.png", "b/1.png", "b/2.png"]
        assert all(file.reason.startswith("is damaged") and str(folder) not in file.reason for file in batches.skipped)

    def test_workers_change_neither_order_nor_values(self, folder):
        alone, skipped_alone = self.batches(folder)
        helped, skipped_helped = self.batches(folder, workers=2)
        assert [indices for indices, _ in alone] == [indices for indices, _ in helped]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(alone, helped, strict=True))
        assert skipped_alone.skipped == skipped_helped.skipped

    def test_a_second_pass_starts_anew(self, folder):
        first, batches = self.batches(folder)
        assert len(list(batches)) == len(first)
        assert len(batches.skipped) == 4

    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_at_a_position_with_the_same_images_under_the_same_numbers(self, folder, workers):
        whole, _ = self.batches(folder)
        images = {index: image for indices, batch in whole for index, image in zip(indices, batch, strict=True)}
        rest, batches = self.batches(folder, start=4, workers=workers)
        assert [indices for indices, _ in rest] == [[4], [8, 9]]
        assert all(torch.equal(image, images[index]) for indices, batch in rest for index, image in zip(indices, batch, strict=True))
        assert [file.path for file in batches.skipped] == ["b/0.png", "b/1.png", "b/2.png"]
        assert self.batches(folder, start=10)[0] == []

    def test_reading_does_not_move_the_global_random_state(self, folder):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self.batches(folder)
        assert torch.equal(before, torch.get_rng_state())

    def test_a_file_that_vanished_is_skipped(self, tmp_path):
        class_folders(tmp_path, "a")
        batches = ImageBatches(tmp_path, ["a/0.png", "a/gone.png"], PREPROCESSING)
        assert [indices for indices, _ in batches] == [[0]]
        assert batches.skipped[0].reason == "cannot be read (No such file or directory)"


class TestPatches:
    def test_counts_and_order(self):
        patches = cut_patches(2, (224, 224))
        assert len(patches) == 2 * (1 + 9 + 49)
        assert [patch.id for patch in patches] == list(range(118))
        assert [patch.image for patch in patches] == [0, 1] + [0] * 9 + [1] * 9 + [0] * 49 + [1] * 49
        assert [patch.box for patch in patches[:2]] == [(0, 0, 224, 224)] * 2
        assert [patch.box for patch in patches[2:6]] == [(0, 0, 112, 112), (56, 0, 168, 112), (112, 0, 224, 112), (0, 56, 112, 168)]
        assert patches[-1].box == (168, 168, 224, 224)

    @pytest.mark.parametrize("side", [32, 75, 99, 128, 160, 225, 240, 299, 331, 384, 475, 518])
    def test_every_usual_size_gives_the_same_number_of_windows(self, side):
        assert len(cut_patches(1, (side, side))) == 1 + 9 + 49

    def test_windows_stay_inside_and_follow_the_given_order(self):
        patches = cut_patches(1, (20, 41), (0.3, 1.0))
        assert patches[-1].box == (0, 0, 41, 20)
        assert all(0 <= p.box[0] < p.box[2] <= 41 and 0 <= p.box[1] < p.box[3] <= 20 for p in patches)
        assert {(p.box[2] - p.box[0], p.box[3] - p.box[1]) for p in patches[:-1]} == {(12, 6)}

    def test_windows_of_one_pixel(self):
        assert len(cut_patches(1, (2, 3), (0.01,))) == 6

    def test_crops_are_bilinear_and_whole_images_unchanged(self):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        patches = cut_patches(2, (8, 8))
        crops = crop_patches(images, patches, (8, 8))
        assert crops.shape == (118, 3, 8, 8)
        assert torch.equal(crops[:2], images)
        for number in (2, 11, 20, 60, 117):
            left, top, right, bottom = patches[number].box
            one = images[patches[number].image][None, :, top:bottom, left:right]
            assert torch.allclose(crops[number], interpolate(one, (8, 8), mode="bilinear", align_corners=False)[0])

    def test_a_window_twice_enlarged_by_hand(self):
        images = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
        crop = crop_patches(images, [Patch(0, 0, (0, 0, 2, 1))], (1, 4))
        assert crop.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]

    def test_patches_may_be_cut_in_any_order(self):
        images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        patches = cut_patches(2, (16, 16))
        crops = crop_patches(images, patches, (16, 16))
        assert torch.equal(crop_patches(images, patches[::-3], (16, 16)), crops[list(range(len(patches)))[::-3]])


def test_true_classes_are_set_on_the_images(tmp_path):
    class_folders(tmp_path, "Cat", "unicorn")
    matched = match_classes(scan(tmp_path), ("dog", "cat"), "the model's own label names")
    assert [(image.folder, image.true) for image in matched.images] == [("Cat", 1)] * 2 + [("unicorn", None)] * 2
    assert matched.label_rule == "1 of 2 folders matched by class name"
    assert replace(matched, images=scan(tmp_path).images, label_rule=scan(tmp_path).label_rule) == scan(tmp_path)


def test_a_flat_folder_has_no_true_classes(tmp_path):
    picture().save(tmp_path / "image.png")
    matched = match_classes(scan(tmp_path), ("dog", "cat"))
    assert [image.true for image in matched.images] == [None]
    assert matched.label_rule == "no true classes known: the images lie in no class folders"


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the shared assets are not here")
@pytest.mark.parametrize(
    ("folder", "n_images", "n_folders"),
    [("images_8_classes_64px", 1600, 8), ("images_imagenet_one_per_class", 1000, 1000), ("reference_lesser_panda/images", 20, 1)],
)
def test_real_folders_match_imagenet(folder, n_images, n_folders):
    from neurflow_engine.class_names import IMAGENET, imagenet_names

    matched = match_classes(scan(ASSETS / folder), imagenet_names(1000), IMAGENET)
    assert (len(matched.images), len(matched.folders), matched.skipped) == (n_images, n_folders, ())
    assert all(image.true == int(image.folder[:3]) for image in matched.images)


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the shared assets are not here")
def test_cats_and_dogs_are_no_imagenet_classes():
    from neurflow_engine.class_names import IMAGENET, imagenet_names

    matched = match_classes(scan(ASSETS / "images_pets"), imagenet_names(1000), IMAGENET)
    assert {image.true for image in matched.images} == {None}
