// The shop: what is on the shelf, what is in the basket, and the call that each click makes to the SDK.
"use strict";

const PRODUCTS = [
  { product_id: "beans-01", name: "Harbour Blend", category: "beans", price: 12.5, note: "Dark, round, hard to get wrong." },
  { product_id: "beans-02", name: "Lighthouse Roast", category: "bright beans", price: 14.9, note: "Bright, with a little lemon." },
  { product_id: "cup-01", name: "Enamel Cup", category: "cup", price: 9.9, note: "Falls well." },
  { product_id: "kettle-01", name: "Gooseneck Kettle", category: "kettle", price: 64.0, note: "Pours where you look." },
  { product_id: "grinder-01", name: "Hand Grinder", category: "grinder", price: 89.0, note: "Quiet enough for a cabin." },
  { product_id: "pot-01", name: "Moka Pot", category: "pot", price: 34.5, note: "Three cups or one morning." },
];
const DRAWINGS = {
  beans: '<path d="M26 22h48l6 66H20z" fill="#6b4226"/><path d="M26 22h48l-2-10H28z" fill="#8a5a3b"/><rect x="32" y="42" width="36" height="28" rx="4" fill="#f7ede2"/><ellipse cx="50" cy="56" rx="9" ry="7" fill="#6b4226"/><path d="M43 58c5-5 9 1 14-4" stroke="#f7ede2" stroke-width="2" fill="none"/>',
  "bright beans": '<path d="M26 22h48l6 66H20z" fill="#c8553d"/><path d="M26 22h48l-2-10H28z" fill="#e07a5f"/><rect x="32" y="42" width="36" height="28" rx="4" fill="#f7ede2"/><ellipse cx="50" cy="56" rx="9" ry="7" fill="#6b4226"/><path d="M43 58c5-5 9 1 14-4" stroke="#f7ede2" stroke-width="2" fill="none"/>',
  cup: '<path d="M22 36h46v30a16 16 0 0 1-16 16H38a16 16 0 0 1-16-16z" fill="#1f4e5f"/><path d="M22 36h46v6H22z" fill="#f7ede2"/><path d="M68 44h6a10 10 0 0 1 0 20h-6" fill="none" stroke="#1f4e5f" stroke-width="6"/>',
  kettle: '<path d="M34 34h34l8 50H28z" fill="#8d99ae"/><path d="M40 34c0-16 22-16 22 0" fill="none" stroke="#4a5568" stroke-width="5"/><path d="M30 72C14 70 22 44 8 40" fill="none" stroke="#8d99ae" stroke-width="6"/><circle cx="51" cy="31" r="4" fill="#4a5568"/>',
  grinder: '<rect x="34" y="34" width="32" height="52" rx="6" fill="#b08968"/><rect x="34" y="34" width="32" height="16" rx="6" fill="#4a5568"/><path d="M50 34V20h26" fill="none" stroke="#4a5568" stroke-width="5"/><circle cx="78" cy="20" r="6" fill="#6b4226"/>',
  pot: '<path d="M32 20h32l4 30H30z" fill="#adb5bd"/><path d="M30 50h38l6 36H24z" fill="#868e96"/><path d="M68 26h12l-4 26" fill="none" stroke="#343a40" stroke-width="6"/><circle cx="48" cy="16" r="4" fill="#343a40"/><path d="M26 66h46" stroke="#adb5bd" stroke-width="3"/>',
};

const $ = (id) => document.getElementById(id);
const money = (amount) => `€ ${amount.toFixed(2)}`;
const stored = (name, otherwise) => JSON.parse(sessionStorage.getItem(name) ?? JSON.stringify(otherwise));
const store = (name, value) => sessionStorage.setItem(name, JSON.stringify(value));
const drawing = (category) => `<svg viewBox="0 0 100 100" aria-hidden="true">${DRAWINGS[category]}</svg>`;
const described = ({ product_id, name, category, price }) => ({ product_id, name, category, price });

let basket = stored("basket", []);
const total = () => basket.reduce((sum, product) => sum + product.price, 0);
const inCents = (amount) => Math.round(amount * 100) / 100;

function element(tag, html) {
  const made = document.createElement(tag);
  made.innerHTML = html; // only of what stands in this file
  return made;
}

function showShelf(sdk) {
  for (const product of PRODUCTS) {
    const item = element("li", `<button class="plain">${drawing(product.category)}<h3>${product.name}</h3></button>
      <p class="price">${money(product.price)}</p><button class="add">Add</button>`);
    item.dataset.product = product.product_id;
    item.querySelector(".plain").addEventListener("click", () => view(sdk, product));
    item.querySelector(".add").addEventListener("click", () => add(sdk, product));
    $("products").append(item);
  }
}

