"use strict";
// Filters, players that load as they come into view, and, on a live page, what is new. All text stays text.
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
