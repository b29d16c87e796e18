"""A registered version answers behind MLflow, with the refusals of biovlm, in this process and over HTTP (D7, D10)."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from components.platform.chat import Chat
from components.platform.settings import CHECKOUT, Settings
from components.platform.tracking import Tracking
from components.register import served
from components.register.served import Served
from model.errors import RefusedError
from tests.components.real_version import Version

pytestmark = pytest.mark.lane
START_SECONDS = 240


def png(colour=(220, 30, 30)):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def text(content):
    return base64.b64encode(content).decode()


IMAGE = text(png())


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A real version, promoted, and a folder of images that may be read."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "images").mkdir()
    (folder / "images" / "red.png").write_bytes(png())
    (folder / "outside.png").write_bytes(png())
    (folder / "images" / "link.png").symlink_to(folder / "outside.png")
    (folder / "images" / "broken.png").write_bytes(png()[:60])
    environment = {"BIOVLM_HOME": str(folder / "home"), "BIOVLM_RUN_ID": "run-1", "BIOVLM_SERVE_ROOT": str(folder / "images")}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'home' / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        made = Version(Settings.from_environment(), folder)
        made.train()
        made.evaluate()
        made.receipt = made.register()
        assert made.promote()["verdict"] == "promote"
        yield made


@pytest.fixture(scope="module")
def chat(version):
    return Chat(version.store, version.settings, str(version.receipt.facts["export"]))


MLFLOW = ["mlflow", "models", "serve", "-m", "models:/micro@champion", "--env-manager", "local", "--workers", "1"]
OWN = ["pipelines.cli", "serve", "--model", "models:/micro@champion"]


@pytest.fixture(scope="module", params=[MLFLOW, OWN], ids=["mlflow models serve", "biovlm serve"])
def server(version, request):
    """Address of a server, as an operator starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *request.param, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = (version.out / "serve.log").open("wb")
    process = subprocess.Popen(command, env=environment, cwd=version.out, stdout=log, stderr=log, start_new_session=True)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            assert process.poll() is None, (version.out / "serve.log").read_text()
            assert time.monotonic() < deadline, (version.out / "serve.log").read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
        log.close()


def ask(server, *rows):
    """Status and body of a request."""
    return send(server, json.dumps({"dataframe_records": rows}).encode())


def send(server, body, kind="application/json"):
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_mlflow_serves_what_chat_answers(server, chat, version):
    rows = [{"question": "Is it red?", "image": IMAGE}, {"question": "Which colour?", "image_path": "red.png"}]
    status, body = ask(server, *rows)
    assert status == 200
    expected = [chat.answer(png(), "Is it red?"), chat.answer(png(), "Which colour?")]
    assert body == {"predictions": [{"answer": answer} for answer in expected]}


