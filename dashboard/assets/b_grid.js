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
    RunLink: (props) => {
      if (!props.data) return element("span", { className: "muted" }, "…");
      const follow = (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        window.history.pushState({}, "", props.data.href);
        window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
      };
      return element("a", { href: props.data.href, onClick: follow }, props.value);
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
    /* Two runs that are ticked become a link, the older one first. */
    chosen: function (rows, words) {
      const picked = [...(rows || [])].sort((one, other) => one.order - other.order);
      if (picked.length === 2) {
        const pairs = [["a", picked[0].run_id], ["b", picked[1].run_id], ...Object.entries(words.shell)];
        return [words.path + "?" + new URLSearchParams(pairs), "button primary", words.two];
      }
      const hint = picked.length === 0 ? words.none : picked.length === 1 ? words.one : words.many.replace("{n}", picked.length);
      return [words.path, "gone", hint];
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
