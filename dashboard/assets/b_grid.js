/* The grid of runs: its look, its cells that are more than text, and what is chosen in it. */
(function () {
  "use strict";

  const element = (...parts) => window.React.createElement(...parts);

  window.dashAgGridFunctions = Object.assign({}, window.dashAgGridFunctions, {
    /* The grid's colours are those of the page, in both schemes. */
    bench_theme: (theme) => theme.withParams({
      backgroundColor: "var(--paper)",
      foregroundColor: "var(--ink)",
      textColor: "var(--ink)",
      headerBackgroundColor: "var(--ground)",
      headerTextColor: "var(--ink)",
      borderColor: "var(--line)",
      accentColor: "var(--link)",
      rowHoverColor: "var(--ground)",
      selectedRowBackgroundColor: "var(--better-ground)",
      tooltipBackgroundColor: "var(--paper)",
      tooltipTextColor: "var(--ink)",
      fontFamily: "inherit",
      fontSize: 13.5,
      rowHeight: 34,
      headerHeight: 38,
      wrapperBorderRadius: 6,
    }),
  });

  window.dashAgGridComponentFunctions = Object.assign({}, window.dashAgGridComponentFunctions, {
    /* A link to the address in another field of the row; `to` names it. */
    RunLink: (props) => {
      if (!props.data) return element("span", { className: "muted" }, "…");
      const href = props.data[props.to];
      if (!href) return element("span", { className: "muted" }, props.value);
      const follow = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        window.history.pushState({}, "", href);
        window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
      };
      return element("a", { href: href, onClick: follow }, props.value);
    },
    RunCommand: (props) => {
      if (!props.data || !props.value) return element("span", { className: "muted" }, "–");
      return element("button", {
        type: "button", className: "quiet", title: props.value, "aria-label": props.data.copy,
        "data-copy": props.value, "data-copied": props.data.copied,
      }, "⧉");
    },
  });

  Object.assign(window.dash_clientside.bench, {
    /* Runs that are ticked become links: two to their comparison, the older one first; several to pages of them alone. */
    chosen: function (rows, words) {
      const picked = [...(rows || [])].sort((one, other) => one.order - other.order).map((row) => row.run_id);
      const { none, one, two, many } = words.hints;
      const link = (path, when, look, ...pairs) =>
        [path + "?" + new URLSearchParams([...pairs, ...Object.entries(words.shell)]), when ? look : "gone"];
      const several = picked.length > 1 && picked.length <= words.most;
      const only = ["filter", "run=" + picked.join(",")];
      const hint = [none, one, two][picked.length] || (several ? many : words.hints.beyond);
      return [
        ...link("/compare", picked.length === 2, "button primary", ["a", picked[0]], ["b", picked[1]]),
        ...link("/trend", several, "button", only),
        ...link("/pareto", several, "button", only),
        hint.replace("{n}", picked.length),
      ];
    },

    /* The order of the grid stands in the address. */
    sorted: function (columns) {
      const by = (columns || []).find((column) => column.sort);
      if (!by) return dash_clientside.no_update;
      const params = new URLSearchParams(window.location.search);
      const grid = window.dash_ag_grid.getApi("runs-grid");
      const column = grid.getColumnDef(params.get("sort"));  // what the address says may be nonsense, and is told so
      const before = [column && column.sortable !== false ? params.get("sort") : "started_at",
        params.get("order") === "asc" ? "asc" : "desc"];
      if (before[0] === by.colId && before[1] === by.sort) return dash_clientside.no_update;
      params.delete("sort");
      params.delete("order");
      if (by.colId !== "started_at") params.set("sort", by.colId);
      if (by.sort !== "desc") params.set("order", by.sort);
      const search = params.toString();
      return search ? "?" + search : "";
    },
  });
})();
