"""Downloads against a server on the loopback that is slow, wrong, or breaks off.

The law of all of them: the file has its name if and only if its bytes are right, and
whatever went wrong, calling again on a good server gives it.
"""

import gzip
import hashlib
import io
import socket
import sys
import tarfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tinyddpm.workshop import download as module
from tinyddpm.workshop.download import OfficialFile, download, unpack_cifar10
from tinyddpm.workshop.readers import CIFAR10_RECORD, read_cifar10

DATA = bytes(torch.arange(300_000).remainder(251).tolist())
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
PAGE = b"<html>please log in</html>"


def whole(n):
    """What is kept of n bytes where a transfer breaks: chunks of 16 KiB, whole."""
    return n // (1 << 14) * (1 << 14)


class Server:
    """Serves DATA; the attributes are the ways to be bad, `asked` what it was asked."""

    def __init__(self):
        self.body = DATA
        self.code = 200
        self.ranges = True  # whether it can send a part
        self.wrong_range = False  # whether it sends another part than asked for
        self.length = True  # whether it says how much comes; or a number, a lie
        self.headers = {}  # more of them
        self.location = None  # where it redirects to
        self.stop_after = None  # closes the connection after so many bytes
        self.stall = 0.0  # seconds it waits there before it closes
        self.endless = None  # what it sends after that, for ever
        self.drips = None  # "header" or "body": a byte each 20 ms, for ever
        self.closing = threading.Event()  # the test is over
        self.asked = []

    def answer(self, request):
        asked = request.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.drips == "header":
            request.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            return self.send_for_ever(request, b"x", 0.02)
        if self.location and not request.path.startswith("/found/"):
            request.send_response(302)
            request.send_header("Location", self.location)
            request.end_headers()
            if self.endless:
                self.send_for_ever(request, self.endless)
            return None
        if self.code != 200:
            return request.send_error(self.code)
        if asked and self.ranges and start >= len(self.body):
            return request.send_error(416)
        partial = asked and self.ranges
        start = (0 if self.wrong_range else start) if partial else 0
        body = self.body[start:]
        request.send_response(206 if partial else 200)
        if partial:
            last, whole = len(self.body) - 1, len(self.body)
            request.send_header("Content-Range", f"bytes {start}-{last}/{whole}")
        if self.length:
            length = len(body) if self.length is True else self.length
            request.send_header("Content-Length", str(length))
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        if self.drips:
            return self.send_for_ever(request, b"x", 0.02)
        request.wfile.write(body[: self.stop_after])
        request.wfile.flush()
        self.closing.wait(self.stall)
        if self.endless:
            self.send_for_ever(request, self.endless)

    def send_for_ever(self, request, what, pause=0.0):
        while not self.closing.wait(pause):
            try:
                request.wfile.write(what)
            except OSError:  # nobody listens any more
                return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.answer(self)

        def log_message(self, *arguments):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # a client that refuses hangs up in the middle

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/file.bin"
    yield state
    state.closing.set()
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.bin"


def part_of(path):
    return path.with_name("file.bin.part")


def fetch(server, path, **arguments):
    """Downloads the server's file to path."""
    file = OfficialFile(server.url, SIZE, SHA256)
    assert download(file, path.parent, **arguments) == path
    assert path.read_bytes() == DATA
    assert names_in(path.parent) == ["file.bin"]


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def fails(error, server, path, match, **arguments):
    """The download ends in a sentence with the address, and without the file."""
    with pytest.raises(error, match=match) as caught:
        download(OfficialFile(server.url, SIZE, SHA256), path.parent, **arguments)
    assert server.url in str(caught.value)
    assert set(names_in(path.parent)) <= {"file.bin.part"}


@pytest.mark.parametrize("length", [True, False, "many"])
def test_the_file_arrives_and_a_second_call_asks_for_nothing(server, path, length):
    """The length may be unknown or nonsense: the sum decides. Again it is free."""
    server.length = length
    for _ in range(2):
        fetch(server, path)
    assert server.asked == [None]


