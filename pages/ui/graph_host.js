// Runs in the app's page: keeps the graph in a sandboxed frame, hands its clicks to Python, and tells it the theme and the selection.
export default function ({ data, parentElement, setStateValue }) {
  const host = parentElement.querySelector('.host'), place = host.querySelector('.frame');
  let frame = place.querySelector('iframe');
  if (!frame || frame.dataset.graph !== data.graph) {
    frame = document.createElement('iframe');
    frame.setAttribute('sandbox', 'allow-scripts');
    frame.title = 'Circuit graph';
    frame.dataset.graph = data.graph;
    frame.style.height = data.height + 'px';
    frame.srcdoc = data.html;
    place.replaceChildren(frame);
  }
  const send = message => frame.contentWindow && frame.contentWindow.postMessage(message, '*');
  const theme = () => {
    const style = getComputedStyle(host), colour = name => style.getPropertyValue('--st-' + name).trim();
    send({ kind: 'circuit-theme', text: colour('text-color'), accent: colour('primary-color'), background: colour('background-color') });
  };
  const highlight = () => {
    const chosen = window.neurflowSelected;
    if (!chosen || chosen.graph !== data.graph || !frame.dataset.ready) return;
    const told = JSON.stringify(chosen);
    if (frame.dataset.chosen === told) return;
    frame.dataset.chosen = told;
    send({ kind: 'circuit-highlight', node: chosen.node, edge: chosen.edge, route: chosen.route });
  };
  const hear = event => {
    if (event.source !== frame.contentWindow || !event.data) return;
    const { kind } = event.data;
    if (kind === 'circuit-ready') { frame.dataset.ready = 'yes'; theme(); highlight(); }
    if (kind === 'circuit-select') setStateValue('selection', { node: event.data.node, edge: event.data.edge });
    if (kind === 'circuit-png' && /^data:image\/png;base64,[A-Za-z0-9+/=]+$/.test(event.data.png)) {
      const link = document.createElement('a');
      link.href = event.data.png; link.download = data.name + '.png'; link.click();
    }
  };
  host.querySelectorAll('.tools button').forEach(button => { button.onclick = () => {
    if (button.dataset.do === 'full') document.fullscreenElement ? document.exitFullscreen() : host.requestFullscreen();
    else send({ kind: 'circuit-' + button.dataset.do });
  }; });
  addEventListener('message', hear);
  addEventListener('neurflow-selected', highlight);
  if (frame.dataset.ready) { theme(); highlight(); }
  return () => { removeEventListener('message', hear); removeEventListener('neurflow-selected', highlight); };
}
