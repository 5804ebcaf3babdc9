"""Downloads against a server on the loopback that is slow, wrong, or breaks off.

The law of all of them: the file has its name if and only if its bytes are right, and
whatever went wrong, calling again on a good server gives it.
"""

import gzip
import hashlib
import io
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tinyddpm.workshop import download as module
from tinyddpm.workshop.download import download, unpack_cifar10
from tinyddpm.workshop.readers import CIFAR10_RECORD, read_cifar10

DATA = bytes(torch.arange(300_000).remainder(251).tolist())
SIZE = len(DATA)
MD5 = hashlib.md5(DATA).hexdigest()
PAGE = b"<html>please log in</html>"


class Server:
    """Serves DATA; the attributes are the ways to be bad, `asked` what it was asked."""

    def __init__(self):
        self.body = DATA
        self.code = 200
        self.ranges = True  # whether it can send a part
        self.wrong_range = False  # whether it sends another part than asked for
        self.length = True  # whether it says how much comes
        self.stop_after = None  # closes the connection after so many bytes
        self.stall = 0.0  # seconds it waits there before it closes
        self.asked = []

    def answer(self, request):
        asked = request.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
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
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.stop_after])
        request.wfile.flush()
        time.sleep(self.stall)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.answer(self)

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/file.bin"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.bin"


def part_of(path):
    return path.with_name("file.bin.part")


def fails(error, server, path, match, size=SIZE, **arguments):
    with pytest.raises(error, match=match):
        download(server.url, path, MD5, size, **arguments)
    assert not path.exists()


@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("length", [True, False])
def test_the_file_arrives_and_a_second_call_asks_for_nothing(
    server, path, size, length
):
    """Size and length may be unknown: the sum decides. A repeated call is free."""
    server.length = length
    for _ in range(2):
        download(server.url, path, MD5, size)
        assert path.read_bytes() == DATA
    assert server.asked == [None]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_broken_connection_is_resumed(server, path, ranges, size):
    """What came is kept; the rest is asked for, and all again where that fails."""
    server.ranges, server.stop_after = ranges, 100_000
    fails(ConnectionError, server, path, "100,000 of 300,000 bytes", size)
    assert part_of(path).read_bytes() == DATA[:100_000]
    server.stop_after = None
    download(server.url, path, MD5, size)
    assert path.read_bytes() == DATA
    assert server.asked == [None, "bytes=100000-"]
    assert not part_of(path).exists()


def test_a_connection_may_break_many_times(server, path):
    """Each call gains what was sent, and the last one has the file."""
    server.stop_after = 70_000
    for gained in (70_000, 140_000, 210_000, 280_000):
        fails(ConnectionError, server, path, "broke off")
        assert part_of(path).stat().st_size == gained
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA


def test_a_break_without_a_length_is_noticed_by_the_size(server, path):
    """Where the server does not say how much comes, the known size does."""
    server.length, server.stop_after = False, 100_000
    fails(ConnectionError, server, path, "100,000 of 300,000 bytes")
    server.stop_after = None
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA


def test_a_server_that_stalls_times_out_and_is_resumed(server, path):
    """Silence longer than `timeout` ends the call; what came is kept."""
    server.stop_after, server.stall = 100_000, 1.0
    fails(ConnectionError, server, path, "broke off.*timed out", timeout=0.2)
    assert part_of(path).read_bytes() == DATA[:100_000]
    server.stop_after, server.stall = None, 0
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA
    assert server.asked[-1] == "bytes=100000-"


def test_a_stale_part_of_another_file_is_replaced(server, path):
    """Going on from another file's bytes gives a wrong sum: all is fetched anew."""
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * 1000)
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_a_stale_part_as_long_as_the_file_or_longer_is_replaced(server, path, extra):
    """No rest is left to ask for (416): all is fetched anew."""
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * (len(DATA) + extra))
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA


def test_a_whole_part_needs_no_server(server, path):
    """Killed between the last byte and the renaming: the next call only renames."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA)
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA
    assert server.asked == []


def test_a_server_that_sends_another_part_is_asked_for_all(server, path):
    """Bytes from another place than asked for are never appended."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.wrong_range = True
    download(server.url, path, MD5, SIZE)
    assert path.read_bytes() == DATA
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("length", [True, False])
def test_wrong_bytes_are_removed(server, path, size, length):
    """One wrong bit: refused with both sums, and nothing is left to build upon."""
    server.body, server.length = DATA[:-1] + b"\xff", length
    fails(ValueError, server, path, f"another file.*{MD5}.*browser", size)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("body", [PAGE, DATA + b"x", DATA[:-1], b""])
def test_a_wrong_size_is_refused_before_a_byte_is_fetched(server, path, body):
    """A page in place of the file: refused by its length; a good .part is kept."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.body, server.ranges = body, False
    fails(ValueError, server, path, f"offers {len(body):,} bytes, expected 300,000")
    assert part_of(path).read_bytes() == DATA[:1000]


def test_a_page_of_unknown_size_is_refused_by_its_sum(server, path):
    """Without a known size, the sum refuses the page, and the page is removed."""
    server.body = PAGE
    fails(ValueError, server, path, "another file", size=None)
    assert list(path.parent.iterdir()) == []


def test_an_endless_answer_is_cut_short(server, path):
    """A server without a length that sends too much cannot fill the disk."""
    server.body, server.length = DATA * 20, False
    fails(ValueError, server, path, "another file than expected: 3[0-9]{2},[0-9]{3} b")


@pytest.mark.parametrize("code", [403, 404, 500, 503])
def test_a_refusal_says_the_code_and_keeps_what_is_there(server, path, code):
    """An error status is a ConnectionError with its number, and changes nothing."""
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:1000])
    server.code = code
    fails(ConnectionError, server, path, f"answered {code}")
    assert part_of(path).read_bytes() == DATA[:1000]


def test_no_server_is_a_sentence(path, monkeypatch):
    """Nobody listens: a ConnectionError that names the address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1/.*cannot be reached"):
        download("http://127.0.0.1:1/file.bin", path, MD5)


def test_another_file_of_that_name_is_not_touched(server, path):
    """What lies at path and is not the file is the user's: refused, and kept."""
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="move it away"):
        download(server.url, path, MD5)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


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


def test_download_cifar10_goes_from_nothing_to_pictures(
    small, server, tmp_path, monkeypatch
):
    """The whole road, broken off once: fetch, verify, unpack, read; and again."""
    server.body = tar_bytes(GOOD)
    monkeypatch.setattr(module, "CIFAR10_URL", server.url)
    monkeypatch.setattr(module, "CIFAR10_SIZE", len(server.body))
    monkeypatch.setattr(module, "CIFAR10_MD5", hashlib.md5(server.body).hexdigest())
    server.stop_after = len(server.body) // 2
    with pytest.raises(ConnectionError, match="run again"):
        module.download_cifar10(tmp_path)
    server.stop_after = None
    for _ in range(2):
        assert len(read_cifar10(module.download_cifar10(tmp_path))[0]) == 5 * N
    assert len(server.asked) == 2


def test_download_fashion_mnist_fetches_four_files(server, tmp_path, monkeypatch):
    """Each of the four names is fetched from under the address and verified."""
    monkeypatch.setattr(
        module, "FASHION_MNIST_MD5", dict.fromkeys(module.FASHION_MNIST_MD5, MD5)
    )
    monkeypatch.setattr(module, "FASHION_MNIST_URL", server.url + "/")
    assert module.download_fashion_mnist(tmp_path) == tmp_path
    assert files_in(tmp_path) == sorted(module.FASHION_MNIST_MD5)
    assert len(server.asked) == 4
