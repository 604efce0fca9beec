"""Classes are found again when folders, files and people spell their names differently; never a wrong class for sure-footedness."""

import json

import pytest

from neurflow_engine.class_names import FOLDERS, IMAGENET, UNKNOWN, find_class, imagenet_names, match_folders, read_class_map, read_merge
from neurflow_engine.errors import DataError, ModelError

PETS = ("tabby cat", "German_shepherd", "goldfish, Carassius auratus", "crane", "crane")
OWN = "the model's own label names"
CUB = tuple(
    f"{number:03d}.{name}" for number, name in enumerate(("Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross"), start=1)
)


class TestFindClass:
    @pytest.mark.parametrize(
        ("given", "index"),
        [
            ("1", 1),
            (" 02 ", 2),
            ("tabby cat", 0),
            ("Tabby-Cat", 0),
            ("german shepherd", 1),
            ("goldfish, carassius auratus", 2),
            ("goldfish", 2),
            ("Carassius Auratus", 2),
            ("crane", 3),
        ],
    )
    def test_spellings(self, given, index):
        assert find_class(given, PETS) == index

    def test_a_name_behind_a_number(self):
        assert find_class("monarch", ("00_panda", "02_monarch")) == 1

    def test_index_out_of_range(self):
        with pytest.raises(DataError, match=r"^Class index 5 is out of range: the model has 5 classes, 0 to 4\.$"):
            find_class("5", PETS)

    def test_unknown_name_lists_near_matches(self):
        with pytest.raises(DataError, match=r"no class 'goldfsh'; expected one of its 5 class names or an index\. Did you mean goldfish"):
            find_class("goldfsh", PETS)

    def test_a_synonym_of_several_classes_asks_which(self):
        names = imagenet_names(1000)
        with pytest.raises(DataError, match=r"'panda' may be any of 387 \(lesser panda\), 388 \(giant panda\); give the index"):
            find_class("panda", names, IMAGENET)
        assert find_class("red panda", names, IMAGENET) == 387
        assert find_class("n02509815", names, IMAGENET) == 387

    def test_another_spelling_of_equal_names_asks_which(self):
        with pytest.raises(DataError, match=r"'Crane' may be any of 3 \(crane\), 4 \(crane\)"):
            find_class("Crane", PETS)

    def test_a_full_name_is_stronger_than_a_synonym(self):
        assert find_class("panda", ("lesser panda, panda", "Panda")) == 1


