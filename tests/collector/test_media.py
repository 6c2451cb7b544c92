"""What a body may call itself: whatever the SDKs say, in any spelling."""

import pytest

from millrace.collector.media import check_media


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"application/json;charset=UTF-8",  # RudderStack's browser SDK
        b"text/plain",  # Segment's browser SDK
        b"text/plain;charset=UTF-8",  # sendBeacon of a string
        b"application/x-www-form-urlencoded",  # RudderStack's Node SDK; curl -d
        b'Application/JSON; Charset="utf-8"',
        b"",
    ],
)
def test_what_the_sdks_call_json_is_taken(content_type: bytes) -> None:
    check_media({b"content-type": content_type})
    check_media({})
