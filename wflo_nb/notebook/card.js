// The spend card. It draws what the kernel sends (one dict per tick, money already written out exactly) and sends clicks back.
// Clicks travel twice, over the widget's own comm and over one opened here, because kernels differ in which of the two they
// serve while a cell runs; the kernel drops the second copy by its id.

const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text != null) element.textContent = text;
  return element;
};
const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const ACK_MS = 2500, ARMED_MS = 4000;

// ---- to the kernel -----------------------------------------------------------------------------------------------------

function connect(model, root, note) {
  const kernel = (model.widget_manager && model.widget_manager.kernel) || null;
  let control = null, closed = false, timer = null, count = 0;
  const origin = Math.random().toString(36).slice(2, 10);
  if (kernel) {
    try {
      const comm = kernel.createComm("wflo-control");
      // Its subshell starts in the background; a comm opened before that would be served behind the running cell.
      const late = new Promise((_, no) => setTimeout(no, 5000));
      Promise.race([comm.subshellStarted || Promise.reject(), late]).then(
        () => { if (!closed) { comm.open({ execution: model.get("_execution") }); control = comm; root.dataset.control = "open"; } },
        () => {},
      );
    } catch { /* an older front end: the widget's comm alone must do */ }
  }
  const settled = () => { clearTimeout(timer); timer = null; };
  const busy = () => {
    note.replaceChildren("The kernel has not answered yet: it handles clicks after the running cell. ");
    if (!kernel) { note.append("The notebook's ■ button interrupts it."); return; }
    const interrupt = make("button", "wf-btn wf-danger", "Interrupt the kernel");
    interrupt.onclick = () => kernel.interrupt();
    note.append(interrupt);
  };
  const ended = (to) => {
    settled();
    note.textContent = `The kernel of this card has ended. In a new one, %load_ext wflo_nb and %wflo rollback ${to || "NAME"} bring variables back.`;
  };
  const onAck = (message) => {
    if (message.kind !== "ack") return;
    settled();
    root.dataset.ack = message.id;
    note.textContent = message.note || model.get("_note");
  };
  model.on("msg:custom", onAck);
  return {
    send(kind, more = {}) {
      const message = { kind, id: `${origin}-${count++}`, ...more };
      try { model.send(message); } catch { ended(more.to); return; }
      try { if (control) control.send(message); } catch { /* the other copy is on its way */ }
      settled();
      timer = setTimeout(busy, ACK_MS);
    },
    close() {
      closed = true;
      settled();
      model.off("msg:custom", onAck);
      try { if (control) control.close(); } catch { /* the kernel may be gone */ }
    },
  };
}

// ---- parts -------------------------------------------------------------------------------------------------------------

function moneyBar() {
  const bar = make("div", "wf-bar"), spent = make("div", "wf-fill"), unconfirmed = make("div", "wf-unconfirmed"), held = make("div", "wf-held");
  bar.append(spent, unconfirmed, held);
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", "Spend against budget");
  bar.setAttribute("aria-valuemin", "0");
  return { bar, draw(s) {
    const whole = s.cap_nano === null ? Math.max(s.spent_nano + s.held_nano, 1) : Math.max(s.cap_nano, 1);
    const part = (nano) => Math.max(0, Math.min(100, (100 * nano) / whole));
    const sure = part(s.spent_nano - s.unconfirmed_nano), all = part(s.spent_nano);
    spent.style.width = `${sure}%`;
    spent.style.minWidth = s.spent_nano > s.unconfirmed_nano ? "3px" : "0"; // money is never invisible
    unconfirmed.style.left = `${sure}%`;
    unconfirmed.style.width = `${all - sure}%`;
    held.style.left = `${all}%`;
    held.style.width = `${Math.min(100 - all, part(s.held_nano))}%`;
    bar.hidden = s.cap_nano === null;
    bar.setAttribute("aria-valuemax", "100");
    bar.setAttribute("aria-valuenow", String(s.percent || 0));
    bar.setAttribute("aria-valuetext", said(s));
  } };
}

const doubt = (s) => (s.unconfirmed ? `, ${s.unconfirmed} of it unconfirmed` : "");
const said = (s) => (s.budget === null ? `${s.spent} spent, no budget` : `${s.spent} of ${s.budget}, ${s.percent} percent`) + doubt(s);