class TestMatchFolders:
    def test_by_class_name(self):
        found, rule = match_folders(("Goldfish", "german-shepherd", "house"), PETS, OWN)
        assert found == {"Goldfish": 2, "german-shepherd": 1}
        assert rule == "2 of 3 folders matched by class name"

    def test_a_name_of_several_classes_is_left_out(self):
        assert match_folders(("crane", "goldfish"), PETS, OWN)[0] == {"goldfish": 2}

    def test_by_wordnet_id(self):
        folders = ("n01443537", "n02509815_lesser_panda", "n02085620-Chihuahua")
        found, rule = match_folders(folders, imagenet_names(1000), IMAGENET)
        assert list(found.values()) == [1, 387, 151]
        assert rule == "3 of 3 folders matched by WordNet id"

    def test_wordnet_ids_mean_nothing_to_a_model_of_eight_classes(self):
        assert match_folders(("n01443537",), tuple("abcdefgh"), OWN)[0] == {}

    def test_the_name_behind_the_number_counts_more_than_the_number(self):
        found, rule = match_folders(("387_lesser_panda", "001_goldfish"), ("lesser_panda", "goldfish"), OWN)
        assert found == {"387_lesser_panda": 0, "001_goldfish": 1}
        assert rule == "2 of 2 folders matched by the name after their number"

    def test_the_number_decides_between_equal_names(self):
        names = imagenet_names(1000)
        assert match_folders(("134_crane", "517_crane"), names, IMAGENET)[0] == {"134_crane": 134, "517_crane": 517}

    def test_by_number_where_most_names_agree(self):
        names = ("tench", "gold fish", "red panda", "monarch butterfly")
        found, rule = match_folders(("0_tench", "1-goldfish", "2.lesser_panda", "3 monarch"), names, OWN)
        assert list(found.values()) == [0, 1, 2, 3]
        assert rule == "4 of 4 folders matched by number"

    def test_numbers_that_count_from_one_are_not_taken_for_indices(self):
        names = tuple(name.partition(".")[2].replace("_", " ") for name in CUB)
        folders = (*CUB[:2], "003.Sooty_Albatros")  # one misspelt, or its name would settle it
        assert match_folders(folders, names, OWN)[0] == {CUB[0]: 0, CUB[1]: 1}

    def test_plain_numbers_are_indices(self):
        assert match_folders(("0", "07", "9"), tuple("abcdefgh"), OWN)[0] == {"0": 0, "07": 7}

    def test_plain_numbers_that_are_names_are_names(self):
        assert match_folders(("1", "2"), ("2", "1"), OWN)[0] == {"1": 1, "2": 0}

    def test_numbers_where_classes_have_no_names(self):
        names = ("class 0", "class 1", "class 2")
        assert match_folders(("00_cat", "02_dog"), names, UNKNOWN) == (
            {"00_cat": 0, "02_dog": 2},
            "2 of 2 folders matched by number",
        )

    def test_sorted_order_where_classes_have_no_names_and_counts_agree(self):
        found, rule = match_folders(("dog", "cat"), ("class 0", "class 1"), UNKNOWN)
        assert found == {"cat": 0, "dog": 1}
        assert rule == "2 of 2 folders matched by their sorted order"
        assert match_folders(("dog", "cat"), ("horse", "cow"), OWN)[0] == {}

    def test_sorted_order_is_better_than_numbers_that_leave_one_out(self):
        assert match_folders(("1_a", "2_b"), ("class 0", "class 1"), UNKNOWN)[0] == {"1_a": 0, "2_b": 1}

    def test_classes_named_after_the_folders_match_them(self):
        folders = tuple(sorted(("00_a", "01_b", "10_c")))
        assert list(match_folders(folders, folders, FOLDERS)[0].values()) == [0, 1, 2]

    def test_nothing_in_common(self):
        assert match_folders(("cat", "dog"), imagenet_names(1000), IMAGENET) == (
            {},
            "no true classes known: no folder (cat, dog) names a class of the model",
        )


class TestImagenetNames:
    @pytest.mark.parametrize("n_classes", [1000, 11221, 11821, 21841, 21843])
    def test_every_variant_has_unique_names(self, n_classes):
        names = imagenet_names(n_classes)
        assert len(names) == len(set(names)) == n_classes

    def test_names_are_short_and_shared_ones_carry_their_index(self):
        names = imagenet_names(1000)
        assert (names[0], names[387], names[134], names[517]) == ("tench", "lesser panda", "crane (134)", "crane (517)")

    def test_other_counts_have_no_table(self):
        assert imagenet_names(8) is None


