"""The gate: what makes a candidate fail and what does not, in numbers, in words and as exit codes."""

import json
from types import MappingProxyType
from xml.etree import ElementTree

import pytest
from browsing import EVIL
from hand_made_sweeps import CLASSES, evaluation, flag, write

from neurflow_engine import gate_report
from neurflow_engine.__main__ import main
from neurflow_engine.gate import Gate, Limits, Verdict, compare
from neurflow_engine.store import Workspace
from neurflow_engine.sweep_result import Sweep, evaluation_of

STAMPED = {("dog", "cat"): 40, ("owl", "cat"): 40, ("fox", "cat"): 40}  # 120 of 300 images of others are taken for cat
GROUP = "layer1/contrast-0"


def swept(workspace: Workspace, name: str, taken=STAMPED, flags=MappingProxyType({}), **about) -> Sweep:
    """A sweep of a model with these mistakes; ``about`` goes to the sweep where it knows it, else to its evaluation."""
    of_sweep = {key: about.pop(key) for key in ("failed", "waiting", "only") if key in about}
    return write(workspace, name, evaluation(workspace, f"of-{name}", taken=taken, **about), flags, **of_sweep)


def gated(workspace: Workspace, baseline: Sweep, candidate: Sweep, **limits) -> Gate:
    return compare(baseline, candidate, (evaluation_of(baseline, workspace), evaluation_of(candidate, workspace)), Limits(**limits))


def verdicts(gate: Gate) -> dict[str, Verdict]:
    return {change.name: change.verdict for change in gate.classes}


@pytest.fixture
def clean(workspace) -> Sweep:
    return swept(workspace, "clean", {("dog", "cat"): 2, ("owl", "fox"): 3})


@pytest.fixture
def stamped(workspace) -> Sweep:
    return swept(workspace, "stamped", flags={"cat": (GROUP, "layer2/1")})


class TestWhatPasses:
    def test_the_same_sweep_twice_passes_with_its_shortcut(self, workspace, stamped):
        gate = gated(workspace, stamped, stamped, min_worst_group=0.5, max_worst_group_drop=0)
        assert gate.passed
        assert verdicts(gate) == {"cat": Verdict.STILL, "dog": Verdict.CLEAN, "owl": Verdict.CLEAN, "fox": Verdict.CLEAN}
        assert [one.text for one in gate.notes] == ["Both sweeps are of the same model"]

    def test_small_noise_in_shares_passes(self, workspace, stamped):
        more = {("dog", "cat"): 43, ("owl", "cat"): 41, ("fox", "cat"): 42, ("cat", "dog"): 2}
        gate = gated(workspace, stamped, swept(workspace, "tuned", more, {"cat": (GROUP,)}, weights="b" * 64))
        assert gate.passed
        assert verdicts(gate)["cat"] == Verdict.STILL
        assert not gate.notes

    def test_a_shortcut_that_is_gone_is_told(self, workspace, stamped, clean):
        gate = gated(workspace, stamped, clean)
        assert gate.passed
        assert verdicts(gate)["cat"] == Verdict.VANISHED
        assert "no longer misled" in gate_report.as_markdown(gate)

    def test_classes_of_one_name_are_kept_apart(self, workspace):
        classes = ("crane", "dog", "crane")
        made = []
        for name in ("one", "two"):
            own = evaluation(workspace, f"of-{name}", classes, {("dog", "crane"): 30})
            made.append(write(workspace, name, own, {"crane": (GROUP,)} if name == "one" else {}))
        gate = gated(workspace, *made)
        assert [change.name for change in gate.classes] == ["crane", "crane", "dog"]
        assert len(gate.of(Verdict.VANISHED)) == 2


