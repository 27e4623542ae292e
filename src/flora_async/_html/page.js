"use strict";
// Filters, order, players that load in view, a picture as a whole, and, on a live page, what is new. Text stays text.
const root = document.documentElement;
const list = document.getElementById("runs");
const words = document.getElementById("words");
const shown = document.getElementById("shown");
const none = document.getElementById("none");
const texts = new WeakMap();

function textOf(card) {
  if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
  return texts.get(card);
}

function sift() {
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const [status, type] = [chosen("status"), chosen("type")];
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of list.children) {
    const fits =
      (!status || card.dataset.status === status) &&
      (!type || card.dataset.types.split(" ").includes(type)) &&
      wanted.every((word) => textOf(card).includes(word));
    if (card.hidden === fits) card.hidden = !fits;
    count += fits;
  }
  const all = list.children.length;
  const told = count === all ? "" : `${count} of ${all} shown`;
  if (shown.textContent !== told) shown.textContent = told;
  none.hidden = count > 0 || all === 0;
}

const viewed = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    target.preload = "metadata";
    viewed.unobserve(target);
  }
});

function arrange(card) {
  for (const video of card.querySelectorAll("video")) viewed.observe(video);
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A live page keeps FLORA's order.
const keys = {
  newest: ({ dataset }) => -dataset.created,
  oldest: ({ dataset }) => dataset.created,
  cost: ({ dataset }) => -dataset.cost,
};
if (!("live" in root.dataset)) {
  const order = make("select", { id: "order" }, ...Object.keys(keys).map((key) => make("option", { value: key }, key)));
  order.addEventListener("input", (event) => {
    event.stopPropagation();
    const key = keys[order.value];
    list.append(...[...list.children].sort((one, other) => key(one) - key(other)));
  });
  shown.before(make("div", { class: "sort" }, make("label", { for: "order" }, "Sort"), order));
}

// Buttons of a card, made when it is first pointed at or focused.
function promptOf(card) {
  return "prompt" in card.dataset ? (card.querySelector(".whole") ?? card.querySelector("h2")).textContent : "";
}

function button(word, act) {
  const made = make("button", { type: "button" }, word);
  made.addEventListener("click", () => act(made));
  return made;
}

async function copy(text, pressed) {
  const word = pressed.textContent;
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  pressed.textContent = done ? "Copied" : "Copy by hand: the browser refuses";
  setTimeout(() => (pressed.textContent = word), 1500);
}

function equip(event) {
  const card = event.target.closest?.(".card");
  if (!card || card.querySelector(".do")) return;
  const row = make("p", { class: "do" });
  row.append(button("Copy id", (pressed) => copy(card.dataset.run, pressed)));
  if (promptOf(card)) row.append(button("Copy prompt", (pressed) => copy(promptOf(card), pressed)));
  for (const medium of card.querySelectorAll(".made img, .made video, .made audio")) {
    row.append(make("a", { href: medium.src, download: "", target: "_blank", rel: "noopener" }, "Download"));
  }
  card.querySelector(".about").append(row);
}
list.addEventListener("pointerover", equip);
list.addEventListener("focusin", equip);

// One picture as a whole, with its neighbours by the arrow keys.
const whole = make("img", { alt: "" });
const caption = make("figcaption");
const place = make("span");
const turns = [button("Previous", () => step(-1)), place, button("Next", () => step(1)), button("Close", () => box.close())];
const figure = make("figure", {}, whole, caption);
const box = make("dialog", { id: "box", "aria-label": "Picture" }, figure, make("nav", { "aria-label": "Pictures" }, ...turns));
document.body.append(box);
let opened = null;

function pictures() {
  return [...list.querySelectorAll(".made a img")].filter((image) => image.checkVisibility());
}

function show(image) {
  opened = image;
  const card = image.closest(".card");
  const all = pictures();
  Object.assign(whole, { src: image.src, alt: image.alt });
  caption.replaceChildren(make("p", { dir: "auto" }, promptOf(card)), card.querySelector("dl").cloneNode(true));
  box.dataset.status = card.dataset.status;
  place.textContent = `${all.indexOf(image) + 1} of ${all.length}`;
  if (!box.open) box.showModal();
}

function step(by) {
  const all = pictures();
  if (all.length) show(all[(all.indexOf(opened) + by + all.length) % all.length]);
}

list.addEventListener("click", (event) => {
  const image = event.target.closest?.(".made a")?.querySelector("img");
  if (!image || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  show(image);
});
box.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
});
box.addEventListener("click", ({ target }) => target === box && box.close());
box.addEventListener("close", () => opened?.closest("a")?.focus());

// A medium that is no longer there is a sentence.
function miss(medium) {
  const words = "No longer at its address: FLORA keeps outputs for a limited time. Saved files stay: gallery --local DIR";
  const told = make("p", { class: "nothing" }, words);
  (medium.closest("a") ?? medium).replaceWith(told);
}
list.addEventListener("error", ({ target }) => target.matches?.("img, video, audio") && miss(target), true);
for (const image of list.querySelectorAll("img")) if (image.complete && !image.naturalWidth && image.currentSrc) miss(image);

for (const scripted of document.querySelectorAll("search [hidden]")) scripted.hidden = false;
document.querySelector("search").addEventListener("input", sift);
for (const card of list.children) arrange(card);
sift();

if ("live" in root.dataset) {
  const live = document.getElementById("live");
  const seen = new Map([...list.children].map((card) => [card.dataset.run, { card, told: card.outerHTML }]));
  seen.forEach((one) => (one.told = one.told.replace(' hidden=""', "")));

  const refresh = async () => {
    if (!live.checked || document.hidden) return;
    const answer = await fetch(location.href).catch(() => null);
    root.classList.toggle("gone", !answer?.ok);
    if (!answer?.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const wanted = [...fresh.getElementById("runs").children].map((card) => {
      const told = card.outerHTML;
      const old = seen.get(card.dataset.run);
      if (old && (old.told === told || old.card.contains(document.activeElement))) return old.card;
      document.adoptNode(card);
      old?.card.replaceWith(card);
      arrange(card);
      seen.set(card.dataset.run, { card, told });
      return card;
    });
    const kept = new Set(wanted);
    for (const { card } of [...seen.values()].filter(({ card }) => !kept.has(card))) {
      card.remove();
      seen.delete(card.dataset.run);
    }
    // What is there stays where it is, so that what plays plays on.
    wanted.forEach((card, at) => list.children[at] === card || list.insertBefore(card, list.children[at] ?? null));
    const counts = fresh.querySelectorAll("[data-count]");
    document.querySelectorAll("[data-count]").forEach((chip, at) => (chip.dataset.count = counts[at].dataset.count));
    document.querySelector(".totals").replaceChildren(...fresh.querySelector(".totals").childNodes);
    sift();
  };
  setInterval(refresh, 2000);
}
