// What this browser sent: looks over the SDK's shoulder at fetch, XMLHttpRequest and sendBeacon, and changes nothing.
// The list is kept for the tab, since most of what is worth seeing happens while a page is being left.
"use strict";

const sent = (() => {
  const KEPT = 60;
  const ROUTES = /^\/(v1\/(batch|b|import|identify|i|track|t|page|p|screen|s|group|g|alias|a)|beacon\/v1\/batch)$/;
  const TYPES = { i: "identify", t: "track", p: "page", s: "screen", g: "group", a: "alias" };
  let rows = JSON.parse(sessionStorage.getItem("sent") || "[]");
  for (const row of rows) row.answer ??= "left with the page";

  function eventsOf(body) {
    try {
      const read = JSON.parse(body);
      return Array.isArray(read.batch) ? read.batch : [read];
    } catch {
      return [];
    }
  }

  // Returns what to call with the answer, null where the request is none of the collector's.
  function begin(method, address, body) {
    const url = new URL(address, location.href);
    if (method.toUpperCase() !== "POST" || !ROUTES.test(url.pathname)) return null;
    const short = url.pathname.split("/").pop();
    const added = eventsOf(body).map((event) => ({
      at: Date.now(),
      type: event.type || TYPES[short] || short,
      what: event.event || event.name || event.properties?.name || event.groupId || event.traits?.name || event.userId || "",
      route: url.pathname,
      body: JSON.stringify(event, null, 2),
      answer: null,
    }));
    rows = [...added.toReversed(), ...rows].slice(0, KEPT);
    show();
    return (answer) => {
      for (const row of added) row.answer = answer;
      show();
    };
  }

  const realFetch = window.fetch;
  window.fetch = function (input, init) {
    const told = begin(init?.method || input.method || "GET", input.url || input, init?.body);
    const answered = realFetch.apply(this, arguments);
    if (told) answered.then((response) => told(response.status), () => told("no answer"));
    return answered;
  };

  const { open, send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url) {
    this.sentTo = [method, url];
    return open.apply(this, arguments);
  };
  XMLHttpRequest.prototype.send = function (body) {
    const told = begin(...this.sentTo, body);
    if (told) this.addEventListener("loadend", () => told(this.status || "no answer"));
    return send.apply(this, arguments);
  };

  const realBeacon = navigator.sendBeacon;
  navigator.sendBeacon = function (url, body) {
    const queued = realBeacon.apply(this, arguments);
    const answer = queued ? "beacon, unseen" : "beacon, refused by the browser";
    // A Blob tells its text a little later: what a page sends while it is being left is sent, and not listed.
    if (body instanceof Blob) body.text().then((text) => begin("POST", url, text)?.(answer));
    else begin("POST", url, body)?.(answer);
    return queued;
  };

  function cell(text, className) {
    const made = document.createElement("td");
    const inner = document.createElement("span");
    inner.textContent = text;
    inner.className = className;
    made.append(inner);
    return made;
  }

  function lines(row) {
    const line = document.createElement("tr");
    const good = row.answer === 200 ? "good" : row.answer === null || typeof row.answer === "string" ? "" : "bad";
    line.append(
      cell(new Date(row.at).toTimeString().slice(0, 8), "time"),
      cell(row.type, `pill ${row.type}`),
      cell(row.what, ""),
      cell(row.route, "route"),
      cell(row.answer ?? "…", `pill ${good}`),
    );
    const whole = document.createElement("tr");
    whole.hidden = true;
    whole.className = "whole";
    const text = document.createElement("pre");
    text.textContent = row.body;
    const across = document.createElement("td");
    across.colSpan = 5;
    across.append(text);
    whole.append(across);
    line.title = "Click to see the event";
    line.addEventListener("click", () => (whole.hidden = !whole.hidden));
    return [line, whole];
  }

  function show() {
    sessionStorage.setItem("sent", JSON.stringify(rows));
    document.getElementById("sent").replaceChildren(...rows.flatMap(lines));
    document.getElementById("nothing").hidden = rows.length > 0;
  }

  document.getElementById("forget").addEventListener("click", () => {
    rows = [];
    show();
  });
  show();
})();
