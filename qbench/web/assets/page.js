// The form is the state of the page: its query string is the link, the question, and what a pin remembers.
"use strict";
(() => {
  const REST_MS = 700; // After an answer, before the overview is asked for: a plan in hand cannot be stopped.
  const TYPING_MS = 250;
  const reader = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
  const form = document.getElementById("form");
  const pins = document.getElementById("pins");
  const status = document.getElementById("status");
  const fields = [...form.elements].filter((field) => field.name);
  const defaults = new Map(fields.map((field) => [field.name, field.value]));
  let latest = null;
  let surveyed = null;
  let watched = null; // The overview, once it is on the page.
  let inView = false;
  let timer = 0;

  const pinned = () => [...pins.children].map((field) => field.value);

  function query() {
    const changed = fields.filter((field) => field.value !== defaults.get(field.name));
    const pairs = [...changed.map((field) => [field.name, field.value]), ...pinned().map((text) => ["pin", text])];
    return new URLSearchParams(pairs).toString();
  }

  function addPin(text) {
    const field = document.createElement("input");
    field.type = "hidden";
    field.name = "pin";
    field.value = text;
    pins.append(field);
  }

  // A value that the form has no option for stays in the link, so that the answer can say what is wrong.
  function setField(name, value) {
    const field = fields.find((candidate) => candidate.name === name);
    if (!field) return false;
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.add(new Option(value, value));
    }
    if (field.type === "number" && Number.isNaN(Number(value))) field.type = "text";
    field.value = value;
    if (field.value !== defaults.get(name)) field.closest("details")?.setAttribute("open", "");
    return true;
  }

  function restore(text) {
    pins.replaceChildren();
    let unknown = "";
    for (const [name, value] of new URLSearchParams(text)) {
      if (name === "pin") addPin(value);
      else if (!setField(name, value)) unknown += `&${encodeURIComponent(name)}=${encodeURIComponent(value)}`;
    }
    return query() + unknown;
  }

  function question(text) {
    latest = {query: text, reader, stamp: performance.timeOrigin + performance.now()};
    document.getElementById("answer")?.setAttribute("aria-busy", "true");
    status.textContent = "Planning ...";
    return latest;
  }

  function ask() {
    clearTimeout(timer);
    const text = query();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
    dash_clientside.set_props("asked", {data: question(text)});
  }

  function askSoon() {
    clearTimeout(timer);
    timer = setTimeout(ask, TYPING_MS);
  }

  // Many plans: they are made for who looks at them, and for the latest answer only.
  function survey() {
    const busy = document.getElementById("answer").getAttribute("aria-busy") === "true";
    if (!inView || busy || surveyed === latest.stamp) return;
    surveyed = latest.stamp;
    dash_clientside.set_props("surveyed", {data: latest});
  }

  function watchOverview() {
    if (watched) return;
    watched = document.getElementById("overview");
    const watch = (entries) => {
      inView = entries.at(-1).isIntersecting;
      survey();
    };
    new IntersectionObserver(watch, {rootMargin: "0px 0px -80px"}).observe(watched);
  }

  function answered(data) {
    if (!data || data.stamp !== latest?.stamp) return dash_clientside.no_update;
    document.getElementById("answer").setAttribute("aria-busy", "false");
    status.textContent = "";
    watchOverview();
    setTimeout(survey, REST_MS);
    return data.stamp;
  }

  async function drop(file) {
    const said = document.getElementById("dropped");
    const most = Number(form.dataset.configBytes);
    if (file.size > most) {
      said.textContent = `${file.name} has ${file.size.toLocaleString("en")} bytes; the limit is ${most.toLocaleString("en")}`;
      return;
    }
    const headers = {"Content-Type": "application/json"};
    const response = await fetch("/config", {method: "POST", body: file, headers});
    const answer = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
    said.textContent = answer.error ?? `${file.name}: ${answer.about}`;
    if (answer.error) return;
    form.elements.model.value = answer.model;
    ask();
  }

  async function copy(button, text) {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "Copied.";
    } catch {
      status.textContent = "The browser refused to copy; select the text instead.";
    }
  }

  function pin(text) {
    if (pinned().length >= Number(form.dataset.mostPins)) {
      status.textContent = `At most ${form.dataset.mostPins} settings can be pinned; remove one.`;
      return;
    }
    addPin(text);
    ask();
  }

  form.addEventListener("change", (event) => {
    if (event.target.id === "config") {
      if (event.target.files.length) drop(event.target.files[0]);
      event.target.value = ""; // The same file may be chosen again when it has changed.
    } else {
      ask();
    }
  });
  form.addEventListener("input", (event) => {
    if (event.target.id !== "config" && event.target.tagName !== "SELECT") askSoon();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    pins.replaceChildren();
    setTimeout(ask);
  });
  form.elements.model.addEventListener("focus", (event) => event.target.select());
  form.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("dropping");
  });
  form.addEventListener("dragleave", () => form.classList.remove("dropping"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("dropping");
    if (event.dataTransfer.files.length) drop(event.dataTransfer.files[0]);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.pin !== undefined) pin(button.dataset.pin);
    if (button.dataset.unpin !== undefined) {
      pins.children[Number(button.dataset.unpin)]?.remove();
      ask();
    }
    if (button.dataset.copy) copy(button, document.getElementById(button.dataset.copy).textContent);
    if (button.dataset.copyLink !== undefined) copy(button, location.href);
  });

  const start = () => question(restore(location.search));
  window.dash_clientside = Object.assign({}, window.dash_clientside, {qbench: {start, answered}});
})();