class TestReadClassMap:
    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("map.txt", "cat\ndog\nhorse, pony\n\n"),
            ("map.csv", 'cat\ndog\n"horse, pony"\n'),
            ("map.csv", 'name\ncat\ndog\n"horse, pony"\n'),
            ("map.csv", '0,cat\n1,dog\n2,"horse, pony"\n'),
            ("map.csv", 'index,colour,name\n2,brown,"horse, pony"\n0,black,cat\n1,white,dog\n'),
            ("map.csv", 'cat,0\ndog,1\n"horse, pony",2\n'),
            ("map.json", '["cat", "dog", "horse, pony"]'),
            ("map.json", '{"2": "horse, pony", "0": "cat", "1": "dog"}'),
            ("map.json", '{"dog": 1, "horse, pony": 2, "cat": 0}'),
        ],
    )
    def test_forms(self, tmp_path, file, text):
        (tmp_path / file).write_text("\ufeff" + text, encoding="utf-8")
        assert read_class_map(tmp_path / file, 3) == ("cat", "dog", "horse, pony")

    @pytest.mark.parametrize(
        ("file", "text", "sentence"),
        [
            ("map.txt", "cat\ndog\n", r"names 2 classes, but the model has 3; it needs one name per class"),
            ("map.txt", "", r"names 0 classes, but the model has 3"),
            ("map.txt", "cat\n\ndog\n", r"line 2 is empty"),
            ("map.csv", "", r"it is empty"),
            ("map.csv", "0,cat\n1\n", r"its rows differ in length"),
            ("map.csv", "0,cat\n2,dog\n3,horse\n", r"its indices are not 0 to 2, each once"),
            ("map.csv", "a,cat\nb,dog\n", r"several columns, but none of class indices"),
            ("map.json", "[1, 2, 3]", r"something else than names"),
            ("map.json", '{"a": ["x"]}', r"expected a list of names"),
            ("map.json", "{", r"cannot be used: Expecting property name"),
            ("map.json", '{"cat": 0, "dog": 0, "horse": 1}', r"its indices are not 0 to 2"),
            ("map.pkl", "", r"has to be a \.txt, \.csv or \.json file"),
        ],
    )
    def test_unusable_files_are_one_sentence(self, tmp_path, file, text, sentence):
        (tmp_path / file).write_text(text)
        with pytest.raises(ModelError, match=rf"^Class map .*{file} .*{sentence}.*\.$"):
            read_class_map(tmp_path / file, 3)

    def test_missing_and_binary_files(self, tmp_path):
        with pytest.raises(ModelError, match="cannot be read \\(No such file or directory\\)"):
            read_class_map(tmp_path / "map.txt", 3)
        (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ModelError, match="cannot be read \\(it is not UTF-8 text\\)"):
            read_class_map(tmp_path / "map.txt", 3)


def test_json_maps_written_by_other_programs(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({str(index): name for index, name in enumerate("abcdefghijkl")}))
    assert read_class_map(tmp_path / "map.json", 12) == tuple("abcdefghijkl")


class TestMerge:
    NAMES = ("tabby", "Siamese cat", "beagle", "boxer", "goldfish")

    def read(self, tmp_path, content) -> dict:
        (tmp_path / "merge.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_merge(tmp_path / "merge.json", self.NAMES)

    def test_members_are_names_indices_and_ranges(self, tmp_path):
        assert self.read(tmp_path, {"cat": ["Tabby", "siamese-cat"], "dog": ["2-3"]}) == {"cat": (0, 1), "dog": (2, 3)}
        assert self.read(tmp_path, {"pet": [4, "0"]}) == {"pet": (4, 0)}

    def test_a_range_of_imagenet(self, tmp_path):
        (tmp_path / "merge.json").write_text('{"dog": ["151 - 268"], "cat": ["281-285"]}')
        merged = read_merge(tmp_path / "merge.json", imagenet_names(1000), IMAGENET)
        assert [len(indices) for indices in merged.values()] == [118, 5]

    def test_a_merged_class_may_be_called_as_one_of_its_members(self, tmp_path):
        assert self.read(tmp_path, {"tabby": ["tabby", "Siamese cat"]}) == {"tabby": (0, 1)}

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("[]", r"expected \{name: \[class, \.\.\.\]\}"),
            ({"cat": []}, r"expected \{name: \[class, \.\.\.\]\}"),
            ("not json", "cannot be used"),
            ({"cat": ["tabbi"]}, r"no class 'tabbi'.* Did you mean tabby"),
            ({"cat": ["0-9"]}, "Class index 9 is out of range"),
            ({"cat": ["3-1"]}, "range 3-1 ends before it begins"),
            ({"cat": [True]}, "True is neither a name, an index nor a range of indices"),
            ({"cat": ["tabby"], "pet": ["0-2"]}, "'tabby' is named twice"),
            ({"Goldfish": ["tabby"]}, "'Goldfish' is no new name: a class that stays is called so"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_in_one_sentence(self, tmp_path, content, sentence):
        with pytest.raises(ModelError, match=sentence) as refused:
            self.read(tmp_path, content)
        assert "merge.json" in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ModelError, match=r"File of merged classes .*none\.json cannot be read"):
            read_merge(tmp_path / "none.json", self.NAMES)