def test_a_gzipped_file_is_not_unpacked_on_the_way(server, path):
    """A server may call .gz an encoding; the file is still the one with the sum."""
    server.headers = {"Content-Encoding": "gzip"}
    fetch(server, path)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_a_broken_connection_is_resumed(server, path, ranges, length):
    """What came is kept; the rest is asked for, and all again where that fails."""
    server.ranges, server.length, server.stop_after = ranges, length, 100_000
    kept = whole(100_000) if length else 100_000  # without one, it is a short file
    fails(ConnectionError, server, path, f"{kept:,} of 300,000 bytes are kept.*run ag")
    assert part_of(path).read_bytes() == DATA[:kept]
    server.stop_after = None
    fetch(server, path)
    assert server.asked == [None, f"bytes={kept}-"]


def test_a_connection_may_break_many_times(server, path):
    """Each call gains what was sent, and the last one has the file."""
    server.stop_after = 70_000
    for call in (1, 2, 3, 4):
        fails(ConnectionError, server, path, "run again to continue")
        assert part_of(path).stat().st_size == call * whole(70_000)
    fetch(server, path)


def test_a_server_that_stalls_times_out_and_is_resumed(server, path):
    """Silence longer than `timeout` ends the call; what came is kept, in chunks."""
    server.stop_after, server.stall = 100_000, 1.0
    fails(ConnectionError, server, path, "timed out", timeout=0.2)
    kept = part_of(path).read_bytes()
    assert kept == DATA[: whole(100_000)]
    server.stop_after, server.stall = None, 0
    fetch(server, path)
    assert server.asked[-1] == f"bytes={len(kept)}-"


@pytest.mark.parametrize("where", ["header", "body"])
def test_a_server_that_drips_is_given_up(server, path, where):
    """A byte each 20 ms never times out; the slowest rate, 10,000 B/s, ends it.

    The rate is asked for after twice the timeout, here 0.2 s, with 0.1 s to look.
    """
    server.drips = where
    begun = time.monotonic()
    fails(ConnectionError, server, path, "less than 10,000 bytes a s", timeout=0.1)
    assert time.monotonic() - begun < 5  # a busy machine may take its time


def test_a_slow_server_that_is_fast_enough_is_waited_for(server, path, monkeypatch):
    """The rate is an average: a pause in the middle is forgiven."""
    server.stop_after, server.stall = 100_000, 0.5
    monkeypatch.setattr(module, "SLOWEST", 100_000)
    # 100,000 bytes at 100,000 a second: given up only after 1 s and twice the timeout
    fails(ConnectionError, server, path, "IncompleteRead", timeout=2.0)
    assert part_of(path).read_bytes() == DATA[: whole(100_000)]


def test_a_stale_part_of_another_file_is_replaced(server, path):
    """Continuing another file's bytes gives a wrong sum: all is fetched anew."""
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * 1000)
    fetch(server, path)
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_a_stale_part_as_long_as_the_file_or_longer_is_replaced(
    server, path, extra, ranges
):
    """No rest is left to ask for (416): all is fetched anew."""
    server.ranges = ranges
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * (SIZE + extra))
    fetch(server, path)


def test_a_whole_part_needs_no_server(server, path):
    """Killed between the last byte and the renaming: the next call only renames."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA)
    fetch(server, path)
    assert server.asked == []


def test_a_server_that_sends_another_part_is_asked_for_all(server, path):
    """Bytes from another place than asked for are never appended."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.wrong_range = True
    fetch(server, path)
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("length", [True, False])
def test_wrong_bytes_are_removed(server, path, length):
    """One wrong bit: refused with both sums, and nothing is left to build upon."""
    server.body, server.length = DATA[:-1] + b"\xff", length
    found = hashlib.sha256(server.body).hexdigest()
    fails(ValueError, server, path, f"another file.*{found}.*{SHA256}.*browser")
    assert names_in(path.parent) == []


