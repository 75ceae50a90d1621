"""The model process over its real socket, spoken to frame by frame."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_models import protocol
from local_models.catalogue import ensure
from local_models.embedder import Embedder
from local_models.messages import Finished, GenerationRequest, SamplingParams
from local_models.protocol import ClientFrame, FrameSplitter, ServerFrame, encode_frame

GENERATION, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
COUNTING = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"
CHAT = ({"role": "user", "content": "Name three rivers."},)
WAIT_SECONDS = 30.0
F = TypeVar("F")


class Peer:
    """A client that sends and receives one frame at a time."""

    def __init__(self, path: Path, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._splitter = FrameSplitter()
        self._frames: list[ServerFrame] = []
        if greet:
            self.send(protocol.Hello(protocol.PROTOCOL_VERSION, "test"))
            self.state = self.receive(protocol.Ready)

    def send(self, *frames: ClientFrame) -> None:
        """All frames in one write."""
        self.socket.sendall(b"".join(encode_frame(frame) for frame in frames))

    def frame(self) -> ServerFrame | None:
        """The next frame, or None at the end of the connection."""
        while not self._frames:
            try:
                chunk = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            payloads = self._splitter.feed(chunk)
            self._frames += [protocol.decode_server_frame(payload) for payload in payloads]
        return self._frames.pop(0)

    def receive(self, kind: type[F]) -> F:
        """The next frame, which must be of this kind."""
        frame = self.frame()
        assert isinstance(frame, kind), frame
        return frame

    def until_ready(self) -> None:
        """Read states until nothing is loading."""
        while "loading" in (self.state.embedding_state, self.state.generation_state):
            self.state = self.receive(protocol.Ready)

    def stats(self) -> protocol.Stats:
        """Asks on a connection of its own numbering; other frames must have been read."""
        self.send(protocol.AskStats(999))
        return self.receive(protocol.Stats)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def start(
    path: Path,
    generation: str = "",
    embedding: str = "",
    *,
    more: tuple[str, ...] = (),
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    """A model process; with empty names it serves nothing and starts at once."""
    arguments = ["--socket", path, "--generation", generation, "--embedding", embedding]
    command = [sys.executable, "-m", "local_models.server", *map(str, arguments), "--threads", "1"]
    command += more
    return subprocess.Popen(command, stderr=stderr, text=True)


def until(condition: Callable[[], bool]) -> None:
    """Poll until true; fail after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def listening(path: Path) -> bool:
    """Whether somebody accepts connections there."""
    try:
        Peer(path).socket.close()
    except OSError:
        return False
    return True


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM, then the exit status."""
    process.terminate()
    return process.wait(WAIT_SECONDS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Socket of a process with both models, shared by the tests that leave it as it was."""
    ensure(GENERATION)
    Embedder.load(ensure(EMBEDDING))
    path = tmp_path_factory.mktemp("model") / "process.sock"
    process = start(path, GENERATION, EMBEDDING)
    until(lambda: listening(path))
    with Peer(path) as peer:
        peer.until_ready()
        assert peer.state.generation_state == peer.state.embedding_state == "ready"
    yield path
    assert stop(process) == 0
    assert not path.exists()


@pytest.fixture
def peer(path: Path) -> Iterator[Peer]:
    """A connection that has been greeted."""
    with Peer(path) as peer:
        yield peer


