// Opens the dialog as a modal one, asks for its total, and shows what the server sends while the page is open. Without
// this script the pages work too, but a changed balance is seen at the next page only.
"use strict";

const dialog = document.getElementById("top-up");
if (dialog) {
  const order = document.getElementById("order"), other = document.getElementById("custom");
  const custom = document.getElementById("custom-amount"), part = document.getElementById("custom-part");
  const choose = () => {
    custom.required = other.checked;
    part.hidden = !other.checked;
    // What is left in a field that was not chosen would be checked all the same.
    if (!other.checked) custom.value = "";
  };
  let asked;
  choose();
  dialog.close();
  dialog.showModal();
  document.getElementById("close").addEventListener("click", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.addEventListener("close", () => document.getElementById("top-up-button").focus());
  other.addEventListener("click", (event) => {
    choose();
    // By a pointer, not by an arrow key, which may go on to the next choice.
    if (event.detail > 0) custom.focus();
  });
  order.addEventListener("input", async () => {
    choose();
    asked?.abort();
    asked = new AbortController();
    const choice = new FormData(order);
    const query = new URLSearchParams(["amount", "custom", "currency"].map((name) => [name, choice.get(name)]));
    try {
      const answer = await fetch(`/billing/quote?${query}`, { signal: asked.signal });
      document.getElementById("quote").innerHTML = await answer.text();
    } catch { /* A later choice asks again, and the invoice has the exact total. */ }
  });
  // Back from Stripe's page, the balance is wanted, not the form that was sent.
  addEventListener("pagehide", () => dialog.close());
}

const live = document.getElementById("live");
if (live) {
  const away = document.getElementById("away"), said = document.getElementById("said");
  // A reload shows neither the dialog nor the last message again.
  history.replaceState(null, "", "/billing");

  const show = (event) => {
    if (event.lastEventId === live.dataset.version) return;
    const credits = () => document.getElementById("credits").textContent.trim().replace(/\s+/g, " ");
    const before = credits(), focused = live.contains(document.activeElement) && document.activeElement.id;
    live.innerHTML = event.data;
    live.dataset.version = event.lastEventId;
    // The keyboard goes on from the same place, also when the button there is gone.
    if (focused) (document.getElementById(focused) ?? live).focus();
    if (credits() !== before) said.textContent = credits();
  };
  let source;
  const listen = () => {
    source = new EventSource("/billing/events");
    source.addEventListener("open", () => { away.hidden = true; });
    source.addEventListener("live", show);
    source.addEventListener("error", () => {
      away.hidden = false;
      // The browser connects again by itself, but not after an answer with an error.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
    });
  };
  listen();
  // A page that the browser keeps while Stripe's is shown goes on when it is back.
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
}
