"""Written queries: a server that answers, is slow, talks nonsense or goes down, and a small model of this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset

from lbr_st.errors import LBRError
from lbr_st.training import questions as module
from lbr_st.training.questions import _problem, _query, questions

PASSAGES = Dataset.from_list([{"text": f"The tool number{n} is wiped dry and oiled before winter."} for n in range(20)])


class Server:
    """Answers on a port of its own; ``say(prompt)`` gives a text, the bytes of a whole reply, or None: it hangs up."""

    def __init__(self, say):
        self.say, self.prompts = say, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(json.dumps({"object": "list", "data": [{"id": "small", "object": "model"}]}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert body["model"] == "small"
                prompt = body["messages"][0]["content"]
                outer.prompts.append(prompt)
                said = outer.say(prompt)
                if isinstance(said, str):
                    message = {"message": {"role": "assistant", "content": said}, "index": 0, "finish_reason": "stop"}
                    said = json.dumps({"id": "1", "object": "chat.completion", "choices": [message]}).encode()
                if said is not None:
                    self.reply(said)

            def reply(self, said):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setattr(module, "RETRIES", 0)
    servers = []

    def make(say):
        servers.append(Server(say))
        return servers[-1]

    yield make
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def number_in(prompt):
    return int(prompt.rpartition("number")[2].split()[0])


def ask(server, folder, **options):
    said = []
    return questions(PASSAGES, server.url, folder=folder, say=said.append, **options), said


def test_each_passage_has_its_query_and_none_is_asked_for_twice(serve, tmp_path):
    server = serve(lambda prompt: f'Query: "how to store {number_in(prompt)}"\nbecause')
    found, said = ask(server, tmp_path, examples=["rusty scythe"])
    assert found == [(n, f"how to store {n}") for n in range(20)]
    assert said == [f"Queries by {server.url}: 20. Of those written now: 20 usable."]
    assert all("- rusty scythe\n" in prompt for prompt in server.prompts)
    assert ask(server, tmp_path, examples=["rusty scythe"]) == (found, [said[0].replace("20 usable", "none")])
    assert len(server.prompts) == 20
    ask(server, tmp_path)  # other examples, other queries
    assert len(server.prompts) == 40


def test_what_a_server_wrote_before_it_went_down_is_kept(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    server = serve(lambda prompt: None if len(server.prompts) > 10 else f"storing {number_in(prompt)}")
    with pytest.raises(LBRError, match=rf"{server.url}: the server does not answer: .*answers are kept"):
        ask(server, tmp_path)
    (tmp_path / "questions.jsonl").open("a").write('\n{"half a li')
    server.say, before = lambda prompt: f"again {number_in(prompt)}", len(server.prompts)
    found, _ = ask(server, tmp_path)
    assert len(server.prompts) - before == 10
    assert sum(query.startswith("storing") for _, query in found) == 10
    assert [row for row, _ in found] == list(range(20))


def test_a_slow_server_is_an_error_and_asked_again_where_it_was(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    server = serve(lambda prompt: time.sleep(0.4 if len(server.prompts) == 4 else 0) or f"storing {number_in(prompt)}")
    with pytest.raises(LBRError, match=r"does not answer: Request timed out\. .*answers are kept"):
        ask(server, tmp_path)
    assert len(ask(server, tmp_path)[0]) == 20
    assert len(server.prompts) < 25  # those that were answered are not asked for again


@pytest.mark.parametrize("reply", [b"<html>", b'{"choices": [{"message": {"content": null}}]}'])
def test_nonsense_is_skipped_and_counted(serve, tmp_path, reply):
    server = serve(lambda prompt: reply if number_in(prompt) % 2 else "storing tools")
    found, said = ask(server, tmp_path)
    assert found == [(n, "storing tools") for n in range(0, 20, 2)]
    assert said[0].endswith("10 empty, 10 usable.")
    with pytest.raises(LBRError, match="writes no query that can be used"):
        ask(serve(lambda prompt: reply), tmp_path / "new")


def test_a_server_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("openai")
    with pytest.raises(LBRError, match=r"does not answer: Connection error\. "):
        questions(PASSAGES, "http://127.0.0.1:9/v1", folder=tmp_path)


@pytest.mark.parametrize(
    ("answer", "query", "problem"),
    [
        ("\n Query:  how to  oil a blade?\nmore", "how to oil a blade?", None),
        ("- `oil`", "oil", None),
        ("1. 油をさす", "油をさす", None),
        ("", "", "empty"),
        ("?!", "?!", "empty"),
        ("12 + 34 = 46", "12 + 34 = 46", "no text"),
        ("oil \ufffd blade", "oil \ufffd blade", "no text"),
        ("oil " * 33, ("oil " * 33).strip(), "too long"),
        ("why is it wiped dry and oiled before winter", "why is it wiped dry and oiled before winter", None),
        ("so wiped dry and oiled before winter", "so wiped dry and oiled before winter", "copied"),
        ("oiled before winter", "oiled before winter", None),  # a keyword query may be a phrase
    ],
)
def test_what_is_kept_of_an_answer(answer, query, problem):
    assert _query(answer) == query
    assert _problem(query, "The blade is Wiped dry, and oiled before winter.") == problem


def test_a_model_of_this_machine_writes_too(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_prompt", lambda text, examples: text)
    monkeypatch.setattr(module, "_problem", lambda query, text: None if query else "empty")
    found = questions(PASSAGES, tiny_base("llama"), folder=tmp_path / "a", say=print)
    assert len(found) > 10  # random weights write letters
    assert questions(PASSAGES, tiny_base("llama"), folder=tmp_path / "b", say=print) == found
    assert questions(PASSAGES, tiny_base("llama"), folder=tmp_path / "c", say=print, seed=1) != found
    with pytest.raises(LBRError, match="no such folder"):
        questions(PASSAGES, "./nowhere", folder=tmp_path / "d")
