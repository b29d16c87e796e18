"""Who is told of the ledger's entries: a real HTTP server, a real file, processes that are killed in between."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import signal
import threading
from functools import partial

import pytest

from components.platform.ledger import outbox
from components.platform.ledger.entry import Kind
from components.platform.ledger.ledger import Draft, Ledger
from components.platform.places import Folder
from model.errors import ConfigError
from model.manifest import digest_of
from tests.forks import forked


class Receiver:
    """A webhook that keeps what it gets; it answers with `status`."""

    def __init__(self):
        self.got, self.status, outer = [], 204, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers), json.loads(body)))
                self.send_response(outer.status)
                if outer.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?secret=token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def ids(self):
        return [event["id"] for _, event in self.got]


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def book(tmp_path):
    made = Ledger(Folder(tmp_path / "ledger"), "mini", Clock())
    for number in range(1, 4):
        draft = Draft(Kind.PROMOTION, str(number), "me", {"champion": str(number)}, "the gate passed it")
        made.append(digest_of(number), lambda _, draft=draft: draft)
    return made


@pytest.fixture
def told(settings, receiver, tmp_path):
    return dataclasses.replace(settings, notify_webhook=receiver.url, notify_file=tmp_path / "out" / "events.jsonl")


def lines(settings):
    return [json.loads(line) for line in settings.notify_file.read_text().splitlines()]


def test_each_entry_is_posted_and_written_once_in_order_as_a_cloudevent(book, told, receiver):
    digests = [entry.digest for entry in book.entries()]
    assert outbox.deliver(told, book) == outbox.Delivery(told=6, waiting=0)
    assert outbox.deliver(told, book) == outbox.Delivery(told=0, waiting=0)
    assert receiver.ids == digests == [event["id"] for event in lines(told)]
    headers, event = receiver.got[1]
    assert headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert headers["ce-id"] == headers["Idempotency-Key"] == event["id"]
    required = {"specversion": "1.0", "source": "biovlm/registry/mini", "type": "biovlm.registry.promotion.v1"}
    assert required.items() <= event.items()
    assert (event["subject"], event["data"]["moves"]) == ("models:/mini/2", {"champion": "2"})


def test_many_that_deliver_at_once_post_each_event_once(book, told, receiver):
    threads = [threading.Thread(target=outbox.deliver, args=(told, book)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.deliver(told, book)
    assert sorted(receiver.ids) == sorted(entry.digest for entry in book.entries())
    assert len(lines(told)) == 3


@pytest.mark.parametrize("status", [500, 302])
def test_a_receiver_that_does_not_take_an_event_gets_it_later_and_stops_nothing(book, told, receiver, status):
    receiver.status = status
    assert outbox.deliver(told, book) == outbox.Delivery(told=3, waiting=3)
    assert len(receiver.got) == 1  # what comes behind it waits, too
    receiver.status = 200
    assert outbox.deliver(told, book) == outbox.Delivery(told=3, waiting=0)
    assert receiver.ids == [book.entries()[0].digest, *(entry.digest for entry in book.entries())]


def test_a_receiver_that_is_not_there_is_no_error(book, settings):
    gone = dataclasses.replace(settings, notify_webhook="http://127.0.0.1:9/hook")
    assert outbox.deliver(gone, book) == outbox.Delivery(told=0, waiting=3)


def test_a_sender_killed_before_it_posts_is_replaced_when_its_time_is_over(book, told, receiver, monkeypatch):
    def deliver():
        monkeypatch.setattr(outbox, "_post", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        outbox.deliver(told, book)
        return 0

    assert forked([deliver]) == [-signal.SIGKILL]
    assert outbox.deliver(told, book).waiting == 1  # for all anybody knows, it is still at it
    assert len(receiver.got) == 2
    book.clock.now += outbox.TRY_SECONDS
    assert outbox.deliver(told, book) == outbox.Delivery(told=1, waiting=0)
    assert sorted(receiver.ids) == sorted(entry.digest for entry in book.entries())


def test_a_sender_killed_after_the_receiver_took_an_event_leads_to_the_same_event_with_the_same_key(
    book, told, receiver, monkeypatch
):
    def deliver():
        create = book.place.create
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(book.place, "create", lambda name, content: kill() if "done" in name else create(name, content))
        outbox.deliver(told, book)
        return 0

    assert forked([deliver]) == [-signal.SIGKILL]
    assert len(receiver.got) == 1
    book.clock.now += outbox.TRY_SECONDS
    assert outbox.deliver(told, book) == outbox.Delivery(told=3, waiting=0)
    first, again = receiver.got[:2]
    assert first == again, "nothing tells the second from the first, so a receiver that keeps keys acts once"
    assert list(dict.fromkeys(receiver.ids)) == [entry.digest for entry in book.entries()]
    assert len(lines(told)) == 3, "the file holds each once, whoever was killed"


def test_a_line_that_a_killed_writer_left_half_is_written_anew(book, told):
    outbox.deliver(told, book)
    whole = told.notify_file.read_bytes()
    told.notify_file.write_bytes(whole[:-40])
    outbox.deliver(told, book)
    assert told.notify_file.read_bytes() == whole


def test_an_address_that_is_no_webhook_is_a_letter_that_does_not_show_it(book, settings):
    with pytest.raises(ConfigError) as letter:
        outbox.deliver(dataclasses.replace(settings, notify_webhook="file:///secret-token"), book)
    assert "secret-token" not in str(letter.value)