def generate(id: int, *, max_tokens: int = 12, credits: int = 1024) -> protocol.Generate:
    """Greedy counting, which does not end by itself."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    request = GenerationRequest(request_id="same", params=params, prompt=COUNTING)
    return protocol.Generate(id, request, credits)


def collect(peer: Peer, ids: set[int]) -> dict[int, tuple[str, int, Finished]]:
    """Text, tokens and end of each generation."""
    texts, tokens = dict.fromkeys(ids, ""), dict.fromkeys(ids, 0)
    ends: dict[int, Finished] = {}
    while len(ends) < len(ids):
        frame = peer.frame()
        match frame:
            case protocol.DeltaFrame():
                texts[frame.id] += frame.delta.text
                tokens[frame.id] += frame.delta.tokens
            case protocol.FinishedFrame():
                ends[frame.id] = frame.finished
            case _:
                pytest.fail(f"unexpected {frame}")
    return {id: (texts[id], tokens[id], ends[id]) for id in ids}


def test_a_generation_streams_its_text_and_then_its_end(peer: Peer) -> None:
    """Tokens of the deltas add up to what the end says was generated."""
    peer.send(generate(1))
    text, tokens, finished = collect(peer, {1})[1]
    assert text
    assert finished.reason == "length"
    assert finished.completion_tokens == 12 >= tokens > 0
    assert finished.prompt_tokens > 10
    assert finished.compute_us > 0


def test_requests_of_one_connection_run_side_by_side(peer: Peer) -> None:
    """More than there are slots; each ends with its own count, under its own number."""
    peer.send(*(generate(id, max_tokens=id) for id in range(3, 10)))
    answers = collect(peer, set(range(3, 10)))
    assert {id: end.completion_tokens for id, (_, _, end) in answers.items()} == {
        id: id for id in range(3, 10)
    }
    assert peer.stats().generations == 0


def test_equal_numbers_on_two_connections_do_not_meet(path: Path) -> None:
    """Ids belong to the connection that chose them."""
    with Peer(path) as one, Peer(path) as two:
        one.send(generate(1, max_tokens=4))
        two.send(generate(1, max_tokens=9))
        assert collect(two, {1})[1][2].completion_tokens == 9
        assert collect(one, {1})[1][2].completion_tokens == 4


def test_without_credit_deltas_are_held_and_joined(path: Path, peer: Peer) -> None:
    """One credit then buys everything in one delta, with the end behind it."""
    peer.send(generate(1, max_tokens=20, credits=0))
    with Peer(path) as other:
        until(lambda: other.stats().held_tokens == 20)
    peer.send(protocol.Credit(1, 1))
    delta = peer.receive(protocol.DeltaFrame).delta
    finished = collect(peer, {1})[1][2]
    assert delta.tokens == 20
    assert finished.completion_tokens == 20
    assert peer.stats().held_tokens == 0


def test_a_cancelled_generation_frees_its_slot(peer: Peer) -> None:
    """A thousand tokens were asked for; far fewer are computed."""
    peer.send(generate(1, max_tokens=1000))
    peer.receive(protocol.DeltaFrame)
    peer.send(protocol.Cancel(1))
    _, _, finished = collect(peer, {1})[1]
    assert finished.reason == "cancelled"
    assert finished.completion_tokens < 500
    assert peer.stats().generations == 0


def test_a_client_that_leaves_has_everything_cancelled(path: Path, peer: Peer) -> None:
    """Running, waiting and held generations, and queued embeddings."""
    with Peer(path) as leaver:
        leaver.send(*(generate(id, max_tokens=1000, credits=id % 2) for id in range(1, 9)))
        leaver.send(protocol.Embed(20, ("long text " * 60,) * 500, 128))
        until(lambda: peer.stats().generations == 8)
    until(lambda: (peer.stats().generations, peer.stats().embeddings) == (0, 0))
    assert peer.stats().held_tokens == 0


def test_vectors_equal_the_embedder_s(peer: Peer) -> None:
    """Whatever micro-batches the requests fell into: one list, and forty single texts at once."""
    texts = tuple(f"question {i} about " + "things " * (i % 17) for i in range(40))
    expected = Embedder.load(ensure(EMBEDDING)).embed(texts)
    peer.send(protocol.Embed(1, texts, 128))
    answer = peer.receive(protocol.Vectors)
    values = np.frombuffer(answer.values, "<f4").reshape(40, answer.dimensions)
    np.testing.assert_allclose(values, expected.vectors, atol=1e-5)
    assert list(answer.tokens) == expected.tokens
    assert answer.compute_us > 0
    peer.send(*(protocol.Embed(100 + i, (text,), 128) for i, text in enumerate(texts)))
    for _ in texts:
        answer = peer.receive(protocol.Vectors)
        single = np.frombuffer(answer.values, "<f4")
        np.testing.assert_allclose(single, expected.vectors[answer.id - 100], atol=1e-5)


def test_texts_with_different_limits_share_the_queue(peer: Peer) -> None:
    """A classifier's 128 tokens beside an /embeddings call's 512."""
    text = "word " * 300
    peer.send(protocol.Embed(1, (text, "a"), 128), protocol.Embed(2, ("b", text), 512))
    answers = {answer.id: answer for answer in (peer.receive(protocol.Vectors) for _ in range(2))}
    assert answers[1].tokens == (128, 3)
    assert answers[1].truncated == (True, False)
    assert answers[2].tokens == (3, 302)
    assert answers[2].truncated == (False, False)


def test_a_long_list_does_not_hold_up_a_single_text(path: Path, peer: Peer) -> None:
    """The list has been accepted first and is still running when the single text is answered."""
    with Peer(path) as patient:
        patient.send(protocol.Embed(1, ("long text " * 60,) * 400, 128))
        until(lambda: peer.stats().embeddings > 0)
        peer.send(protocol.Embed(1, ("short",), 128))
        peer.receive(protocol.Vectors)
        assert peer.stats().embeddings > 50
        assert len(patient.receive(protocol.Vectors).tokens) == 400


def test_embedding_goes_on_while_generating(peer: Peer) -> None:
    """The vectors come before the generation's end."""
    peer.send(generate(1, max_tokens=200), protocol.Embed(2, ("between",), 128))
    kinds: list[type] = []
    while not kinds or kinds[-1] is not protocol.FinishedFrame:
        kinds.append(type(peer.frame()))
    assert protocol.Vectors in kinds
    assert kinds.count(protocol.DeltaFrame) > 10