LONG = "word " * 800
REFUSED = {
    "no image": ({}, 400, "in one way"),
    "two images": ({"image": IMAGE, "image_path": "red.png"}, 400, "in one way"),
    "no base64": ({"image": "%%%"}, 400, "not base64"),
    "no picture": ({"image": text(b"%PDF-1.7 secret")}, 400, "not a PNG, JPEG or BMP"),
    "half a picture": ({"image": text(png()[:60])}, 400, "truncated or damaged"),
    "a broken file": ({"image_path": "broken.png"}, 400, "truncated or damaged"),
    "a path to nothing": ({"image_path": "none.png"}, 400, "no image at that path"),
    "a path upwards": ({"image_path": "../outside.png"}, 403, "leaves the served folder"),
    "a whole path": ({"image_path": "/etc/passwd"}, 403, "leaves the served folder"),
    "a link outside": ({"image_path": "link.png"}, 403, "leaves the served folder"),
    "an address": ({"image_path": "http://example.org/a.png"}, 403, "leaves the served folder"),
    "a long question": ({"image": IMAGE, "question": LONG}, 400, "2,000 characters"),
    "an empty question": ({"image": IMAGE, "question": "  "}, 400, "2,000 characters"),
    "a control token": ({"image": IMAGE, "question": "secret <|eot_id|>"}, 400, "control token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_biovlm_would_refuse_is_refused_and_nothing_of_the_request_comes_back(server, name, version):
    row, status, words = REFUSED[name]
    found, body = ask(server, {"question": "A secret question", **row})
    assert found == status
    assert words in body["message"]
    assert "secret" not in json.dumps(body)
    assert str(version.out.parent) not in json.dumps(body)
    log = (version.out / "serve.log").read_text()
    assert "secret" not in log
    assert IMAGE not in log


JSON, CSV = "application/json", "text/csv"
UNREAD = {
    "half a request": (JSON, '{"dataframe_records": [{"question": "A secret'),
    "no UTF-8": (JSON, '{"question": "secret \xff"}'.encode("latin-1")),
    "a list": (JSON, '["a secret"]'),
    "another key": (JSON, '{"secret": ["a secret"]}'),
    "no question": (JSON, '{"dataframe_records": [{"image": "secret"}]}'),
    "a question that is a number": (JSON, '{"dataframe_records": [{"question": 5, "image": "secret"}]}'),
    "a question that is an object": (JSON, '{"dataframe_records": [{"question": {"secret": "secret"}, "image": "secret"}]}'),
    "columns of different lengths": (JSON, '{"dataframe_split": {"columns": ["question"], "data": [["secret", "secret"]]}}'),
    "a tensor": (JSON, '{"instances": ["a secret", 3]}'),
    "inputs of another shape": (JSON, '{"inputs": {"question": ["secret", "secret"], "image": ["secret"]}}'),
    "a chat": (JSON, '{"messages": [{"role": "user", "content": "a secret"}]}'),
    "a strange column": (JSON, '{"dataframe_records": [{"question": 5, "a secret": "secret"}]}'),
    "parameters": (JSON, '{"dataframe_records": [{"question": "secret", "image": "x"}], "params": {"secret": "secret"}}'),
    "a table": (CSV, 'question\n"a secret, "secret"\n'),
    "a table that is not UTF-8": (CSV, "question\nsecret \xff\n".encode("latin-1")),
    "no parquet": ("application/vnd.apache.parquet", "a secret"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_request_that_mlflow_refuses_comes_back_in_no_answer_and_no_log(server, name, version):
    kind, body = UNREAD[name]
    status, answer = send(server, body if isinstance(body, bytes) else body.encode(), kind)
    assert (status, bool(answer["message"])) == (400, True)
    for text_of in (json.dumps(answer), (version.out / "serve.log").read_text()):
        assert "secret" not in text_of
        assert "Traceback" not in text_of


def test_in_one_process_too_a_refusal_does_not_quote_the_question(loaded):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as refused:
        loaded.predict({"image": ["secret"]})
    assert "secret" not in str(refused.value)


def test_many_questions_at_once_are_refused(server):
    status, body = ask(server, *([{"question": "Is it red?", "image": IMAGE}] * 65))
    assert (status, "65 questions" in body["message"]) == (400, True)


@pytest.fixture(scope="module")
def loaded(version):
    import mlflow

    mlflow.set_tracking_uri(version.settings.tracking_uri)
    return mlflow.pyfunc.load_model("models:/micro@champion")


def test_the_version_loads_by_name_with_signature_and_example(loaded, chat):
    example = loaded.input_example
    assert list(example.columns) == ["question", "image"]
    (answer,) = loaded.predict(example)["answer"]
    assert answer == chat.answer(base64.b64decode(example["image"][0]), example["question"][0])
    names = [(column.name, column.required) for column in loaded.metadata.signature.inputs]
    assert tuple(names) == served.INPUTS


def test_the_folder_is_what_mlflow_itself_would_write(tmp_path):
    """`save_model` writes two more forms of the requirements, and its own paths and times."""
    import mlflow.pyfunc
    import pandas
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    (tmp_path / "own").mkdir()
    content = Served("m-1", "r", 0, "exports/x", "d" * 64, {"torch": "2.13.0+cpu"})
    files = served.write(tmp_path / "own", content)
    example = json.loads((tmp_path / "own" / served.EXAMPLE).read_text())
    (tmp_path / "assistant.py").write_text("from mlflow.models import set_model\nset_model(lambda model_input: model_input)\n")
    columns = [
        Schema([ColSpec("string", name, required=must) for name, must in part]) for part in (served.INPUTS, served.OUTPUTS)
    ]
    mlflow.pyfunc.save_model(
        tmp_path / "theirs",
        python_model=str(tmp_path / "assistant.py"),
        signature=ModelSignature(*columns),
        input_example=pandas.DataFrame(example["data"], columns=example["columns"]),
        pip_requirements=["torch==2.13.0"],
        model_config={"export": "exports/x", "digest": "d" * 64},
    )
    assert {path.name for path in (tmp_path / "theirs").iterdir()} - set(files) == {"conda.yaml"}
    own, theirs = (yaml.safe_load((tmp_path / name / "MLmodel").read_text()) for name in ("own", "theirs"))
    flavours = [one.pop("flavors")["python_function"] for one in (own, theirs)]
    for one in flavours:
        del one["cloudpickle_version"], one["env"]
        one["model_code_path"] = Path(one["model_code_path"]).name
    assert flavours[0] == flavours[1]
    for key in ("model_size_bytes", "model_uuid", "utc_time_created", "model_id", "run_id"):
        own.pop(key), theirs.pop(key, None)
    assert own == theirs
    assert (tmp_path / "own" / served.SERVING_EXAMPLE).read_text() == (tmp_path / "theirs" / served.SERVING_EXAMPLE).read_text()
    assert not [path for path in (tmp_path / "own").iterdir() if path.suffix in (".pkl", ".cloudpickle")]


def test_what_mlflow_holds_is_what_the_receipt_says_also_after_mlflow_loaded_it(loaded, version):
    assert loaded.metadata.model_id == version.receipt.facts["model_id"]
    assert Tracking(version.settings).served(version.receipt.facts["model_id"]) == version.receipt.facts["served"]


def test_a_version_whose_bytes_or_signature_changed_is_not_loaded(version):
    uri = str(version.receipt.facts["export"])
    path = version.store.root / uri / "generation_config.json"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(RefusedError, match="bytes"):
        Chat(version.store, version.settings, uri)
    path.write_bytes(content)
    other = replace(version.settings, signing_key=version.settings.home / "other.pem")
    with pytest.raises(Exception, match="trusted"):
        Chat(version.store, other, uri)


def test_a_pickled_model_is_not_read(version, tmp_path):
    """MLflow's own switch, which biovlm sets in every process that opens the tracking store."""
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    class Evil(mlflow.pyfunc.PythonModel):
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it-ran",))

        def predict(self, context, model_input):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "evil", python_model=Evil(), pip_requirements=[])
    (tmp_path / "it-ran").unlink(missing_ok=True)
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(str(tmp_path / "evil"))
    assert not (tmp_path / "it-ran").exists()
