"""Things to pick from with a click: a gallery of pictures, and a confusion matrix. Both show text as text.

In: what to show and what is picked. Out: the pick, found by the page with ``session.component(key, "picked")``.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import streamlit as st

from pages.ui import colours


@dataclass(frozen=True)
class Pick:
    """One picture of a gallery."""

    id: str
    source: str  # data URI
    caption: str
    figure: str  # beside the caption, which is cut short where both do not fit
    note: str = ""
    tone: str = ""  # "wrong" or "right": the colour of its caption


_GALLERY = st.components.v2.component(
    "neurflow_gallery",
    html='<div class="grid" role="list" aria-label="Images"></div>',
    css="""
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; }
.cell { position: relative; min-width: 0; }
.pick { all: unset; cursor: pointer; border-radius: 8px; padding: 3px; border: 2px solid transparent; box-sizing: border-box; width: 100%;
         font-family: var(--st-font); color: var(--st-text-color); }
.pick:hover { background: var(--st-secondary-background-color); }
.pick:focus-visible, .add:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
.pick[aria-pressed="true"] { border-color: var(--st-primary-color); background: var(--st-secondary-background-color); }
.add { all: unset; cursor: pointer; position: absolute; top: 8px; right: 8px; width: 20px; height: 20px; border-radius: 5px;
  background: rgba(20, 26, 28, .62); color: #fff; font: 600 14px/20px sans-serif; text-align: center; opacity: 0; }
.cell:hover .add, .add:focus-visible, .add[aria-checked="true"] { opacity: 1; }
.add[aria-checked="true"] { background: var(--st-primary-color); }
@media (hover: none) { .add { opacity: 1; } }
img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px; display: block; }
.said { display: flex; gap: .35em; font-size: 12px; line-height: 1.25; margin-top: 3px; white-space: nowrap; }
.said span { overflow: hidden; text-overflow: ellipsis; }
.said b { flex: none; font-weight: inherit; }
small { display: block; font-size: 11px; color: var(--nf-muted); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.wrong .said { color: var(--nf-adds); font-weight: 600; }
""",
    js="""
export default function({ data, parentElement, setStateValue }) {
  const grid = parentElement.querySelector('.grid');
  const say = (id, add) => setStateValue('picked', { id, add, at: Date.now() });
  grid.replaceChildren(...data.picks.map(pick => {
    const on = data.selected.includes(pick.id);
    const cell = document.createElement('div');
    cell.className = 'cell'; cell.setAttribute('role', 'listitem');
    const button = document.createElement('button');
    button.setAttribute('aria-pressed', String(on));
    button.className = 'pick ' + pick.tone;
    button.title = pick.caption + ' ' + pick.figure + (pick.note ? ' · ' + pick.note : '') + '\\n' + pick.id;
    const image = document.createElement('img');
    image.src = pick.source; image.alt = ''; // the caption says it
    const caption = document.createElement('span'); caption.textContent = pick.caption;
    const figure = document.createElement('b'); figure.textContent = pick.figure;
    const said = document.createElement('div'); said.className = 'said'; said.append(caption, ' ', figure);
    const note = document.createElement('small'); note.textContent = pick.note;
    button.append(image, said, note);
    button.onclick = event => say(pick.id, event.ctrlKey || event.metaKey || event.shiftKey);
    const add = document.createElement('button');
    add.className = 'add';
    add.setAttribute('role', 'checkbox');
    add.setAttribute('aria-checked', String(on));
    add.setAttribute('aria-label', 'select ' + pick.id);
    add.title = 'Select it too';
    add.textContent = on ? '✓' : '+';
    add.onclick = () => say(pick.id, true);
    cell.append(button, add);
    return cell;
  }));
}""",
)


def gallery(picks: Sequence[Pick], selected: Collection[str], key: str, on_pick: Callable[[], None]) -> None:
    """Pictures to click. The pick is {"id", "add": whether it joins or leaves those that are selected, "at"}; ``on_pick`` runs first."""
    data = {"picks": [vars(pick) for pick in picks], "selected": list(selected)}
    _GALLERY(data=data, default={"picked": None}, on_picked_change=on_pick, key=key)


_CONFUSION = st.components.v2.component(
    "neurflow_confusion",
    html='<div class="scroll"><table></table></div>',
    css="""
.scroll { overflow-x: auto; }
table { border-spacing: 2px; font-family: var(--st-font); color: var(--st-text-color); width: 100%; table-layout: fixed; }
th { font-weight: 400; font-size: 12px; line-height: 1.2; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); height: 74px; max-height: 74px; text-align: left; padding: 4px 0 0; }
thead th:first-child { width: 84px; writing-mode: horizontal-tb; transform: none; color: var(--nf-muted); vertical-align: bottom;
  font-size: 11px; white-space: normal; }
