"use strict";
// The page has one state: what is asked (pictures or an entry), and the hits. Names come from strangers:
// they are only ever put in as text.
const $ = (id) => document.getElementById(id);
const state = {files: [], like: null, hits: [], past: [], about: null, cameras: new Map(), turn: 0};

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {credentials: "same-origin", ...options});
  } catch {
    throw new Error("The server does not answer.");
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.status === 401) ask_token();
  if (!answer.ok) throw new Error(found.error || `The server said ${answer.status}.`);
  return found;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
  }
}

// ---- start and token
function ask_token() {
  $("main").hidden = true;
  $("login").hidden = false;
  $("token").focus();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await call("/api/session", json({token: $("token").value}));
    $("token").value = "";
    $("login").hidden = true;
    await begin();
  } catch (error) {
    $("about").textContent = error.message;
  }
});

async function begin() {
  try {
    state.about = await call("/api/cameras");
  } catch (error) {
    $("about").textContent = error.message;
    return;
  }
  const {entries, persons, cameras, rates, most} = state.about;
  for (const name of state.cameras.keys()) {
    if (!Object.hasOwn(cameras, name)) state.cameras.delete(name);  // its last picture has gone meanwhile
  }
  show_count();
  const count = Object.keys(cameras).length;
  $("about").textContent =
    `${number(entries, "picture", "pictures")}, ${number(persons, "named person", "named persons")}, ` +
    number(count, "camera", "cameras");
  $("k").max = most;
  show_cameras(cameras);
  $("rates").hidden = !rates.length;
  if (+$("rate").max !== rates.length) {  // not where somebody has moved it
    $("rate").max = rates.length;
    $("rate").value = Math.min(rates.length, rates.findIndex((r) => r.rate <= 0.1) + 1);
  }
  show_rate();
  $("main").hidden = false;
  if (!entries) say("The gallery is empty.");
}

const number = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const json = (what) => ({method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(what)});

// ---- filters
function show_cameras(cameras) {
  $("cameras").replaceChildren(...Object.entries(cameras).map(([name, count]) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = name;
    chip.title = number(count, "picture", "pictures");
    const paint = () => {
      const how = state.cameras.get(name) || "";
      chip.className = how;
      chip.setAttribute("aria-label", `${name}: ${{in: "only this", out: "not this"}[how] || "any"}`);
    };
    chip.addEventListener("click", () => {
      const next = {undefined: "in", in: "out", out: undefined}[state.cameras.get(name)];
      next ? state.cameras.set(name, next) : state.cameras.delete(name);
      paint();
      filtered();
    });
    paint();
    return chip;
  }));
}

function show_count() {
  const count = state.cameras.size + !!$("since").value + !!$("until").value;
  $("active").textContent = count ? `(${count})` : "";
}

function filtered() {
  show_count();
  again();
}

function rate() {
  return state.about.rates[$("rate").value - 1];
}

function show_rate() {
  const chosen = rate();
  $("says").textContent = chosen ? `above ${chosen.similarity.toFixed(2)}` : "show all";
  $("meaning").textContent = chosen
    ? `Of people who are not in the gallery, ${percent(chosen.rate)} would get a first hit above; of those who ` +
      `are, ${percent(chosen.hits)} get theirs. Measured on pictures like the training's or the gallery's.`
    : "Hits are not marked.";
  $("rate").setAttribute("aria-valuetext", $("says").textContent);
}

const percent = (share) => `${+(100 * share).toPrecision(2)}\u00a0%`;

function options() {
  const given = new URLSearchParams({k: $("k").value || 24});
  for (const [name, how] of state.cameras) given.append(how === "in" ? "camera" : "not_camera", name);
  for (const name of ["since", "until"]) {
    if ($(name).value) given.set(name, new Date($(name).value).toISOString());
  }
  if ($("group").value) given.set("group", $("group").value);
  if (rate()) given.set("fpir", rate().rate);
  return given;
}