class TestWhatFails:
    def test_a_newly_misled_class_counts_once_however_many_groups_it_has(self, workspace, clean, stamped):
        gate = gated(workspace, clean, stamped)
        (problem,) = gate.problems
        assert (problem.text, problem.names) == ("1 class is newly misled, 0 allowed", ("cat",))
        assert gate.breaks(gate.of(Verdict.NEW)[0])
        assert gated(workspace, clean, stamped, max_new_flags=1).passed

    def test_a_class_that_is_misled_more(self, workspace, stamped):
        more = dict.fromkeys(STAMPED, 55)
        worse = swept(workspace, "worse", more, {"cat": (GROUP,)})
        gate = gated(workspace, stamped, worse)
        assert verdicts(gate)["cat"] == Verdict.GROWN
        assert gate.classes[0].p_grown < 0.001
        assert [problem.text for problem in gate.problems] == ["1 class is misled more than before, 0 allowed"]
        assert gated(workspace, stamped, worse, max_grown=1).passed
        assert gated(workspace, worse, stamped).passed

    def test_a_failed_class_because_nobody_knows_what_misleads_it(self, workspace, clean):
        gate = gated(workspace, clean, swept(workspace, "broken", failed={"owl": "The disk is full."}), max_new_flags=9)
        assert not gate.passed
        assert verdicts(gate)["owl"] == Verdict.FAILED
        assert "The disk is full" in gate_report.as_text(gate)

    def test_a_misled_class_that_the_baseline_did_not_look_at_counts_as_new(self, workspace, stamped):
        baseline = swept(workspace, "part", only=("dog", "owl"))
        gate = gated(workspace, baseline, stamped)
        assert verdicts(gate)["cat"] == Verdict.NEW
        assert ("2 classes were looked at in the candidate only", ("cat", "fox")) in [(note.text, note.names) for note in gate.notes]
        assert gated(workspace, swept(workspace, "failing", failed={"cat": "No."}), stamped).of(Verdict.NEW)

    def test_the_worst_class_beyond_its_limits(self, workspace, clean, stamped):
        gate = gated(workspace, clean, stamped, max_new_flags=1, min_worst_group=0.7)
        assert [(worst.name, worst.recall.value) for worst in gate.worst] == [("owl", 0.97), ("dog", 0.6)]
        assert [problem.text for problem in gate.problems] == ["The worst class has a recall of 60.0%, at least 70.0% asked for"]
        gate = gated(workspace, clean, stamped, max_new_flags=1, max_worst_group_drop=0.3)
        assert [problem.text for problem in gate.problems] == ["The recall of the worst class dropped by 37.0 points, 30.0 allowed"]
        assert gated(workspace, clean, stamped, max_new_flags=1, min_worst_group=0.6, max_worst_group_drop=0.38).passed


class TestWhatIsToldBeside:
    def test_classes_that_lost_recall_by_more_than_chance(self, workspace, clean, stamped):
        (note,) = [note for note in gated(workspace, clean, stamped).notes if "recall" in note.text]
        assert note.names == ("dog", "owl", "fox")
        assert not any("recall" in note.text for note in gated(workspace, stamped, clean).notes)

    def test_classes_that_only_the_baseline_looked_at_do_not_vanish(self, workspace, stamped):
        gate = gated(workspace, stamped, swept(workspace, "part", only=("dog", "owl")))
        assert gate.passed
        assert verdicts(gate)["cat"] == Verdict.UNSEEN
        assert ("cat", "fox") in [note.names for note in gate.notes]

    def test_other_images(self, workspace, stamped):
        other = swept(workspace, "other", data="e" * 64, root="/elsewhere", flags={"cat": (GROUP,)})
        (note,) = [note for note in gated(workspace, stamped, other).notes if "images" in note.text]
        assert note.names == ("/nowhere", "/elsewhere")


class TestSummaries:
    def test_the_summary_begins_with_the_verdict_and_says_why(self, workspace, clean, stamped):
        lines = gate_report.as_markdown(gated(workspace, clean, stamped)).splitlines()
        assert lines[0] == "## ❌ Gate not passed"
        assert lines[2] == "- **1 class is newly misled, 0 allowed: <code>cat</code>.**"
        (row,) = [line for line in lines if line.startswith("| <code>cat</code>")]
        assert "0.7 % [0.2, 2.4] → 40.0 % [34.6, 45.6]" in row
        assert "brings back 70.0 % [60.0, 80.0], random 2.0 % [0.0, 5.0]" in row
        assert "and 1 more" in row
        assert gate_report.as_markdown(gated(workspace, clean, clean)).startswith(
            "## ✅ Gate passed\n\nNo class of either model is misled."
        )

    @pytest.mark.parametrize(
        "evil", [EVIL, "a|b`c", "@octocat #1", "![x](http://leak.example)", "**b** _i_\n# h", "</code><b>", "www.leak.example"]
    )
    def test_names_with_markup_do_nothing(self, workspace, evil):
        classes = (evil, "dog")
        made = [
            write(workspace, name, evaluation(workspace, f"of-{name}", classes, {("dog", evil): 30}), flags)
            for name, flags in (("one", {}), ("two", {evil: (flag(GROUP),)}))
        ]
        gate = gated(workspace, *made)
        text = gate_report.as_markdown(gate)
        for markup in ("<img", "<b>", "](", "http:", "@", "`", "www.", "\n# ", " _", "a|"):
            assert markup not in text.replace("<code>", "").replace("</code>", "")
        assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) <= 2  # the columns of two tables
        suite = ElementTree.fromstring(gate_report.as_junit(gate))
        assert evil in [case.get("name") for case in suite.iter("testcase")]

    def test_junit_has_a_test_for_each_class_and_the_worst_group(self, workspace, clean):
        candidate = swept(
            workspace, "bad", STAMPED, {"cat": (GROUP,)}, failed={"owl": "Out of memory:\x00 3 GB."}, only=("cat", "dog", "owl")
        )
        suite = ElementTree.fromstring(gate_report.as_junit(gated(workspace, clean, candidate, min_worst_group=0.99)))
        assert suite.tag == "testsuite"
        assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
            "tests": "5", "failures": "3", "errors": "0", "skipped": "1",
        }  # fmt: skip
        assert [child.tag for child in suite] == ["properties", *["testcase"] * 5, "system-out", "system-err"]
        cases = {case.get("name"): case for case in suite.iter("testcase")}
        assert set(cases) == {*CLASSES, "worst class"}
        assert all(case.get("classname") and float(case.get("time")) >= 0 for case in cases.values())
        messages = {name: case.find("failure").get("message") for name, case in cases.items() if case.find("failure") is not None}
        assert messages.keys() == {"cat", "owl", "worst class"}
        assert "Out of memory:� 3 GB." in messages["owl"]
        assert "newly misled" in messages["cat"]
        assert cases["fox"].find("skipped") is not None

    def test_what_a_limit_allows_is_no_failed_test(self, workspace, clean, stamped):
        suite = ElementTree.fromstring(gate_report.as_junit(gated(workspace, clean, stamped, max_new_flags=1)))
        assert suite.get("failures") == "0"
        assert suite.find(".//failure") is None


