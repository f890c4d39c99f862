/* Buttons and keys that need no server: copying, saving figures, the list of keys, moving along rows. */
(function () {
  "use strict";

  function copied(button, text) {
    const before = button.textContent;
    const done = () => {
      button.textContent = "✓";
      document.getElementById("live").textContent = button.dataset.copied || "";
      window.setTimeout(() => { button.textContent = before; }, 1200);
    };
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(text).then(done, () => fallback(text, done));
    } else {
      fallback(text, done);
    }
  }

  /* Without a secure context (a token over plain http) the old way is the only one. */
  function fallback(text, done) {
    const box = document.createElement("textarea");
    box.value = text;
    box.style.position = "fixed";
    box.style.opacity = "0";
    (document.querySelector("dialog[open]") || document.body).appendChild(box);
    box.select();
    if (document.execCommand("copy")) done();
    box.remove();
  }

  function save(name, type, text) {
    const address = URL.createObjectURL(new Blob([text], { type: type }));
    const anchor = document.createElement("a");
    anchor.href = address;
    anchor.download = name;
    anchor.click();
    window.setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function csv(table) {
    const cell = (text) => (/[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text);
    return [...table.rows].map((row) => [...row.cells].map((one) => cell(one.textContent.trim())).join(",")).join("\n") + "\n";
  }

  /* Saved on white with the colours of the light scheme, whatever the screen shows. */
  function onPaper(graph) {
    const white = { template: window.bench.templates.light, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", width: undefined };
    return { data: graph.data, layout: Object.assign({}, graph.layout, white) };
  }

  function exported(button) {
    const name = button.dataset.figure;
    const holder = document.getElementById("figure-" + name);
    const graph = holder.querySelector(".js-plotly-plot");
    const form = button.dataset.form;
    if (form === "csv") {
      save(name + ".csv", "text/csv", csv(window.bench.tabulated(name)));
    } else if (graph && form === "reset") {
      const axes = {};
      Object.keys(graph.layout).filter((key) => /^[xy]axis/.test(key)).forEach((key) => { axes[key + ".autorange"] = true; });
      window.Plotly.relayout(graph, axes);
    } else if (graph) {
      window.Plotly.downloadImage(onPaper(graph), {
        format: form, filename: name, width: graph.clientWidth, height: graph.clientHeight, scale: form === "png" ? 2 : 1,
      });
    }
  }

  function keyList() {
    const list = document.getElementById("keys");
    if (!list) return;
    if (list.open) list.close();
    else list.showModal();
  }

  /* A side that is chosen from the list counts at once, not when the box is left. */
  document.addEventListener("click", (event) => {
    const box = document.activeElement;
    if (event.target.closest && event.target.closest("[role=option]") && box && box.closest(".side-box")) {
      window.setTimeout(() => box.blur(), 0);
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy !== undefined) copied(button, button.dataset.copy);
    else if (button.dataset.copyLink) copied(button, window.location.href);
    else if (button.dataset.figure) exported(button);
    else if (button.dataset.keys) keyList();
    else if (button.dataset.keysClose) button.closest("dialog").close();
    else if (button.id === "nav-button") {
      const open = document.body.classList.toggle("nav-open");
      button.setAttribute("aria-expanded", String(open));
    }
  });

  /* Keys: never while something is typed, never with Ctrl, Alt or Meta. */
  let going = false;

  function typing(target) {
    return target.closest && target.closest("input, textarea, select, [contenteditable=true]");
  }

  function step(direction) {
    const rows = [...document.querySelectorAll("#page .row-link")];
    if (!rows.length) return;
    const here = rows.indexOf(document.activeElement);
    const next = rows[Math.min(Math.max(here + direction, 0), rows.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  /* The grid of runs has a focus of its own; j and k move its row. */
  function stepGrid(grid, direction) {
    const cell = grid.getFocusedCell();
    const row = cell ? cell.rowIndex + direction : 0;
    if (row < 0 || row >= grid.getDisplayedRowCount()) return;
    grid.ensureIndexVisible(row);
    grid.setFocusedCell(row, cell ? cell.column : grid.getAllDisplayedColumns()[0]);
  }

  function gridApi() {
    return document.getElementById("runs-grid") && window.dash_ag_grid && window.dash_ag_grid.getApi("runs-grid");
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || typing(event.target)) return;
    const key = event.key;
    if (going) {
      going = false;
      const link = document.querySelector('#nav [data-key="' + CSS.escape(key) + '"] a');
      if (link) { link.click(); event.preventDefault(); }
      return;
    }
    const grid = gridApi();
    if (key === "g") going = true;
    else if (key === "?") keyList();
    else if (key === "/") {
      const box = document.querySelector(".filter input");
      if (box) { box.focus(); box.select(); event.preventDefault(); }
    } else if (key === "j" || key === "k") {
      const direction = key === "j" ? 1 : -1;
      if (grid) stepGrid(grid, direction); else step(direction);
    } else if (key === "Enter" && grid && event.target.closest(".ag-cell")) {
      const link = event.target.closest(".ag-row").querySelector("a[href]");
      if (link) link.click();
    } else if (key === "x" && grid && grid.getFocusedCell()) {
      const row = grid.getDisplayedRowAtIndex(grid.getFocusedCell().rowIndex);
      if (row) row.setSelected(!row.isSelected());
    }
  });

  /* On paper: every figure is drawn, in the light scheme. */
  function allFigures(scheme) {
    document.querySelectorAll(".js-plotly-plot").forEach((graph) => {
      if (window.bench.templates) window.Plotly.relayout(graph, { template: window.bench.templates[scheme] });
    });
  }

  window.addEventListener("beforeprint", () => {
    [...window.bench.waiting.keys()].forEach(window.bench.release);
    allFigures("light");
  });
  window.addEventListener("afterprint", () => {
    allFigures(document.documentElement.getAttribute("data-mantine-color-scheme") === "dark" ? "dark" : "light");
  });
})();
