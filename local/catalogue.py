"""The shop's shelves and the world around it: products, searches, pages, campaigns, browsers, phones, places."""

from typing import NamedTuple


class Product(NamedTuple):
    """One thing on sale; `price` in euros."""

    product_id: str
    sku: str
    name: str
    category: str
    brand: str
    price: float


class Place(NamedTuple):
    """Where a shopper lives: what the SDK reports of it."""

    locale: str
    timezone: str
    city: str
    country: str
    carrier: str


class Browser(NamedTuple):
    """A browser as its user agent describes it; its window in pixels."""

    user_agent: str
    os_name: str
    os_version: str
    width: int
    height: int


class Phone(NamedTuple):
    """A phone or tablet as the mobile SDKs describe it."""

    manufacturer: str
    model: str
    name: str
    os_name: str
    os_version: str
    width: int
    height: int


class Campaign(NamedTuple):
    """The UTM parameters of one campaign."""

    name: str
    source: str
    medium: str
    term: str
    content: str


SHOP_URL = "https://shop.example"
SHOP_NAME = "Millrace Outdoor"

_BRANDS = ("Fjellvik", "Nordkap", "Alpenrose", "Kestrel & Sons", "Tarn", "日和 Hiyori")
_SHELVES = (
    ("Tents", "tents", (("Ridge 2 tent", 289.0), ("Dome 4 family tent", 449.9), ("Bivy shelter", 119.0))),
    ("Sleeping bags", "sleeping-bags", (("Down bag, 3 seasons", 259.0), ("Summer bag", 79.95), ("Silk liner", 49.0))),
    ("Backpacks", "backpacks", (("Daypack 22 l", 89.0), ("Trek pack 55 l", 199.0), ("Kids' pack 12 l", 39.9))),
    ("Boots", "boots", (("Scrambler mid boot", 179.0), ("Trail runner", 129.0), ("Café clog", 59.0))),
    ("Jackets", "jackets", (("Storm shell", 329.0), ("Wool overshirt", 149.0), ("Rain poncho", 29.9))),
    ("Cooking", "cooking", (("Gas stove", 54.9), ("Titanium pot 0.9 l", 64.0), ("Spork, pack of 4", 9.95))),
    ("Lights", "lights", (("Headlamp 400 lm", 44.9), ("Camp lantern", 34.9), ("Spare battery", 12.5))),
)
CATEGORIES = tuple((title, slug) for title, slug, _ in _SHELVES)

PRODUCTS = tuple(
    Product(
        product_id=f"p-{1000 + 100 * shelf + 10 * row + column}",
        sku=f"{slug[:3].upper()}-{row}{column}-{1000 + 37 * (10 * row + column)}",
        name=f"{brand} {name}",
        category=title,
        brand=brand,
        price=round(price * (0.8 + 0.1 * column), 2),
    )
    for shelf, (title, slug, things) in enumerate(_SHELVES)
    for row, (name, price) in enumerate(things)
    for column, brand in enumerate(_BRANDS)
)

SEARCHES = (
    "tent", "tent 2 person", "regenjacke", "sac à dos 50l", "hiking boots women", "stove gas", "headlamp",
    "sleeping bag winter", "schlafsack kinder", "wool", "ポンチョ", "gift card", "boots size 43", "sale", "tarp", "🏕️",
)  # fmt: skip
COUPONS = ("SPRING10", "WELCOME5", "FREESHIP", "STAFF")
REFERRERS = (
    "", "", "", "https://www.google.com/", "https://www.google.com/", "https://duckduckgo.com/",
    "https://www.instagram.com/", "https://news.ycombinator.com/item?id=41234567",
)  # fmt: skip
CAMPAIGNS = (
    Campaign("spring_sale", "newsletter", "email", "", "hero-button"),
    Campaign("brand_search", "google", "cpc", "millrace outdoor", "ad-7"),
    Campaign("tents_de", "google", "cpc", "zelt kaufen", "ad-12"),
    Campaign("summer_reels", "instagram", "social", "", "story-3"),
    Campaign("winback_90d", "newsletter", "email", "", "footer-link"),
)
PLACES = (
    Place("de-DE", "Europe/Berlin", "Berlin", "DE", "Telekom.de"),
    Place("de-AT", "Europe/Vienna", "Wien", "AT", "A1"),
    Place("fr-FR", "Europe/Paris", "Lyon", "FR", "Orange F"),
    Place("en-GB", "Europe/London", "Sheffield", "GB", "EE"),
    Place("nb-NO", "Europe/Oslo", "Tromsø", "NO", "Telenor"),
    Place("en-US", "America/Denver", "Boulder", "US", "Verizon"),
    Place("pt-BR", "America/Sao_Paulo", "São Paulo", "BR", "Vivo"),
    Place("ja-JP", "Asia/Tokyo", "東京", "JP", "docomo"),
)
_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
BROWSERS = (
    Browser(f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT} Chrome/131.0.0.0 Safari/537.36",
            "Windows", "10", 1920, 1080),
    Browser(f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Chrome/131.0.0.0 Safari/537.36",
            "macOS", "10.15.7", 1512, 982),
    Browser("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
            "Safari/605.1.15", "macOS", "10.15.7", 1440, 900),
    Browser("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
            "Linux", "x86_64", 2560, 1440),
    Browser("Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/18.1 Mobile/15E148 Safari/604.1", "iOS", "18.1", 390, 844),
    Browser(f"Mozilla/5.0 (Linux; Android 10; K) {_WEBKIT} Chrome/131.0.0.0 Mobile Safari/537.36",
            "Android", "10", 412, 915),
)  # fmt: skip
PHONES = (
    Phone("Apple", "iPhone15,4", "iPhone 15", "iOS", "18.1", 393, 852),
    Phone("Apple", "iPhone12,8", "iPhone SE", "iOS", "17.6.1", 375, 667),
    Phone("Apple", "iPad13,18", "iPad", "iPadOS", "18.1", 820, 1180),
    Phone("samsung", "SM-S921B", "Galaxy S24", "Android", "14", 1080, 2340),
    Phone("Google", "Pixel 8", "Pixel 8", "Android", "15", 1080, 2400),
    Phone("Xiaomi", "2201117TY", "Redmi Note 11", "Android", "13", 1080, 2400),
)
FIRST_NAMES = (
    "Ana", "Bjørn", "Chloé", "Dmitri", "Elif", "Femi", "Greta", "Hiroshi", "Inês", "Jörg", "Kofi", "Léa", "Maja",
    "Noor", "Olu", "Priya", "Quentin", "Rosa", "Søren", "Tomás", "Uma", "Vera", "Wei", "Ximena", "Yusuf", "Zoë",
)  # fmt: skip
LAST_NAMES = ("Almeida", "Berg", "Costa", "Dahl", "Eriksen", "Fischer", "Garcia", "Huber", "Ito", "Jansen", "O'Neill")
PLANS = ("free", "free", "free", "club", "club-plus")
COMPANIES = ("Alpine School Innsbruck", "Scouts Group 14", "Fjord Tours AS", "Boulder Rescue")
