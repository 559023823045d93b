"""Real servers for the tests of the registry: MLflow on a database, artifacts on S3, and a way there that breaks."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
NOT_FORWARDED = ("connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str, *, seconds: int = 240, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a URL answers."""
    for _ in range(2 * seconds):
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert alive(), "the server ended"
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


class Server:
    """An MLflow server that can be killed and started again, on the same port and the same data."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words, self.port = folder, words, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *self.words, "--workers", "1", "--port", str(self.port)],
            cwd=self.folder,
            env={**{k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}, **QUIET},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        answers(f"{self.uri}/health", alive=lambda: self.process.poll() is None)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
            self.process.wait(timeout=60)


@contextmanager
def mlflow_server(folder: Path, *words: str) -> Iterator[Server]:
    """`mlflow server WORDS`, one worker, in `folder`."""
    server = Server(folder, *words)
    try:
        yield server
    finally:
        server.kill(signal.SIGTERM)


@contextmanager
def s3(bucket: str) -> Iterator[dict[str, str]]:
    """An S3 server with this bucket; gives the environment in which MLflow finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=told["MLFLOW_S3_ENDPOINT_URL"], **keys).create_bucket(Bucket=bucket)
        yield told
    finally:
        server.stop()


def postgres_program(name: str) -> str | None:
    """Where initdb or pg_ctl is; none where PostgreSQL is not installed."""
    found = shutil.which(name)
    return found or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


@contextmanager
def postgres() -> Iterator[str]:
    """A new PostgreSQL database, by the URI that MLflow takes. Its programs refuse to run as root: nobody runs them."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # pytest's own folders are closed to nobody
    data, port, root = folder / "data", free_port(), os.getuid() == 0
    if root:
        shutil.chown(folder, "nobody")
    me = ["setpriv", "--reuid=nobody", "--clear-groups", "--"] if root else []

    def run(name: str, *words: str) -> None:
        program = [*me, str(postgres_program(name)), *words]
        subprocess.run(program, check=True, cwd=folder, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    try:
        run("initdb", "-D", str(data), "-A", "trust", "-U", "mlflow", "--no-sync", "-E", "UTF8")
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-o", settings, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# What may happen to a request on its way, by its number among all (from 1), method and path.
Rule = Callable[[int, str, str], str]
PASS, DROP, LOSE = "pass", "drop it unheard", "lose its answer"


@contextmanager
def way_to(port: int, rule: Rule) -> Iterator[str]:
    """An address that passes requests on to a port, or not, as `rule` says; it may also do something to the server."""
    lock, seen = threading.Lock(), [0]

    class Way(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone, or the server
                self.close_connection = True

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                seen[0] += 1
                what = rule(seen[0], self.command, self.path)
            if what == DROP:
                return self.cut()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in NOT_FORWARDED}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                return self.cut()
            finally:
                connection.close()
            if what == LOSE:
                return self.cut()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in NOT_FORWARDED:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Way)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