def test_tokens_are_counted_with_the_chat_template(peer: Peer) -> None:
    """The count is what a generation of the same messages is charged."""
    params = SamplingParams(max_tokens=1)
    request = GenerationRequest(request_id="r", params=params, messages=CHAT)
    peer.send(protocol.CountTokens(1, CHAT, None), protocol.Generate(2, request, 9))
    counted = peer.receive(protocol.Counted)
    assert counted.tokens == collect(peer, {2})[2][2].prompt_tokens > 10


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (protocol.Embed(1, (), 128), "invalid"),
        (protocol.Embed(1, ("x",), 4), "invalid"),
        (protocol.Embed(1, ("x",) * 9000, 128), "busy"),
        (generate(1, max_tokens=0), "invalid"),
        (protocol.CountTokens(1, None, None), "invalid"),
        (protocol.CountTokens(1, None, "x" * 1_000_000), "too_long"),
        (
            protocol.Generate(
                1,
                GenerationRequest(
                    request_id="r", params=SamplingParams(max_tokens=1), prompt="word " * 3000
                ),
                1,
            ),
            "too_long",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_kind(
    peer: Peer, frame: ClientFrame, code: str
) -> None:
    """The connection lives on, and the number may be used again."""
    peer.send(frame)
    failed = peer.receive(protocol.Failed)
    assert (failed.id, failed.code) == (1, code)
    peer.send(protocol.Embed(1, ("still here",), 128))
    peer.receive(protocol.Vectors)


BAD_STREAMS = {
    "no hello": encode_frame(protocol.AskStats(1)),
    "an old version": encode_frame(protocol.Hello(0, "old")),
    "an endless frame": b"\xff\xff\xff\xff",
    "no msgpack": b"\x03\x00\x00\x00\xc1\xc1\xc1",
    "another type": b"\x01\x00\x00\x00\x05",
    "an unknown kind": (lambda p: len(p).to_bytes(4, "little") + p)(msgspec.msgpack.encode(["x"])),
}


@pytest.mark.parametrize("stream", BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
def test_a_bad_frame_costs_its_own_connection_only(path: Path, peer: Peer, stream: bytes) -> None:
    """The other connection's generation is not disturbed."""
    peer.send(generate(1))
    with Peer(path, greet=False) as bad:
        bad.socket.sendall(stream)
        assert bad.frame() is None
    assert collect(peer, {1})[1][2].reason == "length"


def test_a_number_in_use_costs_the_connection(path: Path, peer: Peer) -> None:
    """Two answers under one number could not be told apart."""
    with Peer(path) as confused:
        confused.send(generate(1, max_tokens=1000, credits=0), generate(1))
        assert confused.frame() is None
    until(lambda: peer.stats().generations == 0)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(chunk=st.binary(min_size=1, max_size=64))
def test_no_bytes_after_a_hello_harm_the_process(path: Path, peer: Peer, chunk: bytes) -> None:
    """Whatever they are, a neighbour is answered."""
    with Peer(path) as bad:
        bad.socket.sendall(chunk)
        bad.socket.shutdown(socket.SHUT_WR)
        while bad.frame() is not None:
            pass
    assert peer.stats().connections >= 1


def test_a_client_that_never_reads_is_not_read_either(path: Path, peer: Peer) -> None:
    """Answers it does not take stop its questions, so memory stays where it was."""
    before = peer.stats().resident_bytes
    question = encode_frame(protocol.AskStats(1)) * 1000
    with Peer(path) as deaf:
        deaf.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                deaf.socket.sendall(question)
        assert peer.stats().resident_bytes - before < 30 << 20


def test_the_socket_is_for_its_owner_only(path: Path) -> None:
    """Mode 0600."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_server_on_a_live_socket_is_refused_with_a_sentence(
    path: Path, peer: Peer
) -> None:
    """And the first goes on."""
    second = start(path, stderr=subprocess.PIPE)
    _, errors = second.communicate(timeout=WAIT_SECONDS)
    assert second.returncode == 1
    assert errors.strip() == f"another model process already serves {path}."
    assert peer.stats().connections >= 1


@pytest.mark.slow
def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    """kill -9 leaves the file; the next server takes its place."""
    path = tmp_path / "p.sock"
    first = start(path)
    until(lambda: listening(path))
    first.kill()
    first.wait()
    assert path.exists()
    second = start(path)
    until(lambda: listening(path))
    assert stop(second) == 0


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """Somebody's file must not be deleted by a wrong setting."""
    path = tmp_path / "precious"
    path.write_text("keep")
    process = start(path, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert "is no socket" in errors
    assert path.read_text() == "keep"


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_reported_in_a_sentence(tmp_path: Path) -> None:
    """The process stays, says why, and refuses what needs the model."""
    path = tmp_path / "p.sock"
    process = start(path, generation="no-such-model", embedding="nor-this")
    until(lambda: listening(path))
    with Peer(path) as peer:
        peer.until_ready()
        assert peer.state.embedding_state == peer.state.generation_state == "failed"
        assert "no-such-model" in peer.state.generation_message
        peer.send(protocol.Embed(1, ("x",), 128), generate(2))
        assert [peer.receive(protocol.Failed).code for _ in range(2)] == ["unavailable"] * 2
    assert stop(process) == 0


@pytest.mark.slow
def test_embeddings_are_ready_before_the_generation_model(tmp_path: Path) -> None:
    """A client that is there from the start sees the states in this order."""
    path = tmp_path / "p.sock"
    process = start(path, GENERATION, EMBEDDING)
    until(lambda: listening(path))
    with Peer(path) as peer:
        seen = [(peer.state.embedding_state, peer.state.generation_state)]
        while seen[-1] != ("ready", "ready"):
            peer.state = peer.receive(protocol.Ready)
            seen.append((peer.state.embedding_state, peer.state.generation_state))
    assert ("ready", "loading") in seen
    assert stop(process) == 0


@pytest.mark.slow
def test_the_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The supervisor need not get a chance to say goodbye."""
    path = tmp_path / "p.sock"
    code = (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'local_models.server', '--socket', sys.argv[1]])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.DEVNULL)
    until(lambda: listening(path))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not path.exists())
