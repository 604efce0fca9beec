"""Analyze: which class should I look at, and what will it cost?"""

from contextlib import suppress
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from neurflow_engine import cost, demo
from neurflow_engine.access import absolute, check_readable
from neurflow_engine.config import AnalysisConfig
from neurflow_engine.errors import InputError
from neurflow_engine.jobs import JobState
from neurflow_engine.store import Evaluation
from pages.ui import cached, colours, commands, people, session, show, tour

MODELS, IMAGES = ("Demo", "timm model", "My checkpoint"), ("Demo", "Folder")
# cells of the confusion map on which black stands out more than white, on the light and on the dark ground
_BLACK_ON = ("!datum.right || datum.share < 0.81", "!datum.right && datum.share > 0.8")
LARGEST_MAP, LARGEST_NUMBERED = 24, 14  # classes in the confusion map; classes up to which its cells carry numbers


def follow_job() -> None:
    """Open what the job that was started here has made."""
    if not session.get("job"):
        return
    job = cached.jobs().get(session.get("job"))
    result = job.result()
    if result is None:
        if not job.active and job.state != JobState.CANCELLED:
            show.job_progress(job)
        return
    if not session.first(f"followed {job.id}"):
        return
    session.put(job=None, evaluation=result["evaluation"], target=None, layers=None)
    if "run" in result:
        session.go("circuit", run=result["run"], tour=tour.second_step())
    st.rerun()


def progress(kinds: tuple[str, ...]) -> None:
    """The job that runs, live."""

    def watch() -> None:
        with show.sentences():
            job = commands.latest(*kinds)
            if job and job.active:
                with st.container(border=True):
                    st.text(job.title)
                    show.job_progress(job)
                    st.button(
                        "Cancel", key=f"stop_{job.id}", on_click=session.quietly(lambda: commands.cancel(job)), **people.for_reviewers()
                    )

    job = commands.latest(*kinds)
    with show.slot():
        if job and job.active:
            st.fragment(watch, run_every=0.5)()


def welcome() -> None:
    """The one click of a first visit."""
    with st.container(border=True):
        words, button = st.columns([3, 1], vertical_alignment="center")
        with words:
            st.header("See it on the demo first", anchor=False)
            st.write(
                "A small classifier of drawn pictures, and a secret: one class learned a shortcut. The analysis takes less than a minute, "
                "needs no network, and leads to the circuit of that class; a tour of five steps goes on from there."
            )
        job = commands.latest("demo")
        busy = bool(job and job.active)
        button.button(
            "Analyse the demo",
            type="primary",
            key="start_demo",
            width="stretch",
            on_click=session.quietly(start_demo),
            **people.for_reviewers(disabled=busy),
        )


def start_demo() -> None:
    session.put(job=commands.demo().id, tour="1")


def chosen_model() -> dict | None:
    """Fields of a ModelConfig from the form; None while something is missing."""
    kind = st.segmented_control("Model", MODELS, default="Demo", required=True, wrap=True, key="model_kind", persist_state="session")
    if kind == "Demo":
        st.caption(f"The embedded classifier of {len(demo.CLASSES)} kinds of drawn pictures.")
        return {"name": f"local-dir:{demo.MODEL_FOLDER}"}
    if kind == "timm model":
        name = architecture("architecture", "Type to search by name, family or size")
        random = st.checkbox(
            "Random weights", key="random_weights", persist_state="session", help="Untrained; only to try whether an architecture works."
        )
        return {"name": name, "random_weights": random, **overrides(kind)} if name else None
    path = st.text_input(
        "Weights",
        key="checkpoint",
        persist_state="session",
        placeholder="/path/to/model.safetensors, .pth, .pt, .bin, or a timm model folder",
    ).strip()
    if not path:
        return None
    weights = absolute(path)
    check_readable(weights, "Checkpoint")
    if weights.is_dir():
        st.caption("A folder in timm's format: it says itself what it holds.")
        return {"name": f"local-dir:{weights}", **overrides(kind)}
    name = architecture("checkpoint_architecture", "The architecture that the weights belong to")
    return {"name": name, "checkpoint": str(weights), **overrides(kind)} if name else None


