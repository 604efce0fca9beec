"""The words of the app, one meaning each, one click away from every page."""

from html import escape

import streamlit as st

WORDS: dict[str, dict[str, str]] = {
    "The network": {
        "layer": "A named place in the network. Early layers see colours and edges, the last one, the logits, the classes.",
        "neuron": "One channel of a layer; in the logits, one class. Its activation on a patch is the mean over the patch.",
        "run": "One finished analysis of one class. It never changes.",
        "evaluation": "What the model says of every image in a folder, and where it is wrong.",
    },
    "The circuit": {
        "probe images": "Images that the model takes for the class, rightly or wrongly. The circuit explains these.",
        "patch": "A window of a probe image: the whole, a half or a quarter of its side.",
        "concept of a neuron": "The patches that excite it most.",
        "core neurons": "The few neurons of the layer below that drive a neuron: without them its concept would be another.",
        "semantic group": "One kind of patch in a neuron's concept. A neuron that answers to several things has several.",
        "neuron group": "What is alike across the neurons of a layer; in short, a group. A neuron may be in several.",
        "circuit": "The groups of all chosen layers and the weighted edges between them, from early layers up to the class.",
        "weight of an edge": "Share of the upper group's attribution that passes through the lower group: plus adds, minus takes away.",
        "presence": "How strongly an image shows a group: 1 as strongly as its typical patches, 0 not at all.",
    },
    "What is to be trusted": {
        "random control": "The same with as many random neurons, about as active. What they achieve too is no finding.",
        "interval": "In brackets: where the true value lies with 95 % certainty, or 95 % of the random draws.",
        "trusted": "Silencing the core neurons changes the class far more than silencing random ones does.",
        "untrained twin": "The same network with random weights. A check that trusts its circuit too is worth nothing.",
        "returns": "In how many circuits rebuilt from half of the images a group or an edge appears again.",
        "silhouette": "How clearly a group stands apart from the others of its layer: 1 clearly, 0 between two.",
        "attribution gap": "What the attributions miss of what they should add up to; 0 is exact.",
    },
    "Debugging": {
        "silencing": "Changing a group's neurons as the model runs: to zero, to their usual mean, or damped (what it adds is gone).",
        "misleading group": "A group that pushes images of other classes into this one: silencing it brings back their true class.",
        "contrast group": "A direction in which wrong images differ from right ones, found beside the circuit.",
        "recovered": "Share of the wrong images whose true class is predicted once the group is silenced.",
        "clean accuracy": "Accuracy on images that were predicted right before; what it loses is the price of silencing.",
        "false alarms": "Share of right images that show the group as strongly as wrong ones do.",
        "recoverable": "The share of the wrong images that can come back at best: images of those classes are right no more often.",
        "lower logit": "What calling the class less often brings back, without any group: errors near the border between classes.",
        "sweep": "All classes of a model, or many, analysed and debugged on one folder of images.",
        "verdict": "What a person decided about a group: core, spurious or unclear.",
        "blame path": "The route through the circuit that carries a wrong answer.",
    },
    "Names": {
        "label": "The name people gave to a group: pending, approved, edited, rejected, or in need of review.",
        "proposal": "A name that a language model or the plain offline description suggests.",
        "fires": "A patch fires a group when it is nearer to the group's typical patches than to a usual patch.",
        "supported": "On patches held out, the name tells firing from silent better than a word for everything and another group's name.",
    },
}


def button() -> None:
    """Opens the glossary."""
    if st.button("Words", key="glossary", type="tertiary", icon=":material/menu_book:", help="What the words on these pages mean"):
        _opened()


@st.dialog("What the words mean", width="large")
def _opened() -> None:
    for title, words in WORDS.items():
        rows = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items())
        st.html(f'<h3 class="nf-part">{escape(title)}</h3><dl class="nf-words-list">{rows}</dl>')