for (const name of ["since", "until"]) $(name).addEventListener("change", filtered);
for (const name of ["k", "group"]) $(name).addEventListener("change", again);
$("rate").addEventListener("input", () => {
  show_rate();
  const least = rate() ? rate().similarity : -Infinity;  // without another search
  state.hits.forEach((hit) => { hit.unknown = hit.score < least; });
  show_hits();
  if (state.hits.length) say_hits();
});

// ---- the query
function choose(files) {
  const pictures = [...files].filter((f) => f.type.startsWith("image/"));
  if (!pictures.length) return say("That is no picture.", true);
  remember();
  state.files = pictures;
  state.like = null;
  show_query();
  run().then(to_hits);
}

function show_query() {
  for (const image of $("previews").children) URL.revokeObjectURL(image.src);
  $("previews").replaceChildren(...state.files.map((file) => {
    const image = new Image();
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    return image;
  }));
  if (state.like) {
    const image = new Image();
    image.src = `/api/picture/${state.like.id}`;
    image.alt = `entry ${state.like.id}`;
    image.onerror = () => image.replaceWith(document.createTextNode(`entry ${state.like.id}`));
    $("previews").replaceChildren(image);
  }
  const asked = state.files.length || state.like;
  $("search").disabled = $("clear").disabled = !asked;
  $("back").disabled = !state.past.length;
}

function remember() {
  if (state.files.length || state.like) state.past.push({files: state.files, like: state.like});
}

function like(hit) {
  remember();
  state.files = [];
  state.like = {id: hit.id};
  show_query();
  run().then(to_hits);
}

function to_hits() {
  const narrow = matchMedia("(max-width: 760px)").matches;
  narrow ? document.querySelector(".results").scrollIntoView() : scrollTo({top: 0});
}

function back() {
  const before = state.past.pop();
  if (!before) return;
  Object.assign(state, before);
  show_query();
  run();
}

function again() {
  if (state.files.length || state.like) run();
}

const encoded = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",", 2)[1]);
  reader.onerror = () => failed(new Error(`${file.name} cannot be read.`));
  reader.readAsDataURL(file);
});

async function ask() {
  if (state.like) return call(`/api/similar/${state.like.id}?${options()}`);
  const [file, ...others] = state.files;
  if (!others.length) {
    const headers = {"content-type": "application/octet-stream"};
    return call(`/api/search?${options()}`, {method: "POST", headers, body: file});
  }
  const pictures = await Promise.all(state.files.map(encoded));
  return call(`/api/search?${options()}`, json({pictures}));
}

function run() {
  return attempt(async () => {
    const turn = ++state.turn;
    say("Searching ...");
    const {hits} = await ask();
    if (turn !== state.turn) return;  // an answer that came too late
    state.hits = hits;
    show_hits();
    say_hits();
  });
}

function say_hits() {
  const count = state.hits.length;
  const known = state.hits.filter((h) => !h.unknown).length;
  if (!count) say("No picture passes the filters.");
  else if (!known) say(`Nobody known: the best of ${number(count, "hit", "hits")} is below the bar.`);
  else if (known === count) say(`${number(count, "hit", "hits")}.`);
  else say(`${number(count, "hit", "hits")}, ${known} above the bar.`);
}

// ---- the hits
function show_hits() {
  $("hits").replaceChildren(...state.hits.map(card));
  $("csv").disabled = !state.hits.length;
}