@pytest.mark.parametrize("body", [PAGE, DATA + b"x", DATA[:-1], b""])
def test_a_wrong_size_is_refused_before_a_byte_is_fetched(server, path, body):
    """A page in place of the file: refused by its length; a good .part is kept."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.body, server.ranges = body, False
    fails(ValueError, server, path, f"offers {len(body):,} bytes, expected 300,000")
    assert part_of(path).read_bytes() == DATA[:1000]


@pytest.mark.parametrize("ranges", [True, False])
def test_ten_terabytes_are_refused_by_the_header(server, path, ranges):
    """Whether all or the rest is offered: not a byte of it is fetched."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.length, server.ranges = 10**13, ranges
    offered = 10**13 + 1000 * ranges
    fails(ValueError, server, path, f"offers {offered:,} bytes, expected 300,000")
    assert part_of(path).read_bytes() == DATA[:1000]


def test_a_page_of_unknown_size_is_kept_to_its_size(server, path):
    """A page without a length ends too early, and the sum refuses it at the latest."""
    server.body, server.length = PAGE, False
    fails(ConnectionError, server, path, "26 of 300,000 bytes")
    server.body, server.length = DATA, True
    fetch(server, path)


def test_an_endless_answer_is_cut_short(server, path):
    """A server without a length that never ends cannot fill the disk."""
    server.length, server.endless = False, b"x" * 10_000
    fails(ValueError, server, path, "sends more than the 300,000 bytes")
    assert names_in(path.parent) == []


@pytest.mark.parametrize("code", [403, 404, 500, 503])
def test_a_refusal_says_the_code_and_keeps_what_is_there(server, path, code):
    """An error status is a ConnectionError with its number, and changes nothing."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.code = code
    fails(ConnectionError, server, path, f"cannot be fetched .{code} ")
    assert part_of(path).read_bytes() == DATA[:1000]


@pytest.mark.parametrize("endless", [None, b"x" * 10_000])
def test_a_redirect_is_followed(server, path, endless):
    """As servers that moved their files do, however much comes with the redirect."""
    server.location, server.endless = "/found/it", endless
    if endless is None:
        fetch(server, path)
    else:  # the second answer is endless as well
        server.length = False
        fails(ValueError, server, path, "sends more than")
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1:1/file.bin",
        "file:///etc/passwd",
        "data:text/plain,x",
        "http://[nonsense",
        "http://",
        "//",
        "https:///",
        "\x01\x02",
        "nonsense://x y",
        "http://127.0.0.1:99999/",
    ],
)
def test_a_redirect_to_elsewhere_is_refused(server, path, location):
    """Nothing but http and https is ever opened, and nonsense ends in a sentence."""
    server.location, server.code = location, 404
    fails(ConnectionError, server, path, "cannot be fetched .*look at the network")
    assert names_in(path.parent) == []


def test_redirects_that_lead_in_a_circle_end(server, path):
    """After 30 of them."""
    server.location = "/again"
    fails(ConnectionError, server, path, "30 redirects")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,x",
        "passwd",
        "http:x",
    ],
)
def test_other_addresses_are_refused(tmp_path, url):
    """Only http and https are fetched; nothing is made where nothing can come."""
    with pytest.raises(ValueError, match="expected an http or https address") as caught:
        download(OfficialFile(url, SIZE, SHA256), tmp_path / "new")
    assert url in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_two_downloads_at_once_fetch_the_file_once(server, path):
    """The second waits for the first, and finds the file."""
    server.stop_after, server.stall = SIZE, 0.5
    threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(2)]
    failures = []
    hook, threading.excepthook = threading.excepthook, failures.append
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = hook
    assert failures == []
    assert server.asked == [None]


def test_a_lock_of_a_dead_process_holds_nobody_up(server, path):
    """A kill leaves .part and the lock's file, but the lock ends with its process."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    path.with_name(".file.bin.lock").touch()
    fetch(server, path)
    assert server.asked == ["bytes=1000-"]


def test_no_server_is_a_sentence(path, monkeypatch):
    """Nobody listens: a ConnectionError that names the address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = OfficialFile("http://127.0.0.1:1/file.bin", SIZE, SHA256)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1/.*refused"):
        download(file, path.parent)


def test_an_answer_that_is_no_http_ends_in_one_line(path):
    """What another server says is quoted without its line ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            peer, _ = listening.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(b"220 ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/file.bin"
        with pytest.raises(ConnectionError, match="220 ready") as error:
            download(OfficialFile(url, SIZE, SHA256), path.parent, 5)
        thread.join()
    assert "\n" not in str(error.value)


def test_another_file_of_that_name_is_not_touched(server, path):
    """What lies at path and is not the file is the user's: refused, and kept."""
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="move it away"):
        download(OfficialFile(server.url, SIZE, SHA256), path.parent)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