def overrides(kind: str) -> dict[str, str]:
    """What is to differ from the model's own configuration, as it was typed; the engine checks it."""
    fields = {
        "class_map": ("Class names", "/path/to/classes.txt, .csv or .json"),
        "merge": ("Classes that count as one", '/path/to/merged.json, with {"dog": ["151-268"], "cat": ["tabby", "Siamese cat"]}'),
        "model_kwargs": ("Arguments of the architecture", '{"num_classes": 8}'),
        "input_size": ("Input size", "224 or 224x320"),
        "crop_pct": ("Crop", "0.875"),
        "crop_mode": ("Crop mode", "center, squash or border"),
        "interpolation": ("Interpolation", "bilinear or bicubic"),
        "mean": ("Mean", "0.485,0.456,0.406"),
        "std": ("Standard deviation", "0.229,0.224,0.225"),
    }
    with st.expander("Class names and preprocessing"):
        st.caption("Empty: as the model's own configuration says.")
        typed = {
            name: st.text_input(label, key=f"{name}_{kind}", persist_state="session", placeholder=f"e.g. {example}").strip()
            for name, (label, example) in fields.items()
        }
    return {name: text for name, text in typed.items() if text}


def architecture(key: str, placeholder: str) -> str | None:
    """One of timm's architectures."""
    known = {info.name: info for info in cached.models()}

    def described(name: str) -> str:
        info = known[name]
        parts = [
            name,
            info.family,
            info.input_size and f"{info.input_size[0]} px",
            info.n_parameters and f"{info.n_parameters / 1e6:.1f} M",
        ]
        return " · ".join(part for part in (*parts, "weights here" if info.weights_local else "") if part)

    return st.selectbox(
        "Architecture", list(known), index=None, format_func=described, placeholder=placeholder, key=key, persist_state="session"
    )


def chosen_images() -> Path | None:
    """The folder of the form; None while it is missing."""
    kind = st.segmented_control("Images", IMAGES, default="Demo", required=True, key="image_kind", persist_state="session")
    if kind == "Demo":
        st.caption("Drawn by this program into its workspace; one folder per class.")
        return cached.workspace().demo_folder / "images"
    path = st.text_input(
        "Folder", key="image_folder", persist_state="session", placeholder="/path/to/images (one folder per class, or flat)"
    ).strip()
    return absolute(path) if path else None


def start_evaluation(model: dict, images: Path) -> None:
    people.check_reviewer()
    check_readable(images, "Data folder")
    if images == cached.workspace().demo_folder / "images":
        demo.write_images(cached.workspace().demo_folder)
    if not images.is_dir():
        raise InputError(f"Data folder {images} does not exist; give the path of a folder on the machine that this app runs on.")
    weights = model.get("checkpoint")
    if weights:
        check_readable(weights, "Checkpoint")
    if weights and not Path(weights).is_file():
        raise InputError(f"Checkpoint {weights} does not exist; give the path of a file on the machine that this app runs on.")
    title = f"Evaluate {show.model_name(model['name'])} on {images.name}"
    session.put(job=commands.evaluate(commands.model_flags(model), images, title).id)


def form(is_first: bool) -> None:
    """Which model, which images, and the button that evaluates; on a first visit another one is the first to press."""
    with st.container(border=True):
        left, middle, right = show.split("form", [5, 5, 2])
        model = images = None
        with left, show.sentences():
            model = chosen_model()
        with middle, show.sentences():
            images = chosen_images()
        with right:
            st.space("small")
            st.button(
                "Evaluate",
                key="evaluate",
                type="secondary" if is_first else "primary",
                width="stretch",
                on_click=session.quietly(lambda: start_evaluation(model, images)),
                **people.for_reviewers(disabled=not (model and images)),
            )
        progress(("evaluate",))


def summary(evaluation: Evaluation, classes: pd.DataFrame) -> None:
    """The evaluation in one line."""
    known = classes[classes["images"] > 0]
    with st.container(horizontal=True, gap="medium"):
        st.metric("Images", f"{len(evaluation.predictions):,}", width="content")
        if len(known):
            worst, false = known.sort_values("recall").iloc[0], classes.sort_values("false_positives").iloc[-1]
            st.metric("Predicted right", show.percent(evaluation.accuracy, 1), width="content")
            share = show.percent(worst["recall"])
            st.metric(f"Worst class: {show.plain(worst['name'])}", share, width="content", help="share of its images predicted right")
            st.metric(f"Most false positives: {show.plain(false['name'])}", f"{false['false_positives']}", width="content")
    notes = f"{show.model_name(evaluation.model_name)} on {evaluation.data_root} · {evaluation.label_rule}"
    st.html(f'<div class="nf-small">{show.escape(notes)}</div>')
    if evaluation.skipped:
        with st.expander(f"{len(evaluation.skipped)} file{'s' if len(evaluation.skipped) > 1 else ''} left out"):
            st.dataframe(pd.DataFrame([vars(file) for file in evaluation.skipped]), hide_index=True)


