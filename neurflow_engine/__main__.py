"""The command line: ``python -m neurflow_engine COMMAND``.

Results go to stdout (one JSON object with ``--json``), progress and warnings to stderr. Exit code 0 done, 2 bad arguments or input,
1 failed (or a gate that does not pass), 130 interrupted.
"""

import os
import signal

INTERRUPTED = 130


def _end_at_once(number, frame):
    """For the moments in which the modules below are loaded: nothing is begun yet, so nothing has to be kept or closed."""
    os.write(2, b"Cancelled.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end_at_once)

# ruff: noqa: E402 - what takes long to load comes after the handler
import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from neurflow_engine import effort, logs
from neurflow_engine import progress as progress_
from neurflow_engine.access import check_readable, using_workspace
from neurflow_engine.catalogue import list_models
from neurflow_engine.config import AnalysisConfig, ModelConfig, checked
from neurflow_engine.errors import InputError, NeurflowError, WorkspaceError
from neurflow_engine.files import write_atomically
from neurflow_engine.images import absolute_folders
from neurflow_engine.store import SCHEMA, DebugReport, Evaluation, Run, Workspace

if TYPE_CHECKING:  # SQLAlchemy is loaded by those commands alone that read what people said
    from neurflow_engine.edits import Edits
    from neurflow_engine.inventory import Inventory
    from neurflow_engine.verdicts import Verdict

DONE, FAILED, BAD_INPUT = 0, 1, 2
_OF_CIRCUIT = {"json": "json", "csv": "csv", "circuit-html": "html"}  # formats of export, and what report.py calls them
_OF_GROUPS = ("fix", "ranking-csv", "fiftyone")
_FORMATS = ("html", *_OF_CIRCUIT, *_OF_GROUPS)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the whole usage."""

    def error(self, message: str):
        raise InputError(f"{self.prog}: {message}. See {self.prog} --help.")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(parts) > 2:
        raise argparse.ArgumentTypeError(f"expected a side or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _days(text: str) -> timedelta:
    try:
        days = float(text)
        return timedelta(days=days if days >= 0 else float("nan"))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a number of days, got {text!r}") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, metavar="NAME", help="a timm name, hf-hub:..., or local-dir:FOLDER")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights: .safetensors, .pth, .pt, .bin")
    model.add_argument("--model-kwargs", type=_json_object, default={}, metavar="JSON", help="arguments of the architecture")
    model.add_argument("--class-map", type=Path, metavar="FILE", help="class names: one per line, CSV or JSON")
    model.add_argument("--merge", type=Path, metavar="FILE", help='classes that count as one, JSON: {"dog": ["151-268"], ...}')
    model.add_argument("--random-weights", action="store_true", help="untrained weights (to try things out)")
    model.add_argument("--input-size", type=_size, metavar="SIDE|HxW")
    model.add_argument("--crop-pct", type=float)
    model.add_argument("--crop-mode", choices=("center", "squash", "border"))
    model.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"))
    model.add_argument("--mean", type=_numbers, metavar="A,B,C")
    model.add_argument("--std", type=_numbers, metavar="A,B,C")


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--workers", type=int, help="processes that decode images (default: as it pays)")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument(
        "--workspace", metavar="DIR|URL", help="default: $NEURFLOW_WORKSPACE, else ~/.neurflow; s3://, gs://, ... are shared"
    )
    common.add_argument("--events", type=Path, help=argparse.SUPPRESS)  # progress as JSON lines, for jobs.py
    parser = _Parser(prog="python -m neurflow_engine", description="Find out why an image classifier is wrong.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, work: Callable, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=[common])
        added.set_defaults(work=work)
        return added

    models = command("models", _models, "timm models with input size, layers, and whether weights are local")
    models.add_argument("pattern", nargs="?", help="part of a name, or a pattern with * and ?")

    evaluate = command("evaluate", _evaluate, "per-class accuracy, false positives and negatives, confusions")
    _add_model_flags(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR")
    _add_machine_flags(evaluate)

    analyze = command("analyze", _analyze, "build a run; resumes it if it was interrupted, finds it if it is finished")
    _add_model_flags(analyze)
    analyze.add_argument("--data", type=Path, required=True, metavar="DIR")
    analyze.add_argument("--target", required=True, metavar="NAME|INDEX")
    analyze.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: in the workspace)")
    _add_method_flags(analyze)
    _add_machine_flags(analyze)

    sweep = command("sweep", _sweep, "every class of a model: analysed and debugged, with what is finished found; goes on where it stopped")
    _add_model_flags(sweep)
    sweep.add_argument("--data", type=Path, required=True, metavar="DIR", help="one sub-folder per class")
    sweep.add_argument("--targets", default="all", metavar="all|A,B|worst:N", help="worst: the classes with the most false positives")
    sweep.add_argument("--draws", type=int, default=None, help="random neuron sets in the control of a misleading group")
    sweep.add_argument("--executor", choices=("local", "ray"), default="local", help="processes of this machine, or a Ray cluster")
    sweep.add_argument("--parallel", type=_count, metavar="N", help="of local: classes at once (default: as processors and memory allow)")
    sweep.add_argument("--address", help="of ray: a running cluster, e.g. auto (default: one for this sweep alone)")
    sweep.add_argument("--out", type=Path, metavar="FILE", help="also write the table of classes, as CSV or Parquet by the file's ending")
    _add_method_flags(sweep)
    _add_machine_flags(sweep)

    circuit = command("circuit", _circuit, "the circuit of a run")
    circuit.add_argument("run")
    circuit.add_argument("--edited", action="store_true", help="as people arranged it in the app, instead of as computed")

    debug = command("debug", _debug, "groups that mislead the model; with --mask, predictions before and after silencing them")
    debug.add_argument("run")
    debug.add_argument(
        "--images", type=Path, required=True, nargs="+", action="extend", metavar="DIR", help="several are looked at together"
    )
    debug.add_argument("--mask", type=_names, metavar="G1,G2", help="groups to silence")
    _add_report_flag(debug)
    debug.add_argument("--draws", type=int, default=None, help="random neuron sets in the control")
    debug.add_argument("--seed", type=int, default=0)
    _add_machine_flags(debug)

    fidelity = command("fidelity", _fidelity, "is the circuit of a run to be trusted: measured beside random neurons and an untrained twin")
    fidelity.add_argument("run")
    fidelity.add_argument("--refine", action="store_true", help="also swap core neurons by measured knock-outs")
    fidelity.add_argument("--draws", type=int, default=None, help="random neuron sets in each control")
    fidelity.add_argument("--seed", type=int, default=0)
    fidelity.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")

    preview = command("preview", _preview, "groups silenced on a whole folder: accuracy before and after, who is helped and who is hurt")
    preview.add_argument("run")
    preview.add_argument(
        "--images", type=Path, required=True, nargs="+", action="extend", metavar="DIR", help="several are looked at together"
    )
    preview.add_argument("--mask", type=_names, required=True, metavar="G1,G2", help="groups to silence")
    _add_report_flag(preview)
    _add_machine_flags(preview)

    export = command("export", _export, "something to hand over: the circuit, a debug report, a fix, or images by presence of a group")
    export.add_argument("run")
    export.add_argument("--format", choices=_FORMATS, required=True, help="html: the debug report; without one, the circuit")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument("--edited", action="store_true", help="the circuit as people arranged it in the app, instead of as computed")
    export.add_argument("--groups", "--group", type=_names, metavar="G1,G2", help="default: the most misleading one")
    _add_report_flag(export)
    export.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")

    compare = command(
        "compare", _compare, "two runs side by side: groups that both have, what appeared and vanished, what weighs more or less"
    )
    compare.add_argument("run", metavar="RUN")
    compare.add_argument("other", metavar="RUN")
    compare.add_argument("--draws", type=int, default=None, help="random groups in the control")
    compare.add_argument("--seed", type=int, default=0)

    gate = command("gate", _gate, "what changed between the sweeps of two models; exit code 1 where the candidate learned a new shortcut")
    gate.add_argument("--baseline", required=True, metavar="SWEEP", help="of the model in use")
    gate.add_argument("--candidate", required=True, metavar="SWEEP", help="of the model that is to follow it")
    gate.add_argument("--max-new-flags", type=_count, metavar="N", help="classes that may be newly misled (default: 0)")
    gate.add_argument("--max-grown", type=_count, metavar="N", help="classes that may be misled more than before (default: 0)")
    gate.add_argument("--min-worst-group", type=float, metavar="SHARE", help="recall that the worst class must have, 0 to 1")
    gate.add_argument("--max-worst-group-drop", type=float, metavar="SHARE", help="recall that the worst class may lose, 0 to 1")
    gate.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML, for a CI system")
    gate.add_argument("--markdown", type=Path, metavar="FILE", help="also write a summary, for a pull request")

    label = command("label", _label, "propose names for groups, by a language model or offline, and score them on patches held out")
    label.add_argument("run")
    label.add_argument("--groups", type=_names, metavar="G1,G2", help="default: all below the logits")
    label.add_argument("--offline", action="store_true", help="ask no language model, also where one is configured")
    label.add_argument("--estimate", action="store_true", help="ask nobody: say what would be asked and what it would cost")
    which = label.add_mutually_exclusive_group()
    which.add_argument("--no-score", action="store_true", help="propose only")
    which.add_argument("--rescore", action="store_true", help="score the names there are, propose none")
    label.add_argument("--again", action="store_true", help="ask also what was answered before, and about approved and edited labels")
    label.add_argument("--patches", type=int, help="of a group, that are shown to the proposer")
    label.add_argument("--side", type=int, metavar="PIXELS", help="longer side of a patch that is sent")
    label.add_argument("--held-out", type=int, help="patches on which a name is tested")
    label.add_argument("--per-request", type=int, help="of them in one question")
    label.add_argument("--concurrency", type=int, help="groups at once")
    label.add_argument("--seed", type=int)

    labels = command("labels", _labels_moved, "list labels, take them out, bring them in")
    labels.add_argument("action", choices=("list", "export", "import"))
    labels.add_argument("run", nargs="?", help="default: all runs of the workspace")
    labels.add_argument("--format", choices=("csv", "json"), help="default: by the file's ending, else json")
    labels.add_argument("--out", type=Path, metavar="FILE", help="of export; default: stdout")
    labels.add_argument("--in", dest="file", type=Path, metavar="FILE", help="of import")
    labels.add_argument("--author", default="import", metavar="NAME", help="of import: in whose name, where a row names nobody")

    runs = command("runs", _runs, "what the workspace holds and takes of the disk; delete what is no longer needed")
    runs.add_argument("action", choices=("list", "prune"))
    runs.add_argument("run", nargs="*", help="of prune: these runs, with their reports and previews")
    runs.add_argument("--older-than", type=_days, metavar="DAYS", help="of prune: runs older than that, with their reports and previews")
    runs.add_argument("--keep", type=_count, metavar="N", help="of prune: all but the newest N runs")
    runs.add_argument("--orphans", action="store_true", help="of prune: also evaluations of no run, what was never finished, ended jobs")
    runs.add_argument("--labelled", action="store_true", help="of prune: also runs about which people decided something")
    runs.add_argument("--copies", action="store_true", help="of prune: also this machine's copies of what lies on a shared storage")
    runs.add_argument("--dry-run", action="store_true", help="of prune: only say what would go")

    backup = command("backup", _backup, "the whole workspace with its labels in one file; images and checkpoints stay where they are")
    backup.add_argument("--out", type=Path, required=True, metavar="FILE")

    restore = command("restore", _restore, "a workspace from a backup, in a folder that holds none yet (--workspace)")
    restore.add_argument("file", type=Path, metavar="FILE")

    demo = command("demo", _demo, "write the embedded demo images and analyse them")
    _add_machine_flags(demo)
    return parser


def _add_report_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", metavar="ID", help="the debug report whose groups are meant (default: the newest)")


def _add_method_flags(parser: argparse.ArgumentParser) -> None:
    method = parser.add_argument_group("method")
    where = method.add_mutually_exclusive_group()
    where.add_argument("--layers", type=_names, metavar="A,B,C", help="without the logits, deepest first")
    where.add_argument("--depth", type=int, help="how many layers below the logits, where none are named")
    method.add_argument("--tau", type=int, help="core neurons of a neuron, at most")
    method.add_argument("--top-k", type=int, help="patches in the concept of a neuron")
    method.add_argument("--max-images", type=int, help="probe images, at most")
    method.add_argument("--granularities", type=_numbers, metavar="A,B,C", help="window side / image side")
    method.add_argument("--min-groups", type=int, help="neuron groups of a layer, at least")
    method.add_argument("--max-groups", type=int, help="neuron groups of a layer, at most")
    method.add_argument("--seed", type=int)
    method.add_argument("--precision", choices=("mixed", "float32"), help="mixed: gradients in bfloat16 where the processor has it")
    method.add_argument("--memory-mb", type=int, help="RAM that the analysis may take, at most")
    method.add_argument("--disk-mb", type=int, help="for outputs of layers kept between stages, at most")


def _chosen(arguments: argparse.Namespace, names: Sequence[str]) -> dict:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _model_config(arguments: argparse.Namespace) -> ModelConfig:
    fields = tuple(name for name in ModelConfig.model_fields if name != "name")
    return checked(ModelConfig, name=arguments.model, **_chosen(arguments, fields))


def _models(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    found = list_models(arguments.pattern)
    rows = [
        {
            "name": info.name,
            "family": info.family,
            "input_size": info.input_size,
            "parameters": info.n_parameters,
            "layers": info.stages,
            "pretrained": info.pretrained,
            "weights_local": info.weights_local,
        }
        for info in found
    ]
    lines = []
    for info in found:
        size, local = "x".join(map(str, info.input_size or ())), "local" if info.weights_local else ""
        lines.append(f"{info.name:<50} {size:>9}  {local:<6}{', '.join(info.stages)}")
    return {"schema": SCHEMA, "models": rows}, "\n".join(lines) or f"No timm model matches {arguments.pattern!r}."


def _evaluate(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.evaluation import evaluate
    from neurflow_engine.pipeline import prepare

    subject = prepare(_model_config(arguments), arguments.data, arguments.device)
    found = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, progress, arguments.workers)
    _warn_of_skipped(found)
    return _evaluation_json(found), _evaluation_text(found)


def _evaluation_json(evaluation: Evaluation) -> dict:
    return {
        "schema": SCHEMA,
        "evaluation": evaluation.id,
        "model": {key: evaluation.manifest["model"][key] for key in ("name", "checkpoint_sha256")},
        "images": len(evaluation.predictions),
        "accuracy": evaluation.accuracy,
        "label_rule": evaluation.label_rule,
        "classes": json.loads(evaluation.per_class().to_json(orient="records")),
        "confusions": evaluation.confusion().to_dict(orient="records"),
        "skipped": evaluation.manifest["data"]["skipped"],
        "layers": evaluation.places,
    }


def _evaluation_text(evaluation: Evaluation) -> str:
    accuracy = "true classes unknown" if evaluation.accuracy is None else f"{evaluation.accuracy:.1%} right"
    table = evaluation.per_class().drop(columns="index").to_string(index=False, na_rep="", float_format="{:.3f}".format)
    return f"{len(evaluation.predictions)} images, {accuracy} ({evaluation.label_rule})\n{table}"


def _warn_of_skipped(evaluation: Evaluation) -> None:
    if evaluation.skipped:
        examples = "; ".join(f"{file.path} {file.reason}" for file in evaluation.skipped[:3])
        count = f"{len(evaluation.skipped)} file{'s' if len(evaluation.skipped) > 1 else ''}"
        print(f"{count} left out: {examples}{'; ...' if len(evaluation.skipped) > 3 else ''}", file=sys.stderr)


def _analyze(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.pipeline import analyze

    return _run_result(analyze(_analysis_config(arguments, arguments.target), workspace, arguments.out, progress))


def _analysis_config(arguments, target: str) -> AnalysisConfig:
    fields = [name for name in AnalysisConfig.model_fields if name not in ("model", "data", "target") and hasattr(arguments, name)]
    return checked(AnalysisConfig, model=_model_config(arguments), data=arguments.data, target=target, **_chosen(arguments, fields))


def _sweep(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.executors import Local, Ray
    from neurflow_engine.sweep import sweep
    from neurflow_engine.sweep_result import table_file

    if arguments.parallel == 0:
        raise InputError("--parallel 0: at least one class has to run at a time.")
    if (arguments.executor == "local" and arguments.address) or (arguments.executor == "ray" and arguments.parallel):
        raise InputError("--address goes with --executor ray, --parallel with --executor local.")
    if arguments.out and arguments.out.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"--out {arguments.out}: expected a file that ends in .csv or .parquet.")
    if arguments.draws is not None and arguments.draws < 1:
        raise InputError(f"--draws {arguments.draws}: a control needs at least one random draw.")
    executor = Ray(arguments.address) if arguments.executor == "ray" else Local(arguments.parallel)
    config = _analysis_config(arguments, "")
    made = sweep(config, workspace, arguments.targets, arguments.draws or effort.DRAWS, executor, progress)
    table = made.table(workspace.open_evaluation(made.evaluation))
    if arguments.out:
        write_atomically(arguments.out.absolute(), table_file(table, arguments.out.suffix.lower().removeprefix(".")))
    return made.as_json(), _sweep_text(made, table)


def _sweep_text(made, table) -> str:
    shown = table[["class", "state", "images", "predicted", "wrong", "flagged", "first_flag", "recovered", "control", "ceiling", "seconds"]]
    lines = [f"sweep {made.id}: {len(table)} classes in {made.manifest['seconds']:.0f} s"]
    lines.append(shown.to_string(index=False, na_rep="", float_format="{:.2f}".format))
    lines += [f"{row['class']} failed: {row['message']}" for _, row in table[table["state"] == "failed"].iterrows()]
    for mark in made.marks:
        names = ", ".join(dict.fromkeys(name for name, _ in mark.groups))
        lines.append(f"One thing misleads towards {names} ({mark.how} alike, {mark.similarity:.2f} or more)")
    return "\n".join(lines)


def _run_result(run: Run) -> tuple[dict, str]:
    summary = run.summary
    result = {
        "schema": SCHEMA,
        "run": run.id,
        "folder": str(run.folder),
        "evaluation": run.manifest["evaluation"],
        "groups": summary.n_groups,
        "probe_images": summary.n_images,
        "skipped": run.manifest["data"]["skipped"],
        "seconds": run.manifest["seconds"],
        "peak_memory_mb": run.manifest["peak_memory_mb"],
    }
    text = f"run {run.id}: {summary.n_groups} groups of {summary.target_name} from {summary.n_images} images in {run.folder}"
    return result, text


def _circuit(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.circuit_json import as_json
    from neurflow_engine.edits import edited

    run = workspace.open_run(arguments.run)
    edits = _edits(arguments, workspace, run)
    circuit = edited(run.circuit, edits)
    lines = [f"{circuit.target_name} ({run.summary.model_name}, {run.summary.n_images} images)"]
    for group in circuit.groups:
        inputs = ", ".join(f"{edge.source} {edge.weight:+.2f}" for edge in circuit.inputs(group.id)[:4])
        lines.append(f"{group.id:<16} {len(group.neurons):>3} neurons {len(group.patches):>4} patches  {inputs and 'built from ' + inputs}")
    return as_json(run, _labels(workspace, run), edits), "\n".join(lines)


def _edits(arguments, workspace: Workspace, run: Run) -> "Edits":
    """How people arranged the circuit, where that is asked for."""
    from neurflow_engine.edits import Edits, EditStore

    if not arguments.edited:
        return Edits(run.id)
    with closing(EditStore.for_workspace(workspace.address)) as store:
        return store.of(run.id)


def _labels(workspace: Workspace, run: Run) -> dict[str, str]:
    """Names in force; a circuit without names is worth more than none, so a workspace without labels is no error."""
    from neurflow_engine.labels import LabelStore

    if not workspace.exists:
        return {}
    try:
        with closing(LabelStore.for_workspace(workspace.address)) as store:
            return {group: label.text for group, label in store.for_run(run.id).items() if label.text}
    except WorkspaceError as error:
        print(f"The groups have no names here. {error}", file=sys.stderr)
        return {}


def _label(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import labelling
    from neurflow_engine.llm import settings_from_environment

    run = workspace.open_run(arguments.run)
    names = ("groups", "patches", "side", "held_out", "per_request", "concurrency", "seed", "offline", "again")
    switches = {"propose": not arguments.rescore, "score": not arguments.no_score}
    settings = checked(labelling.LabellingSettings, **_chosen(arguments, names), **switches)
    llm = None if arguments.offline else settings_from_environment()
    if llm is None and not arguments.offline:
        print("NEURFLOW_LLM_MODEL names no language model, so names are plain descriptions computed from the patches.", file=sys.stderr)
    if arguments.estimate:
        found = labelling.estimate(run, workspace, settings, llm)
        return found, f"{found['groups']} groups: {_cost_text(found)}"
    if llm:
        print(f"Patches and names of groups go to {llm.host} ({', '.join(dict.fromkeys((llm.model, llm.scorer)))}).", file=sys.stderr)
    found = labelling.label_run(run, workspace, settings, progress, llm)
    return found, _label_text(found)


def _label_text(found: dict) -> str:
    lines = [
        f"{found['groups']} groups: {found['proposed']} named by {found['model']}, {found['no_common_feature']} without a common feature, "
        f"{found['failed']} failed, {found['kept']} kept as people decided",
        f"{found['scored']} names scored by {found['scorer']}, {found['supported']} supported",
        _cost_text(found),
    ]
    lines += [f"{entry['group']:<16} failed: {entry['reason']}" for entry in found["failures"]]
    lines += [f"{entry['group']:<16} not scored: {entry['reason']}" for entry in found["not_scored"]]
    return "\n".join(lines)


def _cost_text(found: dict) -> str:
    price = f"{found['cost']:.4f} {found['currency']}" if found["prices_known"] else "price unknown (set NEURFLOW_PRICES)"
    asked = f"{found['requests']} requests, {found['cached']} answers known already"
    return f"{asked}, {found['tokens_in']:,} tokens in, {found['tokens_out']:,} out, {price}"


def _labels_moved(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.labels import LabelStore

    if (arguments.file is not None) != (arguments.action == "import"):
        raise InputError(f"labels {arguments.action}: --in FILE goes with import, and import needs it.")
    if arguments.out and arguments.action != "export":
        raise InputError(f"labels {arguments.action}: --out goes with export.")
    if not workspace.exists and arguments.action != "import":
        raise WorkspaceError(f"Workspace {workspace.root} does not exist, so it has no labels.")
    run = arguments.run and workspace.open_run(arguments.run).id
    with closing(LabelStore.for_workspace(workspace.address)) as store:
        if arguments.action == "import":
            return _imported(arguments, store, run)
        rows = store.export_rows(run and [run])
    if arguments.action == "list":
        lines = (f"{row['run_id']}  {row['group_id']:<16} {row['state']:<12} {row['text'] or row['proposed'] or ''}" for row in rows)
        return {"schema": SCHEMA, "labels": rows}, "\n".join(lines) or "There are no labels."
    return _exported(arguments, rows)


def _exported(arguments, rows: list[dict]) -> tuple[dict, str]:
    from neurflow_engine.labels import to_csv, to_json

    text = to_csv(rows) if _format(arguments.format, arguments.out) == "csv" else to_json(rows)
    if arguments.out is None:
        return {"schema": SCHEMA, "labels": rows}, text.rstrip("\n")
    result, said = _written(arguments.out, text.encode())
    return result | {"labels": len(rows)}, f"{said}: {len(rows)} labels"


def _imported(arguments, store, run: str | None) -> tuple[dict, str]:
    from neurflow_engine.labels import read_csv, read_json

    check_readable(arguments.file, "File of labels")
    try:
        content = arguments.file.read_bytes()
    except OSError as error:
        raise InputError(f"{arguments.file} cannot be read ({error.strerror}).") from None
    rows, problems = (read_csv if _format(arguments.format, arguments.file) == "csv" else read_json)(content)
    mine = [row for row in rows if run in (None, row["run_id"])]
    if len(mine) < len(rows):
        problems.append(f"{len(rows) - len(mine)} rows are about other runs than {run} and were left out.")
    n, refused = store.import_rows(mine, arguments.author)
    for problem in [*problems, *refused]:
        print(problem, file=sys.stderr)
    return {
        "schema": SCHEMA,
        "imported": n,
        "problems": [*problems, *refused],
    }, f"{n} labels imported, {len(problems) + len(refused)} problems"


def _format(asked: str | None, file: Path | None) -> str:
    return asked or ("csv" if file and file.suffix.lower() == ".csv" else "json")


def _debug(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import debugging, misleading
    from neurflow_engine.images import scan

    run = workspace.open_run(arguments.run)
    draws = arguments.draws or (effort.DRAWS if arguments.mask is None else debugging.DRAWS)
    if arguments.draws is not None and arguments.draws < 1:
        raise InputError(f"--draws {arguments.draws}: a control needs at least one random draw.")
    if arguments.mask is None:
        report = misleading.find_misleading(
            run, arguments.images, workspace, progress, arguments.device, arguments.workers, draws, arguments.seed
        ).json
        return report, _report_text(report)
    if not arguments.mask:
        raise InputError("--mask names no group; give group ids separated by commas.")
    image_set = scan(arguments.images)
    debugger = debugging.Debugger(run, arguments.device, _report_of(arguments, workspace, run))
    result = debugging.silence_folder(debugger, image_set, arguments.mask, progress, draws, arguments.seed)
    lines = (
        f"{before['path']}: {_top1(before)} -> {_top1(after)} (control changes {control['changed']:.0%} of draws)"
        for before, after, control in zip(result["before"], result["after"], result["control"]["images"], strict=True)
    )
    return result, "\n".join(lines)


def _report_of(arguments, workspace: Workspace, run: Run) -> DebugReport | None:
    """The report that ``--report`` names, else the newest one of the run on the same images, else the newest; None where there is none."""
    if arguments.report:
        report = workspace.open_debug_report(arguments.report)
        if report.json["run"] != run.id:
            raise InputError(f"Debug report {report.id} is about run {report.json['run']}, not about {run.id}; name a report of this run.")
        return report
    reports = workspace.debug_reports(run.id)
    folders = absolute_folders(getattr(arguments, "images", ()))
    same = [report for report in reports if report.json.get("image_folders", [str(report.images_root)]) == folders]
    return next(iter([*same, *reports]), None)


def _preview(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.preview import preview

    run = workspace.open_run(arguments.run)
    report = _report_of(arguments, workspace, run)
    found = preview(run, arguments.images, arguments.mask, workspace, progress, report, arguments.device, arguments.workers)
    return found, _preview_text(found)


def _preview_text(found: dict) -> str:
    how = f"as debug report {found['report']} recommends" if found["report"] else "set to zero"
    lines = [f"{', '.join(found['silenced'])} silenced, {how}", f"accuracy {_change(found['accuracy'])}"]
    if found["unseen"] and found["unseen"]["n"]:
        lines.append(f"  on images that the report did not choose on {_change(found['unseen'])}")
    if found["worst_group"]:
        before, after = ("{name} {accuracy:.3f} ({n} images)".format(**found["worst_group"][when]) for when in ("before", "after"))
        lines.append(f"worst group {before} -> {after}")
    lines.append(f"{len(found['helped'])} images helped, {len(found['hurt'])} hurt")
    return "\n".join(lines)


def _change(figures: dict) -> str:
    return "{before:.3f} -> {after:.3f} (change {change:+.3f} [{low:+.3f}, {high:+.3f}], {n} images)".format(**figures)


def _top1(row: dict) -> str:
    return f"{row['top5'][0]['name']} {row['top5'][0]['probability']:.2f}"


def _report_text(report: dict) -> str:
    ceiling = report["ceiling"] and f", at best {report['ceiling']['mean']:.2f} of the wrong ones can come back"
    lower = report["lower_logit"] and f", a lower logit of the class alone brings back {report['lower_logit']['recovered']:.2f}"
    lines = [
        f"{report['n_wrong']} wrong images, {report['n_clean']} clean ones{ceiling or ''}{lower or ''}; "
        f"figures from {report['n_reported']} wrong ones"
    ]
    for group in report["groups"] if report["n_reported"] else ():
        control = group["control_recovered"]
        lines.append(
            f"{'!' if group['misleading'] else ' '} {group['id']:<20} {group['silencing']:<8} recovered {group['recovered']:.2f} "
            f"(random {control['mean']:.2f} [{control['low']:.2f}, {control['high']:.2f}], {group['draws']} draws) "
            f"p {group['p_value']:.2g} clean accuracy {group['clean_accuracy_change']:+.3f} "
            f"(class {group['target_recall_change']:+.3f}) AUC {group['auc']:.2f}"
        )
    if not any(group["misleading"] for group in report["groups"]):
        lines.append("No group is clearly misleading.")
    return "\n".join(lines)


def _fidelity(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import fidelity

    run = workspace.open_run(arguments.run)
    draws = fidelity.DRAWS if arguments.draws is None else arguments.draws
    report = fidelity.check(run, workspace, progress, arguments.device, draws, arguments.seed, arguments.refine)
    return report, _fidelity_text(report)


def _fidelity_text(report: dict) -> str:
    words = {True: "trusted", False: "NOT trusted", None: "cannot tell"}
    header = f"{'layer':<20} {'core':>10}  {'class if core silenced':>24}  {'if only core left':>24}  {'concepts kept':>24}  edges   gap"
    lines = [header]
    for layer in report["layers"]:
        edges = [value for value in layer["edge_correlation"].values() if value is not None]
        refined = f" (refined {layer['overlap_refined']:.2f})" if "overlap_refined" in layer else ""
        lines.append(
            f"{layer['layer']:<20} {layer['n_tested']:>4} of {layer['n_core']:<3} {_against(layer, 'mask')}  {_against(layer, 'keep')}  "
            f"{_against(layer, 'overlap')}  {f'{median(edges):+.2f}' if edges else '    -'}  "
            f"{layer['completeness_gap']['median'] if layer['completeness_gap'] else 0:.2f}  {words[layer['verdict']['trusted']]}{refined}"
        )
        lines += [f"    {reason}" for reason in layer["verdict"]["reasons"] if not layer["verdict"]["trusted"]]
    lines.append(f"untrained twin: {words[report['twin']['verdict']['trusted']]}")
    lines.append(f"circuit: {words[report['verdict']['trusted']]}. {' '.join(report['verdict']['reasons'])}")
    return "\n".join(lines)


def _against(layer: dict, measure: str) -> str:
    random = layer[f"{measure}_random"]
    return f"{layer[f'{measure}_core']:.2f} vs {random['mean']:.2f} [{random['low']:.2f}, {random['high']:.2f}]".rjust(26)


def _compare(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import comparison

    left, right = (workspace.open_run(run) for run in (arguments.run, arguments.other))
    draws = comparison.DRAWS if arguments.draws is None else arguments.draws
    found = comparison.compare(left, right, draws, arguments.seed)
    names = [_labels(workspace, run) for run in (left, right)]
    reports = [next(iter(workspace.fidelity_reports(run.id)), None) for run in (left, right)]
    result = comparison.as_json(found, *names)
    result["fidelity"] = comparison.fidelity(*reports, found.layers)
    result["accuracy"] = comparison.accuracies_of(left, right, workspace)
    return result, _comparison_text(found, names)


def _comparison_text(found, names: Sequence[dict[str, str]]) -> str:
    def named(pair, side: int) -> str:
        group = (pair.left, pair.right)[side]
        return f"{group} {names[side][group]}" if group in names[side] else group

    lines = [found.how]
    if found.by:
        maybe = f"{len(found.unsure)} maybe by chance, " if found.unsure else ""
        lines.append(f"{len(found.matches)} groups in both, {maybe}{len(found.vanished)} vanished, {len(found.appeared)} appeared")
    for mark, pairs in (("=", found.matches), ("~", found.unsure), ("-", found.vanished), ("+", found.appeared)):
        for pair in pairs:
            random = f"random {pair.random['mean']:.2f} [{pair.random['low']:.2f}, {pair.random['high']:.2f}]"
            lines.append(f"{mark} {named(pair, 0):<32} {named(pair, 1):<32} overlap {pair.overlap:.2f} ({random})")
    if found.by and found.untold:
        lines.append("nothing to hold against " + ", ".join(f"{group} ({side})" for side, group in found.untold))
    for one in found.weights[:10]:
        edge = one.left or one.right
        lines.append(f"weight {edge.source} -> {edge.target}: {one.before:+.2f} -> {one.after:+.2f}")
    return "\n".join(lines)


def _gate(arguments, workspace: Workspace, progress) -> tuple[dict, str, int]:
    from neurflow_engine import gate, gate_report
    from neurflow_engine.sweep_result import evaluation_of, open_sweep

    limits = gate.Limits(**_chosen(arguments, ("max_new_flags", "max_grown", "min_worst_group", "max_worst_group_drop")))
    baseline, candidate = (open_sweep(workspace, sweep) for sweep in (arguments.baseline, arguments.candidate))
    found = gate.compare(baseline, candidate, (evaluation_of(baseline, workspace), evaluation_of(candidate, workspace)), limits)
    if arguments.junit:
        write_atomically(arguments.junit.absolute(), gate_report.as_junit(found))
    if arguments.markdown:
        write_atomically(arguments.markdown.absolute(), gate_report.as_markdown(found).encode())
    return found.as_json(), gate_report.as_text(found), DONE if found.passed else FAILED


def _export(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    run = workspace.open_run(arguments.run)
    if arguments.groups is not None and arguments.format not in _OF_GROUPS:
        raise InputError(f"--groups goes with --format {', '.join(_OF_GROUPS)}, not with {arguments.format}.")
    if arguments.format in _OF_CIRCUIT:
        return _export_circuit(arguments, workspace, run, _OF_CIRCUIT[arguments.format])
    report = _report_of(arguments, workspace, run)
    if arguments.format == "html":
        if report is None:
            print("The run has no debug report, so this is its circuit; run debug first for the other.", file=sys.stderr)
            return _export_circuit(arguments, workspace, run, "html")
        return _written(arguments.out, _debug_html(arguments, workspace, run, report), report)
    if arguments.format == "fix":
        return _export_fix(arguments, run, report)
    return _export_ranking(arguments, run, report)


def _export_circuit(arguments, workspace: Workspace, run: Run, format: str) -> tuple[dict, str]:
    from neurflow_engine.report import export

    return _written(arguments.out, export(run, format, _labels(workspace, run), _edits(arguments, workspace, run)))


def _debug_html(arguments, workspace: Workspace, run: Run, report: DebugReport) -> bytes:
    from neurflow_engine.debug_report import debug_html
    from neurflow_engine.debugging import Debugger
    from neurflow_engine.understanding import evidence

    labels, verdicts = _labels(workspace, run), _verdicts(workspace, run, report)
    preview = next((found for found in workspace.previews(run.id) if found["report"] == report.id), None)
    return debug_html(run, report, labels, verdicts, evidence(Debugger(run, arguments.device, report)), preview)


def _export_fix(arguments, run: Run, report: DebugReport | None) -> tuple[dict, str]:
    from neurflow_engine.fix import write_fix
    from neurflow_engine.silencer_file import TENSORS

    groups = _groups_of(arguments, run, report)
    write_fix(run, report, groups, arguments.out)
    beside = arguments.out.with_suffix(TENSORS)
    result = {"schema": SCHEMA, "file": str(arguments.out), "bytes": arguments.out.stat().st_size, "tensors": str(beside)}
    return result | {"report": report and report.id, "groups": groups}, f"wrote {arguments.out} and {beside}: {', '.join(groups)} silenced"


def _export_ranking(arguments, run: Run, report: DebugReport | None) -> tuple[dict, str]:
    from neurflow_engine import ranking

    if report is None:
        raise InputError(f"Run {run.id} has no debug report that tells which images show a group; run debug first.")
    group, *more = _groups_of(arguments, run, report)
    if more:
        raise InputError(f"A ranking is about one group, --groups names {len(more) + 1}: {', '.join(arguments.groups)}.")
    if arguments.format == "ranking-csv":
        result, text = _written(arguments.out, ranking.ranking_csv(report, group), report)
        return result | {"groups": [group]}, text
    result, text = _written(arguments.out, ranking.fiftyone_csv(report, group), report)
    snippet = ranking.fiftyone_snippet(str(arguments.out), group)
    return result | {"groups": [group], "snippet": snippet}, f"{text}; in Python:\n{snippet}"


def _groups_of(arguments, run: Run, report: DebugReport | None) -> list[str]:
    """The groups that are named, else the most misleading one: others are often the same mark again, and all at once cost too much."""
    if arguments.groups is not None:
        if not arguments.groups:
            raise InputError("--groups names no group; give group ids separated by commas.")
        return list(dict.fromkeys(arguments.groups))
    if report is None:
        raise InputError(
            f"Run {run.id} has no debug report that tells which groups mislead; run debug first, or name groups with --groups."
        )
    flagged = [group["id"] for group in report.json["groups"] if group["misleading"]]
    if not flagged:
        raise InputError(f"Debug report {report.id} calls no group misleading; name those that you mean with --groups.")
    return flagged[:1]


def _verdicts(workspace: Workspace, run: Run, report: DebugReport) -> dict[str, "Verdict"]:
    """What people decided; as with names, a report without is worth more than none."""
    from neurflow_engine.verdicts import VerdictStore

    try:
        with closing(VerdictStore.for_workspace(workspace.address)) as store:
            return {group: verdict for group, verdict in store.for_run(run.id, report.id).items() if verdict.judgement}
    except WorkspaceError as error:
        print(f"The groups have no verdicts here. {error}", file=sys.stderr)
        return {}


def _written(out: Path, content: bytes, report: DebugReport | None = None) -> tuple[dict, str]:
    write_atomically(out.absolute(), content)
    result = {"schema": SCHEMA, "file": str(out), "bytes": len(content)} | ({"report": report.id} if report else {})
    return result, f"wrote {out} ({len(content):,} bytes)"


def _runs(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import inventory
    from neurflow_engine.inventory import in_words

    found = inventory.take(workspace)
    if arguments.action == "list":
        if (
            arguments.run
            or arguments.older_than
            or arguments.keep is not None
            or arguments.orphans
            or arguments.copies
            or arguments.dry_run
        ):
            raise InputError("runs list: takes no runs and no rules; these go with runs prune.")
        return _inventory_json(found), _inventory_text(found)
    rules = (arguments.older_than, arguments.keep, arguments.orphans, arguments.labelled, arguments.copies)
    choice = inventory.choose(found, arguments.run, *rules)
    if not arguments.dry_run:
        inventory.delete(choice.gone, workspace.remote)
    gone = [{"kind": holding.kind, "id": holding.id, "bytes": holding.bytes} for holding in choice.gone]
    result = {"schema": SCHEMA, "deleted": not arguments.dry_run, "bytes": choice.bytes, "gone": gone, "spared": choice.spared}
    lines = [f"{holding.kind} {holding.id}, {in_words(holding.bytes)}, {holding.age.days} days old" for holding in choice.gone]
    lines += [f"{run} stays. {reason}" for run, reason in choice.spared.items()]
    lines.append(f"{'would free' if arguments.dry_run else 'freed'} {in_words(choice.bytes)}")
    return result, "\n".join(lines)


def _inventory_json(found: "Inventory") -> dict:
    def told(holding) -> dict:
        return {"id": holding.id, "created": holding.created.isoformat(), "bytes": holding.bytes, "busy": holding.busy}

    runs = []
    for run in found.of("run"):
        about = [told(holding) | {"kind": holding.kind} for holding in found.about(run.id)]
        runs.append(told(run) | {"evaluation": next(iter(run.uses), None), "reports": about, "decisions": found.decided.get(run.id, 0)})
    orphans = [told(holding) | {"kind": holding.kind} for holding in found.orphans()]
    return {
        "schema": SCHEMA,
        "workspace": found.address,
        "bytes": found.bytes,
        "free": found.free,
        "runs": runs,
        "evaluations": [told(holding) for holding in found.of("evaluation")],
        "orphans": orphans,
        "others": found.others,
    }


def _inventory_text(found: "Inventory") -> str:
    from neurflow_engine.inventory import in_words

    lines = []
    for run in found.of("run"):
        about, decided = found.about(run.id), found.decided.get(run.id, 0)
        more = f"{len(about)} reports ({in_words(sum(holding.bytes for holding in about))})" if about else "no reports"
        busy = ", being worked on" if run.busy else ""
        lines.append(f"{run.id:<40} {in_words(run.bytes):>9}  {run.age.days:>4} days old  {more}, {decided} decisions{busy}")
    orphans, evaluations = found.orphans(), found.of("evaluation")
    rest = {f"{len(evaluations)} evaluations": sum(holding.bytes for holding in evaluations)} | found.others
    lines += [f"{name:<40} {in_words(size):>9}" for name, size in rest.items()]
    lines.append(
        f"{len(orphans)} things that nothing needs take {in_words(sum(holding.bytes for holding in orphans))} (runs prune --orphans)"
    )
    lines.append(found.sentence.rstrip("."))
    return "\n".join(lines)


def _backup(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.backup import back_up
    from neurflow_engine.inventory import in_words

    made = back_up(workspace, arguments.out, progress)
    return made, f"wrote {made['file']} ({in_words(made['bytes'])}): {made['runs']} runs, {made['files']} files"


def _restore(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine.backup import restore

    made = restore(arguments.file, workspace, progress)
    return made, f"restored {made['runs']} runs, {made['files']} files in {made['workspace']}"


def _demo(arguments, workspace: Workspace, progress) -> tuple[dict, str]:
    from neurflow_engine import demo
    from neurflow_engine.files import writing
    from neurflow_engine.pipeline import analyze

    images = workspace.demo_folder / "images"
    if not images.is_dir():
        with progress.stage("images"), writing(workspace.demo_folder):
            workspace.demo_folder.parent.mkdir(parents=True, exist_ok=True)
            demo.write_images(workspace.demo_folder)
    config = AnalysisConfig(
        model=ModelConfig(name=f"local-dir:{demo.MODEL_FOLDER}"), data=images, target=demo.TARGET, device=arguments.device, **demo.SETTINGS
    )
    return _run_result(analyze(config, workspace, None, progress))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing but the result goes to stdout, no traceback is ever shown."""
    progress: progress_.Progress = progress_.Silent()
    try:
        arguments = _parser().parse_args(argv)
        progress = progress_.Both(progress_.Bars(), progress_.Events(arguments.events)) if arguments.events else progress_.Bars()
        _stop_on_signals(progress)
        workspace = Workspace(arguments.workspace)
        if arguments.events:
            logs.begin(workspace.root)
            named = getattr(arguments, "run", None)
            logs.event(
                "job began", job=arguments.events.parent.name, command=arguments.command, run=named if isinstance(named, str) else None
            )
        with using_workspace(workspace.address):
            result, text, *code = arguments.work(arguments, workspace, progress)  # a third value is an exit code
        print(json.dumps(result, ensure_ascii=False, allow_nan=False) if arguments.json else text, flush=True)
        return _ended(progress, *(code or [DONE]), "done", None)
    except (progress_.Cancelled, KeyboardInterrupt):
        return _ended(progress, INTERRUPTED, "cancelled", "Cancelled; what was finished is kept, start it again to resume.")
    except InputError as error:
        return _ended(progress, BAD_INPUT, "failed", str(error))
    except NeurflowError as error:
        return _ended(progress, FAILED, "failed", str(error))
    except BrokenPipeError:
        return _ended(progress, FAILED, "failed", "Nobody reads the output any more.")
    except Exception as error:
        _write_traceback(arguments.events)
        logs.failure("command failed", error, command=arguments.command)
        return _ended(progress, FAILED, "failed", f"Unexpected {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _ended(progress, code: int, event: str, sentence: str | None) -> int:
    if sentence:
        with suppress(OSError):
            print(" ".join(sentence.split()), file=sys.stderr, flush=True)
    progress.finish(event, sentence)
    return code


def _write_traceback(events: Path | None) -> None:
    """Keep the details of an unexpected error beside a job's events, for whoever mends it."""
    import traceback

    if events:
        with suppress(OSError):
            events.with_name("traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")


def _stop_on_signals(progress) -> None:
    """The first SIGINT or SIGTERM ends the work at its next step, a second SIGINT at once."""

    def stop(number, frame):
        progress.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread, as in a test that calls main()
            signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