function card(hit) {
  const item = $("hit").content.cloneNode(true).querySelector("li");
  const part = (name) => item.querySelector(`.${name}`);
  const who = hit.unknown ? "unknown" : hit.person || "no name";
  const time = hit.time ? new Date(hit.time).toLocaleString([], {dateStyle: "short", timeStyle: "short"}) : "";
  const place = [hit.camera, time].filter(Boolean).join(", ");
  item.classList.toggle("unknown", hit.unknown);
  item.dataset.id = hit.id;
  part("score").textContent = hit.score.toFixed(3);
  part("who").textContent = who;
  part("where").textContent = hit.camera || "";
  part("when").textContent = time;
  item.title = [hit.person, place, hit.source, `entry ${hit.id}`].filter(Boolean).join("\n");
  const image = item.querySelector("img");
  if (state.about.pictures) {
    part("none").hidden = true;
    image.src = `/api/picture/${hit.id}`;
    image.onerror = () => { image.hidden = true; part("none").hidden = false; };
  } else {
    image.hidden = true;
  }
  part("pic").setAttribute("aria-label", `${who}, ${hit.score.toFixed(3)}, ${place}: search for this`);
  part("pic").addEventListener("click", () => like(hit));
  part("label").addEventListener("click", () => label(hit));
  part("delete").addEventListener("click", () => remove(hit));
  return item;
}

let asked = Promise.resolve();  // a dialog is over once its close event has come, a moment after it closes

function dialog(...given) {
  asked = asked.then(() => open_dialog(...given));
  return asked;
}

function open_dialog(question, {answer = null, danger = false, yes = "OK"} = {}) {
  $("question").textContent = question;
  $("answer").hidden = answer === null;
  $("answer").value = answer ?? "";
  $("yes").textContent = yes;
  $("yes").classList.toggle("danger", danger);
  $("dialog").returnValue = "";
  $("dialog").showModal();
  return new Promise((done) => {
    $("dialog").onclose = () => done($("dialog").returnValue === "yes" ? $("answer").value.trim() : null);
  });
}

$("answer").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); $("dialog").close("yes"); }
});

async function label(hit) {
  const name = await dialog("Whose picture is this? Empty takes the name away.", {answer: hit.person || ""});
  if (name === null) return;
  await attempt(async () => {
    await call("/api/label", json({ids: [hit.id], person: name || null}));
    hit.person = name || null;
    show_hits();
    say(name ? `Named ${name}.` : "The name was taken away.");
  });
}

async function remove(hit) {
  const whole = hit.person;
  const question = whole
    ? `Delete all entries of ${hit.person} from the gallery? This cannot be undone.`
    : "Delete this entry from the gallery? This cannot be undone.";
  if (await dialog(question, {danger: true, yes: "Delete"}) === null) return;
  await attempt(async () => {
    const path = whole ? `/api/person/${encodeURIComponent(hit.person)}` : `/api/entry/${hit.id}`;
    const {entries, note} = await call(path, {method: "DELETE"});
    state.hits = state.hits.filter((h) => (whole ? h.person !== hit.person : h.id !== hit.id));
    show_hits();
    await begin();
    say(`${number(entries, "entry", "entries")} deleted. ${note}`);
  });
}

function csv() {
  const names = ["id", "score", "unknown", "person", "camera", "time", "tracklet", "source"];
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;  // no formulas
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names, ...state.hits.map((hit) => names.map((name) => hit[name]))];
  const text = lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = "hits.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- mouse, keyboard, clipboard
$("drop").addEventListener("click", () => $("files").click());
$("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("files").click(); }
});
$("files").addEventListener("click", (event) => event.stopPropagation());
$("files").addEventListener("change", () => { choose($("files").files); $("files").value = ""; });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) choose(event.clipboardData.files);
});
document.addEventListener("keydown", (event) => {
  if (event.altKey && event.key === "ArrowLeft") { event.preventDefault(); back(); return; }
  const pictures = [...document.querySelectorAll("#hits .pic")];
  const at = pictures.indexOf(document.activeElement);
  const step = {ArrowRight: 1, ArrowLeft: -1, Home: -at, End: pictures.length - 1 - at}[event.key];
  if (at >= 0 && step !== undefined && pictures[at + step]) {
    event.preventDefault();
    pictures[at + step].focus();
  }
});
$("search").addEventListener("click", run);
$("back").addEventListener("click", back);
$("clear").addEventListener("click", () => {
  remember();
  Object.assign(state, {files: [], like: null, hits: []});
  state.turn++;
  show_query();
  show_hits();
  say("No search yet.");
});
$("csv").addEventListener("click", csv);
begin();
