"""Frames: what was written whole is read; what is torn or damaged is neither taken for a frame nor passed over."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.frames import (
    FRAME_BYTES,
    HEADER,
    MAX_PAYLOAD_BYTES,
    Frame,
    Scan,
    Span,
    decode_frame,
    encode_message,
    frame_head,
    scan,
    version_of,
)
from millrace.collector.message import Message

MARK = b"\x07mark!\xff\x00"
messages = st.builds(
    Message,
    body=st.binary(max_size=60),
    attributes=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    events=st.integers(0, 2_500),
)
few = st.lists(messages, min_size=1, max_size=4)


def frame(message: Message, mark: bytes = MARK, spooled_us: int = 7) -> bytes:
    payload = encode_message(message)
    return frame_head(payload, mark, spooled_us) + payload


def segment(*frames: bytes) -> tuple[bytes, list[Frame]]:
    """Return the bytes of a segment, and what a scan must find in them."""
    data, found = HEADER, []
    for each in frames:
        found.append(Frame(len(data), len(data) + len(each), 7))
        data += each
    return data, found


def test_the_format_does_not_change_unnoticed():
    message = Message(b'{"batch":[]}', {"source_id": "shop", "content-encoding": "gzip"}, events=3)
    expected = (
        "076d61726b21ff00000650e124e85000000000369b1f70b413bed949"
        "9303"
        "82a9736f757263655f6964a473686f70b0636f6e74656e742d656e636f64696e67a4677a6970"
        "c40c7b226261746368223a5b5d7d"
    )  # fmt: skip
    assert frame(message, spooled_us=1_777_777_777_332_224).hex() == expected
    assert b"MR SPOOL\x00\x00\x00\x01" + zlib.crc32(b"MR SPOOL\x00\x00\x00\x01").to_bytes(4, "big") == HEADER


@given(messages)
def test_a_message_comes_back_as_it_was(message: Message):
    assert decode_frame(frame(message), MARK) == message


@given(few)
def test_a_segment_is_its_frames(given_messages: list[Message]):
    data, frames = segment(*map(frame, given_messages))
    found = scan(data, MARK)
    assert found == Scan(frames, [], len(data))
    assert [decode_frame(data[start:end], MARK) for start, end, _ in found.frames] == given_messages


@given(few, st.data())
def test_of_a_file_cut_off_anywhere_the_whole_frames_are_read_and_the_rest_is_torn(
    given_messages: list[Message], data: st.DataObject
):
    whole, frames = segment(*map(frame, given_messages))
    cut = data.draw(st.integers(0, len(whole)))
    kept = [each for each in frames if each.end <= cut]
    last = kept[-1].end if kept else len(HEADER) if cut >= len(HEADER) else 0
    assert scan(whole[:cut], MARK) == Scan(kept, [], last)


@given(few, st.integers(1, 100))
def test_zeros_behind_the_last_frame_are_torn(given_messages: list[Message], zeros: int):
    data, frames = segment(*map(frame, given_messages))
    assert scan(data + bytes(zeros), MARK) == Scan(frames, [], len(data))


@given(few, st.data())
def test_a_wrong_byte_costs_the_frame_it_is_in_and_no_other(given_messages: list[Message], data: st.DataObject):
    whole, frames = segment(*map(frame, given_messages))
    place = data.draw(st.integers(0, len(whole) - 1))
    rotten = bytearray(whole)
    rotten[place] ^= data.draw(st.integers(1, 255))
    good = [each for each in frames if not each.start <= place < each.end]
    bad = [Span(each.start, each.end) for each in frames if each not in good] or [Span(0, len(HEADER))]
    assert scan(bytes(rotten), MARK) == Scan(good, bad, len(whole))


@given(few, st.binary(max_size=40), st.data())
def test_whatever_is_lost_or_inserted_no_message_is_invented(
    given_messages: list[Message], junk: bytes, data: st.DataObject
):
    whole, _ = segment(*map(frame, given_messages))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    mangled = whole[:start] + junk + whole[end:]
    found = scan(mangled, MARK)
    assert all(decode_frame(mangled[f.start : f.end], MARK) in given_messages for f in found.frames)
    # Every byte is accounted for, in order: header, frame, damaged, or torn.
    spans = sorted([(f.start, f.end) for f in found.frames] + [tuple(span) for span in found.damaged])
    first = len(HEADER) if mangled.startswith(HEADER) else 0
    assert [first, *(end for _, end in spans)] == [*(start for start, _ in spans), found.end]


def test_a_frame_that_a_client_sends_in_a_body_is_none():
    """The mark is in no client's hands; the body of a damaged frame is searched for the next whole one."""
    inner = frame(Message(b"forged", {}), mark=b"guessed!")
    data, _ = segment(frame(Message(HEADER + inner, {})))
    rotten = data[:20] + b"\xaa" + data[21:]
    assert scan(rotten, MARK) == Scan([], [Span(len(HEADER), len(rotten))], len(rotten))


def test_a_whole_frame_that_holds_no_message_is_damaged():
    payload = b"\xc1 no MessagePack"
    assert decode_frame(frame_head(payload, MARK, 7) + payload, MARK) is None


def test_more_bytes_than_one_frame_are_none():
    whole = frame(Message(b"a", {}))
    assert decode_frame(whole + b"x", MARK) is None
    assert decode_frame(b"", MARK) is None


def test_a_version_is_read_from_a_sound_header_only():
    later = b"MR SPOOL\x00\x00\x00\x02"
    later += zlib.crc32(later).to_bytes(4, "big")
    assert [version_of(data) for data in (HEADER, HEADER + b"more", later, HEADER[:-1], b"\x00" * 16, b"")] == [
        1, 1, 2, None, None, None,
    ]  # fmt: skip


def test_a_message_larger_than_pubsub_takes_is_refused():
    largest = Message(bytes(MAX_PAYLOAD_BYTES - 8), {})
    assert len(encode_message(largest)) == MAX_PAYLOAD_BYTES
    assert len(frame(largest)) == MAX_PAYLOAD_BYTES + FRAME_BYTES
    with pytest.raises(ValueError, match="10485761 bytes"):
        encode_message(Message(bytes(MAX_PAYLOAD_BYTES - 7), {}))


def test_text_that_utf8_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        encode_message(Message(b"", {"user_agent": "\ud800"}))