def confusion_map(evaluation: Evaluation, classes: pd.DataFrame) -> None:
    """True against predicted classes; a click takes the predicted class."""
    own = classes[classes["images"] > 0].sort_values("false_negatives", ascending=False)
    rows = sorted(own["name"][:LARGEST_MAP])
    others = classes[~classes["name"].isin(rows)].sort_values("false_positives", ascending=False)["name"]
    columns = [*rows, *others[: max(0, LARGEST_MAP - len(rows))]]
    counts = evaluation.confusion()
    counts["share"] = counts["count"] / counts.groupby("true")["count"].transform("sum")
    counts["right"] = counts["true"] == counts["predicted"]
    counts = counts[counts["true"].isin(rows) & counts["predicted"].isin(columns)]
    clicked = alt.selection_point(name="cell", fields=["true", "predicted"], toggle=False)
    axis = {"labelLimit": 110, "ticks": False, "domain": False, "labelOverlap": False}
    across = alt.Axis(labelAngle=-40 if len(columns) <= LARGEST_NUMBERED else -90, **axis)
    base = alt.Chart(counts).encode(
        x=alt.X("predicted:N", scale=alt.Scale(domain=columns), title="predicted", axis=across),
        y=alt.Y("true:N", scale=alt.Scale(domain=rows), title="true", axis=alt.Axis(**axis)),
        tooltip=["true", "predicted", "count", alt.Tooltip("share:Q", format=".1%", title="of the true class")],
    )
    colour = alt.condition("datum.right", alt.value(colours.OURS), alt.value(colours.ADDS))
    opacity = alt.Opacity("share:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0.08, 1]), legend=None)
    cells = base.mark_rect(cornerRadius=3, cursor="pointer").encode(color=colour, opacity=opacity).add_params(clicked)
    layers = [cells]
    if len(columns) <= LARGEST_NUMBERED:
        layers.append(
            base.mark_text(fontSize=11).encode(
                text="count:Q", color=alt.condition(_BLACK_ON[show.is_dark()], alt.value("#000000"), alt.value("#FFFFFF"))
            )
        )
    chart = alt.layer(*layers).properties(height=max(260, 24 * len(rows) + 120))
    key = f"map_{evaluation.id}"

    def pick() -> None:
        with suppress(KeyError, IndexError, TypeError, ValueError):  # nothing is picked, or the browser sent what it likes
            session.put(target=str(evaluation.class_names.index(session.value(key)["selection"]["cell"][0]["predicted"])))

    st.altair_chart(show.legible(chart), key=key, on_select=pick, selection_mode="cell")
    more = f"{len(rows)} of {len(own)} classes, those with most errors. " if len(rows) < len(own) else ""
    st.caption(f"{more}Rows: true class; columns: what the model says. Click a cell to look at the class it was taken for.")


def by_interest(classes: pd.DataFrame) -> pd.DataFrame:
    """Classes that have images first, and among them those that most images are wrongly taken for."""
    order = classes.assign(present=classes["images"] > 0)
    return order.sort_values(["present", "false_positives", "predicted_images"], ascending=False).drop(columns="present")


def class_table(evaluation: Evaluation, classes: pd.DataFrame) -> None:
    """One row per class; a click takes the class."""
    rows = by_interest(classes).reset_index(drop=True)
    key = f"classes_{evaluation.id}"

    def pick() -> None:
        chosen = session.ticked(key, len(rows))
        if chosen:
            session.put(target=str(rows.loc[chosen[0], "index"]))

    share = {"format": "%.2f", "min_value": 0.0, "max_value": 1.0}
    st.dataframe(
        rows,
        key=key,
        on_select=pick,
        selection_mode="single-row",
        hide_index=True,
        placeholder="–",
        height=min(35 * len(rows) + 38, 480),
        column_order=["name", "images", "predicted_images", "recall", "precision", "false_positives", "false_negatives", "confused_with"],
        column_config={
            "name": st.column_config.TextColumn("class", width=98),
            "images": st.column_config.NumberColumn("n", width=46, help="images of this class"),
            "predicted_images": st.column_config.NumberColumn("predicted", width=74, help="images predicted as this class"),
            "recall": st.column_config.ProgressColumn("recall", width=82, help="share of its images that are predicted right", **share),
            "precision": st.column_config.ProgressColumn("precision", width=82, help="share of its predictions that are right", **share),
            "false_positives": st.column_config.NumberColumn("FP", width=44, help="images of other classes predicted as this one"),
            "false_negatives": st.column_config.NumberColumn("FN", width=44, help="images of this class predicted as another one"),
            "confused_with": st.column_config.TextColumn("confused with", help="the class most often predicted instead"),
        },
    )
    st.caption("Click a row to analyse its class. FP: images of other classes taken for this one. FN: its images taken for another.")


def settings() -> dict:
    """The method's settings, with its defaults."""
    field = {
        name: AnalysisConfig.model_fields[name].default
        for name in ("max_images", "tau", "top_k", "min_groups", "max_groups", "seed", "granularities")
    }
    labels = {
        "max_images": ("Images, at most", "images predicted as the class that are looked at"),
        "tau": ("Core neurons", "core neurons of a neuron, at most (tau)"),
        "top_k": ("Patches", "patches that make the concept of a neuron (top k)"),
        "min_groups": ("Groups, at least", "neuron groups of a layer, where it has enough neurons; the silhouette chooses the number"),
        "max_groups": ("Groups, at most", "neuron groups of a layer"),
        "seed": ("Seed", "of the sample of images; the same seed gives the same circuit"),
    }
    least = {"min_groups": 2, "max_groups": 2, "seed": 0}
    columns = st.columns(len(labels))
    chosen = {
        name: column.number_input(
            label, min_value=least.get(name, 1), value=field[name], key=f"setting_{name}", persist_state="session", help=text
        )
        for column, (name, (label, text)) in zip(columns, labels.items(), strict=True)
    }
    sizes = {1.0: "whole image", 0.5: "half", 0.25: "quarter", 0.125: "eighth"}
    chosen["granularities"] = st.pills(
        "Patch sizes", list(sizes), selection_mode="multi", default=list(field["granularities"]), format_func=sizes.get,
        key="setting_sizes", persist_state="session", help="side of a patch as a share of the image's side",
    )  # fmt: skip
    return chosen


def analysis(evaluation: Evaluation, classes: pd.DataFrame) -> None:
    """Class, layers and settings, what they cost, and the button."""
    candidates = by_interest(classes[classes["predicted_images"] > 0])
    indices = [int(index) for index in candidates["index"]]
    asked = session.get("target")
    target = next((index for index in indices if str(index) == asked), indices[0])
    names = evaluation.class_names
    depths = {place["name"]: place for place in reversed(evaluation.places)}

    def described(layer: str) -> str:
        place = depths[layer]
        return f"{layer} · {place['n_channels']}" if place["stage"] else f"{layer} · {place['n_channels']} (within a stage)"

    with st.container(border=True):
        first, second, third = show.split("class", [3, 6, 2])
        session.set_value("target_class", target)
        first.selectbox(
            "Class", indices, format_func=lambda index: names[index], key="target_class",
            on_change=lambda: session.put(target=str(session.value("target_class"))),
        )  # fmt: skip
        asked_layers = session.some_of("layers", list(depths), evaluation.default_layers(3))
        layers = second.multiselect(
            "Layers, deepest first", list(depths), format_func=described,
            **session.linked("layers", asked_layers, f"layers_{evaluation.id}", session.NOTHING),
        )  # fmt: skip
        layers = [name for name in depths if name in layers]
        with st.expander("Settings"):
            chosen = settings()
        row = candidates[candidates["index"] == target].iloc[0]
        n_images = min(int(row["predicted_images"]), chosen["max_images"])
        ready = bool(layers and chosen["granularities"])
        text = f"{n_images} of {row['predicted_images']} predicted images · {len(layers)} layers below the logits"
        if ready:
            price = cost.predict(evaluation, n_images, layers, chosen["tau"], chosen["top_k"], chosen["granularities"])
            text += f" · about {show.duration(price.seconds)}, {price.memory_mb / 1024:.1f} GB"
        with third:
            st.space("small")
            st.button(
                "Analyze", key="analyze", type="primary", width="stretch", **people.for_reviewers(disabled=not ready),
                on_click=session.quietly(lambda: start_analysis(evaluation, target, layers, chosen, price.memory_mb)),
            )  # fmt: skip
        st.caption(text if ready else "Choose at least one layer and one patch size.")
        progress(("analyze", "demo"))


def start_analysis(evaluation: Evaluation, target: int, layers: list[str], chosen: dict, memory_mb: float) -> None:
    session.put(job=commands.analyze(evaluation, target, layers, chosen, memory_mb).id)


def earlier_evaluations(current: Evaluation) -> None:
    """Another evaluation to look at."""
    others = {one.id: one for one in cached.workspace().evaluations() if one.id != current.id}
    if others:
        st.selectbox(
            "Evaluated before", list(others), index=None, key="other_evaluation", label_visibility="collapsed",
            placeholder="Evaluated before …",
            format_func=lambda one: evaluated(others[one]),
            on_change=lambda: session.put(evaluation=session.value("other_evaluation"), target=None, layers=None),
        )  # fmt: skip


def evaluated(one: Evaluation) -> str:
    return f"{show.model_name(one.model_name)} on {one.data_root} · {show.age(one.created)}"


def earlier_runs() -> None:
    """Runs to open."""
    runs = cached.workspace().runs()
    if not runs:
        return
    st.header("Earlier runs", anchor=False)
    for run in runs[:8]:
        with st.container(border=True):
            facts = f"{show.model_name(run.model_name)} · {run.n_images} images · {run.n_groups} groups · {', '.join(run.layers)}"
            took = f"{show.age(run.created)} · took {show.duration(run.seconds)}"
            with st.container(horizontal=True, vertical_alignment="center"):
                st.html(f'<h3 class="nf-part">{show.escape(run.target_name)}</h3><div class="nf-small">{show.escape(facts)} · {took}</div>')
                if st.button("Open", key=f"open_{run.id}"):
                    session.go("circuit", run=run.id)
    if len(runs) > 8:
        st.caption(f"{len(runs) - 8} older runs: in the list at the left.")


def shown_evaluation() -> Evaluation | None:
    """The evaluation in the address, or that of the open run, or the newest."""
    if session.get("evaluation"):
        return cached.evaluation(session.get("evaluation"))
    evaluations = cached.workspace().evaluations()
    if session.get("run"):
        own = cached.run(session.get("run")).manifest["evaluation"]
        evaluations = [one for one in evaluations if one.id == own] or evaluations
    return evaluations[0] if evaluations else None


session.inside_frame()
show.heading("Analyze", "Which class should I look at, and what will it cost?")
found = None
with show.sentences():
    follow_job()
with show.sentences():
    found = shown_evaluation()
is_first = not cached.workspace().runs()
if is_first:
    welcome()
    if found is None:
        progress(("demo", "analyze"))
st.header("1 · Model and images", anchor=False)
form(is_first)
if found is None:
    show.empty("Nothing evaluated yet", "Choose a model and images above and press Evaluate: the app shows where the model is wrong.")
else:
    overview = found.per_class()
    title, other = st.columns([3, 2], vertical_alignment="bottom")
    title.header("2 · Where the model is wrong", anchor=False)
    with other:
        earlier_evaluations(found)
    summary(found, overview)
    if found.accuracy is not None:
        chart, table = show.split("wrong", [4, 7] if len(found.class_names) <= LARGEST_NUMBERED else [1, 1])
        with chart:
            confusion_map(found, overview)
        with table:
            class_table(found, overview)
    else:
        st.info("No true classes are known for these images, so right and wrong cannot be told apart; any predicted class can be analysed.")
        class_table(found, overview)
    title, every = st.columns([5, 1], vertical_alignment="bottom")
    title.header("3 · Analyse a class", anchor=False)
    if every.button("All classes …", key="all_classes", width="stretch", help="A sweep: what misleads towards each class"):
        session.go("sweep", evaluation=found.id, sweep=None)
    analysis(found, overview)
earlier_runs()
