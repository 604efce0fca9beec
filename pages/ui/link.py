"""The button that copies the address of what is on screen, and the one thing about the browser's history that Streamlit leaves undone."""

import streamlit as st

# When another page is opened, Streamlit makes two steps in the browser's history at once: the old page with the new page's parameters, then
# the new page. Whoever goes back would land on the first, which nobody ever saw. Its call is the only place where they can be made one.
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
  let lastChange = -Infinity; // of the parameters alone
  history.pushState = (state, unused, url) => {
    const to = new URL(url, location.href), moves = to.pathname !== location.pathname;
    const again = moves && to.search === location.search && performance.now() - lastChange < 300;
    again ? history.replaceState(state, unused, url) : push(state, unused, url);
    if (!moves) lastChange = performance.now();
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