def test_a_missing_pooch_is_named_with_the_extra(server, path, monkeypatch):
    """Without pooch the error says which extra brings it."""
    monkeypatch.setitem(sys.modules, "pooch", None)  # importing it fails
    with pytest.raises(ModuleNotFoundError, match=r"pooch.*tinyddpm\[scripts\]"):
        download(OfficialFile(server.url, SIZE, SHA256), path.parent)


@pytest.mark.parametrize("file", [module.CIFAR10, *module.FASHION_MNIST])
def test_the_official_files_come_by_https_with_a_sum(file):
    """Each has an https address, a size, and a SHA-256 of 64 digits."""
    assert file.url.startswith("https://")
    assert file.size > 0
    assert len(bytes.fromhex(file.sha256)) == 32


def tar_bytes(members):
    """A .tar.gz of (TarInfo, content) pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return out.getvalue()


def regular(name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


N = 7  # records in each file of the little archive


def special(name, kind, target=""):
    """A link, device or folder that claims the size of a right file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, N * CIFAR10_RECORD
    return info, b""


NAMES = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)]
NAMES += ["cifar-10-batches-bin/test_batch.bin"]
GOOD = [regular(n, bytes([i] * N * CIFAR10_RECORD)) for i, n in enumerate(NAMES)]


@pytest.fixture
def small(monkeypatch):
    """CIFAR-10 with N pictures a file in place of 10,000."""
    monkeypatch.setattr(module, "CIFAR10_COUNT", N)
    monkeypatch.setattr("tinyddpm.workshop.readers.CIFAR10_COUNT", N)


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_only_the_six_files_leave_the_archive(small, tmp_path):
    """Whatever else is in it (paths outside, links, devices) is never written."""
    odd = [
        regular("../outside.bin", b"x"),
        regular(str(tmp_path / "absolute.bin"), b"x"),
        regular("cifar-10-batches-bin/../../outside.bin", b"x"),
        regular("cifar-10-batches-bin/readme.html", b"x"),
        special("cifar-10-batches-bin", tarfile.DIRTYPE),
        special("cifar-10-batches-bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("cifar-10-batches-bin/hard", tarfile.LNKTYPE, "/etc/passwd"),
        special("cifar-10-batches-bin/device", tarfile.CHRTYPE),
        special("cifar-10-batches-bin/pipe", tarfile.FIFOTYPE),
    ]
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_bytes(odd + GOOD))
    for _ in range(2):
        folder = unpack_cifar10(archive, tmp_path / "into")
        assert folder == tmp_path / "into" / "cifar-10-batches-bin"
        assert files_in(tmp_path) == ["a.tar.gz", *(f"into/{n}" for n in sorted(NAMES))]
    images, labels = read_cifar10(folder)
    assert labels.tolist() == [i for i in range(5) for _ in range(N)]
    assert (images == labels[:, None, None, None]).all()
    assert read_cifar10(tmp_path / "into", "test")[1].tolist() == [5] * N


BAD = {
    "missing": None,
    "cut short": regular(NAMES[3], b"x" * (N * CIFAR10_RECORD - 1)),
    "too long": regular(NAMES[3], b"x" * (N * CIFAR10_RECORD + 1)),
    "link": special(NAMES[3], tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": special(NAMES[3], tarfile.LNKTYPE, NAMES[0]),
    "device": special(NAMES[3], tarfile.CHRTYPE),
    "pipe": special(NAMES[3], tarfile.FIFOTYPE),
    "folder": special(NAMES[3], tarfile.DIRTYPE),
    "elsewhere": regular("../" + NAMES[3], GOOD[3][1]),
}


@pytest.mark.parametrize("bad", BAD)
def test_one_wrong_member_and_nothing_is_unpacked(small, tmp_path, bad):
    """All six are checked before the first is written."""
    members = GOOD[:3] + GOOD[4:] + ([BAD[bad]] if BAD[bad] else [])
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_bytes(members))
    with pytest.raises(ValueError, match=r"a\.tar\.gz lacks data_batch_4\.bin"):
        unpack_cifar10(archive, tmp_path)
    assert files_in(tmp_path) == ["a.tar.gz"]


