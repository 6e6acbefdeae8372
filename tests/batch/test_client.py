"""The client on a server that says what the test lets it say: answers over HTTP, messages on a socket of our own."""

import json
import time

import pytest
import requests
import websocket
from nulltext.batch import client, places

ID = "the prompt"


class Server(client.Client):
    """A client whose server is in this process: `known` are the prompts of its history, `queue` what stands where."""

    def __init__(self, **more):
        super().__init__("http://nowhere", **more)
        self.known, self.running, self.pending, self.asked = {}, [], [], []
        self.answer = (200, {"prompt_id": ID})

    def get(self, path, timeout=60, **params):
        self.asked.append(path)
        queue = {"queue_running": self.running, "queue_pending": self.pending}
        return reply(200, queue if path == "/queue" else self.known)

    def post(self, path, body=None, timeout=60, **kwargs):
        self.asked.append((path, body))
        return reply(*self.answer)


class Socket:
    """Gives its messages, then calls what stands last for every further one."""

    def __init__(self, *script):
        self.script, self.heard = list(script), 0

    def settimeout(self, _):
        pass

    def recv_data(self):
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(said):
            said = said()
        return websocket.ABNF.OPCODE_TEXT, json.dumps(said).encode()


def quiet():
    time.sleep(0.01)
    raise websocket.WebSocketTimeoutException


def broken():
    raise websocket.WebSocketConnectionClosedException


def message(what, **data):
    return {"type": what, "data": {"prompt_id": ID, **data}}


def reply(status, body):
    made = requests.Response()
    made.status_code = status
    made._content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return made


def followed(server, socket, seconds=5.0):
    result = client.Result()
    entry = server._follow(socket, ID, result, None, time.monotonic() + seconds)
    return entry, result


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(client, "SILENCE", 0.05)


@pytest.mark.parametrize(
    "status, body, kind, words",
    [
        (503, {"message": "Service Unavailable"}, "server", "503"),
        (401, {"detail": "Not authenticated"}, "server", "Not authenticated"),
        (502, {"error": "no upstream"}, "server", "502"),
        (200, ["no", "object"], "server", "no"),
        (413, "Request Entity Too Large", "validation", "413"),
        (400, {"error": "no prompt", "node_errors": []}, "validation", "no prompt"),
    ],
)
def test_an_answer_without_a_prompt_id_is_an_error_that_says_what_came(status, body, kind, words):
    server = Server()
    server.answer = (status, body)
    prompt_id, result = server.queue({})
    assert prompt_id is None and result.error_type == kind and words in result.error


def test_a_picture_that_is_too_large_is_the_rows_own_failure(monkeypatch, tmp_path):
    remote = places.Remote("http://nowhere")
    (tmp_path / "a.png").write_bytes(b"a")
    monkeypatch.setattr(remote.client._http, "post", lambda *_, **__: reply(413, "too large"))
    outcome = remote.run({}, [(f"file://{tmp_path}/a.png", "a.png", "")], 5)
    assert outcome.error_type == "file" and "a.png" in outcome.error


def test_what_is_unread_when_the_history_has_the_end_still_counts():
    server = Server()

    def end_while_quiet():
        server.known[ID] = {"outputs": {}}
        quiet()

    last = [message("executing", node="9"), message("execution_cached", nodes=["1"]), message("executing", node=None)]
    entry, result = followed(server, Socket(message("executing", node="8"), end_while_quiet, *last, quiet))
    assert entry == {"outputs": {}} and result.ran == {"8", "9"} and result.cached == ("1",)


def test_an_end_that_no_message_tells_is_found_in_the_history():
    server = Server()
    server.known[ID] = {"outputs": {}}
    for last in (quiet, broken):
        assert followed(server, Socket(last))[0] == {"outputs": {}}


@pytest.mark.parametrize("last", [quiet, broken])
def test_a_server_that_has_lost_the_workflow_is_noticed(last):
    server = Server()
    server.pending = [[1, "somebody else's"]]
    entry, result = followed(server, Socket(last))
    assert entry is None and result.error_type == "server" and "lost" in result.error


def test_an_end_between_the_looks_at_history_and_queue_is_an_end():
    server = Server()
    queued = server._queued

    def ends(*args):
        server.known[ID] = {"outputs": {}}
        return queued(*args)

    server._queued = ends
    assert followed(server, Socket(quiet))[0] == {"outputs": {}}


def test_a_workflow_that_waits_its_turn_is_waited_for():
    server = Server()
    server.pending = [[1, ID]]
    _, result = followed(server, Socket(quiet), 0.3)
    assert result.error_type == "timeout" and server.asked.count("/queue") > 1


def test_a_server_out_of_reach_is_given_up_after_the_patience_and_a_deaf_one_at_the_time_limit(monkeypatch):
    for error, kind in ((requests.ConnectTimeout, "server"), (requests.ReadTimeout, "timeout")):
        server = Server(patience=0.1)

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(server, "get", fail)
        _, result = followed(server, Socket(quiet), 0.5)
        assert result.error_type == kind, error


@pytest.mark.parametrize("running, interrupts", [("somebody else's", 0), (ID, 1)])
def test_a_time_limit_interrupts_the_own_workflow_alone(running, interrupts):
    server = Server()
    server.running, server.pending = [[1, running]], [[2, ID]]
    assert followed(server, Socket(quiet), 0.1)[1].error_type == "timeout"
    asked = [said for said in server.asked if isinstance(said, tuple)]
    assert asked[0] == ("/queue", {"delete": [ID]})
    assert [path for path, _ in asked].count("/interrupt") == interrupts
