"""Conventions worth keeping: who may import what, who may touch a model, and that the README's commands exist."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurflow_engine.__main__ import _parser
from neurflow_engine.edits import EditStore
from neurflow_engine.labels import LabelStore
from neurflow_engine.verdicts import VerdictStore

ROOT = Path(__file__).resolve().parents[1]
ENGINE = sorted((ROOT / "neurflow_engine").rglob("*.py"))
PAGES = [ROOT / "app.py", *sorted((ROOT / "pages").rglob("*.py"))]
TORCH = {"torch", "torchvision", "timm"}
HOOKING = ("tracing.py", "fix.py")  # for analysis; and where a model that is not ours has to answer otherwise for good
WITHOUT_TORCH = [
    "__main__",
    "backup",
    "access",
    "accuracy",
    "catalogue",
    "circuit_json",
    "class_names",
    "comparison",
    "concepts",
    "config",
    "controls",
    "core_neurons",
    "cost",
    "debug_report",
    "demo",
    "demo.draw",
    "descriptions",
    "edits",
    "errors",
    "evidence",
    "fidelity",
    "gate",
    "gate_report",
    "groups",
    "images",
    "inventory",
    "jobs",
    "labels",
    "labelling",
    "llm",
    "migrations",
    "progress",
    "prompts",
    "proposals",
    "ranking",
    "records",
    "remote",
    "scoring",
    "shares",
    "report",
    "silencer_file",
    "sql_store",
    "stability",
    "store",
    "sweep_result",
    "turns",
    "uploads",
    "verdict",
    "verdicts",
]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8"), named(path)))


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Full names of imported modules; with ``everywhere`` also inside functions and type-checking blocks."""
    found = nodes(path) if everywhere else ast.parse(path.read_text(encoding="utf-8")).body
    names = set()
    for node in found:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_knows_nothing_of_the_app(path):
    assert not packages(path) & {"streamlit", "pages", "app"}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_pages_never_import_torch(path):
    assert not packages(path) & TORCH


@pytest.mark.parametrize("path", [path for path in ENGINE + PAGES if path.name not in HOOKING], ids=named)
def test_only_tracing_and_fixes_hook_a_model(path):
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            assert not re.fullmatch(r"register_\w*hook|_\w*_hooks", node.attr), f"{named(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [path for path in ENGINE + PAGES if path.name != "tracing.py"], ids=named)
def test_only_tracing_replaces_the_forward_of_a_model(path):
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            assert node.attr != "forward" or isinstance(node.ctx, ast.Load), f"{named(path)}:{node.lineno}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "setattr":
            assert not any(getattr(argument, "value", None) == "forward" for argument in node.args), f"{named(path)}:{node.lineno}"


def test_the_rules_about_hooks_would_be_seen_to_be_broken():
    engine = ROOT / "neurflow_engine"
    for rule, name in (
        (test_only_tracing_and_fixes_hook_a_model, "tracing.py"),
        (test_only_tracing_and_fixes_hook_a_model, "fix.py"),
        (test_only_tracing_replaces_the_forward_of_a_model, "tracing.py"),
    ):
        with pytest.raises(AssertionError):
            rule(engine / name)


@pytest.mark.parametrize("path", ENGINE + PAGES, ids=named)
def test_nothing_is_unpickled_or_run(path):
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        where, name = f"{named(path)}:{node.lineno}", ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert not re.search(r"(^|\.)(c?[pP]ickle|dill|joblib|shelve|marshal)\.\w|read_pickle|^(eval|exec)$", name), where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name in ("torch.load", "torch.serialization.load", "load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", where


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "session.py"], ids=named)
def test_only_one_file_touches_the_session_state(path):
    assert "session_state" not in {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}


CHANGES = {  # of what is kept: whoever makes one says who they are
    name
    for store in (LabelStore, VerdictStore, EditStore)
    for name, method in inspect.getmembers(store, inspect.isfunction)
    if not name.startswith("_") and "author" in inspect.signature(method).parameters
}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_changes_what_is_kept_in_the_name_of_a_reviewer_only(path):
    for node in nodes(path):
        where = f"{named(path)}:{getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.FunctionDef) and node.name == "author" and path.name != "people.py"), where
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of = ast.unparse(node.func.value)
        if node.func.attr in CHANGES and re.search(r"(labels|verdicts|edits)\(\)$|^store$", of):
            given = {ast.unparse(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))}
            assert given & {"author()", "people.author()"}, where
        assert not re.search(r"jobs\(\)$", of) or node.func.attr in ("all", "get") or path.name == "commands.py", where


def test_the_rule_about_changes_would_be_seen_to_be_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("test_conventions.ROOT", tmp_path)
    assert {"decide", "edit", "undo", "approve_many", "import_rows", "give", "merge", "split", "hide", "pin"} <= CHANGES
    for line in (
        "cached.labels().decide(run, group, state, 'me', 1)",
        "store.give(run, group, judgement, name, 1)",
        "cached.jobs().start('demo', 'Demo', [])",
        "def author(): return 'me'",
    ):
        (tmp_path / "page.py").write_text(line)
        with pytest.raises(AssertionError):
            test_a_page_changes_what_is_kept_in_the_name_of_a_reviewer_only(tmp_path / "page.py")


def test_light_modules_do_not_pull_torch_in():
    modules = [f"neurflow_engine.{name}" for name in WITHOUT_TORCH]
    of_pages = {name for path in PAGES for name in imported(path, everywhere=False) if name.startswith("neurflow_engine")}
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in ENGINE}
    modules += sorted((of_pages & files) - set(modules))
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    found = {TORCH} & sys.modules.keys()
    assert not found, f"{{name}} imports {{found}}"
"""
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr.splitlines()[-1]


def commands(text: str) -> list[list[str]]:
    """Arguments of the engine's commands in a text's code blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python -m neurflow_engine")]
    return [shlex.split(line, comments=True)[3:] for line in lines]


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", commands(README), ids=lambda arguments: " ".join(arguments)[:40])
def test_commands_of_the_readme_are_understood(arguments):
    assert _parser().parse_args(arguments).command == arguments[0]


def test_the_readme_shows_every_command_and_every_flag_it_names_exists():
    (choices,) = (action.choices for action in _parser()._actions if action.choices)
    assert {arguments[0] for arguments in commands(README)} == set(choices)
    flags = {flag for command in choices.values() for action in command._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README)) <= flags


def test_ci_runs_the_test_command_of_the_readme():
    (line,) = [line for line in README.splitlines() if line.endswith("-m tests")]
    assert line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", ENGINE + PAGES, ids=named)
def test_no_file_names_the_machine_it_was_written_on(path):
    assert not re.search(r"(?<![\w.])/(home|root|Users)/", path.read_text(encoding="utf-8"))
