"""Alerts as posts to a webhook on the loopback: one each, in the receiver's form, bounded, its secret out of sight."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_diag import load_run
from dpo_diag.commands.diag import main
from dpo_diag.commands.news import news
from dpo_diag.errors import DiagError
from dpo_diag.tracking import LiveAlerts, Session, live_kinds
from dpo_diag.tracking.webhook import FORMAT_VARIABLE, VARIABLE, body_of, post, webhook_format, webhook_host

SECRET = "T0SECRET"


class Receiver(HTTPServer):
    """Keeps the bodies that it got; answers with `status`, or with nothing while `hangs` is not set."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.paths: list[str] = []
        self.status = 200
        self.hangs: threading.Event | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.hangs is not None:
                    outer.hangs.wait()
                    return
                outer.bodies.append(json.loads(body))
                outer.paths.append(self.path)
                self.send_response(outer.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return None

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/hooks/{SECRET}")
        yield server
        server.shutdown()


MESSAGE = {"run": "runs/a", "step": 7, "title": "loss_spike", "text": "loss 9 \x1b[2J", "level": "warn"}


def test_an_alert_is_one_post(receiver: Receiver) -> None:
    post(MESSAGE)
    assert receiver.bodies == [{"source": "dpo-diag", **MESSAGE, "text": "loss 9 <U+001B>[2J"}]
    assert receiver.paths == [f"/hooks/{SECRET}"]


@pytest.mark.parametrize(
    ("address", "form"),
    [("https://hooks.slack.com/services/x", "slack"), ("https://discord.com/api/webhooks/x", "discord"),
     ("https://notslack.example/x", "json")],
)  # fmt: skip
def test_the_form_follows_the_address(address: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, address)
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    assert webhook_format() == form
    monkeypatch.setenv(FORMAT_VARIABLE, "slack")
    assert webhook_format() == "slack"
    monkeypatch.setenv(FORMAT_VARIABLE, "teams")
    with pytest.raises(DiagError, match="unknown format of a webhook"):
        webhook_format()


def test_slack_and_discord_take_one_text() -> None:
    assert body_of({**MESSAGE, "text": "loss 9"}, "slack") == {"text": "loss_spike at step 7 of runs/a: loss 9"}
    assert list(body_of(MESSAGE, "discord")) == ["content"]


@pytest.mark.parametrize("address", ["ftp://host/x", "not an address", "http://[::1", "http://"])
def test_what_is_no_address_is_refused_without_naming_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{address}{SECRET}" if address != "http://" else address)
    with pytest.raises(DiagError, match=r"no webhook; in DPO_DIAG_WEBHOOK; got no http\(s\) address") as raised:
        webhook_host()
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_refusal_names_the_status_and_the_host_alone(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(DiagError, match=f"the webhook took no alert; in 127.0.0.1:.*; got status {status}") as raised:
        post(MESSAGE)
    assert SECRET not in str(raised.value)
    assert len(receiver.bodies) == 1  # a redirect is not followed


def test_one_that_hangs_is_given_up(receiver: Receiver) -> None:
    receiver.hangs = threading.Event()
    try:
        with pytest.raises(DiagError, match=r"the webhook took no alert; .*timed out"):
            post(MESSAGE, limit=0.05)
    finally:
        receiver.hangs.set()


def test_a_live_guard_posts_and_a_failure_warns_once(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a training does it: the environment alone asks for it; three failures in a row end it."""
    assert live_kinds("none") == ["webhook"]
    session = Session(live_kinds("none"), tmp_path)
    places = session.start({}, "mine")
    assert places["webhook"] == {"kind": "webhook", "host": f"127.0.0.1:{receiver.server_port}", "format": "json"}
    session.alert(3, "loss_spike", "loss 9")
    assert [(b["step"], b["title"], b["text"]) for b in receiver.bodies] == [(3, "loss_spike", "loss 9")]
    receiver.status = 500
    with caplog.at_level(logging.WARNING, "dpo_diag.tracking"):
        for step in range(5):
            session.alert(step, "loss_spike", "loss 9")
    session.close("finished")
    assert len(caplog.records) == 1
    assert len(receiver.bodies) == 1 + 3
    assert SECRET not in caplog.text + json.dumps(places)


class OpenRun:
    """What wandb.run is to a script that trains under it."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []

    def alert(self, **alert: Any) -> None:
        self.alerts.append(alert)


def test_alerts_find_the_webhook_and_the_run_that_is_open(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """None open and none wanted: nothing is said. A run that the script opens later gets what comes after it; one that
    raises is said once."""
    alerts, run = LiveAlerts(tmp_path / "r"), OpenRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    alerts(1, "loss_spike", "loss 9")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    alerts(2, "loss_spike", "loss 8")
    assert run.alerts == [{"title": "loss_spike", "text": "loss 8", "level": "WARN"}]
    assert [(b["run"], b["step"]) for b in receiver.bodies] == [(str(tmp_path / "r"), 1), (str(tmp_path / "r"), 2)]
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object()))
    alerts.close()
    for step in (3, 4):
        alerts(step, "loss_spike", "loss 7")
    assert len(caplog.records) == 1 and len(receiver.bodies) == 4


@pytest.mark.slow
def test_a_training_with_trackers_of_its_own_tells_them_and_the_webhook(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer alone, and the callback in another's: the run that the script has open in wandb, and the webhook."""
    from datasets import Dataset

    from dpo_diag.training import DiagCallback, DiagDPOTrainer
    from tests.training.tiny import arguments, make_model, make_pairs, make_tokenizer

    run = OpenRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1), args=arguments(tmp_path / "out"), recorder=tmp_path / "run",
        processing_class=make_tokenizer(), train_dataset=Dataset.from_list(make_pairs(2)),
    )  # fmt: skip
    trainer.monitor.guards.logged(float("nan"), 3)
    assert [(b["step"], b["title"]) for b in receiver.bodies] == [(3, "non_finite_loss")]
    assert [(a["title"], a["level"]) for a in run.alerts] == [("non_finite_loss", "WARN")]
    callback = DiagCallback(make_pairs(2), out=tmp_path / "probed", tokenizer=make_tokenizer())
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    callback.on_log(trainer.args, trainer.state, trainer.control, {"loss": float("inf")})
    callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert [(b["run"], b["title"]) for b in receiver.bodies[1:]] == [(str(tmp_path / "probed"), "non_finite_loss")]
    assert len(run.alerts) == 2
    assert load_run(tmp_path / "probed").info.status == "finished"


def test_only_news_is_told() -> None:
    def document(*codes: str, harm: str = "cannot_tell") -> dict[str, Any]:
        checks = [{"code": c, "title": f"title of {c}", "reason": "because", "outcome": "speaks"} for c in codes]
        return {"checks": checks, "verdict": {"harm": harm, "text": "It got worse."}}

    assert news(None, document()) is None
    assert news(document("A"), document("A")) is None
    assert news(document("A"), document("A", "B")) == ("B", "B, title of B: because")
    assert news(document("A"), document("A", harm="harmful")) == ("verdict: harmful", "It got worse.")
    assert news(document(harm="harmful"), document(harm="harmful")) is None


def test_a_watched_run_posts_what_is_new(
    receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished example: one look, one post with its harmful verdict and the checks that speak."""
    run = shutil.copytree(Path(__file__).resolve().parents[2] / "runs" / "example", tmp_path / "r")
    assert main(["explain", str(run), "--watch"]) == 0
    told = capsys.readouterr()
    (body,) = receiver.bodies
    assert (body["run"], body["level"]) == (str(run), "warn")
    assert body["title"].startswith("verdict: harmful, DVG")
    files = "".join(p.read_text(errors="replace") for p in run.glob("*.json"))
    assert SECRET not in told.out + told.err + files