def refuses(call, name):
    """Whether call() ends in a ValueError, which then names the file."""
    try:
        call()
    except ValueError as error:
        return name in str(error) or pytest.fail(f"no {name} in {error}")
    return False


def test_a_damaged_archive_is_unpacked_right_or_not_at_all(small, tmp_path):
    """Wherever it is cut or flipped: the six files whole, or a ValueError naming it."""
    whole = tar_bytes(GOOD)
    expected = {info.name: content for info, content in GOOD}
    cut = [whole[:n] for n in range(0, len(whole), 3)]
    flipped = [
        whole[:n] + bytes([whole[n] ^ 0x10]) + whole[n + 1 :]
        for n in range(0, len(whole), 3)
    ]
    damaged = [*cut, *flipped, b"", PAGE, gzip.compress(PAGE), whole + PAGE]
    refused = 0
    for i, data in enumerate(damaged):
        archive, into = tmp_path / "a.tar.gz", tmp_path / str(i)
        archive.write_bytes(data)
        if refuses(lambda a=archive, b=into: unpack_cifar10(a, b), "a.tar.gz"):
            assert not into.exists()
            refused += 1
        else:
            assert files_in(into) == sorted(NAMES)
            for name in NAMES:
                assert (into / name).read_bytes() == expected[name]
    # both were seen: gzip's header holds a time stamp, which changes nothing
    assert len(cut) < refused < len(damaged)


def tar_gz_with_header(size, kind):
    """An archive whose first member is a header of `size` zeros, then the six files."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return gzip.compress(info.tobuf() + bytes(-(-size // 512) * 512))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_of_many_megabytes_takes_no_memory(tmp_path, kind):
    """tarfile would read a long name or pax header whole, of whatever size."""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_gz_with_header(1 << 25, kind))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.tar\.gz does not unpack"):
        unpack_cifar10(archive, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23  # buffers of 1 MiB; the header has 32


@pytest.mark.parametrize("what", ["zeros", "promise"])
def test_an_archive_that_unpacks_to_too_much_is_refused(small, tmp_path, what):
    """Twice the six files is the bound, for what is there and for what is promised."""
    most = 2 * 6 * N * CIFAR10_RECORD
    huge, content = regular("zeros", bytes(most))
    if what == "promise":
        huge.size, content = 10**13, b""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tar_bytes([(huge, content), *GOOD]))
    with pytest.raises(ValueError, match=r"a\.tar\.gz (does not unpack|lacks)"):
        unpack_cifar10(archive, tmp_path)
    assert files_in(tmp_path) == ["a.tar.gz"]


def test_download_cifar10_goes_from_nothing_to_pictures(
    small, server, tmp_path, monkeypatch
):
    """The whole road, broken off once: fetch, verify, unpack, read; and again."""
    server.body = tar_bytes(GOOD)
    sha256 = hashlib.sha256(server.body).hexdigest()
    file = OfficialFile(server.url, len(server.body), sha256)
    monkeypatch.setattr(module, "CIFAR10", file)
    server.stop_after = len(server.body) // 2
    with pytest.raises(ConnectionError, match="run again"):
        module.download_cifar10(tmp_path)
    server.stop_after = None
    for _ in range(2):
        assert len(read_cifar10(module.download_cifar10(tmp_path))[0]) == 5 * N
    assert len(server.asked) == 2


def test_download_fashion_mnist_fetches_four_files(server, tmp_path, monkeypatch):
    """Each of the four is fetched from its address, verified, and has its own name."""
    names = [file.url.rpartition("/")[2] for file in module.FASHION_MNIST]
    assert names == [
        f"{split}-{kind}-ubyte.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    files = [OfficialFile(f"{server.url}/{n}", SIZE, SHA256) for n in names]
    monkeypatch.setattr(module, "FASHION_MNIST", files)
    assert module.download_fashion_mnist(tmp_path) == tmp_path
    assert files_in(tmp_path) == sorted(names)
    assert len(server.asked) == 4
