// Runs in the sandboxed frame, after pyvis has made `nodes`, `edges` and `network`: draws groups, follows the mouse and the keys, and
// talks to the app with messages. All text stays text: names become text nodes and strokes on a canvas, never HTML.
(function () {
  const SIDE = settings.side, LABEL = 18, FADED = 0.1, FONT = '"Source Sans 3", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif';
  const groups = new Map(nodes.get().filter(node => node.sheet !== undefined).map(node => [node.id, node]));
  const lines = new Map(edges.get().map(edge => [edge.id, edge]));
  const above = new Map(), below = new Map();
  const push = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
  for (const line of lines.values()) { push(above, line.from, line); push(below, line.to, line); }
  for (const ways of [above, below]) for (const found of ways.values()) found.sort((one, other) => other.strength - one.strength);
  const theme = { text: '#1C2426', accent: '#0F766E', background: '#ffffff' };
  const say = message => parent.postMessage(message, '*');
  let lit = null;  // ids of the groups and lines that are shown in full; null: all of them

  // pictures: one image per group, of eight patches; the left half of it is the node, all of it the tooltip
  const images = new Map();
  let waiting = groups.size;
  const arrived = () => { if (--waiting <= 0) { network.redraw(); document.documentElement.dataset.drawn = 'yes'; } };
  for (const group of groups.values()) {
    const image = new Image();
    images.set(group.id, image);
    image.onload = image.onerror = arrived;
    image.src = group.sheet;
  }

  function drawn({ ctx, id, x, y, state }) {
    const group = groups.get(id), image = images.get(id);
    const drawNode = () => {
      const left = x - SIDE / 2, top = y - SIDE / 2;
      ctx.globalAlpha = (lit && !lit.has(id) ? FADED : 1) * group.solid;
      ctx.fillStyle = theme.background;
      ctx.fillRect(left, top, SIDE, SIDE);
      if (image.complete && image.naturalWidth) {
        ctx.drawImage(image, 0, 0, image.naturalHeight, image.naturalHeight, left, top, SIDE, SIDE);
      }
      ctx.globalAlpha = lit && !lit.has(id) ? FADED : 1;
      const marked = state.selected || state.hover;
      ctx.strokeStyle = marked || group.pinned ? theme.accent : group.edge;
      ctx.lineWidth = state.selected ? 7 : marked || group.pinned ? 4 : 2;
      ctx.strokeRect(left, top, SIDE, SIDE);
      const pen = (text, across, down, align, colour, behind) => {
        ctx.font = '15px ' + FONT;
        ctx.textAlign = align; ctx.textBaseline = 'middle';
        const width = ctx.measureText(text).width + 8;
        ctx.fillStyle = behind;
        ctx.fillRect(align === 'center' ? across - width / 2 : across - width, down - 10, width, 20);
        ctx.fillStyle = colour;
        ctx.fillText(text, align === 'center' ? across : across - 4, down);
      };
      if (group.badge) pen(group.badge, left + SIDE, top + SIDE - 10, 'right', '#fff', '#1C2426');
      if (group.pinned) pen('pinned', x, top + 10, 'center', '#fff', theme.accent);
      if (network.getScale() > 0.3) {  // smaller text is only a stain
        pen(group.name.length > LABEL ? group.name.slice(0, LABEL - 1) + '…' : group.name, x, y + SIDE / 2 + 13, 'center', theme.text, theme.background);
      }
    };
    return { drawNode, nodeDimensions: { width: SIDE, height: SIDE } };
  }
  const tip = (text, image) => {
    const box = document.createElement('div'), words = document.createElement('span');
    words.textContent = text;
    box.append(...(image ? [image] : []), words);
    return box;
  };
  function written({ ctx, id, x, y }) {  // the name of a layer, at least as large as can be read
    const size = Math.max(17, 12 / network.getScale());
    const drawNode = () => {
      ctx.font = size + 'px ' + FONT;
      ctx.textAlign = 'right'; ctx.textBaseline = 'middle';
      ctx.fillStyle = theme.text;
      ctx.fillText(nodes.get(id).layer, x + 40, y);
    };
    return { drawNode, nodeDimensions: { width: 100, height: 20 } };
  }
  nodes.update(nodes.get().filter(node => !groups.has(node.id)).map(node => ({ id: node.id, shape: 'custom', ctxRenderer: written })));
  nodes.update([...groups.values()].map(group => ({ id: group.id, shape: 'custom', ctxRenderer: drawn, title: tip(group.hint, images.get(group.id)) })));
  edges.update([...lines.values()].map(line => ({ id: line.id, title: tip(line.hint) })));

  // the cascade: everything that leads to a group, and everything that it leads to
  function cascade(from, to) {
    const reached = new Set([...from, ...to]);
    for (const [start, ways, end] of [[to, above, 'to'], [from, below, 'from']]) {
      const open = [...start], seen = new Set(start);
      while (open.length) {
        for (const line of ways.get(open.pop()) ?? []) {
          reached.add(line.id).add(line[end]);
          if (!seen.has(line[end])) { seen.add(line[end]); open.push(line[end]); }
        }
      }
    }
    return reached;
  }
  function light(ids) {
    const before = lit;
    lit = ids;
    const shines = (set, id) => !set || set.has(id);
    edges.update([...lines.values()].filter(line => shines(before, line.id) !== shines(lit, line.id)).map(line => ({
      id: line.id, color: { ...line.color, opacity: shines(lit, line.id) ? line.color.opacity : line.color.opacity * FADED },
    })));
    network.redraw();
  }
  function choose(node, edge, route) {
    network.unselectAll();
    if (route.length > 1) {
      const steps = route.slice(1).map((target, step) => route[step] + '>' + target).filter(id => lines.has(id));
      const known = route.filter(id => groups.has(id));
      network.setSelection({ nodes: known, edges: steps }, { highlightEdges: false });
      light(new Set([...known, ...steps]));
    } else if (groups.has(node)) {
      network.setSelection({ nodes: [node] }, { highlightEdges: false });
      light(cascade([node], [node]));
    } else if (lines.has(edge)) {
      network.setSelection({ edges: [edge] });
      light(cascade([lines.get(edge).from], [lines.get(edge).to]).add(edge));
    } else light(null);
    chosen = groups.has(node) ? node : null;
  }
  let chosen = null;
  const told = (node, edge) => { choose(node, edge, []); say({ kind: 'circuit-select', node, edge }); };

  network.on('click', event => {
    const node = groups.has(network.getNodeAt(event.pointer.DOM)) ? network.getNodeAt(event.pointer.DOM) : null;
    told(node, node === null ? network.getEdgeAt(event.pointer.DOM) ?? null : null);
  });
  for (const [event, cursor] of [['hoverNode', 'pointer'], ['hoverEdge', 'pointer'], ['blurNode', 'default'], ['blurEdge', 'default']]) {
    network.on(event, () => { document.body.style.cursor = cursor; });
  }

  // keys: up and down along the strongest lines, left and right in the row
  const holder = document.getElementById('mynetwork');
  holder.tabIndex = 0;
  holder.setAttribute('role', 'application');
  holder.setAttribute('aria-label', 'Circuit: arrow keys go from group to group, Escape chooses none');
  addEventListener('keydown', event => {
    const row = id => [...groups.values()].filter(group => group.row === groups.get(id).row).sort((one, other) => one.x - other.x);
    const beside = step => row(chosen)[row(chosen).findIndex(group => group.id === chosen) + step]?.id;
    const ways = {
      ArrowUp: () => above.get(chosen)?.[0].to, ArrowDown: () => below.get(chosen)?.[0].from,
      ArrowLeft: () => beside(-1), ArrowRight: () => beside(1), Escape: () => null,
    };
    if (!(event.key in ways)) return;
    event.preventDefault();
    const next = chosen === null && event.key !== 'Escape' ? groups.keys().next().value : ways[event.key]();
    if (next !== undefined) { told(next, null); if (next) reveal(next); }
  });

  const fit = () => network.fit({ animation: false });
  function reveal(id) {
    const place = network.canvasToDOM(network.getPosition(id));
    if (place.x < 0 || place.y < 0 || place.x > innerWidth || place.y > innerHeight) network.moveTo({ position: network.getPosition(id) });
  }
  function picture() {  // all of it at its full size, whatever is in view
    const view = { position: network.getViewPosition(), scale: network.getScale() };
    const places = nodes.getIds().map(id => network.getBoundingBox(id));
    const [left, top] = ['left', 'top'].map(side => Math.min(...places.map(place => place[side])) - 40);
    const [right, bottom] = ['right', 'bottom'].map(side => Math.max(...places.map(place => place[side])) + 60);
    const scale = Math.min(1.5, 6000 / (right - left), 6000 / (bottom - top)) / devicePixelRatio;
    network.setSize((right - left) * scale + 'px', (bottom - top) * scale + 'px');
    network.moveTo({ position: { x: (left + right) / 2, y: (top + bottom) / 2 }, scale, animation: false });
    network.redraw();
    const canvas = document.querySelector('canvas'), copy = document.createElement('canvas');
    copy.width = canvas.width; copy.height = canvas.height;
    const pen = copy.getContext('2d');
    pen.fillStyle = theme.background; pen.fillRect(0, 0, copy.width, copy.height); pen.drawImage(canvas, 0, 0);
    network.setSize('100%', '100%');
    network.moveTo({ ...view, animation: false });
    network.redraw();
    return copy.toDataURL('image/png');
  }
  addEventListener('message', event => {
    if (event.source !== parent || !event.data) return;
    const { kind } = event.data;
    if (kind === 'circuit-highlight') {
      choose(event.data.node ?? null, event.data.edge ?? null, event.data.route || []);
      if (chosen) reveal(chosen);
    }
    if (kind === 'circuit-theme') {
      for (const name in theme) if (event.data[name]) theme[name] = event.data[name];
      document.documentElement.style.setProperty('--accent', theme.accent);
      network.redraw();
    }
    if (kind === 'circuit-fit') fit();
    if (kind === 'circuit-png') say({ kind: 'circuit-png', png: picture() });
  });
  addEventListener('resize', () => setTimeout(fit, 60));
  network.once('afterDrawing', fit);
  say({ kind: 'circuit-ready' });
})();
