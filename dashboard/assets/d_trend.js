/* The figures of the page Trend: a box chooses a stretch of runs, two clicks a comparison, both in the address; the
   table of a figure leads from each run to its comparison with the one before. */
(function () {
  "use strict";

  const hint = () => document.getElementById("trend-hint");

  function compared(one, other) {
    const target = new URL(hint().dataset.compare, window.location.origin);
    const [a, b] = [one, other].sort();  // the ids of runs begin with their time
    target.searchParams.set("a", a);
    target.searchParams.set("b", b);
    return target.pathname + target.search;
  }

  function follow(href) {
    window.history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
  }

  /* The first click marks a run, the second compares the two; the same run again takes the mark away. */
  function clicked(run) {
    const told = hint().dataset, first = told.run || "";
    told.run = first ? "" : run;
    hint().textContent = told.run ? told.marked.replace("{run}", run) : told.words;
    if (first && first !== run) follow(compared(first, run));
  }

  /* The first and the last run between two places of a figure's horizontal axis; none where there are not two. */
  function runsBetween(figure, low, high) {
    const graph = document.getElementById("figure-" + figure).querySelector(".js-plotly-plot");
    const line = graph.data.find((trace) => trace.name === "median");
    const runs = line.customdata.filter((run, place) => run && line.x[place] >= low && line.x[place] <= high);
    return runs.length > 1 ? [runs[0], runs[runs.length - 1]] : [];
  }

  Object.assign(window.dash_clientside.bench, {
    pointed: function () {
      const params = new URLSearchParams(window.location.search), before = params.toString();
      if (!hint()) return dash_clientside.no_update;
      for (const { prop_id: id, value } of dash_clientside.callback_context.triggered) {
        const cut = id.lastIndexOf(".");
        if (!value) continue;
        if (id.slice(cut) === ".clickData") {
          const run = value.points.map((point) => point.customdata).find(Boolean);
          if (run) clicked(run);
        } else if ("xaxis.range[0]" in value || value["xaxis.autorange"]) {
          const figure = JSON.parse(id.slice(0, cut)).name;
          const runs = value["xaxis.autorange"] ? [] : runsBetween(figure, value["xaxis.range[0]"], value["xaxis.range[1]"]);
          ["first", "last"].forEach((name, place) => {
            params.delete(name);
            if (runs.length) params.set(name, runs[place]);
          });
        }
      }
      if (params.toString() === before) return dash_clientside.no_update;
      return params.size ? "?" + params : "";
    },
  });

  /* The keyboard's way to a comparison: the run of each row but the first becomes a link. */
  document.addEventListener("toggle", (event) => {
    if (!hint() || !event.target.open || !event.target.matches(".figure-table")) return;
    const cells = [...event.target.querySelectorAll("tbody tr")].map((row) => row.cells[0]);
    const runs = cells.map((cell) => cell.textContent.trim());
    cells.slice(1).forEach((cell, place) => {
      if (cell.querySelector("a")) return;
      const link = document.createElement("a");
      link.href = compared(runs[place], runs[place + 1]);
      link.textContent = runs[place + 1];
      link.title = hint().dataset.before;
      link.addEventListener("click", (press) => {
        if (press.ctrlKey || press.metaKey || press.shiftKey) return;
        press.preventDefault();
        follow(link.href);
      });
      cell.replaceChildren(link);
    });
  }, true);
})();