tbody th { text-align: right; padding-right: 6px; }
.own { font-weight: 700; }
td { padding: 0; height: 22px; }
button { all: unset; display: block; box-sizing: border-box; width: 100%; height: 22px; border-radius: 4px; text-align: center;
  font-size: 12px; line-height: 22px; cursor: pointer; }
button.none { cursor: default; background: color-mix(in srgb, currentColor 5%, transparent); }
button.on { box-shadow: inset 0 0 0 2px var(--st-text-color); }
button:hover:not(.none), button:focus-visible { outline: 2px solid var(--st-primary-color); }
""",
    js="""
export default function({ data, parentElement, setStateValue }) {
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const table = parentElement.querySelector('table');
  const top = make('tr');
  top.append(make('th', 'true ↓ said →'));
  data.classes.forEach((name, column) => {
    const head = make('th', name, column === data.own ? 'own' : '');
    head.title = name; head.scope = 'col';
    top.append(head);
  });
  const rows = data.counts.map((counts, row) => {
    const line = make('tr'), head = make('th', data.classes[row], row === data.own ? 'own' : '');
    head.title = data.classes[row]; head.scope = 'row';
    line.append(head);
    const total = data.totals[row];
    counts.forEach((count, column) => {
      const right = row === column, share = total ? count / total : 0;
      const button = make('button', count ? String(count) : '', count ? '' : 'none');
      const words = right ? `${data.classes[row]} seen as what it is: ${count} of ${total}`
        : `${data.classes[row]} taken for ${data.classes[column]}: ${count} of ${total}`;
      button.title = words;
      button.setAttribute('aria-label', words);
      if (count) {
        const strength = Math.round(14 + 86 * Math.sqrt(share));
        button.style.background = `color-mix(in srgb, ${data.colours[right ? 'right' : 'wrong']} ${strength}%, var(--st-background-color))`;
        button.onclick = () => setStateValue('picked', { row, column, at: Date.now() });
      } else button.disabled = true;
      if (data.selected.some(([r, c]) => r === row && c === column)) button.classList.add('on');
      const cell = make('td');
      cell.append(button);
      line.append(cell);
    });
    return line;
  });
  const head = make('thead'), body = make('tbody');
  head.append(top); body.append(...rows);
  table.replaceChildren(head, body);
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  for (const button of body.querySelectorAll('button:enabled')) {  // black or white, whichever stands out more
    const [red, green, blue] = getComputedStyle(button).backgroundColor.match(/[\\d.]+/g).map(Number).map(linear);
    button.style.color = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? '#000' : '#fff';
  }
}""",
)


def confusion(
    classes: Sequence[str],
    counts: Sequence[Sequence[int]],
    totals: Sequence[int],
    own: int,
    selected: Collection[tuple[int, int]],
    key: str,
    on_pick: Callable[[], None],
) -> None:
    """A confusion matrix, true classes down and predicted ones across. The pick is {"row", "column", "at"}; ``on_pick`` runs first.

    Args:
        totals: images of each true class, also of those predicted as classes that are not shown.
        own: place of the class that is looked at.
        selected: cells whose images are shown.
    """
    data = {
        "classes": list(classes),
        "counts": [list(row) for row in counts],
        "totals": list(totals),
        "own": own,
        "selected": [list(cell) for cell in selected],
        "colours": {"right": colours.OURS, "wrong": colours.ADDS},
    }
    _CONFUSION(data=data, default={"picked": None}, on_picked_change=on_pick, key=key)