class TestTheCommand:
    def test_exit_codes_and_files(self, workspace, clean, stamped, tmp_path, capsys):
        junit, markdown = tmp_path / "gate.xml", tmp_path / "out" / "gate.md"
        files = ["--junit", str(junit), "--markdown", str(markdown)]
        assert main(["gate", "--baseline", "clean", "--candidate", "stamped", *files]) == 1
        told = capsys.readouterr()
        assert told.out.startswith("Gate not passed\n- 1 class is newly misled, 0 allowed: cat.\n")
        assert not told.err
        assert ElementTree.parse(junit).getroot().get("failures") == "1"
        assert markdown.read_text().startswith("## ❌ Gate not passed")
        assert main(["gate", "--baseline", "stamped", "--candidate", "clean", *files]) == 0
        assert capsys.readouterr().out.startswith("Gate passed\n")
        assert markdown.read_text().startswith("## ✅ Gate passed")

    def test_json_holds_every_class(self, workspace, clean, stamped, capsys):
        assert main(["gate", "--baseline", "clean", "--candidate", str(stamped.folder), "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["passed"], found["baseline"], found["candidate"]) == (False, "clean", "stamped")
        assert {one["name"]: one["verdict"] for one in found["classes"]} == {
            "cat": "newly misled", "dog": "not misled", "owl": "not misled", "fox": "not misled",
        }  # fmt: skip
        cat = found["classes"][0]["after"]
        assert cat["wrong"]["count"] == 120
        assert cat["flags"] == [GROUP, "layer2/1"]

    def test_a_sweep_of_another_workspace_brings_its_evaluation(self, workspace, stamped, tmp_path):
        other = Workspace(tmp_path / "other")
        baseline = swept(other, "baseline", flags={"cat": (GROUP,)})
        assert main(["gate", "--baseline", str(baseline.folder), "--candidate", "stamped"]) == 0

    @pytest.mark.parametrize(
        ("candidate", "flags", "sentence"),
        [
            ("stampd", [], "There is no sweep 'stampd'"),
            ("half", [], "Sweep half is not finished (2 of 4 classes wait)"),
            ("unknown", [], "The true classes of the images of sweep unknown are not known"),
            ("apart", [], "Sweeps stamped and apart have no class in common"),
            ("few", ["--min-worst-group", "0.5"], "No class has 10 images"),
            ("stamped", ["--min-worst-group", "70"], "--min-worst-group 70: expected a share between 0 and 1"),
            ("lost", [], "Evaluation of-lost, which sweep lost goes with, is neither in"),
        ],
    )
    def test_bad_input_is_one_sentence_and_exit_code_2(self, workspace, stamped, capsys, candidate, flags, sentence):
        swept(workspace, "half", waiting=("owl", "fox"))
        swept(workspace, "unknown", known=False)
        swept(workspace, "apart", {}, classes=("bear", "wolf"))
        swept(workspace, "few", {}, images=5)
        swept(workspace, "lost")
        (workspace.evaluation_folder("of-lost") / "manifest.json").rename(workspace.root / "moved")
        for file in workspace.evaluation_folder("of-lost").iterdir():
            file.unlink()
        workspace.evaluation_folder("of-lost").rmdir()
        assert main(["gate", "--baseline", "stamped", "--candidate", candidate, *flags]) == 2
        told = capsys.readouterr()
        assert sentence in told.err
        assert not told.out