function view(sdk, product) {
  sdk().track("Product Viewed", described(product));
  const form = element("form", `${drawing(product.category)}<h2>${product.name}</h2><p>${product.note}</p>
    <p class="actions"><button class="quiet" value="">Close</button> <button value="yes">Add, ${money(product.price)}</button></p>`);
  form.method = "dialog";
  $("product").replaceChildren(form);
  ask($("product"), () => add(sdk, product));
}

function add(sdk, product) {
  basket = [...basket, product];
  store("basket", basket);
  $("count").textContent = basket.length;
  sdk().track("Product Added", { ...described(product), quantity: 1, basket_size: basket.length });
}

function showCheckout(sdk) {
  $("lines").replaceChildren(...basket.map((product) => element("li", `${product.name}<span>${money(product.price)}</span>`)));
  $("total").textContent = money(total());
  $("pay").disabled = basket.length === 0;
  $("pay").addEventListener("click", async () => {
    const order = { order_id: `q-${Date.now()}`, total: inCents(total()), currency: "EUR", products: basket.map(described) };
    store("order", order.order_id);
    store("basket", []);
    const taken = sdk().track("Order Completed", order);
    // Segment's takes calls a little later and says when it has: it needs that before a page is left, 300 ms at most.
    await Promise.race([taken, new Promise((done) => setTimeout(done, 300))]);
    location.assign("/demo/thanks");
  });
}

// Shows a dialog; then() is called when it is left by its "yes" button.
function ask(dialog, then) {
  dialog.returnValue = "";
  dialog.onclose = () => dialog.returnValue === "yes" && then();
  dialog.showModal();
}

function showAccount(sdk) {
  const user = stored("user", null);
  $("account").textContent = user ? `Sign out ${user.name.split(" ")[0]}` : "Sign in";
  $("account").onclick = () => {
    if (stored("user", null)) {
      store("user", null);
      sdk().reset();
      return showAccount(sdk);
    }
    ask($("sign-in"), () => {
      const { name, email } = Object.fromEntries(new FormData($("sign-in").querySelector("form")));
      const id = `u-${email.split("@")[0]}`;
      store("user", { id, name });
      sdk().alias(id, anonymousId(sdk()));
      sdk().identify(id, { name, email });
      showAccount(sdk);
    });
  };
}

function showClub(sdk) {
  const inIt = stored("club", false);
  $("club").textContent = inIt ? "In the club ✓" : "Join the club";
  $("club").disabled = inIt;
  $("club").onclick = () => {
    sdk().group("club-early-shift", { name: "Early Shift", plan: "monthly" });
    store("club", true);
    showClub(sdk);
  };
}

function showKiosk(sdk) {
  $("kiosk").hidden = !chosen.startsWith("segment"); // RudderStack's browser SDK has no screen call
  $("kiosk").onclick = () => {
    const on = document.body.classList.toggle("kiosk");
    sdk().screen(on ? "Kiosk" : "Shop", { columns: on ? 2 : 3 });
  };
}

function showNetwork() {
  const say = () => {
    const kept = chosen === "rudderstack-beacon" ? "beacons are lost" : "what you do is kept";
    $("network").textContent = navigator.onLine ? "online" : `offline: ${kept}`;
    $("network").className = `pill ${navigator.onLine ? "good" : "bad"}`;
  };
  addEventListener("online", say);
  addEventListener("offline", say);
  say();
}

function showChoice() {
  for (const [value, { name }] of Object.entries(SDKS)) $("sdk").append(new Option(name, value, false, value === chosen));
  $("sdk").addEventListener("change", () => location.assign(`/demo?sdk=${$("sdk").value}`));
}

function askKey() {
  $("unknown").hidden = !writeKey;
  $("ask-key").addEventListener("cancel", (event) => event.preventDefault());
  ask($("ask-key"), () => {
    const key = new FormData($("ask-key").querySelector("form")).get("key");
    location.assign(`/demo?key=${encodeURIComponent(key.trim())}`);
  });
}

async function open() {
  const place = location.pathname.split("/")[2] || "shelf";
  $(place).hidden = false;
  $("count").textContent = basket.length;
  showNetwork();
  showChoice();
  const sdk = await analyticsReady;
  if (sdk === null) return askKey();
  const names = { shelf: "Shelf", checkout: "Basket", thanks: "Thanks" };
  sdk().page("Shop", names[place]);
  if (place === "shelf") {
    showShelf(sdk);
    showKiosk(sdk);
  }
  if (place === "checkout") showCheckout(sdk);
  $("order").textContent = stored("order", "");
  showAccount(sdk);
  showClub(sdk);
}

open().then(() => (document.body.dataset.ready = "yes"));
