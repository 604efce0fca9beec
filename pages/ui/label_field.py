"""The field that a group's name is typed into, with its keys. What is typed is kept in the browser until it is saved.

In: the group, the wording that is in force or on the table, other wordings. Out: the draft (``draft``), and what Enter was pressed on.
"""

from collections.abc import Callable, Sequence

import streamlit as st

from neurflow_engine.sql_store import MAX_LENGTH
from pages.ui import session

KEY = "name_field"
ACCEPT, SAVE = "accept", "save"
_REMEMBERED = "author remembered"

_FIELD = st.components.v2.component(
    "neurflow_name",
    html='<div class="row"><input type="text" aria-label="Name" spellcheck="true" autocomplete="off">'
    '<button class="edit" tabindex="-1">Edit<kbd>E</kbd></button></div><div class="others"></div><div class="note" role="status"></div>',
    css="""
:host, .row, .others, .note { font-family: var(--st-font); color: var(--st-text-color); }
.row { display: flex; gap: 8px; }
input { flex: 1; min-width: 0; box-sizing: border-box; height: 44px; padding: 0 12px; font: 600 17px var(--st-font); color: inherit;
  background: var(--st-background-color); border: 1px solid var(--st-border-color); border-radius: 8px; }
input:focus { outline: 2px solid var(--st-primary-color); outline-offset: -1px; border-color: transparent; }
input.draft { border-color: var(--nf-warns); }
input::placeholder { color: var(--nf-muted); opacity: 1; font-weight: 400; font-size: 15px; }
button { all: unset; box-sizing: border-box; cursor: pointer; border: 1px solid var(--st-border-color); border-radius: 8px;
  font-size: 14px; padding: 3px 10px; }
button:hover { border-color: var(--st-primary-color); color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); }
.edit { display: flex; align-items: center; }
kbd { font: 600 12px var(--st-font); color: var(--nf-muted); margin-left: 7px; border: 1px solid var(--st-border-color); border-radius: 4px;
  padding: 0 5px; }
.others { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px; align-items: center; font-size: 13px; }
.others:empty { display: none; }
.others span { color: var(--nf-muted); }
.note { font-size: 12.5px; line-height: 1.35; min-height: 17px; margin-top: 6px; color: var(--nf-muted); overflow-wrap: anywhere; }
""",
    js="""
const fields = new WeakMap();
const letters = new Set(['a', 'e', 'x', 's', 'u', 'z']);
const typing = event => event.composedPath().some(one => /^(INPUT|TEXTAREA|SELECT)$/.test(one.tagName) || one.isContentEditable);

function make(parent) {
  const find = name => parent.querySelector(name);
  const field = { input: find('input'), note: find('.note'), others: find('.others'), shown: null, told: null };
  const { input } = field;
  const at = group => `neurflow draft ${field.data.run} ${group}`;
  // the browser may refuse to keep anything; then a draft lasts as long as the page
  const kept = group => { try { return JSON.parse(localStorage.getItem(at(group))); } catch { return null; } };
  const keep = (group, draft) => {
    try { draft ? localStorage.setItem(at(group), JSON.stringify(draft)) : localStorage.removeItem(at(group)); } catch {}
  };
  const says = () => {
    const { data } = field, draft = input.value !== data.text;
    input.classList.toggle('draft', draft);
    const older = draft && field.typedOn < data.version;
    field.note.textContent = older
      ? `Your draft. The label was changed since you typed it${data.text ? `, to “${data.text}”` : ''}. Enter approves yours.`
      : draft ? 'Draft, not saved · Enter: save and approve · Ctrl+Enter: only save · Esc: leave'
      : input.matches(':focus') ? 'Enter: save and approve · Ctrl+Enter: only save · Esc: leave'
      : data.others.length ? 'E: type another name · U: take another proposal' : 'E: type a name';
  };
  const tell = () => {
    if (field.told === input.value) return;
    field.told = input.value;
    field.set('draft', { group: field.data.group, version: field.data.version, text: input.value });
  };
  const typed = () => {
    const { data } = field;
    if (field.typedOn === null) field.typedOn = data.version;
    keep(data.group, input.value === data.text ? null : { text: input.value, version: field.typedOn });
    says();
  };
  const take = text => { input.value = text; typed(); tell(); };
  input.oninput = typed;
  input.onblur = () => { tell(); says(); };
  input.onfocus = () => { field.before = { value: input.value, draft: kept(field.data.group) }; says(); };
  input.onkeydown = event => {
    if (event.isComposing) return;
    if (event.key === 'Enter') {
      event.preventDefault();
      if (event.repeat) return;
      const { data } = field, how = event.ctrlKey || event.metaKey ? 'save' : 'accept';
      field.told = input.value; // Enter carries it
      field.trigger('enter', { group: data.group, version: data.version, text: input.value, how });
      input.blur();
    } else if (event.key === 'Escape') input.blur();
  };
  const edit = () => { input.focus(); input.select(); };
  find('.edit').onclick = edit;
  field.pressed = event => {
    if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    // a key that is held down decides once, not on every group that comes next
    if (event.repeat && letters.has(key)) { event.stopImmediatePropagation(); event.preventDefault(); return; }
    if (key === 'e') { event.preventDefault(); edit(); }
    if (key === 'u' && field.data.others.length) {
      const texts = [...field.data.others.map(other => other.text), field.data.text].filter(Boolean);
      take(texts[(texts.indexOf(input.value) + 1) % texts.length]);
    }
  };
  field.update = () => {
    const { data } = field;
    if (data.settled && kept(data.settled.group)?.text === data.settled.text) keep(data.settled.group, null);
    const draft = kept(data.group), now = JSON.stringify([data.run, data.group, data.version, data.text]);
    if (now !== field.shown) {
      const moved = field.group !== data.group, focused = input.matches(':focus');
      if (moved && focused && input.value !== field.before.value) {
        // somebody began to type when the next group was on the screen, but not yet in this field: what is typed belongs to that group
        keep(field.group, field.before.draft);
        field.typedOn = null;
        typed();
      } else if (moved || !focused) {
        input.value = draft ? draft.text : data.text;
        field.typedOn = draft ? draft.version : null;
        if (focused) input.select();
      }
      field.shown = now; field.group = input.dataset.group = data.group;
    }
    field.told = data.known ?? data.text;
    if (!input.matches(':focus')) tell();
    if (data.author) { try { localStorage.setItem('neurflow author', data.author); } catch {} }
    else if (!field.asked) {
      field.asked = true; // once: a name that is taken away stays away
      try { const author = localStorage.getItem('neurflow author'); if (author) field.set('author', author); } catch {}
    }
    input.placeholder = data.placeholder;
    input.maxLength = data.longest;
    field.others.replaceChildren(...data.others.map(other => {
      const button = document.createElement('button'), by = document.createElement('span');
      button.textContent = other.text;
      button.title = 'Put it into the field';
      by.textContent = other.by;
      button.onclick = () => take(other.text);
      const pair = document.createElement('div');
      pair.append(button, ' ', by);
      return pair;
    }));
    if (data.others.length) {
      const key = document.createElement('kbd');
      key.textContent = 'U';
      key.title = 'Puts one after the other into the field';
      field.others.prepend('Or ', key);
    }
    says();
  };
  window.addEventListener('keydown', field.pressed, true);
  return field;
}

export default function({ data, parentElement, setStateValue, setTriggerValue }) {
  let field = fields.get(parentElement);
  if (!field) { field = make(parentElement); fields.set(parentElement, field); }
  field.data = data; field.set = setStateValue; field.trigger = setTriggerValue;
  field.update();
  return () => { window.removeEventListener('keydown', field.pressed, true); fields.delete(parentElement); };
}
""",
)


