"""Referrer: the list's own test cases, our own pages, and what nobody lists."""

import pytest

from millrace.transforms.enrich.referrer import Referrer
from millrace.transforms.enrich.referrers import ASSISTANTS, kind_of_source, referrers
from tests.support.enriching import added

PAGE = "https://www.shop.example/cart"

# referer-parser 0.4.1, referer_parser/test/__init__.py (MIT): those whose host the list still has.
CASES = [
    ("http://www.google.com/search", "search", "Google", None),
    (
        "http://www.google.com/search?q=gateway+oracle+cards+denise+linn&hl=en&client=safari",
        "search",
        "Google",
        "gateway oracle cards denise linn",
    ),
    (
        "http://isearch.avg.com/pages/images.aspx?q=tarot+card+change&sap=dsp&lang=en",
        "search",
        "Google",
        "tarot card change",
    ),
    (
        "http://www.google.fr/imgres?q=Ogham+the+celtic+oracle&hl=fr&safe=off&client=firefox-a",
        "search",
        "Google Images",
        "Ogham the celtic oracle",
    ),
    (
        "http://es.search.yahoo.com/search;_ylt=A7x9QbwbZXxQ9EMAPCKT.Qt.?p=BIEDERMEIER+FORTUNE+TELLING+CARDS&ei=utf-8",
        "search",
        "Yahoo!",
        "BIEDERMEIER FORTUNE TELLING CARDS",
    ),
    (
        "http://it.images.search.yahoo.com/images/view;_ylt=A0PDodgQmGBQpn4AWQgdDQx.?p=Earth+Magic+Oracle+Cards",
        "search",
        "Yahoo! Images",
        "Earth Magic Oracle Cards",
    ),
    (
        "http://www.pricerunner.co.uk/search?displayNoHitsMessage=1&q=wild+wisdom+of+the+faery+oracle",
        "search",
        "PriceRunner",
        "wild wisdom of the faery oracle",
    ),
    (
        "http://www.bing.com/images/search?q=psychic+oracle+cards&view=detail",
        "search",
        "Bing Images",
        "psychic oracle cards",
    ),
    ("https://s3-us3.ixquick.com/do/search", "search", "IXquick", None),
    ("http://aolsearch.aol.co.uk/aol/search?s_chn=hp&q=pendulums", "search", "AOL", "pendulums"),
    ("http://uk.search-results.com/web?qsrc=1&o=1921&l=dis&q=pendulums&dm=ctry", "search", "Ask", "pendulums"),
    ("http://go.mail.ru/search?q=Gothic%20Tarot%20Cards&where=any&num=10", "search", "Mail.ru", "Gothic Tarot Cards"),
    (
        "http://images.yandex.ru/yandsearch?text=Blue%20Angel%20Oracle%20Blue%20Angel%20Oracle&noreask=1",
        "search",
        "Yandex Images",
        "Blue Angel Oracle Blue Angel Oracle",
    ),
    ("http://t.co/chrgFZDb", "social", "Twitter", None),
    ("http://www.facebook.com/l.php?u=http%3A%2F%2Fwww.psychicbazaar.com&h=yAQHZtXxS&s=1", "social", "Facebook", None),
    ("http://m.facebook.com/l.php?u=http%3A%2F%2Fwww.psychicbazaar.com%2Fblog&s=1", "social", "Facebook", None),
    ("http://www.odnoklassniki.ru/dk?cmd=logExternal&st._aid=Conversations_Openlink", "social", "Odnoklassniki", None),
    ("http://www.tumblr.com/dashboard", "social", "Tumblr", None),
    ("http://psychicbazaar.tumblr.com/", "social", "Tumblr", None),
    (
        "http://36ohk6dgmcd1n-c.c.yom.mail.yahoo.net/om/api/1.0/openmail.app.invoke/36ohk6dgmcd1n/11",
        "email",
        "Yahoo! Mail",
        None,
    ),
    ("http://co106w.col106.mail.live.com/default.aspx?rru=inbox", "email", "Outlook.com", None),
    ("http://webmail1m.orange.fr/webmail/fr_FR/read.html?FOLDER=SF_INBOX", "email", "Orange Webmail", None),
]


@pytest.mark.parametrize(("referrer", "kind", "source", "term"), CASES)
def test_the_published_cases_of_the_list(referrer: str, kind: str, source: str, term: str | None):
    (found,) = added(Referrer(), [{"context_page_referrer": referrer, "context_page_url": PAGE}])
    assert (found[0], found[1], found[3]) == (kind, source, term)


@pytest.mark.parametrize(
    ("referrer", "page", "found"),
    [
        (None, PAGE, (None, None, None, None)),
        ("", PAGE, (None, None, None, None)),
        ("https://www.shop.example/", PAGE, ("internal", None, "www.shop.example", None)),
        ("https://pay.shop.example/done", PAGE, ("internal", None, "pay.shop.example", None)),
        ("http://localhost:8080/a", "http://localhost:8080/b", ("internal", None, "localhost", None)),
        ("https://ann.myshopify.com/", "https://bob.myshopify.com/", ("other", None, "ann.myshopify.com", None)),
        ("https://checkout.pay.example/x", PAGE, ("internal", None, "checkout.pay.example", None)),
        ("https://notpay.example/x", PAGE, ("other", None, "notpay.example", None)),
        ("https://blog.test/", None, ("other", None, "blog.test", None)),
        ("android-app://com.google.android.gm/", PAGE, ("email", "Gmail", "com.google.android.gm", None)),
        ("https://chatgpt.com/", PAGE, ("ai", "ChatGPT", "chatgpt.com", None)),
        ("https://support.google.com/x", PAGE, ("other", "Google", "support.google.com", None)),
        ("http:some/path", PAGE, ("other", None, None, None)),
        ("not an address", PAGE, ("other", None, None, None)),
        ("https://[::1", PAGE, ("other", None, None, None)),
        ("https://www.google.com/search?q=%ff%zz&q=2", PAGE, ("search", "Google", "www.google.com", "\ufffd%zz")),
        (
            "https://www.google.com/search?" + "&".join(["q=x"] * 999),
            PAGE,
            ("search", "Google", "www.google.com", None),
        ),
    ],
)
def test_own_pages_and_others(referrer: str | None, page: str | None, found: tuple[str | None, ...]):
    step = Referrer(own_hosts=("pay.example",))
    assert added(step, [{"context_page_referrer": referrer, "context_page_url": page}]) == [found]


def test_the_page_s_site_is_what_counts_not_its_path():
    pages = [f"https://shop.example/{number}" for number in range(5)] + [None, "no address"]
    rows = [{"context_page_referrer": "https://shop.example/", "context_page_url": page} for page in pages]
    assert [row[0] for row in added(Referrer(), rows)] == ["internal"] * 5 + ["other"] * 2


def test_every_class_of_the_list_is_one_of_ours():
    known = referrers()
    classes = {"search", "social", "email", "paid", "ai", "other"}
    assert {each.kind for each in known.by_place.values()} == classes
    assert set(known.by_name.values()) == classes - {"other"}
    assert len(known.by_place) > 2_000


def test_an_assistant_s_host_is_in_no_other_class():
    rows = [{"context_page_referrer": f"https://{host}/"} for host in ASSISTANTS]
    assert {row[0] for row in added(Referrer(), rows)} == {"ai"}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("google", "search"),
        ("Bing ", "search"),
        ("facebook.com", "social"),
        ("l.instagram.com", "social"),
        ("chatgpt.com", "ai"),
        ("newsletter", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_kind_of_a_source_that_a_campaign_names(source: str, kind: str | None):
    assert kind_of_source(source) == kind
