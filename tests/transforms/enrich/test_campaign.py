"""Campaign: the SDK's word first, then the page's address; clicks of every network; each channel by its rule."""

from typing import Any

import pytest

from millrace.transforms.enrich.campaign import CLICK_IDS, Campaign, campaign_of, channel_of
from millrace.transforms.enrich.referrer import Referrer
from tests.support.batches import batch, event
from tests.support.enriching import added, enrich

SHOP = "https://shop.example/"
UTM = "utm_source=news&utm_medium=email&utm_campaign=May%20sale&utm_term=a+b&utm_content=%C3%A4&utm_id=7"
TOLD = ("news", "email", "May sale", "a b", "ä", "7")


@pytest.mark.parametrize(
    "row",
    [
        {"context_page_url": f"{SHOP}?{UTM}"},
        {"context_page_url": f"{SHOP}?x=1&{UTM.upper().replace('NEWS', 'news').replace('EMAIL', 'email')}"
         .replace("MAY%20SALE", "May%20sale").replace("A+B", "a+b")},
        {"context_page_url": SHOP, "context_page_search": f"?{UTM}"},
        {"context_page_url": SHOP, "context_page_search": UTM},
        {"context_page_url": f"{SHOP}?{UTM}#x", "context_page_search": ""},
        {"context_page_url": f"{SHOP}?utm_source=other", "context_page_search": f"?{UTM}"},
        {"context_page_url": f"{SHOP}?{UTM}&utm_source=second"},
    ],
)  # fmt: skip
def test_the_page_s_address_tells_the_campaign(row: dict[str, Any]):
    assert added(Campaign(), [row]) == [(*TOLD, None, None, "email")]


def test_where_the_sdk_tells_of_a_campaign_the_address_does_not_count():
    row = {"context_page_url": f"{SHOP}?{UTM}&gclid=g1", "context_campaign_name": "winback"}
    other = {"context_page_url": f"{SHOP}?{UTM}"}
    assert added(Campaign(), [row, other]) == [
        (None, None, "winback", None, None, "7", "g1", "google", "paid_search"),
        (*TOLD, None, None, "email"),
    ]


@pytest.mark.parametrize("parameter", CLICK_IDS)
@pytest.mark.parametrize("spelled", [str, str.upper])
def test_every_network_s_click(parameter: str, spelled: Any):
    found = campaign_of(f"{SHOP}?a=1&{spelled(parameter)}=Id-7#{parameter}=no")
    assert found == (*[None] * 6, "Id-7", CLICK_IDS[parameter])


@pytest.mark.parametrize(
    "address",
    [None, "", SHOP, f"{SHOP}?a=b", f"{SHOP}?utm_source=", f"{SHOP}#utm_source=x", f"{SHOP}?utm_sourcex=1",
     f"{SHOP}?" + "utm_source=x&" * 500, "http://[::1?gclid="],
)  # fmt: skip
def test_addresses_without_a_campaign(address: str | None):
    assert campaign_of(address) == (None,) * 8


def test_broken_escapes_and_absurd_addresses_break_nothing():
    assert campaign_of("?utm_source=%ff%z&gclid=%") == ("\ufffd%z", *[None] * 5, "%", "google")
    absurd = f"{SHOP}?utm_source=x&a=" + "a" * (1 << 20)
    assert added(Campaign(), [{"context_page_url": absurd}]) == [(*[None] * 8, "direct")]


@pytest.mark.parametrize(
    ("source", "medium", "network", "referrer", "channel"),
    [
        ("google", "cpc", None, None, "paid_search"),
        ("google", " CPC ", None, "search", "paid_search"),
        (None, None, "google", "search", "paid_search"),
        ("bing", "ppc", None, None, "paid_search"),
        ("facebook", "paid", None, None, "paid_social"),
        ("x", "cpm", None, None, "display"),
        (None, "paid-social", "facebook", None, "paid_social"),
        (None, None, "tiktok", None, "paid_social"),
        ("partner", "cpc", None, None, "paid_other"),
        ("news", "display", None, None, "display"),
        (None, None, "google_display", None, "display"),
        ("spring", "e-mail", None, None, "email"),
        ("newsletter", None, None, None, "email"),
        (None, None, None, "email", "email"),
        ("app", "push", None, None, "push"),
        ("app", "sms", None, None, "sms"),
        ("blog", "affiliate", None, None, "affiliate"),
        ("instagram", "story", None, None, "social"),
        (None, None, "facebook", "social", "social"),
        (None, None, None, "social", "social"),
        ("google", "organic", None, None, "search"),
        ("google", None, None, None, "search"),
        (None, None, None, "search", "search"),
        ("chatgpt.com", None, None, None, "ai"),
        (None, None, None, "ai", "ai"),
        (None, None, None, "paid", "paid_other"),
        (None, None, None, "other", "referral"),
        ("friend", "referral", None, None, "referral"),
        (None, None, None, "internal", "internal"),
        ("poster", "qr", None, "search", "other"),
        (None, None, None, None, "direct"),
    ],
)
def test_channels(source: str | None, medium: str | None, network: str | None, referrer: str | None, channel: str):
    assert channel_of(source, medium, network, referrer, has_page=True) == channel
    without = channel_of(source, medium, network, referrer, has_page=False)
    assert without == (None if channel == "direct" else channel)


def test_the_referrer_s_class_decides_where_there_is_no_campaign():
    given = batch([event("1", context_page_url=SHOP, context_page_referrer="https://www.google.com/")])
    assert enrich([Referrer(), Campaign()], given).column("channel").to_pylist() == ["search"]
    assert enrich([Campaign()], given).column("channel").to_pylist() == ["direct"]