def name_field(
    run: str, group: str, version: int, text: str, others: Sequence[tuple[str, str]], settled: dict | None, on_enter: Callable[[dict], None]
) -> None:
    """Draw the field.

    Args:
        version: of the label that is shown.
        text: the wording that is in force or on the table; the field starts with it unless the browser keeps a draft.
        others: wordings that can be taken instead, each with a word on where it comes from.
        settled: {"group", "text"} of what was saved last; the browser forgets a draft that says the same.
        on_enter: called with {"group", "version", "text", "how": ACCEPT or SAVE} before the page is drawn again.
    """

    def remembered() -> None:
        author = session.component(KEY, "author", str)
        if author and not session.value("author"):
            session.set_value("author", author[:MAX_LENGTH])
            session.set_value(_REMEMBERED, True)

    def entered() -> None:
        on_enter(session.component(KEY, "enter"))

    data = {
        "run": run,
        "group": group,
        "version": version,
        "text": text,
        "author": (session.value("author") or "").strip(),
        "known": draft(group, version),
        "others": [{"text": one, "by": by} for one, by in others],
        "settled": settled,
        "placeholder": "What do these patches share? e.g. white star on magenta",
        "longest": MAX_LENGTH,
    }
    _FIELD(
        data=data, default={"draft": None, "author": None}, on_draft_change=lambda: None, on_author_change=remembered,
        on_enter_change=entered, key=KEY,
    )  # fmt: skip
    if session.value(_REMEMBERED):  # by this browser: the field with the person's name is drawn outside of the fragment
        session.set_value(_REMEMBERED, None)
        st.rerun()


def draft(group: str, version: int) -> str | None:
    """What is in the field for a group, as far as the browser told since the label has this version; None where it said nothing."""
    state = session.value(KEY) or {}
    told = state.get("draft")
    if not isinstance(told, dict) or (told.get("group"), told.get("version")) != (group, version):
        return None
    return told["text"] if isinstance(told.get("text"), str) else None
