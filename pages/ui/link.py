"""The button that copies the address of what is on screen, and the one thing about the browser's history that Streamlit leaves undone."""

import streamlit as st

# When another page is opened, Streamlit makes two steps in the browser's history, in either order: new parameters, and the new page.
# Whoever goes back would land between them, where nobody ever was. Its call is the only place where they can be made one: what is pressed
# makes a step, and what follows from it by itself belongs to it.
_LINK = st.components.v2.component(
    "neurflow_link",
    html='<button type="button">Copy link</button><span role="status"></span><input readonly aria-label="Address of this view" hidden>',
    css="""
:host, div { font: 14px var(--st-font); color: var(--st-text-color); }
button { all: unset; cursor: pointer; padding: 3px 10px; border: 1px solid var(--st-border-color); border-radius: 8px;
  font: 14px var(--st-font); color: var(--st-text-color); }
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
span { margin-left: 9px; font: 13px var(--st-font); color: var(--st-text-color); opacity: .8; }
input { display: block; box-sizing: border-box; width: 100%; margin-top: 6px; font: 12px var(--st-font); }
input[hidden] { display: none; }
""",
    js="""
const PATCHED = Symbol.for('neurflow history');
if (!window[PATCHED]) {
  window[PATCHED] = true;
  const push = history.pushState.bind(history);
  let stepped = -Infinity; // when the last step was made, unless something was pressed since
  const pressed = () => { stepped = -Infinity; };
  for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, pressed, true);
  addEventListener('message', event => { if (event.data?.kind === 'circuit-select') pressed(); }); // in the frame of the graph
  history.pushState = (state, unused, url) => {
    performance.now() - stepped < 10000 ? history.replaceState(state, unused, url) : push(state, unused, url);
    stepped = performance.now();
  };
}
export default function({ parentElement }) {
  const [button, said, field] = ['button', 'span', 'input'].map(name => parentElement.querySelector(name));
  button.onclick = async () => {
    field.hidden = true;
    try {
      await navigator.clipboard.writeText(location.href);
      said.textContent = 'Copied';
    } catch { // a browser allows it on localhost and over https only
      field.hidden = false;
      field.value = location.href;
      field.focus();
      field.select();
      said.textContent = 'Press Ctrl+C';
    }
    setTimeout(() => { said.textContent = ''; }, 4000);
  };
}
""",
)


def copy_link() -> None:
    """Draw the button."""
    _LINK(key="copy_link")
