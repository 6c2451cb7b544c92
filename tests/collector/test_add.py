"""`millrace source`: what is printed, what is kept, and that the rest of the file stays as it was."""

import dataclasses
import hashlib
import io
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.cli import main
from millrace.collector.add import add_source, rotate_key
from millrace.collector.keys import PLAIN_KEY, Kind, new_key, stored
from millrace.collector.origins import Origins
from millrace.collector.snippets import snippets
from millrace.collector.source import Source
from millrace.collector.source_edit import EditError, with_key, with_source
from millrace.collector.source_file import read
from millrace.collector.sources import Sources, SourcesError

HASH = "a" * 64
URL = "https://events.shop.example"
KNOWN = "2OOtyXfNgZLqKzHrYBcRUPwAaVm"
SHOP = f"""\
# Written by hand.
sources:   # who may send

    shop:   # four columns in
        kind: server
        keys:
        -   begins: mrs_4fQx   # not indented
            sha256: {HASH}
        ip:     keep   # odd spacing
    # about nothing below

# the end
trusted_proxies: [10.0.0.0/8]   # after
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "millrace.yaml"
    path.write_text(SHOP)
    return path


def added_lines(before: str, after: str) -> list[str]:
    """Give the lines that are new, after checking that they stand in one place and all else is as it was."""
    old, new = before.splitlines(), after.splitlines()
    count = len(new) - len(old)
    at = next((at for at in range(len(old) + 1) if new[:at] + new[at + count :] == old), None)
    assert at is not None, "more than one place was changed"
    assert after.count("\r\n") in (0, after.count("\n")), "the ends of lines differ"
    return new[at : at + count]


def test_the_first_source_makes_the_file(tmp_path):
    path = tmp_path / "millrace.yaml"
    key = add_source(path, "shop", Kind.BROWSER, ["https://shop.example", "https://*.shop.example"])
    kept = stored(key)
    assert path.read_text() == (
        "# Who may send. `millrace check` finds mistakes; on SIGHUP a running collector reads it again.\n"
        "sources:\n"
        "  shop:\n"
        "    kind: browser\n"
        "    origins:\n"
        '      - "https://shop.example"\n'
        '      - "https://*.shop.example"\n'
        "    keys:\n"
        f'      - begins: "{key[:8]}"\n'
        f'        sha256: "{kept.sha256.hex()}"\n'
    )
    found = Sources.load(path).by_key(key)
    assert found == Source(
        "shop", "shop", Kind.BROWSER, (kept,), Origins(["https://shop.example", "https://*.shop.example"])
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_further_source_stands_behind_the_others_and_nothing_else_changes(file):
    key = add_source(file, "billing", Kind.SERVER)
    assert added_lines(SHOP, file.read_text()) == [
        "    billing:",
        "      kind: server",
        "      keys:",
        f'        - begins: "{key[:8]}"',
        f'          sha256: "{stored(key).sha256.hex()}"',
    ]
    assert [source.id for source in Sources.load(file).all] == ["shop", "billing"]


def test_a_second_key_stands_behind_the_first_and_both_are_valid(file):
    kind, key = rotate_key(file, "shop")
    assert added_lines(SHOP, file.read_text()) == [
        f'        - begins: "{key[:8]}"',
        f'          sha256: "{stored(key).sha256.hex()}"',
    ]
    (shop,) = Sources.load(file).all
    assert kind is Kind.SERVER
    assert [kept.begins for kept in shop.keys] == ["mrs_4fQx", key[:8]]
    assert Sources.load(file).by_key(key) == shop


def test_a_third_key_is_refused_with_what_to_do(file):
    _, second = rotate_key(file, "shop")
    before = file.read_text()
    with pytest.raises(
        ValueError, match=f"shop has two keys, mrs_4fQx... and {second[:8]}...; remove the one that is no"
    ):
        rotate_key(file, "shop")
    assert file.read_text() == before


def test_a_source_without_keys_gets_its_first(tmp_path):
    path = tmp_path / "millrace.yaml"
    path.write_text("sources:\n  shop:\n    kind: mobile # no keys yet\n")
    _, key = rotate_key(path, "shop")
    assert path.read_text() == (
        "sources:\n  shop:\n    kind: mobile # no keys yet\n    keys:\n"
        f'      - begins: "{key[:8]}"\n        sha256: "{stored(key).sha256.hex()}"\n'
    )


def test_a_key_that_sdks_in_the_field_use_can_be_kept(file):
    assert add_source(file, "app", Kind.MOBILE, key=KNOWN) == KNOWN
    found = Sources.load(file).by_key(KNOWN)
    assert found is not None
    assert found.id == "app"


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (("shop", Kind.SERVER, [], None), "shop is there already; `millrace source rotate shop`"),
        (("my shop", Kind.SERVER, [], None), "'my shop' is no name"),
        (("blog", Kind.BROWSER, [], None), "a browser source needs --origin"),
        (("blog", Kind.SERVER, ["https://blog.example"], None), "others have none"),
        (("blog", Kind.BROWSER, ["blog.example"], None), "'blog.example' is no origin"),
        (("blog", Kind.SERVER, [], "short"), "a write key has 20 to 200 characters"),
    ],
)
def test_what_cannot_be_added_is_refused_and_the_file_stays(file, arguments, because):
    with pytest.raises(ValueError, match=because):
        add_source(file, *arguments)
    assert file.read_text() == SHOP
    assert list(file.parent.iterdir()) == [file]


def test_one_key_for_two_sources_is_refused(file):
    add_source(file, "app", Kind.MOBILE, key=KNOWN)
    before = file.read_text()
    with pytest.raises(ValueError, match="the key is one of app already"):
        add_source(file, "other", Kind.MOBILE, key=KNOWN)
    assert file.read_text() == before


def test_a_file_with_mistakes_is_not_touched(file):
    file.write_text("sources:\n  shop: {kind: web}\n")
    with pytest.raises(SourcesError, match=r"millrace\.yaml:2: shop: kind"):
        add_source(file, "blog", Kind.SERVER)
    assert file.read_text() == "sources:\n  shop: {kind: web}\n"


FLOWS = [
    "sources: {shop: {kind: server}}\n",
    "sources:\n  shop: {kind: server}\n",
    f"sources:\n  shop:\n    kind: server\n    keys: [{{begins: mrs_4fQx, sha256: {HASH}}}]\n",
    "sources:\n  shop:\n    kind: server\n    keys: []\n",
    "sources:\n  shop: &same\n    kind: server\n  blog: *same\n",
]


@pytest.mark.parametrize("text", FLOWS)
def test_what_is_not_written_as_lines_is_left_to_a_person(file, text):
    file.write_text(text)
    for name in ("new", "shop", "blog"):
        file.write_text(text)
        before = {source.id: source for source in read(text, "F").sources}
        try:
            if name == "new":
                add_source(file, name, Kind.SERVER)
            else:
                rotate_key(file, name)
        except (EditError, ValueError):
            assert file.read_text() == text
        else:  # where it could be done it was done right
            after = {source.id: source for source in read(file.read_text(), "F").sources}
            assert [other for other in after if after[other] != before.get(other)] == [name]
            assert len(after[name].keys) == len(before[name].keys if name in before else ()) + 1


def test_a_flow_is_refused_with_the_lines_to_write_by_hand():
    key = new_key(Kind.SERVER)
    with pytest.raises(EditError, match=r"add by hand:\n\n  new:\n    kind: server\n    keys:\n      - begins: \"mrs_"):
        with_source(FLOWS[0], Source("new", "new", Kind.SERVER, (stored(key),)))
    with pytest.raises(EditError, match=r"the keys of shop are not written as lines; add by hand:\n\n      - begins"):
        with_key(FLOWS[2], "shop", stored(key))


COMMENTS = st.sampled_from(["", "\n", "# words\n", "  # further in\n", "\n\n# more: words\n"])
TAILS = st.sampled_from(["", "trusted_proxies: [10.0.0.0/8]\n", "trusted_proxies:\n- 10.0.0.0/8 # one\n"])


@st.composite
def files(draw):
    """Draw a file as a person may write it: any indent, comments anywhere, other things before or behind."""
    indent, inner, dash = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(0, 4))
    text = draw(COMMENTS) + draw(TAILS) + draw(COMMENTS)
    tail = "" if "trusted" in text else draw(TAILS)
    text += "sources:" + draw(st.sampled_from(["\n", "  # all\n"]))
    for name in draw(st.lists(st.sampled_from(["shop", "app", "x1", '"quoted"', "true"]), min_size=1, unique=True)):
        column, key_column = " " * indent, " " * (indent + inner)
        text += draw(COMMENTS) + f"{column}{name}:" + draw(st.sampled_from(["\n", " # note\n"])) + draw(COMMENTS)
        members = [
            "kind: server\n",
            draw(st.sampled_from(["ip: keep # odd\n", "name: >\n" + key_column + "  long\n\n"])),
        ]
        if draw(st.booleans()):
            digest = hashlib.sha256(name.encode()).hexdigest()
            item = (
                " " * dash + f"- begins: aaaaaaaa\n{key_column}{' ' * dash}  sha256: {digest} # hash\n{draw(COMMENTS)}"
            )
            members.append(f"keys:\n{key_column}{item}")
        text += "".join(key_column + member + draw(COMMENTS) for member in draw(st.permutations(members)))
    text += tail + draw(COMMENTS)
    if draw(st.booleans()):
        text = text.rstrip("\n")
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@settings(max_examples=100, deadline=None)
@given(files())
def test_however_a_file_is_written_only_lines_are_added_and_they_mean_what_they_should(text):
    before = read(text, "F").sources
    key = stored("mrs_new-key-of-this-test-0123456789abcd")
    new = Source("new", "new", Kind.SERVER, (key,))
    grown = with_source(text, new)
    assert read(grown, "F").sources == (*before, new)
    assert added_lines(text, grown)[0].strip() == "new:"
    for source in before:
        rotated = with_key(text, source.id, key)
        meant = dataclasses.replace(source, keys=(*source.keys, key))
        assert read(rotated, "F").sources == tuple(meant if other == source else other for other in before)
        assert [line.strip(" -").split(":")[0] for line in added_lines(text, rotated)][-2:] == ["begins", "sha256"]


def test_a_link_stays_a_link_and_the_mode_stays_the_mode(file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    add_source(link, "billing", Kind.SERVER)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [source.id for source in Sources.load(file).all] == ["shop", "billing"]


def test_a_file_that_cannot_be_written_stays_and_nothing_is_left_behind(file, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add_source(file, "billing", Kind.SERVER)
    assert file.read_text() == SHOP
    assert list(file.parent.iterdir()) == [file]


def test_sources_that_are_added_at_the_same_time_are_all_there(file):
    start = threading.Barrier(8)

    def add(number: int) -> None:
        start.wait(timeout=90)
        add_source(file, f"s{number}", Kind.SERVER)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(source.id for source in Sources.load(file).all) == [
        "s0",
        "s1",
        "s2",
        "s3",
        "s4",
        "s5",
        "s6",
        "s7",
        "shop",
    ]


def test_the_command_shows_the_key_with_snippets_and_keeps_only_its_hash(tmp_path, capsys):
    path = tmp_path / "millrace.yaml"
    command = ["source", "add", "shop", "--kind", "browser", "--origin", "https://shop.example", "--file", str(path)]
    assert main([*command, "--url", URL]) == 0
    shown = capsys.readouterr().out
    (key,) = set(PLAIN_KEY.findall(shown))
    assert Sources.load(path).by_key(key) is not None
    assert key not in path.read_text()
    assert shown.startswith(
        f"shop (browser) is in {path}.\nIts write key, public: it may stand in a page or an app. It is shown this "
        f"once; the file has only its hash:\n\n    {key}\n\n"
    )
    for title, code in snippets(Kind.BROWSER, key, URL):
        assert f"# {title}\n{code}\n\n" in shown
    assert shown.endswith("A running collector takes it on SIGHUP.\n")


def test_the_kind_follows_from_the_origins_unless_it_is_said(tmp_path, capsys):
    file = ["--file", str(tmp_path / "millrace.yaml"), "--key-only"]
    assert main(["source", "add", "billing", *file]) == 0
    assert main(["source", "add", "shop", "--origin", "*", *file]) == 0
    assert main(["source", "rotate", "shop", *file]) == 0
    assert [key[:4] for key in capsys.readouterr().out.split()] == ["mrs_", "mrb_", "mrb_"]


def test_a_known_key_comes_from_standard_input_and_not_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(KNOWN + "\n"))
    path = tmp_path / "millrace.yaml"
    assert (
        main(["source", "add", "app", "--kind", "mobile", "--key-from-stdin", "--key-only", "--file", str(path)]) == 0
    )
    assert capsys.readouterr().out == KNOWN + "\n"
    assert Sources.load(path).by_key(KNOWN) is not None


def test_no_key_on_standard_input_is_not_a_new_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    path = tmp_path / "millrace.yaml"
    assert main(["source", "add", "app", "--kind", "mobile", "--key-from-stdin", "--file", str(path)]) == 2
    assert capsys.readouterr().err == "millrace source add: a write key has 20 to 200 characters, this has 0\n"
    assert not path.exists()


def test_the_list_shows_each_source_and_no_key(tmp_path, capsys):
    path = tmp_path / "millrace.yaml"
    path.write_text(
        "sources:\n"
        "  shop:\n    kind: browser\n    origins: [https://shop.example, https://*.shop.example]\n"
        "    events_per_s: 2.5\n"
        f"    keys: [{{begins: mrb_4fQx, sha256: {HASH}, until: 2020-01-01}}]\n"
        f"  app: {{kind: mobile, ip: drop, keys: [{{begins: mrm_9sLw, sha256: {'b' * 64}, until: 2200-01-01}}]}}\n"
        "  old: {kind: server}\n"
    )
    assert main(["source", "list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == (
        "source  kind     keys                                    events/s  ip        origins\n"
        "shop    browser  mrb_4fQx... ended 2020-01-01 00:00 UTC  2.5       truncate  "
        "https://shop.example https://*.shop.example\n"
        "app     mobile   mrm_9sLw... until 2200-01-01 00:00 UTC  any       drop\n"
        "old     server   none                                    any       truncate\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list"], "{file}: cannot be read: [Errno 2] No such file or directory: '{file}'\n"),
        (["rotate", "shop"], "[Errno 2] No such file or directory: '{file}'\n"),
        (["add", "my shop"], "millrace source add: 'my shop' is no name; take 1 to 64 letters, digits or . _ -\n"),
        (["add", "shop", "--url", "events.shop.example"],
         "millrace source add: 'events.shop.example' is no address of a collector; write one such as " + URL + "\n"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_done_says_why_and_leaves_nothing(tmp_path, capsys, arguments, said):
    path = tmp_path / "millrace.yaml"
    assert main(["source", *arguments, "--file", str(path)]) == 2
    assert capsys.readouterr().err == said.replace("{file}", str(path))
    assert not list(Path(tmp_path).iterdir())


def test_rotating_an_unknown_source_names_those_that_are_there(file, capsys):
    assert main(["source", "rotate", "shpo", "--file", str(file)]) == 2
    assert capsys.readouterr().err == "millrace source rotate: there is no source shpo; there are: shop\n"


@pytest.mark.parametrize("kind", Kind)
def test_every_snippet_holds_the_key_and_the_address_and_the_python_ones_are_python(kind):
    shown = snippets(kind, "mrs_key", "http://localhost:8080")
    assert len(shown) == 5
    for title, code in shown:
        assert "mrs_key" in code
        assert "localhost:8080" in code
        if title.startswith("Python"):
            compile(code, title, "exec")
