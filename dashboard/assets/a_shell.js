/* The callbacks that run in the browser: the address is the state, and figures take the colours of the scheme.
   They are called by Dash as dash_clientside.bench.<name>; dashboard/app.py says with what. */
(function () {
  "use strict";

  /* A control's value as the texts that follow `name=`, as dashboard/url.py writes them. */
  function texts(value) {
    if (value === null || value === undefined) return [""];
    if (typeof value === "boolean") return [value ? "yes" : "no"];
    if (Array.isArray(value)) return value.length ? value.map(String) : [""];
    return [String(value)];
  }

  function same(one, other) {
    return one.length === other.length && one.every((text, place) => text === other[place] ||
      (text !== "" && other[place] !== "" && Number(text) === Number(other[place])));
  }

  /* Blanks and the signs of variants stay readable, as in dashboard/url.py. */
  function quoted(text) {
    return encodeURIComponent(text).replace(/%20/g, "+").replace(/%(3D|3A|2C|2F|40)/g, decodeURIComponent);
  }

  function written(params) {
    const pairs = [...params].map(([name, value]) => quoted(name) + "=" + quoted(value));
    return pairs.length ? "?" + pairs.join("&") : "";
  }

  function set(params, name, values, plain) {
    params.delete(name);
    if (!same(values, plain)) values.forEach((value) => params.append(name, value));
  }

  function uncoloured(pathname, search) {
    const params = new URLSearchParams(search);
    params.delete("scheme");
    return pathname + written(params);
  }

  function chosen(search) {
    const named = new URLSearchParams(search).get("scheme");
    return named === "dark" || named === "light" ? named : "auto";
  }

  function wanted(search) {
    const named = chosen(search);
    return named !== "auto" ? named : window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  /* The colours are the browser's own: the server hears of them with the next page. Until then the links of this page
     lead to the colours that it was drawn in, and whoever follows one takes those of now along. */
  let colours = chosen(window.location.search);
  let drawn = colours;
  let address = null;
  window.addEventListener("_dashprivate_pushstate", () => {
    if (colours === drawn || chosen(window.location.search) !== drawn) return;
    const params = new URLSearchParams(window.location.search);
    set(params, "scheme", [colours], ["auto"]);
    window.history.replaceState(window.history.state, "", window.location.pathname + written(params));
  });

  /* Figures wait until they are scrolled to; at most those on screen are drawn. */
  const waiting = new Map();
  const watch = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => release(entry.target));
  }, { rootMargin: "300px" });

  function release(holder) {
    watch.unobserve(holder);
    const found = waiting.get(holder);
    waiting.delete(holder);
    if (found) dash_clientside.set_props(found.id, { figure: found.figure });
  }

  function dressed(figure, template) {
    const layout = Object.assign({}, figure.layout, { template: template, autosize: true });
    delete layout.meta;
    return Object.assign({}, figure, { layout: layout });
  }

  /* The numbers of a figure: a table, made when somebody opens or saves it. */
  const numbers = new Map();

  function tabulated(name) {
    const frame = document.querySelector("#" + CSS.escape("figure-" + name) + " .figure-table .table-frame");
    const found = numbers.get(name);
    if (!frame || !found) return null;
    const table = document.createElement("table");
    const line = (part, texts, scope) => {
      const row = part.insertRow();
      texts.forEach((text, place) => {
        const cell = row.appendChild(document.createElement(scope(place) ? "th" : "td"));
        if (scope(place)) cell.scope = scope(place);
        cell.textContent = text;
      });
    };
    table.className = "data";
    table.createCaption().textContent = found.title;
    line(table.createTHead(), found.columns, () => "col");
    const body = table.createTBody();
    found.rows.forEach((texts) => line(body, texts, (place) => (place ? "" : "row")));
    frame.replaceChildren(table);
    return table;
  }

  document.addEventListener("toggle", (event) => {
    const figure = event.target.matches("details.figure-table[open]") && event.target.closest("figure");
    if (figure) tabulated(figure.id.slice("figure-".length));
  }, true);

  let path = "/" + window.location.pathname.replace(/^\/+|\/+$/g, "");
  let rows = null;

  /* The grid of runs asks again: from nothing where the filter changed, in place where the store did. */
  function renewGrid(now, moved) {
    const order = [now.values.sort, now.values.order].join();
    const others = JSON.stringify(Object.entries(now.values).filter(([name]) => name !== "sort" && name !== "order"));
    const before = rows;
    rows = now.path === "/runs" ? { order: order, others: others } : null;
    if (moved || !before || !rows || !window.dash_ag_grid || !document.getElementById("runs-grid")) return;
    const grid = window.dash_ag_grid.getApi("runs-grid");
    if (grid && before.others !== rows.others) grid.purgeInfiniteCache();
    else if (grid && before.order === rows.order) grid.refreshInfiniteCache();
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    bench: {
      /* Whatever control changed goes into the address; one that only appeared with the value it shows does not. */
      state: function (values, switches, drawers, now) {
        const params = new URLSearchParams(window.location.search);
        if (!now) return dash_clientside.no_update;
        for (const changed of dash_clientside.callback_context.triggered) {
          const cut = changed.prop_id.lastIndexOf(".");
          const id = JSON.parse(changed.prop_id.slice(0, cut));
          if (id.type === "drawer") {
            if (changed.value === false) id.name.split(",").forEach((name) => params.delete(name));
            continue;
          }
          const given = texts(changed.value);
          const shown = id.name === "scheme" ? [colours] : now.values[id.name];
          if (shown && !same(given, shown)) {
            set(params, id.name, given, now.defaults[id.name]);
          }
        }
        const search = written(params);
        return search === written(new URLSearchParams(window.location.search)) ? dash_clientside.no_update : search;
      },

      /* What the server has to draw: everything in the address but the colours. */
      asked: function (pathname, search, before) {
        const address = uncoloured(pathname, search);
        return address === before ? dash_clientside.no_update : address;
      },

      /* Of the texts above the page, which are not drawn again with it. */
      language: function (search, before) {
        const named = new URLSearchParams(search).get("lang") === "zh" ? "zh" : "en";
        return named === before ? dash_clientside.no_update : named;
      },

      scheme: function (search) {
        const shown = wanted(search);
        colours = chosen(search);
        if (document.getElementById('{"name":"scheme","type":"state"}')) {
          dash_clientside.set_props({ type: "state", name: "scheme" }, { value: colours });
        }
        return [shown, shown];
      },

      /* A figure with the colours of the scheme: at once if it is near, else when it comes near. */
      figure: function (figure, shown, templates) {
        const id = dash_clientside.callback_context.outputs_list.id;
        const holder = document.getElementById("figure-" + id.name);
        if (!figure || !shown) return dash_clientside.no_update;
        window.bench.templates = templates;
        numbers.set(id.name, figure.layout.meta);
        if (holder && holder.querySelector(".figure-table[open]")) tabulated(id.name);
        const drawn = dressed(figure, templates[shown]);
        const place = holder && holder.getBoundingClientRect();
        if (!holder || (place.top < window.innerHeight + 300 && place.bottom > -300)) return drawn;
        waiting.set(holder, { id: id, figure: drawn });
        watch.observe(holder);
        return dash_clientside.no_update;
      },

      /* A page has come: its title, its language, its announcement; the focus follows a change of page. */
      arrived: function (now) {
        document.title = now.title;
        document.documentElement.lang = now.language;
        document.getElementById("skip").textContent = now.words.skip;
        document.getElementById("nav").setAttribute("aria-label", now.words.nav);
        document.getElementById("nav-button").setAttribute("aria-label", now.words.nav);
        document.querySelectorAll(".nav-link").forEach((link) => {
          if (link.classList.contains("here")) link.setAttribute("aria-current", "page");
          else link.removeAttribute("aria-current");
        });
        const moved = path !== now.path;
        path = now.path;
        drawn = now.values.scheme[0];
        address = now.address;
        renewGrid(now, moved);
        if (moved) {
          document.body.classList.remove("nav-open");
          window.scrollTo(0, 0);
        }
        const heading = document.getElementById("page-title");
        if (moved && heading) heading.focus({ preventScroll: true });
        const sentence = document.getElementById("page-sentence");
        return [heading, sentence].filter(Boolean).map((part) => part.textContent).join(". ");
      },

      /* Nobody looks: nothing is asked. */
      pulse: function (number) {
        return document.hidden ? dash_clientside.no_update : number;
      },
    },
  });

  const current = () => address === uncoloured(window.location.pathname, window.location.search);
  window.bench = { current: current, waiting: waiting, release: release, tabulated: tabulated, templates: null };

  document.documentElement.setAttribute("data-mantine-color-scheme", wanted(window.location.search));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    const shown = wanted(window.location.search);
    dash_clientside.set_props("provider", { forceColorScheme: shown });
    dash_clientside.set_props("shown", { data: shown });
  });
})();