function stats(labels) {
  const box = make("div", "wf-stats"), values = {};
  for (const [key, label] of labels) {
    const one = make("div", "wf-stat");
    values[key] = make("span", "wf-v");
    one.append(make("span", "wf-k", label), values[key]);
    box.append(one);
  }
  return { box, values };
}

function sparkline() {
  const W = 160, H = 40;
  const picture = svg("svg", { class: "wf-spark", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const area = svg("path", { class: "wf-area" }), line = svg("path", { class: "wf-line" }), limit = svg("line", { class: "wf-limit", x1: 0, x2: W });
  picture.append(area, line, limit);
  return { picture, draw(s) {
    const points = s.history, last = points[points.length - 1];
    picture.style.visibility = last[0] < 0.3 || last[1] === 0 ? "hidden" : "visible"; // nothing has had time to become a line
    const right = Math.max(last[0], 1e-9), near = s.cap_nano !== null && s.cap_nano < 4 * last[1];
    // A cap far above the spend would flatten the line: then it is left out and the bar tells the distance.
    const top = Math.max(last[1], near ? s.cap_nano : 0, 1) * 1.06;
    const y = (nano) => (H - (H - 2) * (nano / top)).toFixed(1);
    const path = "M" + points.map(([t, nano]) => `${((W * t) / right).toFixed(1)},${y(nano)}`).join("L");
    line.setAttribute("d", path);
    area.setAttribute("d", `${path}L${W},${H}L0,${H}Z`);
    limit.style.display = near ? "" : "none";
    limit.setAttribute("y1", near ? y(s.cap_nano) : 0);
    limit.setAttribute("y2", near ? y(s.cap_nano) : 0);
  } };
}

function raiseForm(send) {
  const form = make("form", "wf-raise"), label = make("label", "wf-dim", "Budget $"), amount = make("input", "wf-amount"), button = make("button", "wf-btn", "Raise");
  Object.assign(amount, { type: "number", min: "0", step: "any", required: true });
  amount.setAttribute("aria-label", "New budget in US dollars");
  label.append(amount);
  form.append(label, button);
  form.onsubmit = (event) => { event.preventDefault(); if (amount.value) { send("raise", { amount: amount.value }); amount.value = ""; } };
  form.onkeydown = (event) => event.stopPropagation();
  return { form, draw(s) {
    form.hidden = !(s.running || s.in_flight > 0);
    button.textContent = s.cap_nano === null ? "Set" : "Raise";
    button.classList.toggle("wf-go", s.state === "refused");
    amount.placeholder = s.cap_nano === null ? "1.00" : String((2 * s.cap_nano) / 1e9);
  } };
}

function rollbackPanel(send) {
  const row = make("div", "wf-row"), label = make("label", "wf-dim", "Roll variables back to "), choice = make("select", "wf-select"), restore = make("button", "wf-btn wf-restore", "Restore…");
  const undo = make("button", "wf-btn wf-undo", "Undo the rollback");
  label.append(choice);
  row.append(undo, make("span", "wf-grow"), label, restore);
  let armed = null, drawn = "";
  const disarm = () => { clearTimeout(armed); armed = null; restore.textContent = "Restore…"; restore.classList.remove("wf-danger"); };
  restore.onclick = () => {
    if (armed) { disarm(); send("rollback", { to: choice.value }); return; }
    restore.textContent = "Yes, restore these variables";
    restore.classList.add("wf-danger");
    armed = setTimeout(disarm, ARMED_MS);
  };
  choice.onchange = disarm;
  undo.onclick = () => send("undo");
  return { row, close: disarm, draw(s, checkpoints, undoable) {
    const key = JSON.stringify(checkpoints);
    if (key !== drawn) {
      const kept = choice.value;
      choice.replaceChildren(...checkpoints.map((c) => Object.assign(make("option", "", c.label), { value: c.id })));
      if (checkpoints.some((c) => c.id === kept)) choice.value = kept;
      drawn = key;
    }
    label.hidden = restore.hidden = checkpoints.length === 0;
    undo.hidden = !undoable;
    row.hidden = s.running || (checkpoints.length === 0 && !undoable);
  } };
}

// ---- the whole ---------------------------------------------------------------------------------------------------------

function render({ model, el }) {
  const root = make("section", "wf"), head = make("div", "wf-head"), title = make("span", "wf-title"), where = make("span", "wf-dim"), pill = make("span", "wf-pill"), time = make("span", "wf-time");
  head.append(title, where, pill, time);
  const money = make("div", "wf-money"), spent = make("span", "wf-big"), of = make("span", "wf-of"), aside = make("span", "wf-aside");
  money.append(spent, of, aside);
  const note = make("div", "wf-note"), live = make("div", "wf-hear"), reason = make("div", "wf-reason");
  note.setAttribute("role", "status");
  live.setAttribute("role", "status");
  live.setAttribute("aria-live", "polite");
  root.setAttribute("role", "group");
  const line = connect(model, root, note);
  const bar = moneyBar(), spark = sparkline(), raise = raiseForm(line.send), rollback = rollbackPanel(line.send);
  const facts = stats([["calls", "Calls"], ["tokens", "Tokens in / out"], ["held", "Held in flight"], ["rate", "Rate"], ["left", "Left"]]);
  const middle = make("div", "wf-middle"), actions = make("div", "wf-row"), stop = make("button", "wf-btn wf-stop wf-danger", "Stop spending");
  stop.title = "Send no further call. Calls on their way finish and are paid.";
  stop.onclick = () => { stop.disabled = true; line.send("stop"); };
  middle.append(facts.box, spark.picture);
  actions.append(stop, make("span", "wf-grow"), raise.form);
  root.append(head, money, bar.bar, middle, reason, actions, rollback.row, note, live);
  el.append(root);

  let waiting = 0, spoken = null;
  function paint() {
    waiting = 0;
    const s = model.get("_figures");
    if (!s || !s.state) return;
    root.dataset.state = s.state;
    root.dataset.calls = s.calls;
    root.dataset.paints = Number(root.dataset.paints || 0) + 1;
    root.setAttribute("aria-label", `LLM spend of ${s.name}`);
    root.classList.toggle("wf-warn", s.percent !== null && s.percent >= 80 && s.percent < 100);
    root.classList.toggle("wf-full", s.percent !== null && s.percent >= 100);
    title.textContent = s.name;
    where.textContent = s.cell === s.name ? "" : s.cell;
    pill.textContent = s.pill;
    pill.className = `wf-pill wf-is-${s.state}`;
    time.textContent = s.time;
    spent.textContent = s.spent;
    of.textContent = s.budget === null ? "spent, no budget" : `of ${s.budget}`;
    aside.textContent = s.unconfirmed ? `${s.unconfirmed} of it unconfirmed` : "";
    facts.values.calls.textContent = `${s.calls}${s.in_flight ? ` +${s.in_flight} in flight` : ""}${s.refused ? `, ${s.refused} refused` : ""}${s.unpriced ? `, ${s.unpriced} unpriced` : ""}`;
    facts.values.tokens.textContent = s.tokens;
    facts.values.held.textContent = s.held_nano ? s.held : "–";
    facts.values.rate.textContent = s.rate;
    facts.values.left.textContent = s.left;
    bar.draw(s);
    spark.draw(s);
    raise.draw(s);
    stop.hidden = !s.running || s.state === "stopping";
    if (stop.hidden) stop.disabled = false;
    actions.hidden = stop.hidden && raise.form.hidden;
    rollback.draw(s, model.get("_checkpoints"), model.get("_undo"));
    reason.textContent = model.get("_reason");
    // While it runs, quarters of the budget; after that the sum, also when work left behind still adds to it.
    const milestone = s.running ? (s.percent === null ? null : Math.floor(s.percent / 25)) : said(s);
    if (milestone !== spoken) { spoken = milestone; live.textContent = said(s); }
  }
  const ask = () => { if (!waiting) waiting = requestAnimationFrame(paint); };
  const tell = () => { note.textContent = model.get("_note"); };
  const watched = ["_figures", "_checkpoints", "_undo", "_reason"].map((name) => `change:${name}`);
  for (const name of watched) model.on(name, ask);
  model.on("change:_note", tell);
  tell();
  paint();
  return () => {
    for (const name of watched) model.off(name, ask);
    model.off("change:_note", tell);
    cancelAnimationFrame(waiting);
    rollback.close();
    line.close();
  };
}

export default { render };
